// What superpixel_graph reads of an image, band by band: the mean Lab of each superpixel, its pixels, its neighbours.
#pragma once

#include "lab.h"

#include "../common/camguide.h"
#include "../common/parallel.h"
#include "edges.h"
#include "maps.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace camguide {
namespace {

CAMGUIDE_MULTIVERSION void find_lab(float* rgb, int64_t stride, int64_t n) {  // linear, in place; planes `stride` apart
  float *const r = rgb, *const g = rgb + stride, *const b = rgb + 2 * stride;
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) {
    const Lab<float> pixel = lab(r[x], g[x], b[x]);
    r[x] = pixel.L, g[x] = pixel.a, b[x] = pixel.b;
  }
}

void find_lab(double* rgb, int64_t stride, int64_t n) {
  for (int64_t x = 0; x < n; ++x) {
    const Lab<double> pixel = lab(rgb[x], rgb[stride + x], rgb[2 * stride + x]);
    rgb[x] = pixel.L, rgb[stride + x] = pixel.a, rgb[2 * stride + x] = pixel.b;
  }
}

CAMGUIDE_MULTIVERSION void undo_gamma(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = linear(values[i]);
}

void undo_gamma(double* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = linear(values[i]);
}

CAMGUIDE_MULTIVERSION int64_t cut_chunk(const int32_t* labels, int64_t begin, int64_t end, Piece* pieces, uint64_t* starts) {
  return cut(labels, begin, end, pieces, starts);
}

// Adds L, a, b to the sums of each piece's superpixel; `Lab` holds the pixels from `begin` on.
template <class A>
CAMGUIDE_INLINE void add_pieces(const A* Lab, int64_t stride, const Piece* pieces, int64_t count, int64_t begin, double* sums) {
  for (const Piece* p = pieces; p < pieces + count; ++p) {
    add_piece<3>(Lab + p->at - begin, stride, p->length, sums + int64_t{p->label} * kMaps);
  }
}

CAMGUIDE_MULTIVERSION void add_colours(const float* Lab, int64_t stride, const Piece* pieces, int64_t count, int64_t begin,
                                       double* sums) {
  add_pieces(Lab, stride, pieces, count, begin, sums);
}

void add_colours(const double* Lab, int64_t stride, const Piece* pieces, int64_t count, int64_t begin, double* sums) {
  add_pieces(Lab, stride, pieces, count, begin, sums);
}

struct Superpixels {            // or what a band of the image knows of them
  std::vector<double> colours;  // sums of Lab, then means, [N, 4]; 0 without pixels
  std::vector<int32_t> counts;  // of pixels
  std::vector<Edge> edges;      // each once, ascending
  bool inside = true;           // whether all labels are in [0, N); else the rest is not filled in
};

template <class T>
class Reader {
 public:
  Reader(const T* image, const int32_t* labels, int64_t height, int64_t width, int64_t n)
      : image_(image), labels_(labels), pixels_(height * width), width_(width), n_(n) {
    for (int v = 0; v < 256; ++v) linear_[v] = linear(static_cast<float>(v) / 255.0f);
  }

  // As many bands as cost little beside the pixels are read apart and added up in their order.
  Superpixels read() const {
    const int64_t count = std::bit_floor<uint64_t>(std::clamp<int64_t>(pixels_ / (8 * n_), 1, 16));
    const int64_t size = (pixels_ + count * kChunk - 1) / (count * kChunk) * kChunk;
    std::vector<Superpixels> bands(count);
    for_each(count, [&](int64_t i) {
      bands[i].colours.resize(n_ * kMaps);
      bands[i].counts.resize(n_);
      read_band(std::min(i * size, pixels_), std::min((i + 1) * size, pixels_), bands[i]);
    });
    Superpixels all = std::move(bands[0]);
    for (int64_t i = 1; i < count; ++i) all.inside &= bands[i].inside;
    if (!all.inside) return all;
    for (int64_t i = 1; i < count; ++i) {
      for (int64_t j = 0; j < n_ * kMaps; ++j) all.colours[j] += bands[i].colours[j];
      for (int64_t s = 0; s < n_; ++s) all.counts[s] += bands[i].counts[s];
      all.edges.insert(all.edges.end(), bands[i].edges.begin(), bands[i].edges.end());
    }
    for (int64_t s = 0; s < n_; ++s) {
      for (int64_t k = 0; k < kMaps; ++k) all.colours[s * kMaps + k] /= std::max(all.counts[s], 1);
    }
    sort_edges(all.edges, n_);
    return all;
  }

 private:
  const T* const image_;
  const int32_t* const labels_;
  const int64_t pixels_, width_, n_;
  float linear_[256];  // sRGB bytes without their gamma

  void read_band(int64_t first, int64_t last, Superpixels& band) const {
    constexpr int64_t stride = kChunk + kPiece;
    const Buffer<Wide<T>> colours(3 * stride);
    const Buffer<Piece> pieces(kChunk);
    uint64_t starts[kChunk / 64];
    for (int64_t begin = first; begin < last; begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, last), count = cut_chunk(labels_, begin, end, pieces, starts);
      if (band.inside = below(pieces, count, n_); !band.inside) return;
      for (int64_t c = 0; c < 3; ++c) {
        const T* const from = image_ + c * pixels_ + begin;
        Wide<T>* const to = colours + c * stride;
        if constexpr (std::is_same_v<T, uint8_t>) {
          look_up(linear_, from, end - begin, to);
        } else {
          for (int64_t x = 0; x < end - begin; ++x) to[x] = from[x];
          undo_gamma(to, end - begin);
        }
      }
      find_lab(colours, stride, end - begin);
      add_colours(colours, stride, pieces, count, begin, band.colours.data());
      for (int64_t i = 0; i < count; ++i) band.counts[pieces[i].label] += pieces[i].length;
    }
    Edges edges;
    find_edges(labels_, width_, first, last, edges);
    band.edges = std::move(edges.list);
  }
};

}  // namespace
}  // namespace camguide
