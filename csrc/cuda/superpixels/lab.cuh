// sRGB -> CIE Lab as camguide_fast/reference/_lab.py and csrc/lab.h have it: the same operations in the same order, each rounded
// once, so the same bits. The functions below say so to a compiler that would else contract products into fused multiply-adds.
#pragma once

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }

// N-th root of x > 0, see csrc/lab.h.
template <int N, class A>
__device__ __forceinline__ A root(A x) {
  static_assert(N == 3 || N == 5, "the guess is for these");
  constexpr int from = N == 3 ? 0x54A1F671 : 0x4C2B4A23;
  const float low = (float)x, bits = (float)__float_as_int(low < 1e-6f ? 1e-6f : low);
  A r = __int_as_float(from - (int)mul(bits, 1.0f / N)), t, e;
  const auto find_error = [&] {
    const A square = mul(r, r);
    t = mul(x, N == 3 ? square : mul(square, square));
    e = sub((A)1, mul(t, r));
  };
#pragma unroll
  for (int i = 0; i < (sizeof(A) == 8 ? 2 : 1); ++i) {
    find_error();
    r = add(r, mul(r, mul(e, add(mul(e, (A)((N + 1) / (2.0 * N * N))), (A)(1.0 / N)))));
  }
  find_error();
  return add(t, mul(t, mul(e, add(mul(e, (A)((N - 1) * (2 * N - 1) / (2.0 * N * N))), (A)((N - 1.0) / N)))));
}

// Undoes the gamma of sRGB, x in [0, 1].
template <class A>
__device__ __forceinline__ A linear(A x) {
  const A v = mul(add(x, (A)0.055), (A)(1 / 1.055));
  const A square = mul(v, v);
  return x > (A)0.04045 ? mul(square, root<5>(square)) : mul(x, (A)(1 / 12.92));
}

template <class A>
struct Lab {
  A L, a, b;
};

template <class A>
__device__ __forceinline__ A lab_curve(A r, A g, A b, double from_r, double from_g, double from_b) {
  const A t = add(add(mul(r, (A)from_r), mul(g, (A)from_g)), mul(b, (A)from_b));
  return t > (A)0.008856 ? root<3>(t) : add(mul(t, (A)7.787), (A)(16.0 / 116));
}

// From linear RGB; white is D65, 2 degrees.
template <class A>
__device__ __forceinline__ Lab<A> lab(A r, A g, A b) {
  const A x = lab_curve(r, g, b, 0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047);
  const A y = lab_curve(r, g, b, 0.212671, 0.715160, 0.072169);
  const A z = lab_curve(r, g, b, 0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883);
  return {sub(mul(y, (A)116), (A)16), mul(sub(x, y), (A)500), mul(sub(y, z), (A)200)};
}
