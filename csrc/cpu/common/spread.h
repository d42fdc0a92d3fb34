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
CAMGUIDE_INLINE typename Row<A>::Values permute(typename Row<A>::Values v, typename Row<A>::Index index) {
#if defined(__clang__)
  typename Row<A>::Values out;
  for (int64_t i = 0; i < Row<A>::size; ++i) out[i] = v[index[i]];
  return out;
#else
  return __builtin_shuffle(v, index);
#endif
}

// Gives each of n pixels the value of its piece. `values`: those of each map, in the order of the pieces, `step` from map to
// map; a vector may be read behind the last one. Pixels of a map lie `stride` from those of the one before.
template <int64_t maps, class A, class T>
CAMGUIDE_INLINE void spread(const uint64_t* starts, const A* values, int64_t step, int64_t n, T* out, int64_t stride) {
  constexpr int64_t at_once = Row<A>::size;
  int64_t before = -1;  // the piece that the pixel before belongs to
  const auto write = [&](int64_t x, int64_t pixels) {
    const uint64_t bits = starts[x / 64] >> x % 64 & ((1 << at_once) - 1);
    const A* const from = values + before + (bits & 1);
    typename Row<A>::Index index;
    std::memcpy(&index, kRanks<A>[bits >> 1].data(), sizeof index);
#pragma GCC unroll 4
    for (int64_t k = 0; k < maps; ++k) {
      A value[at_once];
      Row<A>::store(value, permute<A>(Row<A>::load(from + k * step), index));
      for (int64_t i = 0; i < pixels; ++i) narrow(value[i], out[k * stride + x + i]);
    }
    before += __builtin_popcountll(bits);
  };
  const int64_t whole = n / at_once * at_once;
  for (int64_t x = 0; x < whole; x += at_once) write(x, at_once);
  if (whole < n) write(whole, n - whole);
}

}  // namespace
}  // namespace camguide
