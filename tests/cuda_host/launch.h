// A launch: tensors and shared memory guarded, blocks one after the other, and what went wrong as a message.
#pragma once

#include <signal.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "fibers.h"
#include "memory.h"

namespace cuda_host {

inline unsigned char* dynamic_data;

inline unsigned char* dynamic_shared() { return dynamic_data; }

inline void on_signal(int signal, siginfo_t* info, void*) {
  static char why[128];
  const bool memory = signal == SIGSEGV || signal == SIGBUS;
  const char* const what = memory ? "access out of bounds, to a read-only input, or stack overflow"
                                  : "undefined behaviour: misaligned, overflow, shift or array index";
  snprintf(why, sizeof why, "%s (at %p)", what, info->si_addr);
  fail(why);
}

extern "C" __attribute__((weak)) char __start_cuda_shared[], __stop_cuda_shared[];
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
  struct sigaction action{}, old[5];
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
#define CUDA_HOST_POINTER(type)                              \
  template <>                                                \
  struct Kind<type*> {                                       \
    static const char* name() { return #type "*"; }          \
  };                                                         \
  template <>                                                \
  struct Kind<const type*> {                                 \
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

constexpr int MOST = 48;  // arguments of a kernel
inline uint64_t arguments[MOST];

// values: the arguments, pointers to tensors' data included; sizes: bytes of each tensor, 0 for a number. `takes` says what
// the kernel makes of them. Hardly a template here: they took half the time of compiling a source.
struct Parameter {
  bool pointer, constant;
  size_t size;
};

inline int launch_guarded(const Parameter* takes, int n, const unsigned* grid, const unsigned* block, size_t shared,
                          uint64_t seed, void** values, const size_t* sizes) {
  std::vector<Guarded> buffers(n);
  for (int i = 0; i < n; ++i) {
    if (!takes[i].pointer) {
      memcpy(&arguments[i], values[i], takes[i].size);
      continue;
    }
    Guarded& buffer = buffers[i] = guard(sizes[i], seed & 1);
    memcpy(buffer.data, *(void**)values[i], sizes[i]);
    memcpy(&arguments[i], &buffer.data, sizeof buffer.data);
    buffer.constant = takes[i].constant;
    if (buffer.constant) mprotect(buffer.pages + 4096, buffer.length - 8192, PROT_READ);
  }
  const int rc = run(grid, block, shared, seed, buffers);
  for (int i = 0; i < n; ++i)
    if (buffers[i].data) {
      if (!rc && !buffers[i].constant) memcpy(*(void**)values[i], buffers[i].data, sizes[i]);
      munmap(buffers[i].pages, buffers[i].length);
    }
  return rc;
}

template <class... P>
struct Kernel {
  static inline void (*kernel)(P...);

  template <size_t... I>
  static void call(std::index_sequence<I...>) {
    kernel(*(P*)&arguments[I]...);
  }
};

template <class... P>
int launch(void (*kernel)(P...), const unsigned* grid, const unsigned* block, size_t shared, uint64_t seed, void** values,
           const size_t* sizes) {
  static_assert(sizeof...(P) <= MOST);
  const Parameter takes[] = {{std::is_pointer_v<P>, std::is_const_v<std::remove_pointer_t<P>>, sizeof(P)}...};
  Kernel<P...>::kernel = kernel;
  body = [] { Kernel<P...>::call(std::index_sequence_for<P...>{}); };
  return launch_guarded(takes, sizeof...(P), grid, block, shared, seed, values, sizes);
}

}  // namespace cuda_host

// After the source, which defines the half types; then CUDA_HOST_KERNEL for each of its kernels.
#define CUDA_HOST_END         \
  namespace cuda_host {       \
  CUDA_HOST_POINTER(half_t)   \
  CUDA_HOST_POINTER(bfloat_t) \
  }                           \
  extern "C" const char* cuda_host_message() { return cuda_host::message; }

#define CUDA_HOST_KERNEL(name)                                                                                      \
  extern "C" const char* cuda_host_signature_##name() { return cuda_host::signature(&name); }                       \
  extern "C" int cuda_host_launch_##name(const unsigned* grid, const unsigned* block, size_t shared, uint64_t seed, \
                                         void** values, const size_t* sizes) {                                      \
    return cuda_host::launch(&name, grid, block, shared, seed, values, sizes);                                      \
  }
