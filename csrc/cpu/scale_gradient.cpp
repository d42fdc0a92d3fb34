// scale_gradient: grad * factor, see camguide_fast/ops/scale_gradient.py. One read, one write, no widened copy.
#include "../rows.h"

namespace camguide {
namespace {

constexpr int64_t kBlock = 1024;

template <class A, class T>
CAMGUIDE_MULTIVERSION void scale(const T* from, T* to, int64_t n, A factor) {
  alignas(64) A row[kBlock];
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min(kBlock, n - i);
    read_row(from + i, row, count);
    for (int64_t x = 0; x < count; ++x) row[x] *= factor;
    write_row(row, to + i, count);
  }
}

Tensor scale_gradient(const Tensor& grad, const Tensor& factor) {
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor f = torch::stable::to(factor, ScalarType::Double);
  const double value = *f.const_data_ptr<double>();
  Tensor result = new_like(g);
  with_floats(g, "grad", [&](auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    using A = Wide<T>;
    T* const to = static_cast<T*>(result.mutable_data_ptr());
    torch::stable::parallel_for(0, g.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
      scale<A>(from + begin, to + begin, end - begin, static_cast<A>(value));
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient));
}

}  // namespace camguide
