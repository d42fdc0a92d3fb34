// local_consistency_loss: Eq. 35-39, see camguide_fast/ops/local_consistency.py. Per pixel, over the classes k,
//
//     s = sum f_k,  K_k = f_k / (s + eps),  m = max K_k,  B(.) = sum over the window,  n = pixels of the window that count
//     Kbar_k = B(K_k) / n,  S = sum K_k Kbar_k,  L = (1 - S) m,  loss = sum L / N
//
// and the gradient times N, where q = m / n is a factor of each pixel, so that both sums are of what f gives at a pixel:
//
//     dK_k = (1 - S) 1[k = first argmax f] - (q B(K_k) + B(q K_k)),   df_k = (dK_k - sum dK_k K_k) / (s + eps) 1[f_k > 0]
//
// One pass down a band of rows: each row of f is read once; the sums of the last 2r+1 rows are kept by adding the row that enters
// and subtracting the one that leaves, and r rows behind it the sums along x, the loss and the gradient come out. A band starts
// its sums afresh, so their rounding does not grow with the image. Bytes: f and its gradient once, halos of 2r rows a band twice.
#include "common/parallel.h"
#include "common/rows.h"

#include <tuple>

namespace camguide {
namespace {

struct Shape {
  int64_t classes, height, width, radius;

  int64_t ry() const { return std::min(radius, height - 1); }  // a window may exceed the map
  int64_t rx() const { return std::min(radius, width - 1); }
  int64_t band() const { return std::max<int64_t>(64, 8 * ry()); }  // rows that share running sums
  int64_t bands() const { return (height + band() - 1) / band(); }
};

// What one thread needs for a band. Rows of the ring belong to the last 2 ry + 1 rows of f.
template <class A>
struct Scratch {
  int64_t n, pad, pitch, slots;
  Zeroed<A> f;                         // [K, n]
  Zeroed<A> ring;                      // [slots, K, n]: K_k
  Zeroed<A> inverse, largest, argmax;  // [slots, n]: 1 / (s + eps), m, its class
  Zeroed<A> weight, q;                 // [slots, n]: 1 / n, m / n
  Zeroed<A> q_left;                    // [n]: m / n of the row that leaves
  Zeroed<A> sum, weighted;             // [K, pitch]: over the rows of the ring, K_k and q K_k; zeros around
  Zeroed<A> counts;                    // [pitch]: over the rows of the ring, valid pixels; zeros around
  Zeroed<A> stencil;                   // [K, n]: q B(K_k) + B(q K_k)
  Zeroed<A> slope, inner, df;          // [n]: 1 - S, sum dK_k K_k

  explicit Scratch(const Shape& s)
      : n(round_to_lanes<A>(s.width)),
        pad(round_to_lanes<A>(s.rx())),
        pitch(n + 2 * pad),
        slots(2 * s.ry() + 1),
        f(s.classes * n),
        ring(slots * s.classes * n),
        inverse(slots * n),
        largest(slots * n),
        argmax(slots * n),
        weight(slots * n),
        q(slots * n),
        q_left(n),
        sum(s.classes * pitch),
        weighted(s.classes * pitch),
        counts(pitch),
        stencil(s.classes * n),
        slope(n),
        inner(n),
        df(n) {}

  void clear() {
    for (Zeroed<A>* b : {&ring, &q, &sum, &weighted, &counts}) b->clear();
  }
};

// Sum of the lanes around each lane; kRadius < 0: known at run time only.
template <int kRadius, class A>
CAMGUIDE_INLINE Vec<A> window_sum(const A* row, int64_t radius) {
  Vec<A> sum = load(row);
  if constexpr (kRadius >= 0) radius = kRadius;
  for (int64_t d = 1; d <= radius; ++d) sum += load(row - d) + load(row + d);
  return sum;
}

// 1 / n of row t: the valid pixels of each window, whose rows are t - ry .. t + ry. Called for one row after the other.
template <class A>
CAMGUIDE_INLINE void read_weights(const Shape& s, Scratch<A>& w, const uint8_t* valid, int64_t t, bool first,
                                  A* __restrict to) {
  const int64_t ry = s.ry(), rx = s.rx();
  if (!valid) {
    const int64_t rows = std::min(t + ry + 1, s.height) - std::max<int64_t>(t - ry, 0);
    for (int64_t x = 0; x < s.width; ++x) {
      const int64_t columns = std::min(x + rx + 1, s.width) - std::max<int64_t>(x - rx, 0);
      to[x] = A(1) / static_cast<A>(rows * columns);
    }
    return;
  }
  A* __restrict counts = w.counts + w.pad;
  for (int64_t y = first ? std::max<int64_t>(t - ry, 0) : t + ry; y < std::min(t + ry + 1, s.height); ++y) {
    for (int64_t x = 0; x < s.width; ++x) counts[x] += valid[y * s.width + x];
  }
  if (!first && t - ry - 1 >= 0) {
    for (int64_t x = 0; x < s.width; ++x) counts[x] -= valid[(t - ry - 1) * s.width + x];
  }
  for (int64_t x = 0; x < w.n; x += lanes<A>) store(to + x, window_sum<-1>(counts + x, rx));
  for (int64_t x = 0; x < w.n; ++x) to[x] = to[x] > 0 ? 1 / to[x] : 0;
}

// Row t enters the sums in the place of row t - (2 ry + 1); a row below the map only makes that one leave.
template <bool kGrad, class A>
CAMGUIDE_INLINE void enter(const Shape& s, Scratch<A>& w, const Source<A>& f, const uint8_t* valid, int64_t t, bool first,
                           A eps) {
  const int64_t n = w.n, slot = t % w.slots;
  A* __restrict const inverse = w.inverse + slot * n;
  A* __restrict const largest = w.largest + slot * n;
  A* __restrict const argmax = w.argmax + slot * n;
  A* __restrict const weight = w.weight + slot * n;
  A* __restrict const q = w.q + slot * n;
  std::copy_n(q, n, w.q_left + 0);
  std::fill_n(inverse, n, A(0));
  std::fill_n(largest, n, A(0));
  std::fill_n(argmax, n, A(0));
  if (t < s.height) {
    read_weights(s, w, valid, t, first, weight);
    for (int64_t k = 0; k < s.classes; ++k) {
      A* __restrict const row = w.f + k * n;
      read_row(f + (k * s.height + t) * s.width, row, s.width);
      if (valid) {
        for (int64_t x = 0; x < s.width; ++x) row[x] = valid[t * s.width + x] ? row[x] : A(0);
      }
#pragma GCC ivdep
      for (int64_t x = 0; x < n; ++x) {
        const A v = row[x] <= 0 ? A(0) : row[x];  // a NaN stays one
        row[x] = v;
        inverse[x] += v;
        argmax[x] = v > largest[x] ? static_cast<A>(k) : argmax[x];
        largest[x] = v > largest[x] ? v : largest[x];
      }
    }
    for (int64_t x = 0; x < n; ++x) {
      inverse[x] = 1 / (inverse[x] + eps);
      largest[x] *= inverse[x];
      q[x] = largest[x] * weight[x];
    }
  } else {
    std::fill_n(q, n, A(0));
    w.f.clear();
  }
  for (int64_t k = 0; k < s.classes; ++k) {
    A* const kept = w.ring + (slot * s.classes + k) * n;
    A* const sum = w.sum + k * w.pitch + w.pad;
    A* const weighted = w.weighted + k * w.pitch + w.pad;
    for (int64_t x = 0; x < n; x += lanes<A>) {
      const Vec<A> entering = load(w.f + k * n + x) * load(inverse + x), leaving = load(kept + x);
      store(sum + x, load(sum + x) + (entering - leaving));
      if constexpr (kGrad) {
        store(weighted + x, load(weighted + x) + (entering * load(q + x) - leaving * load(w.q_left + x)));
      }
      store(kept + x, entering);
    }
  }
}

// Row y, whose window is in the sums; returns the sum of its loss.
template <int kRadius, bool kGrad, class A>
CAMGUIDE_INLINE double leave(const Shape& s, Scratch<A>& w, const Target<A>& grad, int64_t y) {
  const int64_t n = w.n, slot = y % w.slots, rx = s.rx();
  const A* const ring = w.ring + slot * s.classes * n;
  Vec<A> loss = {};
  for (int64_t x = 0; x < n; x += lanes<A>) {
    const Vec<A> q = load(w.q + slot * n + x), m = load(w.largest + slot * n + x);
    Vec<A> agreement = {}, crossed = {};
    for (int64_t k = 0; k < s.classes; ++k) {
      const int64_t at = k * w.pitch + w.pad + x;
      const Vec<A> own = load(ring + k * n + x), sum = window_sum<kRadius>(w.sum + at, rx);
      agreement += own * sum;
      if constexpr (kGrad) {
        const Vec<A> weighted = window_sum<kRadius>(w.weighted + at, rx);
        crossed += own * weighted;
        store(w.stencil + k * n + x, q * sum + weighted);
      }
    }
    const Vec<A> slope = 1 - agreement * load(w.weight + slot * n + x);
    loss += slope * m;
    if constexpr (kGrad) {
      store(w.slope + x, slope);
      store(w.inner + x, slope * m - q * agreement - crossed);
    }
  }
  if constexpr (kGrad) {
    const A* __restrict const slope = w.slope + 0;
    const A* __restrict const inner = w.inner + 0;
    const A* __restrict const inverse = w.inverse + slot * n;
    const A* __restrict const argmax = w.argmax + slot * n;
    A* __restrict const df = w.df + 0;
    for (int64_t k = 0; k < s.classes; ++k) {
      const A* __restrict const own = ring + k * n;
      const A* __restrict const stencil = w.stencil + k * n;
#pragma GCC ivdep
      for (int64_t x = 0; x < n; ++x) {
        const A at_argmax = slope[x], rest = -stencil[x] - inner[x];
        const A d = (argmax[x] == static_cast<A>(k) ? at_argmax + rest : rest) * inverse[x];
        df[x] = own[x] <= 0 ? A(0) : d;
      }
      write_row(df, grad + (k * s.height + y) * s.width, s.width);
    }
  }
  return sum_lanes<A>(loss);
}

template <int kRadius, bool kGrad, class A>
CAMGUIDE_INLINE double rows(const Shape& s, Scratch<A>& w, const Source<A>& f, const uint8_t* valid, const Target<A>& grad,
                            int64_t y0, A eps) {
  const int64_t ry = s.ry(), first = std::max<int64_t>(y0 - ry, 0), y1 = std::min(y0 + s.band(), s.height);
  double loss = 0;
  w.clear();
  for (int64_t t = first; t < y1 + ry; ++t) {
    enter<kGrad>(s, w, f, valid, t, t == first, eps);
    if (t - ry >= y0) loss += leave<kRadius, kGrad>(s, w, grad, t - ry);
  }
  return loss;
}

// The band of one image that begins in row y0; grad may be null. Returns the sum of its loss.
template <class A>
CAMGUIDE_MULTIVERSION double band(const Shape& s, Scratch<A>& w, const Source<A>& f, const uint8_t* valid,
                                  const Target<A>& grad, int64_t y0, A eps) {
  if constexpr (std::is_same_v<A, float>) {  // the paper's window
    if (s.rx() == 3) return grad ? rows<3, true>(s, w, f, valid, grad, y0, eps) : rows<3, false>(s, w, f, valid, grad, y0, eps);
  }
  return grad ? rows<-1, true>(s, w, f, valid, grad, y0, eps) : rows<-1, false>(s, w, f, valid, grad, y0, eps);
}

int64_t count_valid(const uint8_t* valid, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += valid[i] != 0;
  return count;
}

std::tuple<Tensor, Tensor, Tensor> local_consistency_loss(const Tensor& features, int64_t window, double eps,
                                                          const std::optional<Tensor>& valid, bool need_grad) {
  const Tensor f = torch::stable::contiguous(features);
  const int64_t images = f.size(0), classes = f.size(1), pixels = f.size(2) * f.size(3);
  const Shape shape{classes, f.size(2), f.size(3), window / 2};
  std::optional<Tensor> inside;
  if (valid) inside = torch::stable::contiguous(*valid);
  const uint8_t* const v = inside ? static_cast<const uint8_t*>(inside->const_data_ptr()) : nullptr;
  Tensor grad = need_grad ? new_like(f) : torch::stable::new_empty(f, {0});
  std::vector<double> losses(images * shape.bands());
  with_sums(f, "features", [&]<class A>(A) {
    const Source<A> from = source_of<A>(f);
    const Target<A> to = target_of<A>(grad);
    for_each(losses.size(), [&] { return Scratch<A>(shape); }, [&](int64_t i, Scratch<A>& scratch) {
      const int64_t image = i / shape.bands(), at = image * classes * pixels;
      losses[i] = band<A>(shape, scratch, from + at, v ? v + image * pixels : nullptr, to ? to + at : to,
                          i % shape.bands() * shape.band(), static_cast<A>(eps));
    });
  });
  const int64_t n = v ? std::max<int64_t>(count_valid(v, images * pixels), 1) : images * pixels;
  double loss = 0;
  for (double part : losses) loss += part;
  const ScalarType type = wide(f.scalar_type());
  return {scalar(f, type, loss / n), grad, scalar(f, type, 1.0 / n)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("local_consistency_loss", TORCH_BOX(&local_consistency_loss)); }

}  // namespace camguide
