// Work shared out among threads as they come free: whoever is done takes the next item.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace camguide {

// f(i) for every i in [0, n), each by one thread; make_state() is called once a thread and handed to f(i, state).
template <class S, class F>
void for_each(int64_t n, const S& make_state, const F& f) {
  const int64_t workers = std::min<int64_t>(n, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    auto state = make_state();
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i, state);
  });
}

template <class F>
void for_each(int64_t n, const F& f) {
  for_each(n, [] { return 0; }, [&](int64_t i, int) { f(i); });
}

// f(begin, end) over [0, n) in blocks of `size`.
template <class F>
void for_each_block(int64_t n, int64_t size, const F& f) {
  for_each((n + size - 1) / size, [&](int64_t i) { f(i * size, std::min(n, (i + 1) * size)); });
}

}  // namespace camguide
