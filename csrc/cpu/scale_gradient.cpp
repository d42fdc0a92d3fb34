// scale_gradient_: grad *= factor, see camguide_fast/ops/scale_gradient.py. One read, one write, no widened copy.
#include "common/parallel.h"
#include "common/rows.h"

namespace camguide {
namespace {

template <class A, class T>
CAMGUIDE_MULTIVERSION void scale(T* grad, int64_t n, A factor) {
  for (int64_t i = 0; i < n; ++i) narrow(widen(grad[i]) * factor, grad[i]);
}

void scale_gradient_(Tensor grad, const Tensor& factor) {
  STD_TORCH_CHECK(grad.is_contiguous(), "scale_gradient_: grad must be contiguous");
  const Tensor f = torch::stable::to(factor, ScalarType::Double);
  const double value = *f.const_data_ptr<double>();
  with_floats(grad, "grad", [&](auto* typed) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(typed)>>;
    using A = Wide<T>;
    T* const to = static_cast<T*>(grad.mutable_data_ptr());
    for_each_block(grad.numel(), 1 << 15,
                   [&](int64_t begin, int64_t end) { scale<A>(to + begin, end - begin, static_cast<A>(value)); });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_)); }

}  // namespace camguide
