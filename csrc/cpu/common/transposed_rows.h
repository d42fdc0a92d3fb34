// Transposes of filters whose borders replicate: what the gradient of blur and Scharr runs through.
#pragma once

#include "simd.h"

#include <algorithm>
#include <cstdint>

namespace camguide {

// The transpose of a filter of 2R+1 taps along y: row y is the sum of weight[j] times row y + j - R. Replication reads the first
// and the last row in the place of those beyond them, which gives those two more weight.
template <int R, class A>
struct TransposedRows {
  A weight[2 * R + 1];

  template <class Taps>
  TransposedRows(const Taps& taps, int64_t y, int64_t height) {
    for (int64_t j = -R; j <= R; ++j) {
      double sum = 0;
      for (int64_t i = -R; i <= R; ++i) {
        const bool reads = y + j >= 0 && y + j < height && std::clamp<int64_t>(y + j + i, 0, height - 1) == y;
        sum += reads ? static_cast<double>(taps[R + i]) : 0;
      }
      weight[R + j] = static_cast<A>(sum);
    }
  }

  template <class Row>
  CAMGUIDE_INLINE void apply(int64_t y, int64_t height, int64_t n, const Row& row, A* to) const {
    for (int64_t x = 0; x < n; x += lanes<A>) {
      Vec<A> sum = {};
      for (int64_t j = -R; j <= R; ++j) {
        if (y + j >= 0 && y + j < height) sum += weight[R + j] * load(row(y + j) + x);
      }
      store(to + x, sum);
    }
  }
};

// What a transposed filter along x left beyond the ends belongs to the end pixels; zeros replace it.
template <class A>
CAMGUIDE_INLINE void fold(A* row, int64_t width, int64_t by, int64_t n) {
  for (int64_t i = 1; i <= by; ++i) row[0] += row[-i];
  for (int64_t i = 0; i < by; ++i) row[width - 1] += row[width + i];
  std::fill_n(row - by, by, A(0));
  std::fill(row + width, row + n + lanes<A>, A(0));
}

}  // namespace camguide
