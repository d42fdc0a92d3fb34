// value_range: the smallest and the largest value of a tensor, for the checks in camguide_fast/ops/. One read, in the threads
// that the ops themselves run in: a reduction of torch's waits for all of its threads, whatever else runs on their cores.
#include "common/parallel.h"
#include "common/rows.h"

#include <limits>
#include <mutex>
#include <optional>

namespace camguide {
namespace {

constexpr int64_t kBlock = 1 << 14;  // values
constexpr int64_t kChains = 64;      // side by side, so that they make vectors

template <class T>
struct Range {
  T low, high;
};

template <class A, class T>
CAMGUIDE_MULTIVERSION Range<A> floats(const T* x, int64_t n) {
  A low[kChains], high[kChains], nan[kChains] = {};
  std::fill_n(low, kChains, std::numeric_limits<A>::infinity());
  std::fill_n(high, kChains, -std::numeric_limits<A>::infinity());
  const auto take = [&](int64_t i, int64_t j) {
    const A v = widen(x[i]);
    low[j] = v < low[j] ? v : low[j];
    high[j] = v > high[j] ? v : high[j];
    nan[j] += v != v ? A(1) : A(0);
  };
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j) take(i + j, j);
  }
  for (; i < n; ++i) take(i, 0);
  A any = 0;
  for (int64_t j = 0; j < kChains; ++j) any += nan[j];
  if (any > 0) return {std::numeric_limits<A>::quiet_NaN(), std::numeric_limits<A>::quiet_NaN()};
  return {*std::min_element(low, low + kChains), *std::max_element(high, high + kChains)};
}

template <class T>
CAMGUIDE_MULTIVERSION Range<T> integers(const T* x, int64_t n, T skipped, bool skips) {
  T low[kChains], high[kChains];
  std::fill_n(low, kChains, std::numeric_limits<T>::max());
  std::fill_n(high, kChains, std::numeric_limits<T>::min());
  const auto take = [&](int64_t i, int64_t j) {
    const bool out = skips & (x[i] == skipped);
    const T small = out ? std::numeric_limits<T>::max() : x[i], large = out ? std::numeric_limits<T>::min() : x[i];
    low[j] = small < low[j] ? small : low[j];
    high[j] = large > high[j] ? large : high[j];
  };
  int64_t i = 0;
  for (; i + kChains <= n; i += kChains) {
    for (int64_t j = 0; j < kChains; ++j) take(i + j, j);
  }
  for (; i < n; ++i) take(i, 0);
  return {*std::min_element(low, low + kChains), *std::max_element(high, high + kChains)};
}

template <class A, class F>
Range<A> over_blocks(int64_t n, Range<A> all, const F& of_block) {
  std::mutex mutex;
  for_each_block(n, kBlock, [&](int64_t begin, int64_t end) {
    const Range<A> part = of_block(begin, end - begin);
    const std::lock_guard<std::mutex> lock(mutex);
    if (part.low != part.low || part.low < all.low) all.low = part.low;  // a NaN stays
    if (part.high != part.high || part.high > all.high) all.high = part.high;
  });
  return all;
}

Tensor value_range(const Tensor& given, std::optional<int64_t> skip) {
  const Tensor x = torch::stable::contiguous(given);
  const int64_t n = x.numel();
  const auto result = [&](auto range, ScalarType type) {
    Tensor out = torch::stable::new_empty(x, {2}, type);
    auto* const to = static_cast<decltype(range.low)*>(out.mutable_data_ptr());
    to[0] = range.low, to[1] = range.high;
    return out;
  };
  std::optional<Tensor> out;
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half || type == ScalarType::BFloat16) {
    with_floats(x, "x", [&](auto* data) {
      using A = Wide<std::remove_const_t<std::remove_pointer_t<decltype(data)>>>;
      constexpr A inf = std::numeric_limits<A>::infinity();
      const auto of_block = [&](int64_t begin, int64_t size) { return floats<A>(data + begin, size); };
      out = result(over_blocks<A>(n, {inf, -inf}, of_block), wide(type));
    });
  } else {
    with_integers(x, "x", [&](auto* data) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      const bool skips = skip && *skip >= std::numeric_limits<T>::min() && *skip <= std::numeric_limits<T>::max();
      const T skipped = skips ? static_cast<T>(*skip) : T(0);
      constexpr Range<int64_t> none{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
      out = result(over_blocks<int64_t>(n, none, [&](int64_t begin, int64_t size) -> Range<int64_t> {
        const Range<T> part = integers<T>(data + begin, size, skipped, skips);
        return part.low > part.high ? none : Range<int64_t>{part.low, part.high};  // all are skipped
      }), ScalarType::Long);
    });
  }
  return *out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("value_range", TORCH_BOX(&value_range));
}

}  // namespace camguide
