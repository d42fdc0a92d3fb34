// Work shared out among threads: each has a run of items of its own, which it finds in its cache the next time, and who is done
// with it takes what is left of the others'.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace camguide {

// Calls work(context, thread) in up to `threads` threads, this one among them: company.cpp.
void in_company(int64_t threads, void (*work)(const void*, int64_t), const void* context);

// How many threads are likely to work together now: torch's, or one while company brings nothing.
int64_t threads_at_hand();

// The items [0, n) that nobody has taken yet.
class Items {
 public:
  Items(int64_t n, int64_t threads) : runs_(std::min<int64_t>(threads, kMostRuns)) {
    for (int64_t i = 0; i < runs_; ++i) {
      run_[i].next.store(n * i / runs_, std::memory_order_relaxed);
      run_[i].end = n * (i + 1) / runs_;
    }
  }

  // What one thread may take of them.
  class Share {
   public:
    Share(Items& items, int64_t thread) : items_(items), first_(thread % items.runs_) {}

    // Whether there was one; it is `item` then.
    bool take(int64_t& item) {
      for (; tried_ < items_.runs_; ++tried_) {
        Run& run = items_.run_[(first_ + tried_) % items_.runs_];
        if ((item = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end) return true;
      }
      return false;
    }

   private:
    Items& items_;
    const int64_t first_;
    int64_t tried_ = 0;  // runs that are used up, from the own one on
  };

 private:
  static constexpr int64_t kMostRuns = 64;
  struct alignas(64) Run {
    std::atomic<int64_t> next;
    int64_t end;
  };

  const int64_t runs_;
  std::array<Run, kMostRuns> run_;
};

using Share = Items::Share;

// f(share) in every thread that takes part; f takes until nothing is left. A thread should find `least` items to be worth it.
template <class F>
void share_out(int64_t n, int64_t least, const F& f) {
  const int64_t threads = std::clamp<int64_t>(n / least, 1, torch::stable::get_num_threads());
  Items items(n, threads);
  const auto work = [&](int64_t thread) {
    Share share(items, thread);
    f(share);
  };
  if (threads == 1) return work(0);
  in_company(threads, [](const void* w, int64_t thread) { (*static_cast<decltype(&work)>(w))(thread); }, &work);
}

// f(i) for every i in [0, n), each by one thread; make_state() is called once a thread and handed to f(i, state).
template <class S, class F>
void for_each(int64_t n, const S& make_state, const F& f) {
  share_out(n, 1, [&](Share& share) {
    int64_t i;
    if (!share.take(i)) return;
    auto state = make_state();
    do f(i, state);
    while (share.take(i));
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

// f(i) for every image: one for each thread as long as there are enough, then the threads share each that is left. `for_each`
// would leave threads without work where images are few, and f itself shares its work out.
template <class F>
void for_each_image(int64_t batch, const F& f) {
  const int64_t shared = batch - batch % static_cast<int64_t>(torch::stable::get_num_threads());
  for_each(shared, f);
  for (int64_t i = shared; i < batch; ++i) f(i);
}

}  // namespace camguide
