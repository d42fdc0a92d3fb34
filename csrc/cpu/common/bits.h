// Sixty-four pixels as the bits of a word.
#pragma once

#include "simd.h"

#include <cstdint>
#include <cstring>

namespace camguide {

// Bit i is whether f(i), for i < n <= 64; the others are 0.
template <class F>
CAMGUIDE_INLINE uint64_t bits_of(int64_t n, const F& f) {
  alignas(64) uint8_t bytes[64] = {};
  if (n == 64) {
    for (int64_t i = 0; i < 64; ++i) bytes[i] = f(i);
  } else {
    for (int64_t i = 0; i < n; ++i) bytes[i] = f(i);
  }
  uint64_t word = 0;
  for (int64_t i = 0; i < 8; ++i) {  // the product gathers the lowest bits of eight bytes in its highest
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, 8);
    word |= eight * 0x0102040810204080u >> 56 << (8 * i);
  }
  return word;
}

// f(i) for each bit that is set, ascending.
template <class F>
CAMGUIDE_INLINE void each_bit(uint64_t word, const F& f) {
  for (; word; word &= word - 1) f(static_cast<int64_t>(__builtin_ctzll(word)));
}

}  // namespace camguide
