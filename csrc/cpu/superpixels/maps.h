// Maps summed over superpixels, piece by piece.
#pragma once

#include "label_pieces.h"
#include "../common/rows.h"
#include "../common/simd.h"
#include "../common/spread.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace camguide {
namespace {

constexpr int64_t kMaps = 4;  // at most, summed and spread together: a vector of fp64 sums

using Floats = Row<float>::Values;
using Doubles = Row<double>::Values;

// Sums of the lanes of four vectors.
CAMGUIDE_INLINE Doubles across(Floats a, Floats b, Floats c, Floats d) {
  typedef float Half __attribute__((vector_size(16)));
  const Floats ab =
      __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  const Floats cd =
      __builtin_shufflevector(c, d, 0, 8, 2, 10, 4, 12, 6, 14) + __builtin_shufflevector(c, d, 1, 9, 3, 11, 5, 13, 7, 15);
  const Floats all =
      __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) + __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
  const Half sums = __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
  float narrow[kMaps];
  double wide[kMaps];
  std::memcpy(narrow, &sums, sizeof sums);
  for (int64_t k = 0; k < kMaps; ++k) wide[k] = narrow[k];  // a conversion of the vector would be taken apart
  return Row<double>::load(wide);
}

CAMGUIDE_INLINE Doubles across(Doubles a, Doubles b, Doubles c, Doubles d) {
  const Doubles ab = __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
  const Doubles cd = __builtin_shufflevector(c, d, 0, 4, 2, 6) + __builtin_shufflevector(c, d, 1, 5, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// The first n of 16 lanes: 16 - n steps into this table.
template <class A>
alignas(64) constexpr auto kInside = [] {
  std::array<typename Row<A>::Int, 2 * kPiece> mask{};
  for (int64_t i = 0; i < kPiece; ++i) mask[i] = -1;
  return mask;
}();

// Adds the piece at `values` (of each map `stride` further) to the sums of its superpixel, [4]. Reads 16 pixels; what is not
// of the piece may be anything, NaN too. In fp32 within a piece, from there on in fp64.
template <int64_t maps, class T>
CAMGUIDE_INLINE void add_piece(const T* values, int64_t stride, int64_t length, double* sums) {
  using A = Wide<T>;
  using Mask = typename Row<A>::Index;
  typename Row<A>::Values part[kMaps] = {};
#pragma GCC unroll 4
  for (int64_t k = 0; k < maps; ++k) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kPiece; i += Row<A>::size) {
      Mask inside;
      std::memcpy(&inside, kInside<A>.data() + kPiece - length + i, sizeof inside);
      A wide[Row<A>::size];
      for (int64_t x = 0; x < Row<A>::size; ++x) wide[x] = widen(values[k * stride + i + x]);
      part[k] += (typename Row<A>::Values)((Mask)Row<A>::load(wide) & inside);
    }
  }
  Row<double>::store(sums, Row<double>::load(sums) + across(part[0], part[1], part[2], part[3]));
}

// Sums of maps [maps, H, W] over each superpixel, added to [N, 4].
template <int64_t maps, class T>
CAMGUIDE_INLINE void sum_maps(const T* values, const Pieces& pieces, double* sums) {
  for (int64_t chunk = 0; chunk < pieces.chunks(); ++chunk) {
    const Piece* const end = pieces.of(chunk) + pieces.count(chunk);
    for (const Piece* p = pieces.of(chunk); p < end; ++p) {
      double* const own = sums + int64_t{p->label} * kMaps;
      if (p->at + kPiece <= pieces.pixels) [[likely]] {
        add_piece<maps>(values + p->at, pieces.pixels, p->length, own);
      } else {  // too near to the end of the memory
        T last[maps * kPiece] = {};
        for (int64_t k = 0; k < maps; ++k) std::copy_n(values + k * pieces.pixels + p->at, p->length, last + k * kPiece);
        add_piece<maps>(last, kPiece, p->length, own);
      }
    }
  }
}

}  // namespace
}  // namespace camguide
