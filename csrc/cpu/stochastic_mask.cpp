// stochastic_mask: where cam > tau for a present class, all ones where that is nowhere; see camguide_fast/ops/stochastic_mask.py.
//
// The present classes of an image are laid over one another a block of pixels at a time, which stays in the cache. Bytes: the
// planes of present classes and the mask, once; planes of absent classes are not read.
#include "common/parallel.h"
#include "common/rows.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace camguide {
namespace {

constexpr int64_t kBlock = 1 << 13;  // pixels

// The largest A that is not above x: another A exceeds both or neither.
template <class A>
A at_most(double x) {
  const A a = static_cast<A>(x);
  return a > x ? std::nextafter(a, -std::numeric_limits<A>::infinity()) : a;
}

template <class A, class T>
CAMGUIDE_MULTIVERSION void lay_over(const T* cam, A tau, int64_t n, uint8_t* mask) {
  for (int64_t i = 0; i < n; ++i) mask[i] |= widen(cam[i]) > tau;
}

CAMGUIDE_MULTIVERSION bool is_empty(const uint8_t* mask, int64_t n) {
  uint8_t any = 0;
  for (int64_t i = 0; i < n; ++i) any |= mask[i];
  return !any;
}

Tensor stochastic_mask(const Tensor& cam, const Tensor& label, const Tensor& tau) {
  const Tensor x = torch::stable::contiguous(cam);
  const Tensor thresholds = torch::stable::contiguous(torch::stable::to(tau, ScalarType::Double));
  const double* const threshold = thresholds.const_data_ptr<double>();
  const std::vector<uint8_t> present = present_classes(label);
  const int64_t batch = x.size(0), classes = x.size(1), pixels = x.size(2) * x.size(3);
  Tensor out = torch::stable::new_empty(x, {batch, 1, x.size(2), x.size(3)}, ScalarType::Bool);
  uint8_t* const mask = static_cast<uint8_t*>(out.mutable_data_ptr());
  std::vector<std::atomic<bool>> shows(batch);  // anything
  const int64_t blocks = (pixels + kBlock - 1) / kBlock;
  with_floats(x, "cam", [&](auto* data) {
    using A = Wide<std::remove_const_t<std::remove_pointer_t<decltype(data)>>>;
    for_each(batch * blocks, [&](int64_t i) {
      const int64_t image = i / blocks, begin = i % blocks * kBlock, n = std::min(kBlock, pixels - begin);
      uint8_t* const to = mask + image * pixels + begin;
      std::memset(to, 0, n);
      for (int64_t k = image * classes; k < (image + 1) * classes; ++k) {
        if (present[k]) lay_over(data + k * pixels + begin, at_most<A>(threshold[k]), n, to);
      }
      if (!is_empty(to, n)) shows[image] = true;
    });
  });
  for_each(batch, [&](int64_t image) {
    if (!shows[image]) std::memset(mask + image * pixels, 1, pixels);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("stochastic_mask", TORCH_BOX(&stochastic_mask)); }

}  // namespace camguide
