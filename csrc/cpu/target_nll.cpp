// target_nll: Eq. 27, see camguide_fast/ops/target_nll.py. Per pixel with target t, over the P present classes k, c clamped to
// [0, 1]:
//
//     v_0 = 1 - max c_k,  v_k = c_k,  D = v_0 + sum c_k,  p = v_t / D,  L = -log((p + s) / (1 + s (1 + P)))
//
//     dL/dc_k = -1 / ((p + s) D) * (dv_t/dc_k - p (1 - 1[k = argmax])),   dv_t/dc_k = 1[k = t - 1], or -1[k = argmax] for t = 0
//
// where 0 <= c_k <= 1, and 0 elsewhere. No probability but p is ever stored, and that for a block of pixels. Bytes: the target
// twice (once to count the pixels, whose number divides the gradient), present maps once, the gradient once; maps of absent
// classes are not read.
#include "common/parallel.h"
#include "common/rows.h"

#include <tuple>

namespace camguide {
namespace {

constexpr int64_t kBlock = 1024;  // pixels

struct Counts {
  int64_t background = 0, foreground = 0;
};

// One image: which targets count, and the present classes.
struct Image {
  const uint8_t* present;  // [K]
  int64_t classes, ignore;
  std::vector<int64_t> active;

  Image(const uint8_t* present, int64_t classes, int64_t ignore) : present(present), classes(classes), ignore(ignore) {
    for (int64_t k = 0; k < classes; ++k) {
      if (present[k]) active.push_back(k);
    }
  }
  bool counts(int64_t t) const {
    if (t == ignore || t < 0 || t > classes) return false;
    return t == 0 ? !active.empty() : present[t - 1] != 0;
  }
};

template <class A>
struct Scratch {
  Zeroed<A> target{kBlock};  // -1 where the pixel does not count
  Zeroed<A> sum{kBlock}, largest{kBlock}, argmax{kBlock}, chosen{kBlock};
  Zeroed<A> slope{kBlock}, p{kBlock}, loss[2]{Zeroed<A>(kBlock), Zeroed<A>(kBlock)};
  Zeroed<A> row{kBlock};
};

// log x for a normal x > 0: x = 2^e r with r in [1/sqrt 2, sqrt 2), log r = 2 artanh((r-1) / (r+1)); what the series leaves out
// is below fp32.
CAMGUIDE_INLINE float log_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), shifted = bits - 0x3f3504f3u;  // 1/sqrt 2
  const int32_t e = static_cast<int32_t>(shifted) >> 23;
  const float r = std::bit_cast<float>(bits - (static_cast<uint32_t>(e) << 23));
  const float z = (r - 1) / (r + 1), z2 = z * z;
  const float series = z2 * (1 / 3.f + z2 * (1 / 5.f + z2 * (1 / 7.f + z2 * (1 / 9.f))));
  const float result = static_cast<float>(e) * 0.693147181f + (2 * z + 2 * z * series);
  return x != x ? x : result;
}
CAMGUIDE_INLINE double log_of(double x) { return std::log(x); }

struct Weights {
  double smooth, group[2];  // what a pixel's gradient is multiplied with, in the background and in the foreground
};

// n pixels of an image from pixel `at`; grad may be null. Adds the losses of background and foreground.
template <class A>
CAMGUIDE_MULTIVERSION void block(const Image& image, Scratch<A>& w, const Weights& weights, const Source<A>& cam,
                                 const Target<A>& grad, int64_t at, int64_t n, int64_t pixels, double* losses) {
  const A s = static_cast<A>(weights.smooth), scale = 1 / (1 + s * static_cast<A>(1 + image.active.size()));
  const A back = static_cast<A>(weights.group[0]), fore = static_cast<A>(weights.group[1]);
  const A* __restrict const target = w.target + 0;
  A* __restrict const sum = w.sum + 0;
  A* __restrict const largest = w.largest + 0;
  A* __restrict const argmax = w.argmax + 0;
  A* __restrict const chosen = w.chosen + 0;
  A* __restrict const row = w.row + 0;
  std::fill_n(sum, n, A(0));
  std::fill_n(largest, n, A(-1));
  std::fill_n(chosen, n, A(0));
  for (const int64_t k : image.active) {
    const A index = static_cast<A>(k);
    read_row(cam + (k * pixels + at), row, n);
#pragma GCC ivdep
    for (int64_t x = 0; x < n; ++x) {
      const A low = row[x] < 0 ? A(0) : row[x];  // a NaN stays one
      const A c = low > 1 ? A(1) : low;
      sum[x] += c;
      argmax[x] = c > largest[x] ? index : argmax[x];  // of equal classes the first
      largest[x] = c > largest[x] ? c : largest[x];
      chosen[x] = target[x] == index + 1 ? c : chosen[x];
    }
  }
  A* __restrict const slope = w.slope + 0;
  A* __restrict const p = w.p + 0;
  A* __restrict const of_back = w.loss[0] + 0;
  A* __restrict const of_fore = w.loss[1] + 0;
#pragma GCC ivdep
  for (int64_t x = 0; x < n; ++x) {
    const A t = target[x], rest = 1 - largest[x], d = rest + sum[x];
    p[x] = (t == 0 ? rest : chosen[x]) / d;
    const A loss = -log_of((p[x] + s) * scale), full = -1 / ((p[x] + s) * d);
    of_back[x] = t == 0 ? loss : A(0);
    of_fore[x] = t > 0 ? loss : A(0);
    slope[x] = t < 0 ? A(0) : full * (t == 0 ? back : fore);
  }
  for (int g = 0; g < 2; ++g) {
    Vec<A> lane = {};
    std::fill(w.loss[g] + n, w.loss[g] + round_to_lanes<A>(n), A(0));
    for (int64_t x = 0; x < n; x += lanes<A>) lane += load(w.loss[g] + x);
    losses[g] += sum_lanes<A>(lane);
  }
  if (!grad) return;
  for (int64_t k = 0; k < image.classes; ++k) {
    const Target<A> to = grad + (k * pixels + at);
    if (!image.present[k]) {
      clear_row(to, n);
      continue;
    }
    const A index = static_cast<A>(k);
    read_row(cam + (k * pixels + at), row, n);
#pragma GCC ivdep
    for (int64_t x = 0; x < n; ++x) {
      const A t = target[x], c = row[x], at_largest = t == 0 ? A(-1) : A(0), others = -p[x];
      const A through = (argmax[x] == index ? at_largest : others) + (t == index + 1 ? A(1) : A(0));
      const A df = slope[x] * through;
      row[x] = c < 0 || c > 1 || t < 0 ? A(0) : df;
    }
    write_row(row, to, n);
  }
}

template <class L>
Counts count(const Image& image, const L* target, int64_t n) {
  std::vector<uint8_t> table(image.classes + 1);
  for (int64_t t = 0; t <= image.classes; ++t) table[t] = image.counts(t);
  Counts counts;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = target[i];
    const bool known = t >= 0 && t <= image.classes && table[t];
    counts.background += known && t == 0;
    counts.foreground += known && t > 0;
  }
  return counts;
}

std::tuple<Tensor, Tensor, Tensor> target_nll(const Tensor& cam, const Tensor& target, const Tensor& label, int64_t ignore,
                                              double smooth, bool balance, bool need_grad) {
  const Tensor x = torch::stable::contiguous(cam), t = torch::stable::contiguous(target);
  const int64_t images = x.size(0), classes = x.size(1), pixels = x.size(2) * x.size(3);
  const int64_t blocks = (pixels + kBlock - 1) / kBlock;
  const std::vector<uint8_t> present = present_classes(label);
  std::vector<Image> image;
  for (int64_t b = 0; b < images; ++b) image.emplace_back(present.data() + b * classes, classes, ignore);
  Tensor grad = need_grad ? new_like(x) : torch::stable::new_empty(x, {0});
  double loss = 0, scale = 0;
  with_integers(t, "target", [&](auto* labels) {
    std::vector<Counts> counts(images);
    for_each(images, [&](int64_t b) { counts[b] = count(image[b], labels + b * pixels, pixels); });
    int64_t n[2] = {0, 0};
    for (const Counts& c : counts) {
      n[0] += c.background;
      n[1] += c.foreground;
    }
    if (!balance) n[0] = n[1] = n[0] + n[1];
    // The gradient is stored without the pixels' number, of the smaller group if there are two, and without slopes beyond 100.
    const int64_t groups = balance ? std::max(1, (n[0] > 0) + (n[1] > 0)) : 1;
    const int64_t least = n[0] && n[1] ? std::min(n[0], n[1]) : std::max(n[0], n[1]);
    const double stored = static_cast<double>(std::max<int64_t>(least * groups, 1)) * std::min(1.0, smooth / 0.01);
    scale = 1 / stored;
    Weights weights{smooth, {}};
    for (int g = 0; g < 2; ++g) weights.group[g] = n[g] ? stored / (static_cast<double>(n[g]) * groups) : 0;
    std::vector<double> losses(images * blocks * 2);
    with_sums(x, "cam", [&]<class A>(A) {
      const Source<A> from = source_of<A>(x);
      const Target<A> to = target_of<A>(grad);
      for_each(images * blocks, [] { return Scratch<A>(); }, [&](int64_t i, Scratch<A>& scratch) {
        const int64_t b = i / blocks, at = i % blocks * kBlock, count = std::min(kBlock, pixels - at);
        for (int64_t j = 0; j < count; ++j) {
          const int64_t label = labels[b * pixels + at + j];
          *(scratch.target + j) = image[b].counts(label) ? static_cast<A>(label) : A(-1);
        }
        block<A>(image[b], scratch, weights, from + b * classes * pixels, to ? to + b * classes * pixels : to, at, count,
                 pixels, losses.data() + 2 * i);
      });
    });
    double sums[2] = {0, 0};
    for (size_t i = 0; i < losses.size(); ++i) sums[i % 2] += losses[i];
    if (balance) {
      for (int g = 0; g < 2; ++g) loss += n[g] ? sums[g] / n[g] / groups : 0;
    } else {
      loss = (sums[0] + sums[1]) / std::max<int64_t>(n[0], 1);
    }
  });
  const ScalarType type = wide(x.scalar_type());
  return {scalar(x, type, loss), grad, scalar(x, type, scale)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("target_nll", TORCH_BOX(&target_nll)); }

}  // namespace camguide
