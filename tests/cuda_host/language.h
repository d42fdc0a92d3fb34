// What the language has beyond C++: qualifiers, vector types; and a value as bits.
#pragma once

#include <cstdint>
#include <cstring>

#define CUDA_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("cuda_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};
#define CUDA_HOST_VECTORS(type, name)                                                    \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                               \
  struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                       \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_HOST_VECTORS(float, float)
CUDA_HOST_VECTORS(double, double)
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned, uint)
CUDA_HOST_VECTORS(short, short)
CUDA_HOST_VECTORS(unsigned short, ushort)
CUDA_HOST_VECTORS(unsigned char, uchar)
#undef CUDA_HOST_VECTORS

namespace cuda_host {

template <class V>
uint64_t bits(V v) {
  static_assert(sizeof(V) <= 8, "a warp operation moves at most 8 bytes");
  uint64_t to = 0;
  memcpy(&to, &v, sizeof v);
  return to;
}

template <class V>
V value(uint64_t from) {
  V v;
  memcpy(&v, &from, sizeof v);
  return v;
}

}  // namespace cuda_host
