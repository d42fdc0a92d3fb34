// Where a pixel lies on the permutohedral lattice, Adams, Baek & Davis (2010); twins: camguide_fast/reference/_permutohedral.py
// and csrc/cpu/crf/permutohedral.h, whose steps these are, in fp32, in their order, none contracted to a fused multiply-add: which
// vertices exist is part of what the filter is.
//
// A vertex has D coordinates of sum 0; its key is the mixed-radix number of the first D - 1, so that a step to a neighbour adds a
// constant. D: corners of a simplex, one more than the dimensions.
#pragma once
#include "../common/camguide.cuh"

constexpr unsigned long long EMPTY = ~0ull;  // no key

// A term of the CRF, and how its features are placed and numbered; `place_term` writes it, once a call.
struct Term {
  double weight;
  long long stride[5], offset,
      valid;  // of the coordinates; what a key is more than their sum; whether fp32 and 64 bits suffice
  float sigma[5], scale[6];
};

template <int D>
struct Simplex {
  int corner[D], rank[D];  // the vertex of remainder 0; ranks of the distances to it
  float weight[D];         // barycentric, of the vertices of remainders 0 .. D - 1
};

template <int D>
__device__ __forceinline__ Simplex<D> find_simplex(const float (&feature)[D - 1], const Term& term) {
  constexpr float down = (float)(1.0 / D);
  float position[D], total = 0;
#pragma unroll
  for (int j = D - 1; j > 0; --j) {
    const float scaled = __fmul_rn(feature[j - 1], term.scale[j]);
    position[j] = __fsub_rn(total, __fmul_rn(scaled, (float)j));
    total = __fadd_rn(total, scaled);
  }
  position[0] = total;
  bool finite = term.valid;
#pragma unroll
  for (int j = 0; j < D; ++j) finite &= __fsub_rn(position[j], position[j]) == 0;
  Simplex<D> s;
  float distance[D];
  int off_plane = 0;
#pragma unroll
  for (int j = 0; j < D; ++j) {
    if (!finite) position[j] = 0;
    const int nearest = __float2int_rn(__fmul_rn(position[j], down));
    off_plane += nearest;
    s.corner[j] = nearest * D;
    distance[j] = __fsub_rn(position[j], (float)s.corner[j]);
  }
#pragma unroll
  for (int j = 0; j < D; ++j) s.rank[j] = off_plane;
#pragma unroll
  for (int i = 0; i < D - 1; ++i) {
#pragma unroll
    for (int j = i + 1; j < D; ++j) {
      const bool below = distance[i] < distance[j];
      s.rank[i] += below;
      s.rank[j] += !below;
    }
  }
  float falling[D];
#pragma unroll
  for (int k = 0; k < D; ++k) falling[k] = 0;
#pragma unroll
  for (int j = 0; j < D; ++j) {  // back onto the plane of sum 0
    const int wrap = (s.rank[j] < 0) * D - (s.rank[j] >= D) * D;
    s.rank[j] += wrap;
    s.corner[j] += wrap;
    const float residual = __fmul_rn(__fsub_rn(position[j], (float)s.corner[j]), down);
#pragma unroll
    for (int k = 0; k < D; ++k) {
      if (s.rank[j] == D - 1 - k) falling[k] = finite ? residual : __int_as_float(0x7fc00000);
    }
  }
  s.weight[0] = __fadd_rn(falling[0], __fsub_rn(1, falling[D - 1]));
#pragma unroll
  for (int k = 1; k < D; ++k) s.weight[k] = __fsub_rn(falling[k], falling[k - 1]);
  return s;
}

// Of the vertex of a remainder.
template <int D>
__device__ __forceinline__ unsigned long long find_key(const Simplex<D>& s, int remainder, const Term& term) {
  long long key = -term.offset;
#pragma unroll
  for (int i = 0; i < D - 1; ++i) {
    const int coordinate = s.corner[i] + (s.rank[i] >= D - remainder ? remainder - D : remainder);
    key += coordinate * term.stride[i];
  }
  return key;
}

__device__ __forceinline__ unsigned mix(unsigned long long key) {
  key *= 0x9e3779b97f4a7c15ull;
  key = (key ^ (key >> 32)) * 0xd6e8feb86659fd93ull;
  return (unsigned)(key ^ (key >> 32));
}

// The rest of `term`, whose sigmas are given, for features within [low, high].
template <int D>
__device__ void embed(const float (&low)[D - 1], const float (&high)[D - 1], Term& term) {
  const double up = (float)(sqrt(2.0 / 3) * D);
  double from[D], to[D], farthest = 0, numbers = 1;
#pragma unroll
  for (int i = 0; i < D; ++i) from[i] = to[i] = 0;
  term.scale[0] = 0;
#pragma unroll
  for (int j = D - 1; j > 0; --j) {
    term.scale[j] = (float)(up / sqrt(j * (j + 1.0)));
    const double a = (double)low[j - 1] * term.scale[j], b = (double)high[j - 1] * term.scale[j];
    from[j] -= j * b;
    to[j] -= j * a;
#pragma unroll
    for (int i = 0; i < j; ++i) {
      from[i] += a;
      to[i] += b;
    }
  }
  long long stride = 1, offset = 0;
#pragma unroll
  for (int i = 0; i < D; ++i) farthest = fmax(farthest, fmax(-from[i], to[i]));
  bool valid = farthest <= 1 << 20;
#pragma unroll
  for (int i = D - 2; i >= 0; --i) {
    const double margin = 5 * D;  // rounding, a simplex and a step
    const double first = floor(from[i] - margin), size = ceil(to[i] + margin) - first + 1;
    numbers *= size;
    valid &= numbers <= 4611686018427387904.0;  // 2^62
    term.stride[i] = valid ? stride : 1;
    offset += valid ? (long long)first * stride : 0;
    stride *= valid ? (long long)size : 1;
  }
  term.offset = offset;
  term.valid = valid;
}
