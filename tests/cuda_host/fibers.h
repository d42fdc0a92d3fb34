// The threads of a block as fibers: how they wait for each other, and in which order they run.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "language.h"
#include "memory.h"

namespace cuda_host {

enum Wait { READY, BLOCK, WARP, DONE };

struct Fiber {
  uint3 index;
  unsigned thread;  // within the block
  Wait wait;
  unsigned mask;     // WARP: the lanes it meets
  const char* what;  // WARP: the operation, the same for all
  int predicate;     // BLOCK: of __syncthreads_count and its like
  unsigned turn;     // of the two exchange slots, so that the next operation does not overwrite what is still to be read
  bool started;
  jmp_buf at;
  ucontext_t context;
};

struct Slot {
  uint64_t value[32];
};

inline Fiber* current;
inline uint3 block_index, block_size, grid_size;
inline std::vector<Fiber> fibers;
inline std::vector<Slot> slots;  // [warps][2]
inline unsigned threads, live, at_barrier;
inline int block_count;  // of predicates at the last barrier
inline uint64_t seed, random_state;
inline jmp_buf scheduler;
inline sigjmp_buf launch_end;
inline void (*body)();
inline char message[512];

constexpr size_t STACK = 256 * 1024;
inline std::vector<char*> stacks;  // of the largest launch yet: a small one would take longest to map its own

inline uint32_t random32() {  // xorshift
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state >> 32;
}

[[noreturn]] inline void fail(const char* why) {
  const uint3 b = block_index, t = current ? current->index : uint3{};
  snprintf(message, sizeof message, "%s (block %u,%u,%u thread %u,%u,%u)", why, b.x, b.y, b.z, t.x, t.y, t.z);
  siglongjmp(launch_end, 1);
}

// Back to the scheduler; returns when it is this thread's turn again.
__attribute__((noinline)) inline void yield() {
  if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

inline void maybe_yield() {
  if (seed && random32() % 4 == 0) yield();
}

// A thread that has returned is not waited for.
inline void open_barrier_if_all_wait() {
  if (!at_barrier || at_barrier != live) return;
  block_count = at_barrier = 0;
  for (Fiber& f : fibers)
    if (f.wait == BLOCK) block_count += f.predicate != 0, f.wait = READY;
}

inline int sync_block(int predicate) {
  current->wait = BLOCK, current->predicate = predicate;
  ++at_barrier;
  open_barrier_if_all_wait();
  yield();
  return block_count;
}

inline unsigned lane() { return current->thread % 32; }

// Meets the lanes of `mask`, each with a value, which they may then read of one another.
inline const Slot& meet(unsigned mask, const char* what, uint64_t value) {
  if (!(mask >> lane() & 1)) fail("a lane takes part in a warp operation whose mask does not name it");
  Fiber* const warp = &fibers[current->thread / 32 * 32];
  Slot& slot = slots[current->thread / 32 * 2 + current->turn % 2];
  ++current->turn;
  slot.value[lane()] = value;
  current->wait = WARP, current->mask = mask, current->what = what;
  bool all = true;
  for (unsigned l = 0; l < 32 && all; ++l) {
    if (!(mask >> l & 1)) continue;
    if (warp + l >= &fibers[0] + threads) fail("a warp operation names a lane beyond the block");
    all = warp[l].wait == WARP && warp[l].mask == mask;
    if (all && warp[l].what != what) fail("lanes of a warp meet in different operations");
  }
  if (all)
    for (unsigned l = 0; l < 32; ++l)
      if (mask >> l & 1) warp[l].wait = READY;
  yield();
  return slot;
}

inline void fiber_main() {
  for (;;) {
    body();
    current->wait = DONE;
    --live;
    open_barrier_if_all_wait();
    yield();
  }
}

inline void make_fibers(unsigned n) {
  while (stacks.size() < n) {
    char* const stack = (char*)map(STACK + 4096) + 4096;
    mprotect(stack, STACK, PROT_READ | PROT_WRITE);
    stacks.push_back(stack);
  }
  fibers.assign(n, Fiber{});
  for (unsigned t = 0; t < n; ++t) {
    Fiber& f = fibers[t];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[t];
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
  }
}

__attribute__((noinline)) inline void resume(Fiber& f) {
  current = &f;
  if (_setjmp(scheduler)) return;
  if (f.started) _longjmp(f.at, 1);
  f.started = true;
  setcontext(&f.context);
}

inline void run_block(std::vector<unsigned>& order) {
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& f = fibers[t];
    f.thread = t, f.wait = READY, f.turn = 0;
    f.index = {t % block_size.x, t / block_size.x % block_size.y, t / block_size.x / block_size.y};
  }
  live = threads, at_barrier = 0;
  while (live) {
    if (seed > 1)  // 0: in order, 1: backwards, else shuffled anew in every round
      for (unsigned i = threads - 1; i > 0; --i) std::swap(order[i], order[random32() % (i + 1)]);
    bool moved = false;
    for (unsigned t : order)
      if (fibers[t].wait == READY) moved = true, resume(fibers[t]);
    if (!moved) {
      for (Fiber& f : fibers)
        if (f.wait != DONE) {
          current = &f;
          fail(f.wait == BLOCK ? "deadlock: waits at a barrier that others never reach"
                               : "deadlock: waits in a warp operation for lanes that never come");
        }
    }
  }
}

}  // namespace cuda_host
