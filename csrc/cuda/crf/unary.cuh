// What is given to the CRF, as -U of each label: probabilities, energies, or label maps, of which each image has the labels that
// are present in it, numbered on the device.
//
// Macros: INPUT: 0 probabilities, 1 energies, 2 label maps; INPUT_TYPE; QUADS of labels at a time.
#pragma once
#include "label_table.cuh"
#include "lattice.cuh"

constexpr int LANES = QUADS > 1 ? 2 : 1, EACH = QUADS / LANES;  // threads that share a pixel, quads of each
static_assert(QUADS % LANES == 0, "");

struct Pixel {
  int slot, lane, x, y, image;
  bool inside;
  __device__ __forceinline__ Pixel(int block, int first, int H, int W) {
    slot = block * (THREADS / LANES) + threadIdx.x / LANES;
    const int across = (W + TILE - 1) / TILE, tiles = tiles_of(H, W), tile = slot / PIXELS % tiles;
    lane = threadIdx.x % LANES;
    image = first + slot / PIXELS / tiles;
    x = tile % across * TILE + slot % TILE;
    y = tile / across * TILE + slot % PIXELS / TILE;
    inside = x < W && y < H;
  }
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

__device__ __forceinline__ A minus_infinity() { return -(A)__int_as_float(0x7f800000); }

#if INPUT == 2

// -U of a label of a pixel.
__device__ __forceinline__ A pull(const T* given, const Labels* labels, const Pixel& p, int label, int L, int H, int W) {
  const Labels& own = labels[p.image];
  if (label >= max(own.count, 1)) return minus_infinity();
  const int at = known(given[((long long)p.image * H + p.y) * W + p.x], L);
  return at == UNKNOWN ? own.none : own.number[at] == label ? own.right : own.wrong;
}

#else

__device__ __forceinline__ A pull(const T* given, const Labels*, const Pixel& p, int label, int L, int H, int W) {
  if (label >= L) return minus_infinity();
  const A x = widen(given[(((long long)p.image * L + label) * H + p.y) * W + p.x]);
#if INPUT == 1
  return -x;
#else
  constexpr A least = (A)1e-5;
  return logarithm(x < least ? least : x > 1 ? (A)1 : x);  // NaN stays
#endif
}

#endif
