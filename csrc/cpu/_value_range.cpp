// value_range: the smallest and the largest value of a tensor, for the checks in camguide_fast/ops/. One read, in the threads
// that the ops themselves run in: a reduction of torch's waits for all of its threads, whatever else runs on their cores.
#include "common/value_range.h"

#include <optional>

namespace camguide {
namespace {

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
      out = result(range_of_floats_in_threads<A>(data, n), wide(type));
    });
  } else {
    with_integers(x, "x", [&](auto* data) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
      const bool skips = skip && *skip >= std::numeric_limits<T>::min() && *skip <= std::numeric_limits<T>::max();
      const T skipped = skips ? static_cast<T>(*skip) : T(0);
      constexpr Range<int64_t> none{std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
      const auto of_block = [&](int64_t begin, int64_t size) -> Range<int64_t> {
        const T* const from = data + begin;
        const Range<T> part = skips ? range_of_integers<true>(from, size, skipped) : range_of_integers<false>(from, size, T(0));
        return part.low > part.high ? none : Range<int64_t>{part.low, part.high};  // all are skipped
      };
      out = result(range_over_blocks<int64_t>(n, none, of_block), ScalarType::Long);
    });
  }
  return *out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("value_range", TORCH_BOX(&value_range)); }

}  // namespace camguide
