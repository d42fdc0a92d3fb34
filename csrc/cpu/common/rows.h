// Rows of pixels as the CPU kernels work on them: widened to the type of the sums, in memory padded to whole vectors.
//
// What compares or selects is written as a loop over a row, which the compiler turns into vectors of any width: GCC splits a
// comparison of `Vec` into single lanes where the CPU has no register of that width.
#pragma once

#include "buffer.h"
#include "camguide.h"
#include "simd.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace camguide {

inline ScalarType wide(ScalarType t) { return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

inline Tensor scalar(const Tensor& like, ScalarType type, double value) {
  Tensor x = torch::stable::new_empty(like, {}, type);
  return torch::stable::fill_(x, value);
}

// Whether label > 0, of any dtype: [B * K] bytes.
inline std::vector<uint8_t> present_classes(const Tensor& label) {
  const Tensor x = torch::stable::contiguous(torch::stable::to(label, ScalarType::Double));
  const double* const from = x.const_data_ptr<double>();
  std::vector<uint8_t> present(x.numel());
  for (size_t i = 0; i < present.size(); ++i) present[i] = from[i] > 0;
  return present;
}

// An uninitialised result like x. Large ones come straight from the system, whose page faults take longer than the kernels
// that fill them: huge pages make them few.
inline Tensor new_like(const Tensor& x) {
  Tensor y = torch::stable::new_empty(x, x.sizes());
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(y.mutable_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + y.numel() * y.element_size()) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: it may fail
#endif
  return y;
}

CAMGUIDE_INLINE float widen(float x) { return x; }
CAMGUIDE_INLINE double widen(double x) { return x; }
CAMGUIDE_INLINE float widen(uint8_t x) { return x; }
CAMGUIDE_INLINE float widen(BFloat16 x) { return std::bit_cast<float>(uint32_t{x.x} << 16); }
CAMGUIDE_INLINE float widen(Half x) {
  const uint32_t bits = uint32_t{x.x & 0x7fffu} << 13;  // exponent and mantissa in their places, the bias 112 too low
  const uint32_t normal = bits + (112u << 23), largest = bits + (224u << 23);
  const float subnormal = std::bit_cast<float>(normal + (1u << 23)) - std::bit_cast<float>(113u << 23);
  const uint32_t magnitude = bits < (1u << 23) ? std::bit_cast<uint32_t>(subnormal) : bits < (31u << 23) ? normal : largest;
  return std::bit_cast<float>(magnitude | uint32_t{x.x & 0x8000u} << 16);
}

CAMGUIDE_INLINE void narrow(float x, float& to) { to = x; }
CAMGUIDE_INLINE void narrow(double x, double& to) { to = x; }
CAMGUIDE_INLINE void narrow(int32_t x, int32_t& to) { to = x; }
CAMGUIDE_INLINE void narrow(float x, BFloat16& to) {  // to nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  to.x = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
CAMGUIDE_INLINE void narrow(float x, Half& to) {  // to nearest, ties to even
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13;
  // The sum with 1/2 rounds a number below 2^-14 to a multiple of 2^-24, the unit of fp16's subnormals.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to.x = static_cast<uint16_t>((magnitude < (143u << 23) ? finite : special) | (bits >> 16 & 0x8000u));
}

// n pixels to a row with space for whole vectors, which end in zeros.
template <class T, class A>
CAMGUIDE_INLINE void read_row(const T* __restrict from, A* __restrict to, int64_t n) {
  const int64_t whole = n / lanes<A> * lanes<A>;
  for (int64_t x = 0; x < whole; ++x) to[x] = widen(from[x]);
  if (whole < n) {
    T rest[lanes<A>] = {};
    std::copy_n(from + whole, n - whole, rest);
    for (int64_t x = 0; x < lanes<A>; ++x) to[whole + x] = widen(rest[x]);
  }
}

template <class A, class T>
CAMGUIDE_INLINE void write_row(const A* __restrict from, T* __restrict to, int64_t n) {
  const int64_t whole = n / lanes<A> * lanes<A>;
  for (int64_t x = 0; x < whole; ++x) narrow(from[x], to[x]);
  for (int64_t x = whole; x < n; ++x) narrow(from[x], to[x]);
}

// The elements of a tensor whose sums are of type A: fp64 for double; fp32, fp16, bf16 and the uint8 of an image for float. Which
// of them is asked row by row, so that a kernel is compiled for A alone.
template <class A, class Byte>
struct Elements {
  Byte* data;
  int64_t size;  // of an element
  ScalarType type;

  // The elements if they are of type A, else nothing.
  CAMGUIDE_INLINE auto own() const {
    const bool same = std::is_same_v<A, double> || type == ScalarType::Float;
    return same ? as<A>() : nullptr;
  }

  const uint8_t* bytes() const { return type == ScalarType::Byte ? as<uint8_t>() : nullptr; }

  Elements operator+(int64_t n) const { return {data + n * size, size, type}; }
  explicit operator bool() const { return data; }

  // f(pointer to the elements)
  template <class F>
  CAMGUIDE_INLINE void typed(const F& f) const {
    if constexpr (std::is_same_v<A, double>) {
      f(as<double>());
    } else if (type == ScalarType::Float) {
      f(as<float>());
    } else if (type == ScalarType::Half) {
      f(as<Half>());
    } else if (type == ScalarType::BFloat16) {
      f(as<BFloat16>());
    } else if constexpr (std::is_const_v<Byte>) {  // bytes are read alone
      f(as<uint8_t>());
    }
  }

 private:
  template <class T>
  CAMGUIDE_INLINE auto as() const {
    return reinterpret_cast<std::conditional_t<std::is_const_v<Byte>, const T, T>*>(data);
  }
};
template <class A>
using Source = Elements<A, const char>;
template <class A>
using Target = Elements<A, char>;

template <class A>
Source<A> source_of(const Tensor& x) {
  return {static_cast<const char*>(x.const_data_ptr()), static_cast<int64_t>(x.element_size()), x.scalar_type()};
}

// Nothing to write to where x has no elements.
template <class A>
Target<A> target_of(const Tensor& x) {
  char* const data = x.numel() ? static_cast<char*>(x.mutable_data_ptr()) : nullptr;
  return {data, static_cast<int64_t>(x.element_size()), x.scalar_type()};
}

// These two stay calls, of the copy made for the same CPU: a row is long, and conversions drawn into each kernel take longer to
// compile than the kernels.
template <class A>
CAMGUIDE_MULTIVERSION __attribute__((noinline)) void read_row(const Source<A>& from, A* to, int64_t n) {
  from.typed([&](auto* typed) __attribute__((always_inline)) { read_row(typed, to, n); });
}

template <class A>
CAMGUIDE_MULTIVERSION __attribute__((noinline)) void write_row(const A* from, const Target<A>& to, int64_t n) {
  to.typed([&](auto* typed) __attribute__((always_inline)) { write_row(from, typed, n); });
}

template <class A>
CAMGUIDE_INLINE void clear_row(const Target<A>& to, int64_t n) {
  std::memset(to.data, 0, n * to.size);
}

// f(0 of the type in which x is summed), x of one of the float dtypes.
template <class F>
void with_sums(const Tensor& x, const char* name, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return f(0.0f);
    case ScalarType::Double:
      return f(0.0);
    default:
      STD_TORCH_CHECK(false, name, " must be fp32, fp64, fp16 or bf16");
  }
}

// The same for an image: uint8 or float.
template <class F>
void with_image_sums(const Tensor& x, const char* name, const F& f) {
  if (x.scalar_type() == ScalarType::Byte) return f(0.0f);
  with_sums(x, name, f);
}

// The lanes of v in their order: the same bits on every CPU.
template <class A>
CAMGUIDE_INLINE double sum_lanes(Vec<A> v) {
  A lane[lanes<A>];
  store(lane, v);
  double sum = 0;
  for (int64_t i = 0; i < lanes<A>; ++i) sum += lane[i];
  return sum;
}

}  // namespace camguide
