// What the CUDA kernels share. Compiled by NVRTC without a single header of CUDA (the half types are made here), and as plain
// C++ by the tests, which run the kernels on the CPU: tests/cuda_host supplies what CUDA has built in, this file the rest.
//
// Conventions of a kernel that kernels/_cuda.py launches:
//   - `extern "C" __global__ void [__launch_bounds__(n)] name(` begins on a line of its own;
//   - its parameters are pointers (tensors), int (Python ints) and double (Python floats), nothing else;
//   - types and sizes that change the code are macros, which the launcher defines;
//   - a lambda's parameters have types (NVRTC takes one with `auto` for a function of the host);
//   - offsets into tensors are long long; a launch has one dimension of blocks, since the other two end at 65535.
#pragma once

#ifdef CUDA_HOST
#define DYNAMIC_SHARED(name) unsigned char* const name = cuda_host::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#define FULL_WARP 0xffffffffu

// Storage alone; `widen` and `narrow` (to nearest, ties to even) are the only operations.
struct half_t {
  unsigned short bits;
};
struct bfloat_t {
  unsigned short bits;
};

// In what a tensor's elements are computed with.
template <class T>
struct Wide {
  typedef float type;
};
template <>
struct Wide<double> {
  typedef double type;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }

__device__ __forceinline__ float widen(half_t x) {
#ifdef CUDA_HOST
  return cuda_host::half_to_float(x.bits);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#endif
}

__device__ __forceinline__ float widen(bfloat_t x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }

__device__ __forceinline__ void narrow(float x, half_t& to) {
#ifdef CUDA_HOST
  to.bits = cuda_host::float_to_half(x);
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#endif
}

__device__ __forceinline__ void narrow(float x, bfloat_t& to) {
#ifdef CUDA_HOST
  to.bits = cuda_host::float_to_bfloat(x);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#endif
}

// An image channel as a float in [0, 1]: bytes are 0-255. Their quotient by 255, rounded as a division would, for every byte.
template <class A, class G>
__device__ __forceinline__ A unit(G x) {
  return (A)widen(x);
}
template <class A>
__device__ __forceinline__ A unit(unsigned char x) {
  const float value = (float)x, quotient = value * (1.0f / 255.0f);
  return (A)fmaf(fmaf(-255.0f, quotient, value), 1.0f / 255.0f, quotient);
}

// To the last bit or two, without the detour by which 1 / x reaches the subnormal numbers.
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// N elements that are read and written at once; the address is a multiple of their size.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T v[N];
};
