// sRGB -> CIE Lab as camguide_fast/reference/_lab.py has it: the same operations in the same order, each rounded once, so the
// same bits. Include it before all else: from here on no product is contracted into a fused multiply-add, and both sides of a
// choice may be computed (which may raise a floating-point flag that nobody reads), without which no loop here is vectorised.
#pragma once

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-trapping-math")
#endif

#include "../common/simd.h"

#include <bit>
#include <cstring>

namespace camguide {

// N-th root of x > 0. r, the root's inverse, from the bits of the fp32 value within 4 %; then series of (1 - e)^(-1/N) and, for
// the root t = x r^(N-1), of (1 - e)^(1/N - 1), where e = 1 - x r^N. No division: it takes longer than all of this.
template <int N, class A>
CAMGUIDE_INLINE A root(A x) {
  static_assert(N == 3 || N == 5);
  constexpr int32_t from = N == 3 ? 0x54A1F671 : 0x4C2B4A23;
  const float low = static_cast<float>(x);
  const float bits = static_cast<float>(std::bit_cast<int32_t>(low < 1e-6f ? 1e-6f : low));
  A r = std::bit_cast<float>(from - static_cast<int32_t>(bits * (1.0f / N))), t, e;
  const auto find_error = [&] {
    const A square = r * r;
    t = x * (N == 3 ? square : square * square);
    e = A(1) - t * r;
  };
  for (int i = 0; i < (sizeof(A) == 8 ? 2 : 1); ++i) {
    find_error();
    r = r + r * (e * (e * A((N + 1) / (2.0 * N * N)) + A(1.0 / N)));
  }
  find_error();
  return t + t * (e * (e * A((N - 1) * (2 * N - 1) / (2.0 * N * N)) + A((N - 1.0) / N)));
}

// Undoes the gamma of sRGB, x in [0, 1].
template <class A>
CAMGUIDE_INLINE A linear(A x) {
  const A v = (x + A(0.055)) * A(1 / 1.055);
  const A square = v * v;
  const A curved = square * root<5>(square), straight = x * A(1 / 12.92);
  return x > A(0.04045) ? curved : straight;
}

// Bytes without their gamma, from a table of all 256; eight by one load.
inline void look_up(const float* table, const uint8_t* bytes, int64_t n, float* out) {
  int64_t x = 0;
  for (uint64_t eight; x + 8 <= n; x += 8) {
    std::memcpy(&eight, bytes + x, 8);
    for (int64_t i = 0; i < 8; ++i) {
      out[x + i] = table[eight >> 8 * (std::endian::native == std::endian::little ? i : 7 - i) & 0xff];
    }
  }
  for (; x < n; ++x) out[x] = table[bytes[x]];
}

template <class A>
struct Lab {
  A L, a, b;
};

template <class A>
CAMGUIDE_INLINE A lab_curve(A t) {
  const A curved = root<3>(t), straight = t * A(7.787) + A(16.0 / 116);
  return t > A(0.008856) ? curved : straight;
}

// From linear RGB; white is D65, 2 degrees.
template <class A>
CAMGUIDE_INLINE Lab<A> lab(A r, A g, A b) {
  const A x = lab_curve(r * A(0.412453 / 0.95047) + g * A(0.357580 / 0.95047) + b * A(0.180423 / 0.95047));
  const A y = lab_curve(r * A(0.212671) + g * A(0.715160) + b * A(0.072169));
  const A z = lab_curve(r * A(0.019334 / 1.08883) + g * A(0.119193 / 1.08883) + b * A(0.950227 / 1.08883));
  return {y * A(116) - A(16), (x - y) * A(500), (y - z) * A(200)};
}

// To the nearest integer, ties to even, |x| < 2^23; without a call, so that it can be vectorised everywhere.
CAMGUIDE_INLINE float round_even(float x) {
  constexpr float shift = 8388608;
  return x < 0 ? (x - shift) + shift : (x + shift) - shift;
}

}  // namespace camguide
