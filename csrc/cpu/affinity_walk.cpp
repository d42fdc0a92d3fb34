// affinity_random_walk: x T^n, n = 2^log2_steps, x = cam (1 - edge); see camguide_fast/ops/affinity_walk.py.
//
// T = A D^-1 with A symmetric and D its column sums, so (x T)_j = (P x)_j = x_j + sum_i A_ij (x_i - x_j) / d_j, and P is similar
// to the symmetric D^-1/2 A D^-1/2, whose spectrum lies in [-1, 1]. With T_k the Chebyshev polynomials and R_n a walk on the
// integers of n steps +-1,
//
//   s^n = sum_k Pr(|R_n| = k) T_k(s) = 1 + sum_{k >= 1} C_k (T_k(s) - T_{k-1}(s)),   C_k = Pr(|R_n| >= k).
//
// |R_n| is seldom far above sqrt(n). The sum is cut at the first m where the terms left out, at most 2 C_{m+1} together, are
// below half a unit of rounding: m = 88 of 256 steps in fp32. A walk of few steps is not cut at all. With y_k = T_k(P) x and
// v_k = y_k - y_{k-1} a step is v_{k+1} = v_k + 2 (P - 1) y_k, where v_1 = (P - 1) y_0. As everything is written in differences,
// what they cancel never enters: a constant map stays what it is to the last bit.
//
// A lies in one plane for each pair of opposite offsets, row by row, so that a row's weights are read in one go and serve both
// directions: j gives and takes the same. Images are padded with zeros, which have no affinity to anything.
#include "common/camguide.h"
#include "common/parallel.h"
#include "common/paths.h"
#include "common/windows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace camguide {
namespace {

constexpr int kMostChannels = 4;  // that share a pass over the weights: what registers hold

// C_1 .. C_m of the comment above, for an error of at most `bound`.
std::vector<double> chebyshev_weights(int64_t log2_steps, double bound) {
  const double n = std::ldexp(1., static_cast<int>(log2_steps));
  const int64_t parity = log2_steps == 0;  // |R_n| has the parity of n
  std::vector<double> mass;                // at |R_n| = parity, parity + 2, ..., up to a factor
  double p = parity ? 2 : 1, total = 0;
  for (double k = parity; k <= n && p > 1e-30; k += 2) {
    mass.push_back(p);
    p *= (n - k) / (n + k + 2) * (k == 0 ? 2 : 1);
  }
  std::vector<double> tail(2 * mass.size() + parity, 0.);  // tail[k] = Pr(|R_n| >= k)
  for (int64_t i = static_cast<int64_t>(mass.size()) - 1; i >= 0; --i) {
    total += mass[i];
    tail[2 * i + parity] = total;
    if (2 * i + parity > 0) tail[2 * i + parity - 1] = total;
  }
  std::vector<double> weights;
  for (size_t k = 1; k < tail.size() && 2 * tail[k] > bound * total; ++k) weights.push_back(tail[k] / total);
  return weights;
}

// Affinities and sizes of one image.
template <class A>
struct Graph {
  int64_t height, width, ry, rx;  // ry, rx: how far the offsets reach
  int64_t columns;                // the width in whole vectors
  int64_t row, rows;              // stride of a row and number of rows of a padded map
  std::vector<Offset> offsets;
  int64_t weight_row;                       // stride of a row of all weights
  std::vector<int64_t> forth, back, shift;  // of each offset: its weights seen from j, from its opposite; in a padded map
  Arena<A> arena;
  A *openness, *weights, *inverse;

  Graph(int64_t height, int64_t width, int64_t radius)
      : height(height),
        width(width),
        ry(std::min(radius, height) - 1),
        rx(std::min(radius, width) - 1),
        columns(round_to_lanes<A>(width)),
        row(columns + 2 * round_to_lanes<A>(rx)),
        rows(height + 2 * ry),
        offsets(half_plane_offsets(radius, height, width)),
        weight_row(static_cast<int64_t>(offsets.size()) * row),
        arena(2 * rows * row + (height + ry) * weight_row),
        openness(arena.take(rows * row) + origin()),
        weights(arena.take((height + ry) * weight_row) + ry * weight_row + rx),
        inverse(arena.take(rows * row) + origin()) {
    for (size_t o = 0; o < offsets.size(); ++o) {
      const auto& [dy, dx, path] = offsets[o];
      forth.push_back(o * row);
      back.push_back(o * row - dy * weight_row - dx);
      shift.push_back(dy * row + dx);
    }
  }
  int64_t origin() const { return ry * row + rx; }  // of cell (0, 0) in a padded map
};

// A_ij = (1 - max edge)^beta is the least `openness` (1 - edge)^beta on the path; outside the image openness is 0.
template <class A>
CAMGUIDE_MULTIVERSION void fill_weights(const Graph<A>& g, int64_t y0, int64_t y1) {
  for (int64_t y = y0; y < y1; ++y)
    for (size_t o = 0; o < g.offsets.size(); ++o)
      for (int64_t x = 0; x < g.columns; x += lanes<A>) {
        const A* const here = g.openness + y * g.row + x;
        Vec<A> least = load(here);
        for (const auto& [py, px] : g.offsets[o].path) {
          const Vec<A> open = load(here + py * g.row + px);
          least = open < least ? open : least;
        }
        store(g.weights + y * g.weight_row + o * g.row + x, least);
      }
}

template <class A>
CAMGUIDE_MULTIVERSION void fill_inverse(const Graph<A>& g, int64_t y0, int64_t y1) {
  for (int64_t y = y0; y < y1; ++y)
    for (int64_t x = 0; x < g.columns; x += lanes<A>) {
      const A* const weights = g.weights + y * g.weight_row + x;
      Vec<A> sum = Vec<A>{} + A(1);  // A_jj
      for (size_t o = 0; o < g.offsets.size(); ++o) sum += load(weights + g.forth[o]) + load(weights + g.back[o]);
      store(g.inverse + y * g.row + x, A(1) / sum);
    }
}

// The maps of up to kMostChannels classes, padded: cell (0, 0) of the first.
template <class A>
struct Walk {
  int64_t plane;  // from one class to the next
  A *y, *next, *velocity, *sum;
};

// Rows [y0, y1) of a step: v += factor (P - 1) y, next = y + v, sum += c v.
template <int C, class A>
CAMGUIDE_MULTIVERSION void step_rows(const Graph<A>& g, const Walk<A>& w, A factor, A c, int64_t y0, int64_t y1) {
  const int64_t n = static_cast<int64_t>(g.offsets.size());
  for (int64_t y = y0; y < y1; ++y)
    for (int64_t x = 0; x < g.columns; x += lanes<A>) {
      const int64_t at = y * g.row + x;
      const A *const weights = g.weights + y * g.weight_row + x, *const from = w.y + at;
      Vec<A> here[C], ahead[C], behind[C];
      for (int k = 0; k < C; ++k) {
        here[k] = load(from + k * w.plane);
        ahead[k] = behind[k] = Vec<A>{};
      }
      for (int64_t o = 0; o < n; ++o) {
        const Vec<A> forth = load(weights + g.forth[o]), back = load(weights + g.back[o]);
        const int64_t shift = g.shift[o];
        for (int k = 0; k < C; ++k) {
          ahead[k] += forth * (load(from + k * w.plane + shift) - here[k]);
          behind[k] += back * (load(from + k * w.plane - shift) - here[k]);
        }
      }
      const Vec<A> scale = factor * load(g.inverse + at);
      for (int k = 0; k < C; ++k) {
        const int64_t cell = at + k * w.plane;
        const Vec<A> velocity = load(w.velocity + cell) + scale * (ahead[k] + behind[k]);
        store(w.velocity + cell, velocity);
        store(w.next + cell, here[k] + velocity);
        store(w.sum + cell, load(w.sum + cell) + c * velocity);
      }
    }
}

template <class A>
void step(const Graph<A>& g, const Walk<A>& w, int channels, A factor, A c) {
  const int64_t rows = std::max<int64_t>(1, (1 << 15) / (g.weight_row + 1));  // a piece should outweigh its taking
  for_each_block(g.height, rows, [&](int64_t y0, int64_t y1) {
    switch (channels) {
      case 1:
        return step_rows<1>(g, w, factor, c, y0, y1);
      case 2:
        return step_rows<2>(g, w, factor, c, y0, y1);
      case 3:
        return step_rows<3>(g, w, factor, c, y0, y1);
      default:
        return step_rows<kMostChannels>(g, w, factor, c, y0, y1);
    }
  });
}

template <class A>
void walk_image(Graph<A>& g, const std::vector<double>& weights, double beta, const A* edge, const A* cam, A* out,
                int64_t channels) {
  const int64_t cells = g.height * g.width, padded = g.rows * g.row;
  for (int64_t y = 0; y < g.height; ++y)
    for (int64_t x = 0; x < g.width; ++x)
      g.openness[y * g.row + x] = std::pow(A(1) - edge[y * g.width + x], static_cast<A>(beta));
  for_each_block(g.height, 4, [&](int64_t y0, int64_t y1) { fill_weights(g, y0, y1); });
  for_each_block(g.height, 4, [&](int64_t y0, int64_t y1) { fill_inverse(g, y0, y1); });
  for (int64_t first = 0; first < channels; first += kMostChannels) {
    const int share = static_cast<int>(std::min<int64_t>(kMostChannels, channels - first));
    Arena<A> arena(4 * share * padded);
    Walk<A> w{padded};
    for (A** map : {&w.y, &w.next, &w.velocity, &w.sum}) *map = arena.take(share * padded) + g.origin();
    const auto each_cell = [&](const auto& f) {
      for (int64_t k = 0; k < share; ++k)
        for (int64_t y = 0; y < g.height; ++y)
          for (int64_t x = 0; x < g.width; ++x) f(k * padded + y * g.row + x, (first + k) * cells, y * g.width + x);
    };
    each_cell([&](int64_t at, int64_t map, int64_t cell) { w.sum[at] = w.y[at] = cam[map + cell] * (A(1) - edge[cell]); });
    for (size_t k = 0; k < weights.size(); ++k) {
      step(g, w, share, k == 0 ? A(1) : A(2), static_cast<A>(weights[k]));
      std::swap(w.y, w.next);
    }
    each_cell([&](int64_t at, int64_t map, int64_t cell) { out[map + cell] = w.sum[at]; });
  }
}

Tensor affinity_random_walk(const Tensor& cam, const Tensor& edge, int64_t radius, double beta, int64_t log2_steps) {
  STD_TORCH_CHECK(log2_steps <= 40, "log2_steps must be at most 40, got ", log2_steps);
  const ScalarType type = cam.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor x = torch::stable::contiguous(torch::stable::to(cam, type));
  const Tensor e = torch::stable::contiguous(torch::stable::to(edge, type));
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3), cells = height * width;
  Tensor out = torch::stable::new_empty(x, {batch, channels, height, width});
  const auto walk = [&]<class A>(A) {
    const std::vector<double> weights = chebyshev_weights(log2_steps, std::numeric_limits<A>::epsilon() / 2);
    Graph<A> graph(height, width, radius);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t maps = b * channels * cells;
      walk_image(graph, weights, beta, e.const_data_ptr<A>() + b * cells, x.const_data_ptr<A>() + maps,
                 out.mutable_data_ptr<A>() + maps, channels);
    }
  };
  type == ScalarType::Double ? walk(0.0) : walk(0.0f);
  return torch::stable::to(out, cam.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("affinity_random_walk", TORCH_BOX(&affinity_random_walk)); }

}  // namespace camguide
