// edge_consistency_loss: Eq. 30-34, see camguide_fast/ops/edge_consistency.py. Per plane x of a present class
//
//     (gx, gy) = Scharr(blur(x)),  M = |(gx, gy)|,  E = M / max(max M, 1e-12)
//     u = relu(E - (S + delta)) 1[S < tau],  loss = sum (u^gamma + lambda u 1[E > tau_hard]) / N
//
// and with the maximum held the gradient times N, where the filters' transposes add up at the border what replication read there:
//
//     dM = (gamma u^(gamma-1) + lambda 1[E > tau_hard]) 1[u > 0] / max M,  dx = blur^T Scharr^T (dM gx / M, dM gy / M)
//
// The maximum stands between the filters and the rest, so a thread keeps gx, gy and M of its plane in its cache. Bytes: the
// present planes and the support once, the gradient once; planes of absent classes are not read.
#include "common/edges.h"
#include "common/parallel.h"
#include "common/transposed_rows.h"

#include <limits>
#include <tuple>

namespace camguide {
namespace {

constexpr int kBlur = 2;                      // radius; sigma 1.5
constexpr int64_t kReach = kBlur + 1;         // pixels that blur and Scharr look around
constexpr double kSmooth[] = {3, 10, 3};      // Scharr's taps across the difference,
constexpr double kDifference[] = {-1, 0, 1};  // and along it

struct Numbers {
  double tau, delta, gamma, tau_hard, lambda_hard;
};

template <class A>
struct Scratch {
  static constexpr int64_t pad = lanes<A>;
  int64_t height, width, n, pitch;
  EdgeRows<kBlur, A> filter;
  Zeroed<A> gx, gy, norm;         // [h, n]
  Zeroed<A> largest, nan;         // [n]: over the rows, max M, and 0 or NaN
  Zeroed<A> support, loss;        // [n]
  Zeroed<A> smoothed, differing;  // [pad + n + pad]: the transposes along y, zeros around
  Zeroed<A> sharp;                // [2 kBlur + 1, pad + n + pad]: rows of Scharr^T
  Zeroed<A> column, row;          // [pad + n + pad]: blur^T along y, and along x

  Scratch(int64_t height, int64_t width)
      : height(height),
        width(width),
        n(round_to_lanes<A>(width)),
        pitch(n + 2 * pad),
        filter(height, width, 1.5),
        gx(height * n),
        gy(height * n),
        norm(height * n),
        largest(n),
        nan(n),
        support(n),
        loss(n),
        smoothed(pitch),
        differing(pitch),
        sharp((2 * kBlur + 1) * pitch),
        column(pitch),
        row(pitch) {}
};

// The filters: gx, gy and M of a plane; returns max(max M, 1e-12), NaN if M holds one.
template <class A>
CAMGUIDE_INLINE A filter_plane(Scratch<A>& w, const Source<A>& x, const uint8_t* valid, const uint8_t* inside) {
  const int64_t n = w.n, width = w.width;
  A* __restrict const largest = w.largest + 0;
  A* __restrict const nan = w.nan + 0;
  w.largest.clear();
  w.nan.clear();
  w.filter.run(0, w.height, [&](int64_t y, A* row) {
    read_row(x + y * width, row, width);
    if (!valid) return;
    for (int64_t i = 0; i < width; ++i) row[i] = valid[y * width + i] ? row[i] : A(0);
  }, [&](int64_t y, int64_t i, Vec<A> gx, Vec<A> gy) {
    store(w.gx + y * n + i, gx);
    store(w.gy + y * n + i, gy);
    store(w.norm + y * n + i, gx * gx + gy * gy);
  }, [&](int64_t y) {
    A* __restrict const norm = w.norm + y * n;
    for (int64_t i = 0; i < width; ++i) {
      const A m = inside && !inside[y * width + i] ? A(0) : std::sqrt(norm[i]);
      norm[i] = m;
      largest[i] = std::max(largest[i], m);  // passes over NaN, but the sum does not
      nan[i] += m * 0;
    }
  });
  A result = A(1e-12), any = 0;
  for (int64_t i = 0; i < width; ++i) {
    result = std::max(result, largest[i]);
    any += nan[i];
  }
  return result + any;
}

// The loss of row y from its norms; dgx and dgy take the place of gx and gy.
template <bool kSquare, class A>
CAMGUIDE_INLINE void punish(Scratch<A>& w, const Numbers& numbers, int64_t y, A divisor) {
  const int64_t n = w.n, width = w.width;
  const A tau = static_cast<A>(numbers.tau), delta = static_cast<A>(numbers.delta), gamma = static_cast<A>(numbers.gamma);
  const A tau_hard = static_cast<A>(numbers.tau_hard), lambda = static_cast<A>(numbers.lambda_hard);
  const A* __restrict const support = w.support + 0;
  const A* __restrict const norm = w.norm + y * n;
  A* __restrict const gx = w.gx + y * n;
  A* __restrict const gy = w.gy + y * n;
  A* __restrict const loss = w.loss + 0;
#pragma GCC ivdep
  for (int64_t x = 0; x < width; ++x) {
    const A s = support[x], m = norm[x];
    const A e = m / divisor, excess = s < tau ? e - (s + delta) : A(0);
    const A u = excess <= 0 ? A(0) : excess;  // a NaN stays one
    const A hard = e > tau_hard ? lambda : A(0);
    const A slope = kSquare ? 2 * u : gamma * std::pow(u, gamma - 1);
    loss[x] = (kSquare ? u * u : std::pow(u, gamma)) + hard * u;
    const A d = (slope + hard) / (divisor * (m == 0 ? A(1) : m));
    const A factor = u == 0 || m == 0 ? A(0) : d;
    gx[x] *= factor;
    gy[x] *= factor;
  }
  for (int64_t x = width; x < n; ++x) loss[x] = gx[x] = gy[x] = 0;
}

template <class A>
CAMGUIDE_INLINE void transpose_plane(Scratch<A>& w, const uint8_t* valid, const Target<A>& grad) {
  const int64_t n = w.n, height = w.height, width = w.width;
  const std::array<A, kBlur + 1> taps = gaussian_taps<kBlur, A>(1.5);
  const A both[] = {taps[2], taps[1], taps[0], taps[1], taps[2]};
  const auto sharp = [&](int64_t y) { return w.sharp + (y % (2 * kBlur + 1) * w.pitch + w.pad); };
  A* const smoothed = w.smoothed + w.pad;
  A* const differing = w.differing + w.pad;
  A* const column = w.column + w.pad;
  A* const row = w.row + w.pad;
  int64_t next = 0;
  for (int64_t y = 0; y < height; ++y) {
    for (; next <= std::min(y + kBlur, height - 1); ++next) {
      TransposedRows<1, A>(kSmooth, next, height).apply(next, height, n, [&](int64_t i) { return w.gx + i * n; }, smoothed);
      TransposedRows<1, A>(kDifference, next, height).apply(next, height, n, [&](int64_t i) {
        return w.gy + i * n;
      }, differing);
      A* const to = sharp(next);
      for (int64_t x = -1; x < n; x += lanes<A>) {  // from one pixel before the first to one behind the last
        const Vec<A> along = load(smoothed + x - 1) - load(smoothed + x + 1);
        store(to + x, along + 3 * (load(differing + x - 1) + load(differing + x + 1)) + 10 * load(differing + x));
      }
      to[n - 1 + lanes<A>] = 0;
      fold(to, width, 1, n);
    }
    TransposedRows<kBlur, A>(both, y, height).apply(y, height, n, sharp, column);
    for (int64_t x = -kBlur; x < n + kBlur; x += lanes<A>) {
      store(row + x, blur<kBlur, A>(taps, [&](int i) { return load(column + x + i); }));
    }
    fold(row, width, kBlur, n);
    if (valid) {
      for (int64_t x = 0; x < width; ++x) row[x] = valid[y * width + x] ? row[x] : A(0);
    }
    write_row(row, grad + y * width, width);
  }
}

// One plane; grad may be null. Returns the sum of its loss.
template <class A>
CAMGUIDE_MULTIVERSION double plane(Scratch<A>& w, const Numbers& numbers, const Source<A>& cam, const A* support,
                                   const uint8_t* valid, const uint8_t* inside, const Target<A>& grad) {
  const A divisor = filter_plane(w, cam, valid, inside);
  double loss = 0;
  for (int64_t y = 0; y < w.height; ++y) {
    A* __restrict const row_support = w.support + 0;
    read_row(support + y * w.width, row_support, w.width);
    if (inside) {
      for (int64_t x = 0; x < w.width; ++x) {
        row_support[x] = inside[y * w.width + x] ? row_support[x] : std::numeric_limits<A>::infinity();  // never weak
      }
    }
    if (numbers.gamma == 2) {
      punish<true>(w, numbers, y, divisor);
    } else {
      punish<false>(w, numbers, y, divisor);
    }
    Vec<A> row = {};
    for (int64_t i = 0; i < w.n; i += lanes<A>) row += load(w.loss + i);
    loss += sum_lanes<A>(row);
  }
  if (grad) transpose_plane(w, valid, grad);
  return loss;
}

// Pixels of one image whose edge is computed from valid pixels alone.
void erode(const uint8_t* valid, uint8_t* inside, int64_t height, int64_t width) {
  std::vector<uint8_t> columns(height * width);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const uint8_t* const row = valid + y * width;
      columns[y * width + x] = std::all_of(row + std::max<int64_t>(x - kReach, 0), row + std::min(x + kReach + 1, width),
                                           [](uint8_t v) { return v != 0; });
    }
  }
  std::fill_n(inside, height * width, 1);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t v = std::max<int64_t>(y - kReach, 0); v < std::min(y + kReach + 1, height); ++v) {
      for (int64_t x = 0; x < width; ++x) inside[y * width + x] &= columns[v * width + x];
    }
  }
}

template <class A>
int64_t count_weak(const A* support, const uint8_t* inside, int64_t pixels, A tau) {
  int64_t count = 0;
  for (int64_t i = 0; i < pixels; ++i) count += support[i] < tau && (!inside || inside[i]);
  return count;
}

std::tuple<Tensor, Tensor, Tensor> edge_consistency_loss(const Tensor& cam, const Tensor& support, const Tensor& label,
                                                         double tau, double delta, double gamma, double tau_hard,
                                                         double lambda_hard, const std::optional<Tensor>& valid,
                                                         bool need_grad) {
  const Tensor x = torch::stable::contiguous(cam);
  const int64_t images = x.size(0), classes = x.size(1), height = x.size(2), width = x.size(3), pixels = height * width;
  const ScalarType type = wide(x.scalar_type());
  const Tensor s = torch::stable::contiguous(torch::stable::to(support, type));
  const Numbers numbers{tau, delta, gamma, tau_hard, lambda_hard};
  std::optional<Tensor> given;
  if (valid) given = torch::stable::contiguous(*valid);
  const uint8_t* const v = given ? static_cast<const uint8_t*>(given->const_data_ptr()) : nullptr;
  std::vector<uint8_t> eroded(v ? images * pixels : 0);
  if (v) {
    for_each(images, [&](int64_t i) { erode(v + i * pixels, eroded.data() + i * pixels, height, width); });
  }
  const uint8_t* const inside = v ? eroded.data() : nullptr;
  const std::vector<uint8_t> present = present_classes(label);
  std::vector<int64_t> active;  // planes of present classes
  for (int64_t i = 0; i < images * classes; ++i) {
    if (present[i]) active.push_back(i);
  }
  Tensor grad = need_grad ? new_like(x) : torch::stable::new_empty(x, {0});
  std::vector<double> losses(active.size());
  std::vector<int64_t> weak(active.size());
  with_sums(x, "cam", [&]<class A>(A) {
    const Source<A> from = source_of<A>(x);
    const Target<A> to = target_of<A>(grad);
    const A* const support_data = static_cast<const A*>(s.const_data_ptr());
    for_each(active.size(), [&] { return Scratch<A>(height, width); }, [&](int64_t i, Scratch<A>& scratch) {
      const int64_t p = active[i], image = p / classes * pixels;
      const uint8_t* const in = inside ? inside + image : nullptr;
      losses[i] = plane<A>(scratch, numbers, from + p * pixels, support_data + image, v ? v + image : nullptr, in,
                           to ? to + p * pixels : to);
      weak[i] = count_weak(support_data + image, in, pixels, static_cast<A>(tau));
    });
    if (!to) return;
    for_each(images * classes, [&](int64_t p) {
      if (!present[p]) clear_row(to + p * pixels, pixels);
    });
  });
  double loss = 0;
  int64_t n = 0;
  for (size_t i = 0; i < active.size(); ++i) {
    loss += losses[i];
    n += weak[i];
  }
  n = std::max<int64_t>(n, 1);
  return {scalar(x, type, loss / n), grad, scalar(x, type, 1.0 / n)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("edge_consistency_loss", TORCH_BOX(&edge_consistency_loss)); }

}  // namespace camguide
