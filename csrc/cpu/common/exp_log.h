// exp and log of vectors, to about one unit in the last place (fp32); fp64 goes through the C library.
#pragma once

#include <cmath>
#include <limits>

#include "simd.h"

namespace camguide {

// 0 below -87; NaN stays.
CAMGUIDE_INLINE Vec<float> exp(Vec<float> x) {
  using I = Vec<int32_t>;
  const I small = x < -87.0f;
  const Vec<float> inside = small ? Vec<float>{} : x;
  const Vec<float> shifted = inside * 0x1.715476p0f + 0x1.8p23f, n = shifted - 0x1.8p23f;  // n = x / log 2, to the nearest
  const Vec<float> r = (inside - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;                  // log 2 in two parts
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1;
  const I power = (I(shifted) - 0x4b400000 + 127) << 23;  // 2^n
  return small ? Vec<float>{} : p * Vec<float>(power);
}

// For finite x >= the least normal number; NaN stays.
CAMGUIDE_INLINE Vec<float> log(Vec<float> x) {
  using I = Vec<int32_t>;
  const I power = (I(x) - 0x3f3504f3) >> 23;  // x = 2^power m, m in [sqrt 1/2, sqrt 2)
  const Vec<float> r = Vec<float>(I(x) - (power << 23)) - 1, n = __builtin_convertvector(power, Vec<float>), z = r * r;
  Vec<float> p = r * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const Vec<float> tail = p * r * z - n * 2.12194440e-4f - z * 0.5f;
  return (r + tail) + n * 0.693359375f;
}

CAMGUIDE_INLINE Vec<double> exp(Vec<double> x) {
  for (int64_t i = 0; i < lanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

CAMGUIDE_INLINE Vec<double> log(Vec<double> x) {
  for (int64_t i = 0; i < lanes<double>; ++i) x[i] = std::log(x[i]);
  return x;
}

}  // namespace camguide
