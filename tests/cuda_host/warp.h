// What a thread knows of its block and exchanges with it: indices, barriers, shuffles, votes.
#pragma once

#include "fibers.h"

namespace cuda_host {

// The lane's own value where the source lies outside its segment of `width` lanes. Outside the mask it is undefined on a GPU:
// here a NaN or a huge number.
template <class V>
V shuffle(unsigned mask, V v, const char* what, int width, int from, bool inside) {
  if (width < 1 || width > 32 || (width & (width - 1))) fail("the width of a shuffle is a power of two");
  const Slot& slot = meet(mask, what, bits(v));
  if (!inside) return v;
  if (!(mask >> from & 1)) return value<V>(0x7ff7f7f77fb7f7f7ull);
  return value<V>(slot.value[from]);
}

}  // namespace cuda_host

#define threadIdx (cuda_host::current->index)
#define blockIdx (cuda_host::block_index)
#define blockDim (cuda_host::block_size)
#define gridDim (cuda_host::grid_size)
constexpr int warpSize = 32;

inline void __syncthreads() { cuda_host::sync_block(0); }
inline int __syncthreads_count(int p) { return cuda_host::sync_block(p); }
inline int __syncthreads_or(int p) { return cuda_host::sync_block(p) > 0; }
inline int __syncthreads_and(int p) { return cuda_host::sync_block(!p) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { cuda_host::meet(mask, "__syncwarp", 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_host::yield(); }
[[noreturn]] inline void __trap() { cuda_host::fail("__trap"); }

template <class V>
V __shfl_sync(unsigned mask, V v, int from, int width = 32) {
  const int base = (int)cuda_host::lane() & ~(width - 1);
  return cuda_host::shuffle(mask, v, "__shfl_sync", width, base + (from & (width - 1)), true);
}
template <class V>
V __shfl_up_sync(unsigned mask, V v, unsigned delta, int width = 32) {
  const int l = cuda_host::lane(), from = l - (int)delta;
  return cuda_host::shuffle(mask, v, "__shfl_up_sync", width, from, from >= (l & ~(width - 1)));
}
template <class V>
V __shfl_down_sync(unsigned mask, V v, unsigned delta, int width = 32) {
  const int l = cuda_host::lane(), from = l + (int)delta;
  return cuda_host::shuffle(mask, v, "__shfl_down_sync", width, from, from <= (l | (width - 1)));
}
template <class V>
V __shfl_xor_sync(unsigned mask, V v, int lanes, int width = 32) {
  const int l = cuda_host::lane(), from = l ^ lanes;
  return cuda_host::shuffle(mask, v, "__shfl_xor_sync", width, from, from <= (l | (width - 1)));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, "__ballot_sync", predicate != 0);
  unsigned votes = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) votes |= (unsigned)slot.value[l] << l;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class V>
unsigned __match_any_sync(unsigned mask, V v) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, "__match_any_sync", cuda_host::bits(v));
  unsigned equal = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) equal |= (unsigned)(slot.value[l] == cuda_host::bits(v)) << l;
  return equal;
}
template <class V, class F>
V cuda_host_reduce(unsigned mask, V v, const char* what, const F& f) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, what, cuda_host::bits(v));
  bool first = true;
  V total = v;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) {
      const V other = cuda_host::value<V>(slot.value[l]);
      total = first ? other : f(total, other);
      first = false;
    }
  return total;
}
template <class V>
V __reduce_add_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_add_sync", [](V a, V b) { return (V)((unsigned)a + (unsigned)b); });
}
template <class V>
V __reduce_min_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_min_sync", [](V a, V b) { return b < a ? b : a; });
}
template <class V>
V __reduce_max_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_max_sync", [](V a, V b) { return a < b ? b : a; });
}
template <class V>
V __reduce_or_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_or_sync", [](V a, V b) { return a | b; });
}
// Any set that holds the lane is a right answer on a GPU: the smallest one.
inline unsigned __activemask() { return 1u << cuda_host::lane(); }
