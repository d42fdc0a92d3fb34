// The smallest and the largest of many values, in one read.
#pragma once

#include "camguide.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"

#include <algorithm>
#include <limits>
#include <mutex>

namespace camguide {
namespace {

template <class T>
struct Range {
  T low, high;
};

constexpr int64_t kRangeBlock = 1 << 14;  // values
constexpr int64_t kChains = 64;           // side by side, so that they make vectors

// take(i, chain) for every i in [0, n).
template <class F>
CAMGUIDE_INLINE void in_chains(int64_t n, const F& take) {
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j) take(i + j, j);
  }
  for (; i < n; ++i) take(i, 0);
}

// NaN and NaN if there is one.
template <class A, class T>
CAMGUIDE_MULTIVERSION Range<A> range_of_floats(const T* x, int64_t n) {
  A low[kChains], high[kChains], nan[kChains] = {};
  std::fill_n(low, kChains, std::numeric_limits<A>::infinity());
  std::fill_n(high, kChains, -std::numeric_limits<A>::infinity());
  in_chains(n, [&](int64_t i, int64_t j) {
    const A v = widen(x[i]);
    low[j] = v < low[j] ? v : low[j];
    high[j] = v > high[j] ? v : high[j];
    nan[j] += v != v ? A(1) : A(0);
  });
  A any = 0;
  for (int64_t j = 0; j < kChains; ++j) any += nan[j];
  if (any > 0) return {std::numeric_limits<A>::quiet_NaN(), std::numeric_limits<A>::quiet_NaN()};
  return {*std::min_element(low, low + kChains), *std::max_element(high, high + kChains)};
}

// Of those that are not `skipped`, if kSkips; low > high where there is none.
template <bool kSkips, class T>
CAMGUIDE_MULTIVERSION Range<T> range_of_integers(const T* x, int64_t n, T skipped) {
  T low[kChains], high[kChains];
  std::fill_n(low, kChains, std::numeric_limits<T>::max());
  std::fill_n(high, kChains, std::numeric_limits<T>::min());
  in_chains(n, [&](int64_t i, int64_t j) {
    const bool out = kSkips && x[i] == skipped;
    const T small = out ? std::numeric_limits<T>::max() : x[i], large = out ? std::numeric_limits<T>::min() : x[i];
    low[j] = small < low[j] ? small : low[j];
    high[j] = large > high[j] ? large : high[j];
  });
  return {*std::min_element(low, low + kChains), *std::max_element(high, high + kChains)};
}

// of_block(begin, size) of all blocks of [0, n), in all threads, joined with `all`.
template <class A, class F>
Range<A> range_over_blocks(int64_t n, Range<A> all, const F& of_block) {
  std::mutex mutex;
  for_each_block(n, kRangeBlock, [&](int64_t begin, int64_t end) {
    const Range<A> part = of_block(begin, end - begin);
    const std::lock_guard<std::mutex> lock(mutex);
    if (part.low != part.low || part.low < all.low) all.low = part.low;  // a NaN stays
    if (part.high != part.high || part.high > all.high) all.high = part.high;
  });
  return all;
}

template <class A, class T>
Range<A> range_of_floats_in_threads(const T* x, int64_t n) {
  constexpr A inf = std::numeric_limits<A>::infinity();
  return range_over_blocks<A>(n, {inf, -inf}, [&](int64_t begin, int64_t size) { return range_of_floats<A>(x + begin, size); });
}

}  // namespace
}  // namespace camguide
