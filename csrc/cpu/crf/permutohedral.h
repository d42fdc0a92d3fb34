// Where pixels lie on the permutohedral lattice, Adams, Baek & Davis (2010); twin: camguide_fast/reference/_permutohedral.py.
//
// Which vertices exist is part of what the filter is, so the steps are those of the twin, in fp32, in its order, true division,
// ties to even, no product contracted with a sum: every machine finds the same simplices.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include "../common/simd.h"

#if defined(__clang__)
#define CAMGUIDE_NO_CONTRACTION  // clang contracts within an expression alone, and none below holds a product and a sum
#else
#define CAMGUIDE_NO_CONTRACTION __attribute__((optimize("fp-contract=off")))
#endif

namespace camguide {

// Pixels are worked on in square tiles, whose vertices fit in the nearest cache.
struct Tiles {
  static constexpr int64_t side = 32, pixels = side * side;

  int64_t h, w, across, count;

  Tiles(int64_t h, int64_t w) : h(h), w(w), across((w + side - 1) / side), count((h + side - 1) / side * across) {}

  int64_t top(int64_t tile) const { return tile / across * side; }
  int64_t left(int64_t tile) const { return tile % across * side; }
  int64_t height(int64_t tile) const { return std::min(side, h - top(tile)); }
  int64_t width(int64_t tile) const { return std::min(side, w - left(tile)); }
  int64_t size(int64_t tile) const { return height(tile) * width(tile); }  // its pixels are numbered row by row
};

// A vertex has d + 1 coordinates of sum 0; its number is the mixed-radix number of the first d, so that a step to a neighbour
// adds a constant.
template <int d>
struct Embedding {
  float scale[d + 1];         // [1 .. d]
  int64_t low[d], stride[d];  // number = sum (coordinate - low) stride

  // For features within [low, high].
  Embedding(const float (&low_feature)[d], const float (&high_feature)[d]) {
    const double up = static_cast<float>(std::sqrt(2.0 / 3) * (d + 1));
    double from[d + 1] = {}, to[d + 1] = {};
    for (int j = d; j > 0; --j) {
      scale[j] = static_cast<float>(up / std::sqrt(j * (j + 1.0)));
      const double a = double(low_feature[j - 1]) * scale[j], b = double(high_feature[j - 1]) * scale[j];
      from[j] -= j * b, to[j] -= j * a;
      for (int i = 0; i < j; ++i) from[i] += a, to[i] += b;
    }
    double numbers = 1, farthest = 0;
    int64_t step = 1;
    for (int i = d; i >= 0; --i) farthest = std::max({farthest, -from[i], to[i]});
    for (int i = d - 1; i >= 0; --i) {
      const double margin = 5 * (d + 1);  // rounding, a simplex and a step
      const double size = std::ceil(to[i] + margin) - std::floor(from[i] - margin) + 1;
      numbers *= size;
      STD_TORCH_CHECK(farthest <= (1 << 20) && numbers <= 0x1p62,
                      "gaussian/bilateral: a sigma is too small for the size or the "
                      "colours of the image: its lattice is too fine");
      low[i] = static_cast<int64_t>(std::floor(from[i] - margin));
      stride[i] = step;
      step *= static_cast<int64_t>(size);
    }
  }

  int64_t step(int axis) const {  // +1 in every coordinate, but -d along the axis
    int64_t sum = 0;
    for (int i = 0; i < d; ++i) sum += stride[i];
    return axis < d ? sum - (d + 1) * stride[axis] : sum;
  }
};

// The simplices of a tile's pixels: the first d coordinates of their vertex of remainder 0, the ranks of the pixel's distances to
// it, three bits each, and the barycentric weights of the vertices of remainders 0 .. d.
template <int d>
struct Simplices {
  alignas(64) float feature[d][Tiles::pixels];
  alignas(64) int32_t corner[d][Tiles::pixels];
  alignas(64) int32_t ranks[Tiles::pixels];
  alignas(64) float weight[d + 1][Tiles::pixels];
};

template <int d>
CAMGUIDE_NO_CONTRACTION CAMGUIDE_MULTIVERSION void find_simplices(const Embedding<d>& e, int64_t n, Simplices<d>& s) {
  using F = Vec<float>;
  using I = Vec<int32_t>;
  constexpr float magic = 0x1.8p23f;  // adding it rounds to an integer, ties to even, up to 2^22
  const float down = static_cast<float>(1.0 / (d + 1));
  for (int64_t p = 0; p < n; p += lanes<float>) {
    F position[d + 1], total = {};
    for (int j = d; j > 0; --j) {
      const F scaled = load(&s.feature[j - 1][p]) * e.scale[j];
      const F back = scaled * float(j);
      position[j] = total - back;
      total = total + scaled;
    }
    position[0] = total;
    I finite = position[0] - position[0] == 0;  // inf - inf and NaN are not 0
    for (int j = 1; j <= d; ++j) finite &= position[j] - position[j] == 0;
    F distance[d + 1], corner[d + 1], sum = {};
    for (int j = 0; j <= d; ++j) {
      position[j] = finite ? position[j] : F{};
      const F scaled = position[j] * down;
      const F shifted = scaled + magic;
      const F nearest = shifted - magic;
      sum = sum + nearest;
      corner[j] = nearest * float(d + 1);
      distance[j] = position[j] - corner[j];
    }
    I rank[d + 1];
    for (int j = 0; j <= d; ++j) rank[j] = __builtin_convertvector(sum, I);
    for (int i = 0; i < d; ++i) {
      for (int j = i + 1; j <= d; ++j) {
        const I below = distance[i] < distance[j];  // -1 where true
        rank[i] -= below;
        rank[j] += below + 1;
      }
    }
    F residual[d + 1];
    I packed = {};
    for (int j = 0; j <= d; ++j) {  // back onto the plane of sum 0
      const I wrap = (rank[j] > d) * (d + 1) - (rank[j] < 0) * (d + 1);
      rank[j] += wrap;
      corner[j] = corner[j] + __builtin_convertvector(wrap, F);
      const F apart = position[j] - corner[j];
      residual[j] = finite ? apart * down : F{} + __builtin_nanf("");
      packed |= rank[j] << (3 * j);
      if (j < d) store(&s.corner[j][p], __builtin_convertvector(corner[j], I));
    }
    store(&s.ranks[p], packed);
    F falling[d + 1];
    for (int k = 0; k <= d; ++k) {
      F at = residual[0];
      for (int j = 1; j <= d; ++j) at = rank[j] == d - k ? residual[j] : at;
      falling[k] = at;
    }
    const F rest = 1 - falling[d];
    store(&s.weight[0][p], falling[0] + rest);
    for (int k = 1; k <= d; ++k) store(&s.weight[k][p], falling[k] - falling[k - 1]);
  }
}

}  // namespace camguide
