// Where a parallel region ends, all its threads wait for the last. Beside other work on the same cores one of them may get no
// core for milliseconds, and two threads are slower than one. So it is measured what company brings: the time that the threads
// of a region ran, less what one alone would have run meanwhile. Once that sums up to a loss, regions are worked on alone for a
// while, in which it is measured what one thread gets. The threads are torch's: others would fight them for the cores.
#include "parallel.h"

#include <pthread.h>
#include <time.h>

namespace camguide {
namespace {

using Time = int64_t;  // ns
constexpr Time kMillisecond = 1'000'000;
constexpr Time kTrial = 2 * kMillisecond;    // what may be lost to find out that company does not pay,
constexpr Time kAlone = 500 * kMillisecond;  // so long before it is tried again
constexpr Time kMost = 20 * kMillisecond;    // what was gained of late and may be lost again
constexpr Time kSoon = 10 * kMillisecond, kLater = 500 * kMillisecond;

thread_local bool inside = false;
// Callers in several threads may overwrite what others found: these are estimates.
std::atomic<Time> balance{kTrial};
std::atomic<Time> alone{0};      // on the clock: until then work is done alone
std::atomic<double> portion{1};  // of a core that one thread gets
bool forked = false;             // threads do not live on in a fork: who waits for them there waits for ever
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

Time read(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * Time{1'000'000'000} + t.tv_nsec;
}

// From `old` towards `found`, all the way in the time `whole`.
double towards(double found, double old, Time took, Time whole) {
  return old + (std::min(found, 1.0) - old) * std::min(1.0, double(took) / whole);
}

}  // namespace

int64_t threads_at_hand() {
  return inside || forked || read(CLOCK_MONOTONIC) < alone ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

void in_company(int64_t threads, void (*work)(const void*, int64_t), const void* context) {
  if (inside || forked) return work(context, 0);
  std::atomic<Time> ran{0};
  const auto timed = [&](int64_t thread, int64_t) {
    struct Inside {
      Inside() { inside = true; }
      ~Inside() { inside = false; }
    } guard;
    const Time before = read(CLOCK_THREAD_CPUTIME_ID);
    work(context, thread);
    ran += read(CLOCK_THREAD_CPUTIME_ID) - before;
  };
  const Time begin = read(CLOCK_MONOTONIC);
  if (begin < alone) {
    timed(0, 1);
    const Time took = read(CLOCK_MONOTONIC) - begin;
    portion = towards(double(ran) / std::max<Time>(took, 1), portion, took, kSoon);
    return;
  }
  torch::stable::parallel_for(0, threads, 1, timed);
  const Time took = read(CLOCK_MONOTONIC) - begin, now = balance + ran - Time(portion * took);
  balance = now < 0 ? kTrial : std::min(now, kMost);
  if (now < 0) alone = begin + took + kAlone;
  portion = towards(1, portion, took, kLater);  // there may be less other work by now
}

}  // namespace camguide
