// What both edge ops do: a Gaussian blur, then the Scharr gradient, border replicated in each of them; and maxima over the
// result. Factors common to all of a map's edges are left out, since its edges are divided by their maximum.
//
// Of a constant map the gradient is exactly 0: all pixels are made by the same operations, which are written as they are to be
// fused, and differences are taken of finished values.
#pragma once

// Scharr is separable: (3 10 3) across the derivative, here over 3.
template <class A>
__device__ __forceinline__ A smooth(A before, A here, A after) {
  return fma((A)(10.0 / 3), here, before + after);
}

// To the last bit or two, subnormal squares as 0: the edge they stand for is 1e-19.
__device__ __forceinline__ float root(float square) {
#ifdef CUDA_HOST
  return std::sqrt(square);
#else
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(square));
  return r;
#endif
}
__device__ __forceinline__ double root(double square) { return sqrt(square); }

// Of numbers >= 0, which are ordered as their bits are. A NaN is larger than all.
__device__ __forceinline__ float larger(float x, float y) {
  return __uint_as_float(max(__float_as_uint(x), __float_as_uint(y)));
}
__device__ __forceinline__ double larger(double x, double y) {
  typedef unsigned long long Bits;
  return __longlong_as_double((long long)max((Bits)__double_as_longlong(x), (Bits)__double_as_longlong(y)));
}
