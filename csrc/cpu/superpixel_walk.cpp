// superpixel_graph, superpixel_random_walk: Eq. 13-16 on the 4-neighbour graph of superpixels, as sorted neighbour lists (CSR).
//
//   mu_s = mean Lab of superpixel s,   w_st = exp(-|mu_s - mu_t| / (2 sigma^2)),   P = w / row sum,   u <- P u
//
// Labels are read as runs along the rows. Means: sums in fp64, run by run in raster order, a map or a fixed band of it at once.
// Edges: two superpixels touch at many pixels; a table of recent edges drops most repetitions before the rest is sorted.
// The walk takes a few maps at a time, [N, maps], which stay in the cache. So nothing depends on the number of threads.
#include "../lab.h"

#include "../buffer.h"
#include "../label_runs.h"
#include "../pixels.h"
#include "../superpixel_maps.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

namespace camguide {
namespace {

// --- the graph -------------------------------------------------------------------------------------------------------

CAMGUIDE_MULTIVERSION void lab_row(float* rgb, int64_t width) {  // linear [3, W], in place
  float *const r = rgb, *const g = rgb + width, *const b = rgb + 2 * width;
#pragma GCC ivdep
  for (int64_t x = 0; x < width; ++x) {
    const Lab<float> pixel = lab(r[x], g[x], b[x]);
    r[x] = pixel.L, g[x] = pixel.a, b[x] = pixel.b;
  }
}

void lab_row(double* rgb, int64_t width) {
  for (int64_t x = 0; x < width; ++x) {
    const Lab<double> pixel = lab(rgb[x], rgb[width + x], rgb[2 * width + x]);
    rgb[x] = pixel.L, rgb[width + x] = pixel.a, rgb[2 * width + x] = pixel.b;
  }
}

CAMGUIDE_MULTIVERSION void linear_row(float* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = linear(values[i]);
}

void linear_row(double* values, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] = linear(values[i]);
}

template <class T>
void find_lab(const T* image, int64_t height, int64_t width, Wide<T>* out) {  // [3, H, W] -> [3, H, W]
  float table[256];
  if constexpr (std::is_same_v<T, uint8_t>) {
    for (int v = 0; v < 256; ++v) table[v] = linear(static_cast<float>(v) / 255.0f);
  }
  torch::stable::parallel_for(0, height, 16, [&](int64_t begin, int64_t end) {
    const Buffer<Wide<T>> rgb(3 * width);
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t c = 0; c < 3; ++c) {
        const T* const row = image + (c * height + y) * width;
        for (int64_t x = 0; x < width; ++x) {
          if constexpr (std::is_same_v<T, uint8_t>) {
            rgb[c * width + x] = table[row[x]];
          } else {
            rgb[c * width + x] = row[x];
          }
        }
      }
      if constexpr (!std::is_same_v<T, uint8_t>) linear_row(rgb, 3 * width);
      lab_row(rgb, width);
      for (int64_t c = 0; c < 3; ++c) std::copy_n(rgb + c * width, width, out + (c * height + y) * width);
    }
  });
}

// Mean Lab of each superpixel, [N, 3]; 0 where it has no pixel.
template <class T>
std::vector<double> mean_colours(const T* image, const int32_t* segments, const Runs& runs, const int32_t* counts, int64_t n) {
  const int64_t pixels = runs.height * runs.width;
  const Buffer<Wide<T>> colours(3 * pixels);
  find_lab(image, runs.height, runs.width, +colours);
  // Bands of rows are summed apart, as many as cost little beside the pixels, and added up in their order.
  const int64_t bands = std::clamp<int64_t>(pixels / (16 * n), 1, 8), rows = (runs.height + bands - 1) / bands;
  std::vector<double> sums(bands * 3 * n);
  torch::stable::parallel_for(0, bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t top = std::min(i * rows, runs.height), bottom = std::min(top + rows, runs.height);
      sum_maps<3>(+colours, segments, runs, top, bottom, sums.data() + i * 3 * n);
    }
  });
  for (int64_t i = 1; i < bands; ++i) {
    for (int64_t j = 0; j < 3 * n; ++j) sums[j] += sums[i * 3 * n + j];
  }
  for (int64_t s = 0; s < n; ++s) {
    for (int64_t c = 0; c < 3; ++c) sums[3 * s + c] /= std::max(counts[s], 1);
  }
  sums.resize(3 * n);
  return sums;
}

// Edges as they are met, with fewer repetitions.
class Edges {
 public:
  std::vector<std::pair<int32_t, int32_t>> list;

  Edges() : recent_(kSlots, {-1, -1}) {}

  void add(int32_t s, int32_t t) {
    if (s == t) return;
    const std::pair<int32_t, int32_t> edge = std::minmax(s, t);
    auto& slot = recent_[(static_cast<uint32_t>(edge.first) * 2654435761u + static_cast<uint32_t>(edge.second)) % kSlots];
    if (slot == edge) return;
    list.push_back(slot = edge);
  }

 private:
  static constexpr uint32_t kSlots = 4096;
  std::vector<std::pair<int32_t, int32_t>> recent_;
};

std::vector<std::pair<int32_t, int32_t>> find_edges(const int32_t* segments, const Runs& runs) {
  std::mutex mutex;
  std::vector<std::pair<int32_t, int32_t>> all;
  torch::stable::parallel_for(0, runs.height, 64, [&](int64_t begin, int64_t end) {
    Edges edges;
    for (int64_t y = begin; y < end; ++y) {
      const int32_t* const row = segments + y * runs.width;
      for (int64_t id = runs.first(y) + 1; id < runs.end(y); ++id) edges.add(row[runs.start(id) - 1], row[runs.start(id)]);
      if (y == 0) continue;
      runs.touching(y, [&](int64_t i, int64_t j) { edges.add(row[runs.start(i) - runs.width], row[runs.start(j)]); });
    }
    const std::lock_guard<std::mutex> lock(mutex);
    all.insert(all.end(), edges.list.begin(), edges.list.end());
  });
  return all;
}

// Both directions of each edge once, ascending by (node, neighbour).
void sort_edges(const std::vector<std::pair<int32_t, int32_t>>& edges, int64_t n, int32_t* offsets, int32_t* neighbours) {
  std::vector<int64_t> end(n + 1);
  for (const auto& [s, t] : edges) ++end[s + 1], ++end[t + 1];
  for (int64_t s = 0; s < n; ++s) end[s + 1] += end[s];
  std::vector<int32_t> lists(end[n]);
  for (const auto& [s, t] : edges) lists[end[s]++] = t, lists[end[t]++] = s;  // end[s] moves to where the list of s ends
  int32_t* to = neighbours;
  for (int64_t s = 0, begin = 0; s < n; begin = end[s++]) {
    offsets[s] = static_cast<int32_t>(to - neighbours);
    std::sort(lists.begin() + begin, lists.begin() + end[s]);
    to = std::unique_copy(lists.begin() + begin, lists.begin() + end[s], to);
  }
  offsets[n] = static_cast<int32_t>(to - neighbours);
}

// Eq. 14-15. The largest exponent of a row cancels; without it no row underflows to 0 / 0.
template <class A>
void find_transition(
    const std::vector<double>& means, double sigma, bool squared, int64_t n, const int32_t* offsets, const int32_t* neighbours,
    A* transition) {
  std::vector<double> exponents;
  for (int64_t s = 0; s < n; ++s) {
    const int64_t degree = offsets[s + 1] - offsets[s];
    exponents.resize(degree);
    double top = -std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < degree; ++i) {
      const double* const mine = means.data() + 3 * s;
      const double* const theirs = means.data() + 3 * static_cast<int64_t>(neighbours[offsets[s] + i]);
      double norm = 0;
      for (int c = 0; c < 3; ++c) norm += (mine[c] - theirs[c]) * (mine[c] - theirs[c]);
      exponents[i] = -(squared ? norm : std::sqrt(norm)) / (2 * sigma * sigma);
      top = std::max(top, exponents[i]);
    }
    A* const row = transition + offsets[s];
    A total = 0;
    for (int64_t i = 0; i < degree; ++i) total += row[i] = std::exp(static_cast<A>(exponents[i] - top));
    for (int64_t i = 0; i < degree; ++i) row[i] /= total;
  }
}

// What the lists leave free is 0: the same result every time.
template <class A>
void clear(A* begin, A* end) {
  torch::stable::parallel_for(0, end - begin, 1 << 16, [&](int64_t i, int64_t j) { std::fill(begin + i, begin + j, A(0)); });
}

int64_t edge_slots(int64_t height, int64_t width, int64_t n) {  // directed edges that labels of this size can have at most
  return std::min(n * (n - 1), 2 * (height * (width - 1) + (height - 1) * width));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> superpixel_graph(
    const Tensor& segments, const Tensor& image, double sigma_color, bool squared, int64_t num_segments) {
  const int64_t batch = segments.size(0), height = segments.size(1), width = segments.size(2), n = num_segments;
  const int64_t slots = edge_slots(height, width, n), pixels = height * width;
  const Tensor labels = torch::stable::contiguous(segments), colours = torch::stable::contiguous(image);
  const auto dtype = image.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor counts = torch::stable::new_zeros(segments, {batch, n});
  Tensor offsets = torch::stable::new_empty(segments, {batch, n + 1});
  Tensor neighbours = torch::stable::new_empty(segments, {batch, slots});
  Tensor transition = torch::stable::new_empty(image, {batch, slots}, dtype);
  with_image(colours, "image", [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    for_each_image(batch, [&](int64_t i) {
      const int32_t* const own_labels = labels.const_data_ptr<int32_t>() + i * pixels;
      int32_t* const own_counts = counts.mutable_data_ptr<int32_t>() + i * n;
      int32_t* const own_offsets = offsets.mutable_data_ptr<int32_t>() + i * (n + 1);
      int32_t* const own_neighbours = neighbours.mutable_data_ptr<int32_t>() + i * slots;
      Runs runs(height, width);
      find_runs(own_labels, n, runs);
      for (int64_t y = 0; y < height; ++y) {
        for (int64_t id = runs.first(y); id < runs.end(y); ++id) {
          own_counts[own_labels[y * width + runs.start(id)]] += runs.stop(id) - runs.start(id);
        }
      }
      const auto means = mean_colours(data + i * 3 * pixels, own_labels, runs, own_counts, n);
      sort_edges(find_edges(own_labels, runs), n, own_offsets, own_neighbours);
      Wide<T>* const own_transition = transition.mutable_data_ptr<Wide<T>>() + i * slots;
      find_transition(means, sigma_color, squared, n, own_offsets, own_neighbours, own_transition);
      clear(own_neighbours + own_offsets[n], own_neighbours + slots);
      clear(own_transition + own_offsets[n], own_transition + slots);
    });
  });
  return {counts, offsets, neighbours, transition};
}

// --- the walk --------------------------------------------------------------------------------------------------------

template <class P>
struct Graph {  // of one image
  int64_t n;
  const int32_t *counts, *offsets, *neighbours;
  const P* transition;
};

// u [N, maps] -> P^iterations u; a superpixel without neighbours keeps its value.
template <int64_t maps, class A, class P>
CAMGUIDE_INLINE void walk(const Graph<P>& graph, int64_t iterations, A* u, A* next) {
  A* const result = u;
  for (int64_t step = 0; step < iterations; ++step, std::swap(u, next)) {
    for (int64_t s = 0; s < graph.n; ++s) {
      A sum[maps] = {};
      for (int64_t i = graph.offsets[s]; i < graph.offsets[s + 1]; ++i) {
        const A p = static_cast<A>(graph.transition[i]);
        const A* const theirs = u + static_cast<int64_t>(graph.neighbours[i]) * maps;
        for (int64_t k = 0; k < maps; ++k) sum[k] += p * theirs[k];
      }
      const bool alone = graph.offsets[s] == graph.offsets[s + 1];
      std::copy_n(alone ? u + s * maps : sum, maps, next + s * maps);
    }
  }
  if (u != result) std::copy_n(u, graph.n * maps, result);
}

template <int64_t maps, class T, class P>
CAMGUIDE_INLINE void walk_maps(
    const T* target, const int32_t* segments, const Runs& runs, const Graph<P>& graph, int64_t iterations, T* out) {
  const Buffer<double> sums(graph.n * maps);
  const Buffer<Wide<T>> u(graph.n * maps), next(graph.n * maps);
  std::fill_n(+sums, graph.n * maps, 0.0);
  sum_maps<maps>(target, segments, runs, 0, runs.height, sums);
  for (int64_t s = 0; s < graph.n; ++s) {
    for (int64_t k = 0; k < maps; ++k) {
      u[s * maps + k] = static_cast<Wide<T>>(sums[s * maps + k] / std::max(graph.counts[s], 1));
    }
  }
  walk<maps>(graph, iterations, +u, +next);
  spread_maps<maps>(+u, segments, runs, out);
}

// Maps [begin, end) of one image.
template <class T, class P>
CAMGUIDE_INLINE void walk_image(
    const T* target, const int32_t* segments, const Runs& runs, const Graph<P>& graph, int64_t iterations, int64_t begin,
    int64_t end, T* out) {
  in_groups(begin, end, [&](int64_t k, auto count) {
    const int64_t at = k * runs.height * runs.width;
    walk_maps<count()>(target + at, segments, runs, graph, iterations, out + at);
  });
}

CAMGUIDE_MULTIVERSION void walk_image(
    const float* target, const int32_t* segments, const Runs& runs, const Graph<float>& graph, int64_t iterations,
    int64_t begin, int64_t end, float* out) {
  walk_image<float, float>(target, segments, runs, graph, iterations, begin, end, out);
}

template <class T, class P>
void walk_batch(
    const T* target, const Tensor& segments, const Tensor& counts, const Tensor& offsets, const Tensor& neighbours,
    const P* transition, int64_t maps, int64_t iterations, T* out) {
  const int64_t batch = segments.size(0), height = segments.size(1), width = segments.size(2), pixels = height * width;
  const int64_t n = counts.size(1), slots = neighbours.size(1);
  for_each_image(batch, [&](int64_t i) {
    const int32_t* const labels = segments.const_data_ptr<int32_t>() + i * pixels;
    const Graph<P> graph{
        n, counts.const_data_ptr<int32_t>() + i * n, offsets.const_data_ptr<int32_t>() + i * (n + 1),
        neighbours.const_data_ptr<int32_t>() + i * slots, transition + i * slots};
    Runs runs(height, width);
    find_runs(labels, n, runs);
    const int64_t at = i * maps * pixels;
    torch::stable::parallel_for(0, maps, 1, [&](int64_t begin, int64_t end) {
      walk_image(target + at, labels, runs, graph, iterations, begin, end, out + at);
    });
  });
}

Tensor superpixel_random_walk(
    const Tensor& target, const Tensor& segments, const Tensor& counts, const Tensor& offsets, const Tensor& neighbours,
    const Tensor& transition, int64_t iterations) {
  const Tensor maps = torch::stable::contiguous(target), labels = torch::stable::contiguous(segments);
  const Tensor own_counts = torch::stable::contiguous(counts), own_offsets = torch::stable::contiguous(offsets);
  const Tensor own_neighbours = torch::stable::contiguous(neighbours), p = torch::stable::contiguous(transition);
  Tensor out = torch::stable::new_empty(target, {target.size(0), target.size(1), target.size(2), target.size(3)});
  with_image(maps, "target", [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    if constexpr (!std::is_same_v<T, uint8_t>) {
      const auto run = [&](auto* own_p) {
        walk_batch(
            data, labels, own_counts, own_offsets, own_neighbours, own_p, target.size(1), iterations,
            out.mutable_data_ptr<T>());
      };
      if (p.scalar_type() == ScalarType::Double) {
        run(p.const_data_ptr<double>());
      } else {
        run(p.const_data_ptr<float>());
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("superpixel_graph", TORCH_BOX(&superpixel_graph));
  m.impl("superpixel_random_walk", TORCH_BOX(&superpixel_random_walk));
}

}  // namespace camguide
