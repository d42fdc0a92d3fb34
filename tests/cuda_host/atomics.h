// Atomics: fibers change places only between operations, so plain code is atomic. The types are those that CUDA has.
#pragma once

#include <type_traits>

#include "fibers.h"

namespace cuda_host {
template <class V>
V exchange(V* at, V to) {
  maybe_yield();
  const V old = *at;
  *at = to;
  return old;
}
template <class V>
V update(V* at, V (*f)(V, V), V v) {
  maybe_yield();
  const V old = *at;
  *at = f(old, v);
  return old;
}
template <class V>
V wrapping_add(V a, V b) {
  if constexpr (std::is_integral_v<V>) {
    return (V)((std::make_unsigned_t<V>)a + (std::make_unsigned_t<V>)b);
  } else {
    return a + b;
  }
}
}  // namespace cuda_host

#define CUDA_HOST_ATOMIC(name, type, expression)                                              \
  inline type name(type* at, type v) {                                                        \
    return cuda_host::update<type>(at, [](type a, type b) -> type { return expression; }, v); \
  }
#define CUDA_HOST_INTEGER(type)                           \
  CUDA_HOST_ATOMIC(atomicMin, type, b < a ? b : a)        \
  CUDA_HOST_ATOMIC(atomicMax, type, a < b ? b : a)        \
  CUDA_HOST_ATOMIC(atomicAnd, type, a& b)                 \
  CUDA_HOST_ATOMIC(atomicOr, type, a | b)                 \
  CUDA_HOST_ATOMIC(atomicXor, type, a ^ b)                \
  inline type atomicCAS(type* at, type compare, type v) { \
    cuda_host::maybe_yield();                             \
    const type old = *at;                                 \
    if (old == compare) *at = v;                          \
    return old;                                           \
  }
CUDA_HOST_INTEGER(int)
CUDA_HOST_INTEGER(unsigned)
CUDA_HOST_INTEGER(unsigned long long)
CUDA_HOST_ATOMIC(atomicMin, long long, b < a ? b : a)
CUDA_HOST_ATOMIC(atomicMax, long long, a < b ? b : a)
CUDA_HOST_ATOMIC(atomicAdd, int, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, unsigned, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, float, a + b)
CUDA_HOST_ATOMIC(atomicAdd, double, a + b)
CUDA_HOST_ATOMIC(atomicSub, int, (int)((unsigned)a - (unsigned)b))
CUDA_HOST_ATOMIC(atomicSub, unsigned, a - b)
#undef CUDA_HOST_INTEGER
#undef CUDA_HOST_ATOMIC
inline int atomicExch(int* at, int v) { return cuda_host::exchange(at, v); }
inline unsigned atomicExch(unsigned* at, unsigned v) { return cuda_host::exchange(at, v); }
inline unsigned long long atomicExch(unsigned long long* at, unsigned long long v) { return cuda_host::exchange(at, v); }
inline float atomicExch(float* at, float v) { return cuda_host::exchange(at, v); }

template <class V>
V __ldg(const V* at) {
  return *at;
}
template <class V>
V __ldcg(const V* at) {
  return *at;
}
template <class V>
V __ldcs(const V* at) {
  return *at;
}
template <class V>
void __stcs(V* at, V v) {
  *at = v;
}
