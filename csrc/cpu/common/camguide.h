// What the CPU kernels share. Only the stable ABI of LibTorch (torch/csrc/stable, torch/headeronly): one binary serves torch >= 2.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace camguide {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What elements are widened to, and summed in.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// f(pointer to the elements of x), x a contiguous label map: uint8, int32 or int64.
template <class F>
void with_labels(const Tensor& x, const char* name, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Byte:
      return f(x.const_data_ptr<uint8_t>());
    case ScalarType::Int:
      return f(x.const_data_ptr<int32_t>());
    case ScalarType::Long:
      return f(x.const_data_ptr<int64_t>());
    default:
      STD_TORCH_CHECK(false, name, " must be uint8, int32 or int64");
  }
}

// f(pointer to the elements of x), x a contiguous tensor of one of the integer dtypes.
template <class F>
void with_integers(const Tensor& x, const char* name, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Char:
      return f(x.const_data_ptr<int8_t>());
    case ScalarType::Short:
      return f(x.const_data_ptr<int16_t>());
    default:
      return with_labels(x, name, f);
  }
}

// f(pointer to the elements of x), x contiguous and of one of the float dtypes.
template <class F>
void with_floats(const Tensor& x, const char* name, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(x.const_data_ptr<float>());
    case ScalarType::Double:
      return f(x.const_data_ptr<double>());
    case ScalarType::Half:
      return f(x.const_data_ptr<Half>());
    case ScalarType::BFloat16:
      return f(x.const_data_ptr<BFloat16>());
    default:
      STD_TORCH_CHECK(false, name, " must be fp32, fp64, fp16 or bf16");
  }
}

// f(pointer to the elements of x), x a contiguous image: uint8 or float.
template <class F>
void with_image(const Tensor& x, const char* name, const F& f) {
  if (x.scalar_type() == ScalarType::Byte) return f(x.const_data_ptr<uint8_t>());
  with_floats(x, name, f);
}

}  // namespace camguide
