// superpixel_graph, superpixel_random_walk: Eq. 13-16 on the 4-neighbour graph of superpixels, as sorted neighbour lists (CSR).
//
//   mu_s = mean Lab of superpixel s,   w_st = exp(-|mu_s - mu_t| / (2 sigma^2)),   P = w / row sum,   u <- P u
//
// Labels are read as pieces of runs along the raster. A map is summed piece by piece, four maps together, and written back by
// permuting the values of the pieces; in between the walk stays in the cache, [N, maps]. Sums are fp64 (fp32 within a piece);
// the image is cut where the sizes ask for it, not the threads: nothing depends on their number.
#include "superpixels/lab.h"

#include "common/exp_log.h"
#include "common/parallel.h"
#include "superpixels/reader.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace camguide {
namespace {

// Eq. 14-15 from the exponents of all edges. The largest of a row cancels; without it no row underflows to 0 / 0.
template <class A>
CAMGUIDE_INLINE void find_transition(const double* exponents, const int32_t* offsets, int64_t n, A* transition) {
  for (int64_t s = 0; s < n; ++s) {
    double top = -std::numeric_limits<double>::infinity();
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) top = std::max(top, exponents[i]);
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) transition[i] = static_cast<A>(exponents[i] - top);
  }
  const int64_t edges = offsets[n], whole = edges / lanes<A> * lanes<A>;
  for (int64_t i = 0; i < whole; i += lanes<A>) store(transition + i, exp(load(transition + i)));
  if (whole < edges) {
    A rest[lanes<A>] = {};
    std::copy(transition + whole, transition + edges, rest);
    store(rest, exp(load(rest)));
    std::copy_n(rest, edges - whole, transition + whole);
  }
  for (int64_t s = 0; s < n; ++s) {
    A total = 0;
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) total += transition[i];
    for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) transition[i] /= total;
  }
}

CAMGUIDE_MULTIVERSION void transition_of(const double* exponents, const int32_t* offsets, int64_t n, float* transition) {
  find_transition(exponents, offsets, n, transition);
}

void transition_of(const double* exponents, const int32_t* offsets, int64_t n, double* transition) {
  find_transition(exponents, offsets, n, transition);
}

int64_t edge_slots(int64_t height, int64_t width, int64_t n) {  // directed edges that labels of this size can have at most
  return std::min(n * (n - 1), 2 * (height * (width - 1) + (height - 1) * width));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> superpixel_graph(const Tensor& segments, const Tensor& image, double sigma_color,
                                                            bool squared, int64_t num_segments, bool exact) {
  const int64_t batch = segments.size(0), height = segments.size(1), width = segments.size(2), n = num_segments;
  const int64_t pixels = height * width;
  STD_TORCH_CHECK(pixels <= std::numeric_limits<int32_t>::max(), "segments must have less than 2^31 pixels");
  const Tensor labels = torch::stable::contiguous(segments), colours = torch::stable::contiguous(image);
  std::vector<Superpixels> found(batch);
  with_image(colours, "image", [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    for_each_image(batch, [&](int64_t i) {
      found[i] = Reader<T>(data + i * 3 * pixels, labels.const_data_ptr<int32_t>() + i * pixels, height, width, n).read();
    });
  });
  int64_t slots = 0;
  for (const Superpixels& one : found) {
    STD_TORCH_CHECK(one.inside, "segments must be in [0, ", n, ") (num_segments)");
    slots = std::max(slots, static_cast<int64_t>(2 * one.edges.size()));
  }
  if (!exact) slots = edge_slots(height, width, n);
  Tensor counts = torch::stable::new_empty(segments, {batch, n});
  Tensor offsets = torch::stable::new_empty(segments, {batch, n + 1});
  Tensor neighbours = torch::stable::new_zeros(segments, {batch, slots});
  const auto place = [&](auto zero, ScalarType dtype) {
    using A = decltype(zero);
    Tensor transition = torch::stable::new_zeros(image, {batch, slots}, dtype);
    for_each_image(batch, [&](int64_t i) {
      std::copy_n(found[i].counts.data(), n, counts.mutable_data_ptr<int32_t>() + i * n);
      int32_t* const own_offsets = offsets.mutable_data_ptr<int32_t>() + i * (n + 1);
      int32_t* const own_neighbours = neighbours.mutable_data_ptr<int32_t>() + i * slots;
      std::vector<double> exponents(2 * found[i].edges.size());
      place_edges(found[i].edges, n, own_offsets, [&](const Edge& e, int32_t up, int32_t down) {
        const double* const low = found[i].colours.data() + int64_t{e.low} * kMaps;
        const double* const high = found[i].colours.data() + int64_t{e.high} * kMaps;
        double norm = 0;
        for (int c = 0; c < 3; ++c) norm += (low[c] - high[c]) * (low[c] - high[c]);
        exponents[up] = exponents[down] = -(squared ? norm : std::sqrt(norm)) / (2 * sigma_color * sigma_color);
        own_neighbours[up] = e.high;
        own_neighbours[down] = e.low;
      });
      transition_of(exponents.data(), own_offsets, n, transition.mutable_data_ptr<A>() + i * slots);
    });
    return transition;
  };
  const bool fp64 = image.scalar_type() == ScalarType::Double;
  const Tensor transition = fp64 ? place(0.0, ScalarType::Double) : place(0.0f, ScalarType::Float);
  return {counts, offsets, neighbours, transition};
}

template <class A>
struct Graph {  // of one image
  int64_t n;
  const int32_t *counts, *offsets, *neighbours;
  const A* transition;
};

constexpr int64_t kVectors = 4;  // of maps that walk together, at most

// One step of u [N, vectors]; a superpixel without neighbours keeps its value.
template <int64_t vectors, class A>
CAMGUIDE_INLINE void step(const Graph<A>& graph, const A* u, A* next) {
  constexpr int64_t maps = vectors * lanes<A>;
  for (int64_t s = 0; s < graph.n; ++s) {
    const int32_t begin = graph.offsets[s], end = graph.offsets[s + 1];
    Vec<A> sum[vectors] = {};
    for (int32_t i = begin; i < end; ++i) {
      const A* const theirs = u + graph.neighbours[i] * maps;
      for (int64_t v = 0; v < vectors; ++v) sum[v] += graph.transition[i] * load(theirs + v * lanes<A>);
    }
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = s * maps + v * lanes<A>;
      store(next + at, begin == end ? load(u + at) : sum[v]);
    }
  }
}

template <class A>
CAMGUIDE_INLINE void step(const Graph<A>& graph, int64_t vectors, const A* u, A* next) {
  if (vectors == 1) return step<1>(graph, u, next);
  if (vectors == 2) return step<2>(graph, u, next);
  if (vectors == 3) return step<3>(graph, u, next);
  step<kVectors>(graph, u, next);
}

// f(first map, number of maps as a constant) until all are done: 4 at a time, then 2, 1.
template <int64_t count = kMaps, class F>
CAMGUIDE_INLINE void in_groups(int64_t maps, const F& f, int64_t begin = 0) {
  for (; begin + count <= maps; begin += count) f(begin, std::integral_constant<int64_t, count>());
  if constexpr (count > 1) in_groups<count / 2>(maps, f, begin);
}

// Means of each map over the superpixels -> u [N, stride].
template <class T>
CAMGUIDE_INLINE void find_means(const T* target, const Pieces& pieces, const Graph<Wide<T>>& graph, int64_t maps, Wide<T>* u,
                                int64_t stride) {
  const Buffer<double> sums(graph.n * kMaps);
  std::fill_n(u, graph.n * stride, Wide<T>(0));
  in_groups(maps, [&](int64_t k, auto count) {
    std::fill_n(+sums, graph.n * kMaps, 0.0);
    sum_maps<count()>(target + k * pieces.pixels, pieces, sums);
    for (int64_t s = 0; s < graph.n; ++s) {
      const double pixels = std::max(graph.counts[s], 1);
      for (int64_t j = 0; j < count(); ++j) u[s * stride + k + j] = static_cast<Wide<T>>(sums[s * kMaps + j] / pixels);
    }
  });
}

// u [N, stride] -> the maps, each pixel with the value of its superpixel.
template <class T>
CAMGUIDE_INLINE void write_maps(const Wide<T>* u, int64_t stride, const Pieces& pieces, int64_t maps, T* out) {
  constexpr int64_t width = kChunk + 2 * kPiece;  // behind the last value a vector is read
  const Buffer<Wide<T>> values(kMaps * width);
  in_groups(maps, [&](int64_t k, auto count) {
    for (int64_t chunk = 0; chunk < pieces.chunks(); ++chunk) {
      const int64_t begin = pieces.begin(chunk), n = pieces.end(chunk) - begin;
      const Piece* const own = pieces.of(chunk);
      for (int64_t i = 0; i < pieces.count(chunk); ++i) {
        for (int64_t j = 0; j < count(); ++j) values[j * width + i] = u[own[i].label * stride + k + j];
      }
      spread<count()>(pieces.starts(chunk), +values, width, n, out + k * pieces.pixels + begin, pieces.pixels);
    }
  });
}

template <class T>
CAMGUIDE_INLINE void walk_maps(const T* target, const Pieces& pieces, const Graph<Wide<T>>& graph, int64_t iterations,
                               int64_t maps, T* out) {
  using A = Wide<T>;
  constexpr int64_t most = kVectors * lanes<A>;
  const Buffer<A> u(graph.n * most), next(graph.n * most);
  for (int64_t k = 0; k < maps; k += most) {
    const int64_t together = std::min(maps - k, most), stride = round_to_lanes<A>(together);
    A *from = u, *to = next;
    find_means(target + k * pieces.pixels, pieces, graph, together, from, stride);
    for (int64_t i = 0; i < iterations; ++i, std::swap(from, to)) step(graph, stride / lanes<A>, from, to);
    write_maps(from, stride, pieces, together, out + k * pieces.pixels);
  }
}

// The maps of one image that a thread is given.
CAMGUIDE_MULTIVERSION void walk_image(const float* target, const Pieces& pieces, const Graph<float>& graph, int64_t iterations,
                                      int64_t maps, float* out) {
  walk_maps(target, pieces, graph, iterations, maps, out);
}

CAMGUIDE_MULTIVERSION void walk_image(const Half* target, const Pieces& pieces, const Graph<float>& graph, int64_t iterations,
                                      int64_t maps, Half* out) {
  walk_maps(target, pieces, graph, iterations, maps, out);
}

CAMGUIDE_MULTIVERSION void walk_image(const BFloat16* target, const Pieces& pieces, const Graph<float>& graph,
                                      int64_t iterations, int64_t maps, BFloat16* out) {
  walk_maps(target, pieces, graph, iterations, maps, out);
}

CAMGUIDE_MULTIVERSION void walk_image(const double* target, const Pieces& pieces, const Graph<double>& graph,
                                      int64_t iterations, int64_t maps, double* out) {
  walk_maps(target, pieces, graph, iterations, maps, out);
}

CAMGUIDE_MULTIVERSION bool find_pieces(const int32_t* labels, int64_t chunk, int64_t n, Pieces& pieces) {
  pieces.find(labels, chunk);
  return below(pieces.of(chunk), pieces.count(chunk), n);
}

template <class T>
void walk_batch(const T* target, const Tensor& segments, const Tensor& counts, const Tensor& offsets, const Tensor& neighbours,
                const Wide<T>* transition, int64_t maps, int64_t iterations, T* out) {
  const int64_t batch = segments.size(0), pixels = segments.size(1) * segments.size(2);
  const int64_t n = counts.size(1), slots = neighbours.size(1);
  std::atomic<bool> outside = false;
  for_each_image(batch, [&](int64_t i) {
    const int32_t* const labels = segments.const_data_ptr<int32_t>() + i * pixels;
    const Graph<Wide<T>> graph{n, counts.const_data_ptr<int32_t>() + i * n, offsets.const_data_ptr<int32_t>() + i * (n + 1),
                               neighbours.const_data_ptr<int32_t>() + i * slots, transition + i * slots};
    Pieces pieces(pixels);
    for_each_block(pieces.chunks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        if (!find_pieces(labels, chunk, n, pieces)) outside = true;
      }
    });
    if (outside) return;
    const int64_t threads = threads_at_hand(), share = (maps + threads - 1) / threads;
    for_each_block(maps, share, [&](int64_t begin, int64_t end) {
      const int64_t at = (i * maps + begin) * pixels;
      walk_image(target + at, pieces, graph, iterations, end - begin, out + at);
    });
  });
  STD_TORCH_CHECK(!outside, "segments must be in [0, ", n, ") (num_segments)");
}

Tensor superpixel_random_walk(const Tensor& target, const Tensor& segments, const Tensor& counts, const Tensor& offsets,
                              const Tensor& neighbours, const Tensor& transition, int64_t iterations) {
  const Tensor maps = torch::stable::contiguous(target), labels = torch::stable::contiguous(segments);
  const Tensor own_counts = torch::stable::contiguous(counts), own_offsets = torch::stable::contiguous(offsets);
  const Tensor own_neighbours = torch::stable::contiguous(neighbours);
  const auto dtype = wide(target.scalar_type());
  const Tensor converted = transition.scalar_type() == dtype ? transition : torch::stable::to(transition, dtype);
  const Tensor p = torch::stable::contiguous(converted);
  Tensor out = new_like(target);
  with_floats(maps, "target", [&](auto* data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
    walk_batch(data, labels, own_counts, own_offsets, own_neighbours, p.const_data_ptr<Wide<T>>(), target.size(1), iterations,
               out.mutable_data_ptr<T>());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("superpixel_graph", TORCH_BOX(&superpixel_graph));
  m.impl("superpixel_random_walk", TORCH_BOX(&superpixel_random_walk));
}

}  // namespace camguide
