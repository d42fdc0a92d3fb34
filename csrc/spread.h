// Values of pieces or runs, in the order of the raster, spread over their pixels.
#pragma once

#include "rows.h"
#include "simd.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace camguide {
namespace {

// Shuffles are written for this length, whatever the CPU has.
template <class A>
struct Row {
  using Int = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  typedef A Values __attribute__((vector_size(32)));
  typedef Int Index __attribute__((vector_size(32)));
  static constexpr int64_t size = 32 / sizeof(A);

  static CAMGUIDE_INLINE Values load(const A* from) {
    Values v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static CAMGUIDE_INLINE void store(A* to, Values v) { std::memcpy(to, &v, sizeof v); }
};

// For the bits that say where pieces start behind the first of `lanes` pixels: how many pieces further each pixel is.
template <class A>
alignas(64) constexpr auto kRanks = [] {
  std::array<std::array<typename Row<A>::Int, Row<A>::size>, 1 << (Row<A>::size - 1)> ranks{};
  for (size_t bits = 0; bits < ranks.size(); ++bits) {
    for (int64_t i = 1; i < Row<A>::size; ++i) ranks[bits][i] = ranks[bits][i - 1] + (bits >> (i - 1) & 1);
  }
  return ranks;
}();

template <class A>
CAMGUIDE_INLINE typename Row<A>::Values permute(typename Row<A>::Values v, const std::array<typename Row<A>::Int, Row<A>::size>& index) {
#if defined(__clang__)
  A from[Row<A>::size], to[Row<A>::size];
  Row<A>::store(from, v);
  for (int64_t i = 0; i < Row<A>::size; ++i) to[i] = from[index[i]];
  return Row<A>::load(to);
#else
  typename Row<A>::Index at;
  std::memcpy(&at, index.data(), sizeof at);
  return __builtin_shuffle(v, at);
#endif
}

// Gives each of n pixels the value of its piece. `values`: those of each map, in the order of the pieces, `step` from map to
// map; a vector may be read behind the last one. Pixels of a map lie `stride` from those of the one before.
template <int64_t maps, class A, class T>
CAMGUIDE_INLINE void spread(const uint64_t* starts, const A* values, int64_t step, int64_t n, T* out, int64_t stride) {
  constexpr int64_t at_once = Row<A>::size;
  int64_t before = -1;  // the piece that the pixel before belongs to
  for (int64_t x = 0; x < n; x += at_once) {
    const uint64_t bits = starts[x / 64] >> x % 64 & ((1 << at_once) - 1);
    const A* const from = values + before + (bits & 1);
    for (int64_t k = 0; k < maps; ++k) {
      const typename Row<A>::Values v = permute<A>(Row<A>::load(from + k * step), kRanks<A>[bits >> 1]);
      A value[at_once];
      Row<A>::store(value, v);
      T* const to = out + k * stride + x;
      if (x + at_once <= n) [[likely]] {
        for (int64_t i = 0; i < at_once; ++i) narrow(value[i], to[i]);
      } else {
        for (int64_t i = 0; i < n - x; ++i) narrow(value[i], to[i]);
      }
    }
    before += __builtin_popcountll(bits);
  }
}

}  // namespace
}  // namespace camguide
