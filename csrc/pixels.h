// Images and maps of any dtype, in batches.
#pragma once

#include "camguide.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace camguide {

// What a pixel is widened to: double for double, else float.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// f(pointer to the elements of x), x contiguous: floating point, or uint8.
template <class F>
void with_pixels(const Tensor& x, const char* name, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Byte:
      return f(x.const_data_ptr<uint8_t>());
    case ScalarType::Float:
      return f(x.const_data_ptr<float>());
    case ScalarType::Double:
      return f(x.const_data_ptr<double>());
    case ScalarType::Half:
      return f(x.const_data_ptr<c10::Half>());
    case ScalarType::BFloat16:
      return f(x.const_data_ptr<c10::BFloat16>());
    default:
      STD_TORCH_CHECK(false, name, " must be uint8 or floating point");
  }
}

// f(i) for every image: one for each thread as long as there are enough, then the threads share each that is left.
template <class F>
void for_each_image(int64_t batch, const F& f) {
  const int64_t shared = batch - batch % static_cast<int64_t>(torch::stable::get_num_threads());
  torch::stable::parallel_for(0, shared, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
  for (int64_t i = shared; i < batch; ++i) f(i);
}

}  // namespace camguide
