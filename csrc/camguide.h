// What the CPU kernels share. Only the stable ABI of LibTorch (torch/csrc/stable, torch/headeronly): one binary serves torch >= 2.10.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace camguide {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

}  // namespace camguide
