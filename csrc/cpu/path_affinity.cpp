// path_affinity: the loss of AffinityNet (IRN), see camguide_fast/ops/path_affinity.py. For each pair of cells nearer than the
// radius, m the maximum of edge on the path between them:
//
//     same label:       -log(1 - m + eps),   slope d/dm =  1 / (1 - m + eps)
//     different labels: -log(m + eps),       slope d/dm = -1 / (m + eps)
//
// each times share / number of pairs of its kind (background, one class, different); the slope is the gradient at the first cell
// of the path, row by row, where edge = m.
//
// All pairs with one offset are a shift of the whole map, so that eight of them side by side are one vector. A path is one run of
// cells in each of its rows, and the maxima of all runs of 2, 3, ... cells are maps made beforehand: at radius 10 a path is 5
// runs, not 14 cells. It is read twice, for the maximum and to hand the slope on: the run that compares equal takes it and leaves
// 0 for those to come, which needs no index. What the runs have taken goes down to their cells in the end. Cells outside the
// image have an unknown label, and a pair with one a slope of 0.
//
// A task takes the pairs that begin in kTile rows of an image and has gradient rows of its own, which reach beyond by the
// radius; they are added up in the order of the tiles. Nothing depends on the number of threads. The pairs of each kind are
// counted first: their numbers divide the slopes.
#include "common/buffer.h"
#include "common/exp_log.h"
#include "common/parallel.h"
#include "common/paths.h"
#include "common/rows.h"

#include <limits>
#include <tuple>

namespace camguide {
namespace {

constexpr int64_t kTile = 28;
constexpr int kUnroll = 2;  // vectors at a time
constexpr double kEpsilon = 1e-5;
constexpr double kLargest = 32768;  // of a stored gradient: within fp16

enum Kind { kBackground, kForeground, kDifferent, kKinds };
constexpr double kShares[kKinds] = {0.25, 0.25, 0.5};

// Labels in lanes like those of A; -1 is unknown.
template <class A>
using LabelOf = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

struct Step {
  int64_t dy, dx, end;
  std::vector<int64_t> runs;  // where a path's runs are, in the maps of runs
};

// How maps lie in memory: rows end in at least as much padding as vectors may read beyond the last cell.
struct Grid {
  int64_t height, width, row, reach;  // reach: the rows by which a pair may leave its tile
  int64_t longest = 1;                // cells of a run
  int64_t plane = 0;                  // from the map of runs of n cells to that of n + 1
  int64_t paths = 0;                  // of a cell: the most pairs on whose path it may be
  std::vector<Step> steps;

  template <class A>
  static Grid of(int64_t height, int64_t width, int64_t radius) {
    Grid g{height, width, round_to_lanes<A>(width + kUnroll * lanes<A>), std::min(radius, height) - 1};
    const std::vector<Offset> offsets = half_plane_offsets(radius, height, width);
    for (const Offset& offset : offsets) g.longest = std::max(g.longest, std::abs(offset.dx) + 1);
    g.plane = round_to_lanes<A>((kTile + g.reach) * g.row + g.longest);
    for (const auto& [dy, dx, path] : offsets) {
      Step& step = g.steps.emplace_back(Step{dy, dx, dy * g.row + dx, {}});
      for (size_t c = 0; c < path.size(); ++c) {
        const bool begins = c == 0 || path[c - 1].first != path[c].first;
        if (begins)
          step.runs.push_back(path[c].first * g.row + path[c].second);
        else
          step.runs.back() += g.plane;
      }
      g.paths += path.size();
    }
    return g;
  }
  int64_t tiles() const { return (height + kTile - 1) / kTile; }
};

// f(step, position of the first cells of kUnroll vectors of pairs) for pairs that begin in row y0 or the kTile - 1 after it.
// Positions count from row y0.
template <class A, class F, class G>
CAMGUIDE_INLINE void each_pair(const Grid& g, int64_t y0, const F& pairs, const G& after_step) {
  for (const Step& step : g.steps) {
    const int64_t left = std::max<int64_t>(-step.dx, 0), right = g.width - std::max<int64_t>(step.dx, 0);
    for (int64_t y = 0; y < std::min(kTile, g.height - step.dy - y0); ++y)
      for (int64_t x = left; x < right; x += kUnroll * lanes<A>) pairs(step, y * g.row + x);
    after_step();
  }
}

template <class A>
struct Masks {
  Vec<LabelOf<A>> kind[kKinds];  // all bits set or none; none at all where a label is unknown

  CAMGUIDE_INLINE Masks(Vec<LabelOf<A>> here, Vec<LabelOf<A>> there) {
    const Vec<LabelOf<A>> same = here == there;
    kind[kBackground] = same & (here == 0);
    kind[kForeground] = same & (here > 0);
    kind[kDifferent] = ~same & ((here | there) >= 0);
  }
};

// `label` begins at row y0, here and below.
template <class A>
CAMGUIDE_MULTIVERSION void count(const Grid& g, const LabelOf<A>* label, int64_t y0, int64_t* counts) {
  using I = LabelOf<A>;
  Vec<I> sums[kKinds] = {};
  each_pair<A>(g, y0, [&](const Step& step, int64_t at) {
    for (int v = 0; v < kUnroll; ++v) {
      const I* const here = label + at + v * lanes<A>;
      const Masks<A> masks(load(here), load(here + step.end));
      for (int k = 0; k < kKinds; ++k) sums[k] -= masks.kind[k];
    }
  }, [&] {
    for (int k = 0; k < kKinds; ++k) {
      for (int64_t i = 0; i < lanes<A>; ++i) counts[k] += sums[k][i];
      sums[k] = Vec<I>{};
    }
  });
}

// The maxima of all runs of 2 .. longest cells that begin in a cell, from the edges in the first map.
template <class A>
CAMGUIDE_MULTIVERSION void fill_runs(const Grid& g, A* runs) {
  for (int64_t n = 1; n < g.longest; ++n) {
    A* const longer = runs + n * g.plane;
    for (int64_t i = 0; i < g.plane - g.longest; ++i) {
      const A shorter = longer[i - g.plane], next = runs[i + n];
      longer[i] = next > shorter ? next : shorter;
    }
  }
}

// From the runs to the cells, which are the runs of one: the first of equal cells is in the shorter run.
template <class A>
CAMGUIDE_MULTIVERSION void hand_down(const Grid& g, const A* runs, A* grad) {
  for (int64_t n = g.longest - 1; n > 0; --n) {
    const A *const longer = runs + n * g.plane, *const from = grad + n * g.plane;
    A* const to = grad + (n - 1) * g.plane;
    for (int64_t i = 0; i < g.plane - g.longest; ++i) to[i] += longer[i] == longer[i - g.plane] ? from[i] : A(0);
    for (int64_t i = 0; i < g.plane - g.longest; ++i) grad[i + n] += longer[i] == longer[i - g.plane] ? A(0) : from[i];
  }
}

// Adds the losses of the pairs and, with Grad, their slopes times `weights` to the runs that have the maximum.
template <class A, bool Grad>
CAMGUIDE_MULTIVERSION void pairs(const Grid& g, const A* runs, const LabelOf<A>* label, const double* weights, int64_t y0,
                                 A* grad, double* losses) {
  const A eps = static_cast<A>(kEpsilon);
  const A background = static_cast<A>(weights[kBackground]), foreground = static_cast<A>(weights[kForeground]);
  const A different = static_cast<A>(-weights[kDifferent]);
  const Vec<A> none = {};
  Vec<A> sums[kKinds] = {};
  each_pair<A>(g, y0, [&](const Step& step, int64_t at) {
    const int64_t* const shifts = step.runs.data();
    const int64_t n = step.runs.size();
    Vec<A> highest[kUnroll], slope[kUnroll];
    for (int v = 0; v < kUnroll; ++v) highest[v] = load(runs + at + shifts[0] + v * lanes<A>);
    for (int64_t r = 1; r < n; ++r)
      for (int v = 0; v < kUnroll; ++v) {
        const Vec<A> run = load(runs + at + shifts[r] + v * lanes<A>);
        highest[v] = run > highest[v] ? run : highest[v];
      }
    for (int v = 0; v < kUnroll; ++v) {
      const LabelOf<A>* const here = label + at + v * lanes<A>;
      const Masks<A> masks(load(here), load(here + step.end));
      const Vec<A> right = (masks.kind[kDifferent] ? highest[v] : 1 - highest[v]) + eps, gain = log(right);
      for (int k = 0; k < kKinds; ++k) sums[k] -= masks.kind[k] ? gain : none;
      if (Grad) {
        const Vec<A> same = masks.kind[kBackground] ? none + background : masks.kind[kForeground] ? none + foreground : none;
        slope[v] = (masks.kind[kDifferent] ? none + different : same) / right;
      }
    }
    if (!Grad) return;
    for (int64_t r = 0; r < n; ++r)
      for (int v = 0; v < kUnroll; ++v) {
        const int64_t run = at + shifts[r] + v * lanes<A>;
        const auto hit = load(runs + run) == highest[v];
        store(grad + run, load(grad + run) + (hit ? slope[v] : none));
        slope[v] = hit ? none : slope[v];
      }
  }, [&] {
    for (int k = 0; k < kKinds; ++k) {
      losses[k] += sum_lanes<A>(sums[k]);
      sums[k] = none;
    }
  });
}

// The edges of an image in the layout of `g`, ended by zeros. False if they hold a NaN.
template <class A>
bool read_edges(const Grid& g, const Source<A>& from, A* edges) {
  bool finite = true;
  for (int64_t y = 0; y < g.height; ++y, edges += g.row) {
    std::fill_n(edges, g.row, A(0));
    read_row(from + y * g.width, edges, g.width);
    for (int64_t x = 0; x < g.width; ++x) finite &= edges[x] == edges[x];
  }
  return finite;
}

// Its labels, ended by unknown ones.
template <class I, class L>
void read_labels(const Grid& g, const L* target, int64_t ignore, I* labels) {
  for (int64_t y = 0; y < g.height; ++y, labels += g.row) {
    for (int64_t x = 0; x < g.width; ++x) {
      const int64_t t = target[y * g.width + x];
      labels[x] = t == ignore || t < 0 ? -1 : static_cast<I>(t);
    }
    std::fill_n(labels + g.width, g.row - g.width, I(-1));
  }
}

// Adds up what the tiles of an image found, in their order.
template <class A>
void write_gradient(const Grid& g, const A* tiles, const Target<A>& to) {
  const int64_t size = (kTile + g.reach) * g.row;
  const Buffer<A> sum(g.row);
  for (int64_t y = 0; y < g.height; ++y) {
    const int64_t first = (std::max<int64_t>(0, y - g.reach - kTile + 1) + kTile - 1) / kTile;
    std::fill_n(+sum, g.width, A(0));
    for (int64_t t = first; t <= y / kTile; ++t) {
      const A* const from = tiles + t * size + (y - t * kTile) * g.row;
      for (int64_t x = 0; x < g.width; ++x) sum[x] += from[x];
    }
    write_row(+sum, to + y * g.width, g.width);
  }
}

template <class A>
void fill_with_nan(const Grid& g, const Target<A>& to) {
  const Buffer<A> row(g.row);
  std::fill_n(+row, g.row, std::numeric_limits<A>::quiet_NaN());
  for (int64_t y = 0; y < g.height; ++y) write_row(+row, to + y * g.width, g.width);
}

struct Result {
  double loss = 0, parts[kKinds] = {}, scale = 1;
};

template <class A>
Result path_affinity(const Grid& g, int64_t images, const Source<A>& edge, const Tensor& target, int64_t ignore,
                     const Target<A>& grad) {
  const int64_t cells = g.height * g.width, padded = g.height * g.row, tiles = g.tiles(), tasks = images * tiles;
  const Buffer<A> edges(images * padded);
  const Buffer<LabelOf<A>> labels(images * padded);
  std::vector<uint8_t> finite(images);
  for_each(images, [&](int64_t b) { finite[b] = read_edges(g, edge + b * cells, edges + b * padded); });
  with_integers(target, "target", [&](auto* from) {
    for_each(images, [&](int64_t b) { read_labels(g, from + b * cells, ignore, labels + b * padded); });
  });
  const auto first_row = [&](int64_t task) { return task % tiles * kTile; };
  const auto position = [&](int64_t task) { return task / tiles * padded + first_row(task) * g.row; };
  std::vector<int64_t> counts(tasks * kKinds);
  for_each(tasks, [&](int64_t i) { count<A>(g, labels.get() + position(i), first_row(i), counts.data() + i * kKinds); });
  Result result;
  double n[kKinds] = {}, weights[kKinds], most = 0;
  for (size_t i = 0; i < counts.size(); ++i) n[i % kKinds] += counts[i];
  for (int k = 0; k < kKinds; ++k) most = std::max(most, weights[k] = n[k] ? kShares[k] / n[k] : 0);
  if (most == 0) {
    if (grad) clear_row(grad, images * cells);
    return result;
  }
  result.scale = most * g.paths / (kLargest * kEpsilon);
  for (double& w : weights) w /= result.scale;
  const int64_t size = (kTile + g.reach) * g.row, maps = g.longest * g.plane;
  const Buffer<A> partial(grad ? tasks * size : 0);
  std::vector<double> losses(tasks * kKinds);
  struct Scratch {
    Zeroed<A> runs, grad;
  };
  for_each(tasks, [&] { return Scratch{Zeroed<A>(maps), Zeroed<A>(grad ? maps : 0)}; }, [&](int64_t i, Scratch& scratch) {
    A *const runs = scratch.runs + 0, *const slopes = scratch.grad + 0;
    const int64_t y0 = first_row(i), filled = std::min(kTile + g.reach, g.height - y0) * g.row;
    std::copy_n(edges.get() + position(i), filled, runs);
    std::fill_n(runs + filled, g.plane - filled, A(0));
    fill_runs(g, runs);
    const LabelOf<A>* const label = labels.get() + position(i);
    if (!grad) return pairs<A, false>(g, runs, label, weights, y0, nullptr, losses.data() + i * kKinds);
    scratch.grad.clear();
    pairs<A, true>(g, runs, label, weights, y0, slopes, losses.data() + i * kKinds);
    hand_down(g, runs, slopes);
    std::copy_n(slopes, size, partial.get() + i * size);
  });
  for (size_t i = 0; i < losses.size(); ++i) result.parts[i % kKinds] += losses[i];
  for (int k = 0; k < kKinds; ++k) {
    result.parts[k] /= std::max(n[k], 1.);
    result.loss += kShares[k] * result.parts[k];
  }
  if (grad) for_each(images, [&](int64_t b) { write_gradient(g, partial.get() + b * tiles * size, grad + b * cells); });
  // Comparisons drop a NaN: a map that holds one is seen to here.
  for (int64_t b = 0; b < images; ++b) {
    if (finite[b]) continue;
    result.loss = std::numeric_limits<double>::quiet_NaN();
    if (grad) fill_with_nan(g, grad + b * cells);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> path_affinity_loss(const Tensor& edge, const Tensor& target, int64_t radius,
                                                              int64_t ignore, bool need_grad) {
  const Tensor x = torch::stable::contiguous(edge), t = torch::stable::contiguous(target);
  Tensor grad = need_grad ? new_like(x) : torch::stable::new_empty(x, {0});
  const ScalarType type = wide(x.scalar_type());
  Tensor parts = torch::stable::new_empty(x, {kKinds}, type);
  Result result;
  with_sums(x, "edge", [&]<class A>(A) {
    const Grid g = Grid::of<A>(x.size(2), x.size(3), radius);
    result = path_affinity(g, x.size(0), source_of<A>(x), t, ignore, target_of<A>(grad));
    std::copy_n(result.parts, static_cast<int>(kKinds), static_cast<A*>(parts.mutable_data_ptr()));
  });
  return {scalar(x, type, result.loss), grad, scalar(x, type, result.scale), parts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("path_affinity_loss", TORCH_BOX(&path_affinity_loss)); }

}  // namespace camguide
