// cam_normalize and its backward: Eq. 1-3, see camguide_fast/ops/cam_normalize.py. Per map f [H, W] of a (b, k):
//
//     m = max relu(f),  d = m + eps,  y = relu(f - eps) / d
//
// and, with the upstream gradient g and T the pixels where f = m > 0:
//
//     df = g 1[f > eps] / d  -  1[T] / |T| * sum(g relu(f - eps)) / d^2
//
// Two passes over a map each way; the second finds it in the cache. Bytes: forward f and y, backward f, g and df, once each.
#include "common/parallel.h"
#include "common/rows.h"

#include <limits>
#include <tuple>

namespace camguide {
namespace {

constexpr int64_t kBlock = 1024;  // pixels widened at a time
template <class A>
constexpr int64_t kChains = 4 * lanes<A>;  // maxima side by side: one after the other they would wait for each other

// use(the pixels as a row, their number) for one block after the other.
template <class A, class Use>
CAMGUIDE_INLINE void blocks(const Source<A>& f, int64_t n, const Use& use) {
  alignas(64) A row[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    read_row(f + i, row, count);
    use(i, row, count);
  }
}

template <class A>
CAMGUIDE_MULTIVERSION A normalize(const Source<A>& f, const Target<A>& y, int64_t n, A eps) {
  A m = 0;
  int32_t wrong = 0;
  blocks<A>(f, n, [&](int64_t, A* row, int64_t count) {
    const int64_t whole = (count + kChains<A> - 1) / kChains<A> * kChains<A>;
    std::fill(row + count, row + whole, A(0));
    A largest[kChains<A>] = {};
    for (int64_t x = 0; x < whole; x += kChains<A>)
      for (int64_t l = 0; l < kChains<A>; ++l) largest[l] = row[x + l] > largest[l] ? row[x + l] : largest[l];
    for (int64_t l = 0; l < kChains<A>; ++l) m = std::max(m, largest[l]);
    for (int64_t x = 0; x < count; ++x) wrong += row[x] != row[x];  // the maxima pass over NaN
  });
  if (wrong) m = std::numeric_limits<A>::quiet_NaN();
  const A d = m + eps;
  blocks<A>(f, n, [&](int64_t i, A* row, int64_t count) {
    for (int64_t x = 0; x < count; ++x) {
      const A above = row[x] - eps;
      row[x] = (above <= 0 ? A(0) : above) / d;
    }
    write_row(row, y + i, count);
  });
  return m;
}

template <class A>
CAMGUIDE_MULTIVERSION void backward(const Source<A>& g, const Source<A>& f, const Target<A>& df, int64_t n, A m, A eps) {
  const A top = m > 0 ? m : std::numeric_limits<A>::infinity();  // nothing ties where no feature is positive
  const A d = m + eps;
  alignas(64) A upstream[kBlock];
  double product = 0;
  int64_t ties = 0;
  blocks<A>(f, n, [&](int64_t i, const A* row, int64_t count) {
    read_row(g + i, upstream, count);
    alignas(64) A sums[lanes<A>] = {};
    int32_t equal = 0;
    for (int64_t x = 0; x < count; x += lanes<A>) {
      for (int64_t l = 0; l < lanes<A>; ++l) {
        const A above = row[x + l] - eps;
        sums[l] += upstream[x + l] * (above <= 0 ? A(0) : above);
      }
    }
    for (int64_t x = 0; x < count; ++x) equal += row[x] == top;
    product += sum_lanes<A>(load(sums));
    ties += equal;
  });
  const A share = static_cast<A>(product / (static_cast<double>(d) * d) / std::max<int64_t>(ties, 1));
  blocks<A>(f, n, [&](int64_t i, A* row, int64_t count) {
    read_row(g + i, upstream, count);
    for (int64_t x = 0; x < count; ++x) {
      const A through = upstream[x];
      row[x] = (row[x] > eps ? through : A(0)) / d - (row[x] == top ? share : A(0));
    }
    write_row(row, df + i, count);
  });
}

// Pixels that a thread must have for a task of its own.
int64_t maps_per_task(int64_t pixels) { return std::max<int64_t>(1, (1 << 14) / pixels); }

std::tuple<Tensor, Tensor> cam_normalize(const Tensor& features, double eps) {
  const Tensor f = torch::stable::contiguous(features);
  const int64_t maps = f.size(0) * f.size(1), pixels = f.size(2) * f.size(3);
  Tensor cam = new_like(f);
  Tensor peak = torch::stable::new_empty(f, {f.size(0), f.size(1)}, wide(f.scalar_type()));
  with_sums(f, "features", [&]<class A>(A) {
    const Source<A> from = source_of<A>(f);
    const Target<A> to = target_of<A>(cam);
    A* const m = static_cast<A*>(peak.mutable_data_ptr());
    for_each_block(maps, maps_per_task(pixels), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        m[i] = normalize<A>(from + i * pixels, to + i * pixels, pixels, static_cast<A>(eps));
      }
    });
  });
  return {cam, peak};
}

Tensor cam_normalize_backward(const Tensor& grad, const Tensor& features, const Tensor& peak, double eps) {
  const Tensor f = torch::stable::contiguous(features), m = torch::stable::contiguous(peak);
  const Tensor g = torch::stable::contiguous(torch::stable::to(grad, f.scalar_type()));
  const int64_t maps = f.size(0) * f.size(1), pixels = f.size(2) * f.size(3);
  Tensor df = new_like(f);
  with_sums(f, "features", [&]<class A>(A) {
    const Source<A> from = source_of<A>(f), upstream = source_of<A>(g);
    const Target<A> to = target_of<A>(df);
    const A* const peaks = static_cast<const A*>(m.const_data_ptr());
    for_each_block(maps, maps_per_task(pixels), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        backward<A>(upstream + i * pixels, from + i * pixels, to + i * pixels, pixels, peaks[i], static_cast<A>(eps));
      }
    });
  });
  return df;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("cam_normalize", TORCH_BOX(&cam_normalize));
  m.impl("cam_normalize_backward", TORCH_BOX(&cam_normalize_backward));
}

}  // namespace camguide
