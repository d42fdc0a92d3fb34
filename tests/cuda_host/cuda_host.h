// CUDA C++ on a CPU, for tests: the threads of a block are fibers, which run until they wait (barrier, shuffle) or touch an
// atomic, in an order that a seed chooses. What depends on the order - a race, a missing barrier - comes out different under
// another seed.
//
// Blocks run one after the other, in an order of the seed's choice too. Shared memory is poisoned before each. Tensors and
// dynamic shared memory lie between inaccessible pages and inputs are read-only, so an access out of bounds stops the launch
// with a message; with -fsanitize in trap mode a misaligned vector, a shift too far or an index beyond an array does the same.
// So does a deadlock: threads that wait for each other in different places, a lane that shuffles outside its mask.
//
// Not here: several blocks at a time (no grid-wide waiting), textures, cooperative groups, asynchronous copies, inline PTX (a
// kernel puts it behind #ifndef CUDA_HOST). __shared__ works in kernels and plain functions, not in templates. Two lanes that
// read and write one word between the same two waits are seen only where their order matters to the result.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define CUDA_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("cuda_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};
#define CUDA_HOST_VECTORS(type, name)                                                     \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                \
  struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };  \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_HOST_VECTORS(float, float)
CUDA_HOST_VECTORS(double, double)
CUDA_HOST_VECTORS(int, int)
CUDA_HOST_VECTORS(unsigned, uint)
CUDA_HOST_VECTORS(short, short)
CUDA_HOST_VECTORS(unsigned short, ushort)
CUDA_HOST_VECTORS(unsigned char, uchar)
#undef CUDA_HOST_VECTORS

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
  char* stack;
};

struct Slot {
  uint64_t value[32];
};

struct Guarded {  // memory between two inaccessible pages
  char *pages = nullptr, *data = nullptr;
  size_t length = 0, size = 0;
  bool constant = false;
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
inline unsigned char* dynamic_data;
inline char message[512];

constexpr size_t STACK = 256 * 1024;

inline unsigned char* dynamic_shared() { return dynamic_data; }

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

template <class V>
uint64_t bits(V v) {
  static_assert(sizeof(V) <= 8, "a warp operation moves at most 8 bytes");
  uint64_t to = 0;
  memcpy(&to, &v, sizeof v);
  return to;
}

template <class V>
V value(uint64_t from) {
  V v;
  memcpy(&v, &from, sizeof v);
  return v;
}

// The lane's own value where the source lies outside its segment of `width` lanes. Outside the mask it is undefined on a GPU:
// here a NaN or a huge number.
template <class V>
V shuffle(unsigned mask, V v, const char* what, int width, int from, bool inside) {
  if (width < 1 || width > 32 || (width & (width - 1))) fail("the width of a shuffle is a power of two");
  const Slot& slot = meet(mask, what, bits(v));
  if (!inside) return v;
  if (!(mask >> from & 1)) return value<V>(0x7ff7f7f77fb7f7f7ull);
  return value<V>(slot.value[from]);
}

}  // namespace cuda_host

#define threadIdx (cuda_host::current->index)
#define blockIdx (cuda_host::block_index)
#define blockDim (cuda_host::block_size)
#define gridDim (cuda_host::grid_size)
constexpr int warpSize = 32;

inline void __syncthreads() { cuda_host::sync_block(0); }
inline int __syncthreads_count(int p) { return cuda_host::sync_block(p); }
inline int __syncthreads_or(int p) { return cuda_host::sync_block(p) > 0; }
inline int __syncthreads_and(int p) { return cuda_host::sync_block(!p) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { cuda_host::meet(mask, "__syncwarp", 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { cuda_host::yield(); }
[[noreturn]] inline void __trap() { cuda_host::fail("__trap"); }

template <class V>
V __shfl_sync(unsigned mask, V v, int from, int width = 32) {
  const int base = (int)cuda_host::lane() & ~(width - 1);
  return cuda_host::shuffle(mask, v, "__shfl_sync", width, base + (from & (width - 1)), true);
}
template <class V>
V __shfl_up_sync(unsigned mask, V v, unsigned delta, int width = 32) {
  const int l = cuda_host::lane(), from = l - (int)delta;
  return cuda_host::shuffle(mask, v, "__shfl_up_sync", width, from, from >= (l & ~(width - 1)));
}
template <class V>
V __shfl_down_sync(unsigned mask, V v, unsigned delta, int width = 32) {
  const int l = cuda_host::lane(), from = l + (int)delta;
  return cuda_host::shuffle(mask, v, "__shfl_down_sync", width, from, from <= (l | (width - 1)));
}
template <class V>
V __shfl_xor_sync(unsigned mask, V v, int lanes, int width = 32) {
  const int l = cuda_host::lane(), from = l ^ lanes;
  return cuda_host::shuffle(mask, v, "__shfl_xor_sync", width, from, from <= (l | (width - 1)));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, "__ballot_sync", predicate != 0);
  unsigned votes = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) votes |= (unsigned)slot.value[l] << l;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class V>
unsigned __match_any_sync(unsigned mask, V v) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, "__match_any_sync", cuda_host::bits(v));
  unsigned equal = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) equal |= (unsigned)(slot.value[l] == cuda_host::bits(v)) << l;
  return equal;
}
template <class V, class F>
V cuda_host_reduce(unsigned mask, V v, const char* what, const F& f) {
  const cuda_host::Slot& slot = cuda_host::meet(mask, what, cuda_host::bits(v));
  bool first = true;
  V total = v;
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) {
      const V other = cuda_host::value<V>(slot.value[l]);
      total = first ? other : f(total, other);
      first = false;
    }
  return total;
}
template <class V>
V __reduce_add_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_add_sync", [](V a, V b) { return (V)((unsigned)a + (unsigned)b); });
}
template <class V>
V __reduce_min_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_min_sync", [](V a, V b) { return b < a ? b : a; });
}
template <class V>
V __reduce_max_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_max_sync", [](V a, V b) { return a < b ? b : a; });
}
template <class V>
V __reduce_or_sync(unsigned mask, V v) {
  return cuda_host_reduce(mask, v, "__reduce_or_sync", [](V a, V b) { return a | b; });
}
// Any set that holds the lane is a right answer on a GPU: the smallest one.
inline unsigned __activemask() { return 1u << cuda_host::lane(); }

// Atomics: fibers change places only between operations, so plain code is atomic. The types are those that CUDA has.
namespace cuda_host {
template <class V>
V exchange(V* at, V to) {
  maybe_yield();
  const V old = *at;
  *at = to;
  return old;
}
template <class V>
V update(V* at, V (*f)(V, V), V v) {
  maybe_yield();
  const V old = *at;
  *at = f(old, v);
  return old;
}
template <class V>
V wrapping_add(V a, V b) {
  if constexpr (std::is_integral_v<V>) {
    return (V)((std::make_unsigned_t<V>)a + (std::make_unsigned_t<V>)b);
  } else {
    return a + b;
  }
}
}  // namespace cuda_host

#define CUDA_HOST_ATOMIC(name, type, expression) \
  inline type name(type* at, type v) { return cuda_host::update<type>(at, [](type a, type b) -> type { return expression; }, v); }
#define CUDA_HOST_INTEGER(type)                          \
  CUDA_HOST_ATOMIC(atomicMin, type, b < a ? b : a)       \
  CUDA_HOST_ATOMIC(atomicMax, type, a < b ? b : a)       \
  CUDA_HOST_ATOMIC(atomicAnd, type, a & b)               \
  CUDA_HOST_ATOMIC(atomicOr, type, a | b)                \
  CUDA_HOST_ATOMIC(atomicXor, type, a ^ b)               \
  inline type atomicCAS(type* at, type compare, type v) { \
    cuda_host::maybe_yield();                            \
    const type old = *at;                                \
    if (old == compare) *at = v;                         \
    return old;                                          \
  }
CUDA_HOST_INTEGER(int)
CUDA_HOST_INTEGER(unsigned)
CUDA_HOST_INTEGER(unsigned long long)
CUDA_HOST_ATOMIC(atomicMin, long long, b < a ? b : a)
CUDA_HOST_ATOMIC(atomicMax, long long, a < b ? b : a)
CUDA_HOST_ATOMIC(atomicAdd, int, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, unsigned, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, unsigned long long, cuda_host::wrapping_add(a, b))
CUDA_HOST_ATOMIC(atomicAdd, float, a + b)
CUDA_HOST_ATOMIC(atomicAdd, double, a + b)
CUDA_HOST_ATOMIC(atomicSub, int, (int)((unsigned)a - (unsigned)b))
CUDA_HOST_ATOMIC(atomicSub, unsigned, a - b)
#undef CUDA_HOST_INTEGER
#undef CUDA_HOST_ATOMIC
inline int atomicExch(int* at, int v) { return cuda_host::exchange(at, v); }
inline unsigned atomicExch(unsigned* at, unsigned v) { return cuda_host::exchange(at, v); }
inline unsigned long long atomicExch(unsigned long long* at, unsigned long long v) { return cuda_host::exchange(at, v); }
inline float atomicExch(float* at, float v) { return cuda_host::exchange(at, v); }

template <class V>
V __ldg(const V* at) {
  return *at;
}
template <class V>
V __ldcg(const V* at) {
  return *at;
}
template <class V>
V __ldcs(const V* at) {
  return *at;
}
template <class V>
void __stcs(V* at, V v) {
  *at = v;
}

// Numbers. The fast intrinsics are exact here: the tests of a kernel that uses them need the tolerance of the GPU's.
using std::fma;
using std::max;
using std::min;
inline long long max(long long a, int b) { return std::max(a, (long long)b); }
inline long long min(long long a, int b) { return std::min(a, (long long)b); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned n) {
  return (unsigned)(((uint64_t)high << 32 | low) >> (n & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline int __mulhi(int a, int b) { return (int64_t)a * b >> 32; }
inline unsigned __float_as_uint(float x) { return (unsigned)cuda_host::bits(x); }
inline int __float_as_int(float x) { return (int)(unsigned)cuda_host::bits(x); }
inline float __uint_as_float(unsigned x) { return cuda_host::value<float>(x); }
inline float __int_as_float(int x) { return cuda_host::value<float>((unsigned)x); }
inline long long __double_as_longlong(double x) { return (long long)cuda_host::bits(x); }
inline double __longlong_as_double(long long x) { return cuda_host::value<double>((uint64_t)x); }
inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
inline int __float2int_rd(float x) { return (int)std::floor(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)std::nearbyint(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __frsqrt_rn(float x) { return 1 / std::sqrt(x); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
// One rounding each: never contracted to a fused multiply-add.
#define CUDA_HOST_ROUNDED(name, type, op) \
  inline type name(type a, type b) {      \
    volatile type r = a op b;             \
    return r;                             \
  }
CUDA_HOST_ROUNDED(__fadd_rn, float, +)
CUDA_HOST_ROUNDED(__fsub_rn, float, -)
CUDA_HOST_ROUNDED(__fmul_rn, float, *)
CUDA_HOST_ROUNDED(__fdiv_rn, float, /)
CUDA_HOST_ROUNDED(__dadd_rn, double, +)
CUDA_HOST_ROUNDED(__dsub_rn, double, -)
CUDA_HOST_ROUNDED(__dmul_rn, double, *)
#undef CUDA_HOST_ROUNDED

namespace cuda_host {

inline float half_to_float(unsigned short h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float f = exponent == 31 ? (mantissa ? NAN : INFINITY)
                           : exponent ? std::ldexp((float)(mantissa + 1024), exponent - 25) : std::ldexp((float)mantissa, -24);
  return h >> 15 ? -f : f;
}

inline unsigned short float_to_half(float f) {
  const unsigned short sign = __float_as_uint(f) >> 16 & 0x8000;
  f = std::fabs(f);
  if (f != f) return sign | 0x7e00;
  if (f >= 65520.f) return sign | 0x7c00;
  if (f < 6.103515625e-05f) return sign | (unsigned short)std::nearbyint(std::ldexp(f, 24));
  int exponent;
  const float m = std::frexp(f, &exponent);  // [.5, 1)
  return sign | (unsigned short)(((exponent + 13) << 10) + (int)std::nearbyint(std::ldexp(m, 11)));
}

inline unsigned short float_to_bfloat(float f) {
  const unsigned x = __float_as_uint(f);
  return f != f ? 0x7fff : (x + 0x7fff + (x >> 16 & 1)) >> 16;
}

// ---- The launch ----

inline void* map(size_t n) {
  void* p = mmap(nullptr, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) abort();
  return p;
}

// n bytes that end (or begin, `to_the_left`) at an inaccessible page, but for what 16-byte alignment takes.
inline Guarded guard(size_t n, bool to_the_left) {
  const size_t page = 4096, length = (n + page - 1) / page * page + 2 * page;
  Guarded g;
  g.pages = (char*)map(length), g.length = length, g.size = n;
  mprotect(g.pages + page, length - 2 * page, PROT_READ | PROT_WRITE);
  memset(g.pages + page, 0xa5, length - 2 * page);
  g.data = to_the_left ? g.pages + page : g.pages + length - page - (n + 15) / 16 * 16;
  return g;
}

inline bool intact(const Guarded& g) {
  for (const char* p = g.pages + 4096; p < g.pages + g.length - 4096; ++p)
    if ((p < g.data || p >= g.data + g.size) && (unsigned char)*p != 0xa5) return false;
  return true;
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
  fibers.assign(n, Fiber{});
  for (Fiber& f : fibers) {
    f.stack = (char*)map(STACK + 4096);
    mprotect(f.stack + 4096, STACK, PROT_READ | PROT_WRITE);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack + 4096;
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fiber_main, 0);
  }
}

inline void on_signal(int signal, siginfo_t* info, void*) {
  static char why[128];
  const bool memory = signal == SIGSEGV || signal == SIGBUS;
  const char* const what = memory ? "access out of bounds, to a read-only input, or stack overflow"
                                  : "undefined behaviour: misaligned, overflow, shift or array index";
  snprintf(why, sizeof why, "%s (at %p)", what, info->si_addr);
  fail(why);
}

extern "C" __attribute__((weak)) char __start_cuda_shared[], __stop_cuda_shared[];

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

inline int run(const unsigned* grid, const unsigned* block, size_t shared, uint64_t with_seed, std::vector<Guarded>& buffers) {
  grid_size = {grid[0], grid[1], grid[2]}, block_size = {block[0], block[1], block[2]};
  threads = block[0] * block[1] * block[2];
  seed = with_seed, random_state = 0x9e3779b97f4a7c15ull * (with_seed + 1);
  make_fibers(threads);
  slots.assign((threads + 31) / 32 * 2, Slot{});
  Guarded dynamic = guard(shared, seed & 1);
  dynamic_data = (unsigned char*)dynamic.data;
  current = nullptr;
  message[0] = 0;

  stack_t alternative{}, old_stack{};
  static char signal_stack[64 * 1024];
  alternative.ss_sp = signal_stack, alternative.ss_size = sizeof signal_stack;
  sigaltstack(&alternative, &old_stack);
  struct sigaction action {}, old[5];
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  const int caught[5] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
  for (int i = 0; i < 5; ++i) sigaction(caught[i], &action, &old[i]);

  if (!sigsetjmp(launch_end, 1)) {
    std::vector<unsigned> order(threads);
    for (unsigned t = 0; t < threads; ++t) order[t] = seed == 1 ? threads - 1 - t : t;
    const uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    std::vector<uint64_t> sequence(blocks);
    for (uint64_t i = 0; i < blocks; ++i) sequence[i] = seed == 1 ? blocks - 1 - i : i;
    if (seed > 1)
      for (uint64_t i = blocks; i-- > 1;) std::swap(sequence[i], sequence[random32() % (i + 1)]);
    for (uint64_t i : sequence) {
      block_index = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / grid[0] / grid[1])};
      memset(dynamic_data, 0xff, shared);  // NaN, -1
      if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
      run_block(order);
    }
    current = nullptr;
  }
  for (int i = 0; i < 5; ++i) sigaction(caught[i], &old[i], nullptr);
  sigaltstack(&old_stack, nullptr);
  if (!message[0] && !intact(dynamic)) snprintf(message, sizeof message, "a write outside the dynamic shared memory");
  for (size_t i = 0; i < buffers.size() && !message[0]; ++i)
    if (buffers[i].data && !intact(buffers[i]))
      snprintf(message, sizeof message, "a write outside the tensor of argument %zu", i);
  munmap(dynamic.pages, dynamic.length);
  for (Fiber& f : fibers) munmap(f.stack, STACK + 4096);
  fibers.clear();
  return message[0] != 0;
}

// A parameter in words, which are compared with what the launcher passes.
template <class P>
struct Kind;
template <>
struct Kind<int> {
  static const char* name() { return "int"; }
};
template <>
struct Kind<double> {
  static const char* name() { return "double"; }
};
#define CUDA_HOST_POINTER(type)                            \
  template <>                                              \
  struct Kind<type*> {                                     \
    static const char* name() { return #type "*"; }        \
  };                                                       \
  template <>                                              \
  struct Kind<const type*> {                               \
    static const char* name() { return "const " #type "*"; } \
  };
CUDA_HOST_POINTER(double)
CUDA_HOST_POINTER(float)
CUDA_HOST_POINTER(long long)
CUDA_HOST_POINTER(unsigned long long)
CUDA_HOST_POINTER(int)
CUDA_HOST_POINTER(unsigned)
CUDA_HOST_POINTER(unsigned char)
CUDA_HOST_POINTER(bool)

template <class... P>
const char* signature(void (*)(P...)) {
  static char text[1024];
  text[0] = 0;
  const char* names[] = {Kind<P>::name()..., ""};
  for (size_t i = 0; i < sizeof...(P); ++i) strcat(strcat(text, names[i]), ",");
  return text;
}

// values: the arguments, pointers to tensors' data included; sizes: bytes of each tensor, 0 for a number.
template <class... P>
struct Launch {
  static inline void (*kernel)(P...);
  static inline std::tuple<P...> arguments;

  static int run(void (*k)(P...), const unsigned* grid, const unsigned* block, size_t shared, uint64_t seed, void** values,
                 const size_t* sizes) {
    kernel = k;
    std::vector<Guarded> buffers(sizeof...(P));
    set(values, sizes, seed & 1, buffers, std::index_sequence_for<P...>{});
    body = [] { std::apply(kernel, arguments); };
    const int rc = cuda_host::run(grid, block, shared, seed, buffers);
    for (size_t i = 0; i < buffers.size(); ++i)
      if (buffers[i].data) {
        if (!rc && !buffers[i].constant) memcpy(*(void**)values[i], buffers[i].data, sizes[i]);
        munmap(buffers[i].pages, buffers[i].length);
      }
    return rc;
  }

  template <size_t... I>
  static void set(void** values, const size_t* sizes, bool left, std::vector<Guarded>& buffers, std::index_sequence<I...>) {
    arguments = std::tuple<P...>(argument<P>(values[I], sizes[I], left, buffers[I])...);
  }

  template <class V>
  static V argument(void* from, size_t size, bool left, Guarded& buffer) {
    if constexpr (std::is_pointer_v<V>) {
      buffer = guard(size, left);
      memcpy(buffer.data, *(void**)from, size);
      buffer.constant = std::is_const_v<std::remove_pointer_t<V>>;
      if (buffer.constant) mprotect(buffer.pages + 4096, buffer.length - 8192, PROT_READ);
      return (V)buffer.data;
    } else {
      return *(V*)from;
    }
  }
};

template <class... P>
int launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, size_t shared, uint64_t seed, void** values,
           const size_t* sizes) {
  return Launch<P...>::run(kernel, grid, block, shared, seed, values, sizes);
}

}  // namespace cuda_host

// After the source, which defines the half types; then CUDA_HOST_KERNEL for each of its kernels.
#define CUDA_HOST_END       \
  namespace cuda_host {     \
  CUDA_HOST_POINTER(half_t) \
  CUDA_HOST_POINTER(bfloat_t) \
  }                         \
  extern "C" const char* cuda_host_message() { return cuda_host::message; }

#define CUDA_HOST_KERNEL(name)                                                                             \
  extern "C" const char* cuda_host_signature_##name() { return cuda_host::signature(&name); }              \
  extern "C" int cuda_host_launch_##name(const unsigned* grid, const unsigned* block, size_t shared,       \
                                         uint64_t seed, void** values, const size_t* sizes) {              \
    return cuda_host::launch(&name, grid, block, shared, seed, values, sizes);                             \
  }
