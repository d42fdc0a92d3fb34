// Gaussian filtering on a lattice that csrc/cuda/_lattice_build.cu has built: splat, merge, blur along each axis; the slice is in
// csrc/cuda/dense_crf.cu, except for the normalisation here.
//
// No float atomics: a row of a tile gathers its pixels in their order, a vertex gathers the rows of the tiles in theirs. A row of
// values is QUADS * 4 labels wide, a thread works on 4; `active` says on the device how many quads from the first one on hold
// labels. `copies` images may share a lattice (that of positions), each with values of its own.
//
// Macros: CORNERS; VALUE; QUADS.
#include "permutohedral.cuh"

typedef VALUE A;
typedef Pack<A, 4> Quad;

constexpr int THREADS = 256;

__device__ __forceinline__ int active_quads(const int* active, int first) { return max(min(*active - first, QUADS), 0); }

__device__ __forceinline__ void add(Quad& to, A factor, const Quad& x) {
#pragma unroll
  for (int j = 0; j < 4; ++j) to.v[j] += factor * x.v[j];
}

// f(copy, vertex, quad) for all of them, quads of one row side by side.
template <class F>
__device__ __forceinline__ void for_each_quad(int vertices, int copies, int quads, const F& f) {
  if (quads == 0) return;
  const int thread = blockIdx.x * THREADS + threadIdx.x, at_once = gridDim.x * THREADS / quads;
  if (thread >= at_once * quads) return;
  for (int i = thread / quads; i < vertices * copies; i += at_once) {
    const int copy = copies > 1 ? i / vertices : 0;
    f(copy, i - copy * vertices, thread % quads);
  }
}

// rows: [copies, capacity] of QUADS; q: [copies, tiles, PIXELS] of QUADS.
extern "C" __global__ void __launch_bounds__(THREADS)
    splat(const int* __restrict__ entries, const int* __restrict__ starts, const int* __restrict__ rows,
          const A* __restrict__ weight, const A* __restrict__ q, A* __restrict__ out, const int* __restrict__ active, int first,
          int tiles) {
  const int tile = blockIdx.x % tiles, base = tile * D * PIXELS, quads = active_quads(active, first);
  const Quad* const from = reinterpret_cast<const Quad*>(q) + (long long)blockIdx.x * PIXELS * QUADS;
  Quad* const to = reinterpret_cast<Quad*>(out) + (long long)blockIdx.x * D * PIXELS * QUADS;
  starts += tile * (D * PIXELS + 1);
  for (int i = threadIdx.x; i < rows[tile] * quads; i += THREADS) {
    const int row = i / quads, quad = i % quads;
    Quad sum = {};
    for (int e = starts[row]; e < starts[row + 1]; ++e) {
      const int entry = entries[base + e];
      add(sum, weight[base + entry], from[entry % PIXELS * QUADS + quad]);
    }
    to[(long long)row * QUADS + quad] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    merge(const int* __restrict__ ordered, const int* __restrict__ uses, const int* __restrict__ ends,
          const int* __restrict__ count, const A* __restrict__ rows, A* __restrict__ out, const int* __restrict__ active,
          int first, int capacity, int copies) {
  for_each_quad(*count, copies, active_quads(active, first), [&](int copy, int v, int quad) {
    const Quad* const from = reinterpret_cast<const Quad*>(rows) + (long long)copy * capacity * QUADS + quad;
    Quad sum = {};
    for (int end = ends[v], i = end - uses[v]; i < end; ++i) add(sum, 1, from[(long long)ordered[i] * QUADS]);
    reinterpret_cast<Quad*>(out)[((long long)copy * capacity + v) * QUADS + quad] = sum;
  });
}

// neighbours: those of one axis.
extern "C" __global__ void __launch_bounds__(THREADS)
    blur(const int* __restrict__ neighbours, const int* __restrict__ count, const A* __restrict__ at, A* __restrict__ out,
         const int* __restrict__ active, int first, int capacity, int copies, int axis) {
  const Pack<int, 2>* const around = reinterpret_cast<const Pack<int, 2>*>(neighbours) + (long long)axis * capacity;
  for_each_quad(*count, copies, active_quads(active, first), [&](int copy, int v, int quad) {
    const Quad* const from = reinterpret_cast<const Quad*>(at) + (long long)copy * capacity * QUADS + quad;
    const Pack<int, 2> next = around[v];
    Quad sum = from[(long long)v * QUADS];
    if (next.v[0] >= 0) add(sum, (A)0.5, from[(long long)next.v[0] * QUADS]);
    if (next.v[1] >= 0) add(sum, (A)0.5, from[(long long)next.v[1] * QUADS]);
    reinterpret_cast<Quad*>(out)[((long long)copy * capacity + v) * QUADS + quad] = sum;
  });
}

__device__ __forceinline__ float inverse_root(float x) { return __frsqrt_rn(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }

// D^-1/2 on both sides of the filter, D = diag(L 1), goes into the weights; `ones` is L 1 before its slice.
extern "C" __global__ void __launch_bounds__(PIXELS)
    normalise(const int* __restrict__ vertex, const A* __restrict__ ones, A* __restrict__ weight, int H, int W) {
  const int across = (W + TILE - 1) / TILE, tile = blockIdx.x % ((H + TILE - 1) / TILE * across);
  const int x = tile % across * TILE + threadIdx.x % TILE, y = tile / across * TILE + threadIdx.x / TILE;
  if (x >= W || y >= H) return;
  const long long base = (long long)blockIdx.x * D * PIXELS + threadIdx.x;
  A sum = 0;
  for (int k = 0; k < D; ++k) sum += weight[base + k * PIXELS] * ones[(long long)vertex[base + k * PIXELS] * QUADS * 4];
  const A scale = inverse_root(sum + (A)1e-20);
  for (int k = 0; k < D; ++k) weight[base + k * PIXELS] *= scale;
}
