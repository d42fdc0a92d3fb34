// Numbers. The fast intrinsics are exact here: the tests of a kernel that uses them need the tolerance of the GPU's.
#pragma once

#include <cmath>
#include <cstdint>

#include "language.h"

using std::fma, std::fmaf;
template <class V>  // those of <algorithm>, a header that takes longer to compile than a kernel
V max(V a, V b) {
  return a < b ? b : a;
}
template <class V>
V min(V a, V b) {
  return b < a ? b : a;
}
inline long long max(long long a, int b) { return max(a, (long long)b); }
inline long long min(long long a, int b) { return min(a, (long long)b); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (uint64_t)y << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}
inline unsigned __dp4a(unsigned x, unsigned y, unsigned sum) {
  for (int i = 0; i < 32; i += 8) sum += (x >> i & 255) * (y >> i & 255);
  return sum;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
inline unsigned __float_as_uint(float x) { return (unsigned)cuda_host::bits(x); }
inline int __float_as_int(float x) { return (int)(unsigned)cuda_host::bits(x); }
inline float __uint_as_float(unsigned x) { return cuda_host::value<float>(x); }
inline float __int_as_float(int x) { return cuda_host::value<float>((unsigned)x); }
inline long long __double_as_longlong(double x) { return (long long)cuda_host::bits(x); }
inline double __longlong_as_double(long long x) { return cuda_host::value<double>((uint64_t)x); }
inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
inline int __float2int_rd(float x) { return (int)std::floor(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)std::nearbyint(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
// One rounding each: never contracted to a fused multiply-add.
#define CUDA_HOST_ROUNDED(name, type, op) \
  inline type name(type a, type b) {      \
    volatile type r = a op b;             \
    return r;                             \
  }
CUDA_HOST_ROUNDED(__fadd_rn, float, +)
CUDA_HOST_ROUNDED(__fsub_rn, float, -)
CUDA_HOST_ROUNDED(__fmul_rn, float, *)
CUDA_HOST_ROUNDED(__fdiv_rn, float, /)
CUDA_HOST_ROUNDED(__dadd_rn, double, +)
CUDA_HOST_ROUNDED(__dsub_rn, double, -)
CUDA_HOST_ROUNDED(__dmul_rn, double, *)
#undef CUDA_HOST_ROUNDED

namespace cuda_host {

inline float half_to_float(unsigned short h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float f = exponent == 31 ? (mantissa ? NAN : INFINITY)
            : exponent     ? std::ldexp((float)(mantissa + 1024), exponent - 25)
                           : std::ldexp((float)mantissa, -24);
  return h >> 15 ? -f : f;
}

inline unsigned short float_to_half(float f) {
  const unsigned short sign = __float_as_uint(f) >> 16 & 0x8000;
  f = std::fabs(f);
  if (f != f) return sign | 0x7e00;
  if (f >= 65520.f) return sign | 0x7c00;
  if (f < 6.103515625e-05f) return sign | (unsigned short)std::nearbyint(std::ldexp(f, 24));
  int exponent;
  const float m = std::frexp(f, &exponent);  // [.5, 1)
  return sign | (unsigned short)(((exponent + 13) << 10) + (int)std::nearbyint(std::ldexp(m, 11)));
}

inline unsigned short float_to_bfloat(float f) {
  const unsigned x = __float_as_uint(f);
  return f != f ? 0x7fff : (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

}  // namespace cuda_host
