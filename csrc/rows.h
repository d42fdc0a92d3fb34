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
