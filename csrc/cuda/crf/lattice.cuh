// Gaussian filtering on the permutohedral lattice: where it lies in memory, and splat, merge and blur. lattice_build.cuh builds
// it, csrc/cuda/dense_crf.cu slices. Each function is work of all blocks, between two meetings of them.
//
// Pixels lie in tiles of 16 x 16. No float atomics: a row of a tile, the part of a vertex that the tile's pixels splat to, gathers
// its pixels in their order; a vertex gathers the rows of the tiles in theirs.
//
// The host never learns how many vertices there are: what holds a row for each has room for one at each corner of each pixel.
//
// Macros: VALUE, the type of weights and values; NEAR and FAR, how many lattices there are of positions (D = 3) and of positions
// and colours (D = 6).
#pragma once
#include "../common/camguide.cuh"
#include "permutohedral.cuh"

typedef VALUE A;
typedef Pack<A, 4> Quad;  // of labels

constexpr int TILE = 16, PIXELS = TILE * TILE, THREADS = 256;

enum { AXES = FAR > 0 ? 6 : 3, FILTER_STEPS = 2 + AXES };

__device__ __forceinline__ int tiles_of(int H, int W) { return (H + TILE - 1) / TILE * ((W + TILE - 1) / TILE); }

// Arrays one after the other, at addresses that are multiples of 16.
struct Pool {
  unsigned char* at;
  template <class X>
  __device__ void take(X*& array, long long size) {
    array = reinterpret_cast<X*>(at);
    at += (size * sizeof(X) + 15) / 16 * 16;
  }
};

// [tiles, ...] where a tile has its own, [capacity, ...] where a vertex has.
template <int D>
struct Lattice {
  const Term* term;
  int image, tiles;     // the first image; tiles of all, or of one where positions are all that counts
  int capacity, slots;  // slots of an image's table
  A* weight;            // [tiles, D, PIXELS]: barycentric / sqrt(L 1)
  int* vertex;          // [tiles, D, PIXELS]: the vertices around a pixel
  int* entries;         // [tiles, D * PIXELS]: corner * PIXELS + pixel, row by row of the tile, pixels ascending
  int* starts;          // [tiles, D * PIXELS + 1]: where each row begins among them
  int* rows;            // [tiles]: how many there are
  int* ordered;         // [capacity]: the rows of each vertex in turn, tiles ascending
  int* uses;            // [capacity]: how many those are
  int* ends;            // [capacity]: and where they end
  int* neighbours;      // [D, capacity, 2]
  int* counts;          // [2]: vertices; rows that have found their place in `ordered`
  A* tables[2];         // [copies, capacity, 4 * quads]: values, before and after a step
  // to build it
  unsigned long long* keys;                                     // [images, slots]
  int* numbers;                                                 // [images, slots]: vertices
  int *row_slot, *vertex_slot, *row_vertex, *arrival, *listed;  // [capacity]

  // In the memory of `tables`, which nobody needs before the lattice is built, is what building takes for each row.
  __device__ void lay_out(Pool& pool, const Term* of, int images, int copies, int quads, int H, int W) {
    term = of;
    image = 0, tiles = images * tiles_of(H, W);
    const long long rows_at_most = (long long)tiles * D * PIXELS;
    capacity = (int)rows_at_most;
    for (slots = 1; slots <= ((long long)H * W + 1) * D * 4 / 3;) slots *= 2;  // at least a quarter stays empty
    pool.take(weight, rows_at_most);
    pool.take(vertex, rows_at_most);
    pool.take(entries, rows_at_most);
    pool.take(starts, rows_at_most + tiles);
    pool.take(rows, tiles);
    pool.take(ordered, rows_at_most);
    pool.take(uses, rows_at_most);
    pool.take(ends, rows_at_most);
    pool.take(neighbours, rows_at_most * D * 2);
    pool.take(counts, 2);
    pool.take(keys, (long long)images * slots);
    pool.take(numbers, (long long)images * slots);
    Pool own = pool;
    pool.take(tables[0], rows_at_most * copies * quads * 4);
    pool.take(tables[1], rows_at_most * copies * quads * 4);
    own.take(row_slot, rows_at_most);
    own.take(vertex_slot, rows_at_most);
    own.take(row_vertex, rows_at_most);
    own.take(arrival, rows_at_most);
    own.take(listed, rows_at_most);
  }
};

// Filters quads of labels, `stride` of them in a row of memory, of `copies` images that share a lattice or of the lattice's own.
struct Width {
  int copies, quads, stride;
};

__device__ __forceinline__ void add(Quad& to, A factor, const Quad& x) {
#pragma unroll
  for (int j = 0; j < 4; ++j) to.v[j] += factor * x.v[j];
}

// q: [copies * tiles, PIXELS] of `stride` quads, or null for ones. Into tables[0], a row a tile's.
template <int D>
__device__ __forceinline__ void splat(const Lattice<D>& x, const A* q, Width width) {
  for (int block = blockIdx.x; block < width.copies * x.tiles; block += gridDim.x) {
    const int tile = block % x.tiles, base = tile * D * PIXELS;
    const Quad* const from = reinterpret_cast<const Quad*>(q) + (long long)block * PIXELS * width.stride;
    Quad* const to =
        reinterpret_cast<Quad*>(x.tables[0]) + ((long long)block / x.tiles * x.capacity + tile * D * PIXELS) * width.stride;
    const int* const starts = x.starts + tile * (D * PIXELS + 1);
    for (int i = threadIdx.x; i < x.rows[tile] * width.quads; i += THREADS) {
      const int row = i / width.quads, quad = i % width.quads;
      Quad sum = {};
      for (int e = starts[row]; e < starts[row + 1]; ++e) {
        const int entry = x.entries[base + e];
        const A weight = x.weight[base + entry];
        if (q)
          add(sum, weight, from[entry % PIXELS * width.stride + quad]);
        else
          sum.v[0] += weight;
      }
      to[(long long)row * width.stride + quad] = sum;
    }
  }
}

// f(copy, vertex, quad) for all of them, quads of one row side by side.
template <class F>
__device__ __forceinline__ void for_each_quad(int vertices, Width width, const F& f) {
  const int thread = blockIdx.x * THREADS + threadIdx.x, at_once = gridDim.x * THREADS / width.quads;
  if (thread >= at_once * width.quads) return;
  for (int i = thread / width.quads; i < vertices * width.copies; i += at_once) {
    const int copy = width.copies > 1 ? i / vertices : 0;
    f(copy, i - copy * vertices, thread % width.quads);
  }
}

// From tables[0] into tables[1].
template <int D>
__device__ __forceinline__ void merge(const Lattice<D>& x, Width width) {
  for_each_quad(x.counts[0], width, [&](int copy, int v, int quad) {
    const Quad* const from = reinterpret_cast<const Quad*>(x.tables[0]) + (long long)copy * x.capacity * width.stride + quad;
    Quad sum = {};
    for (int end = x.ends[v], i = end - x.uses[v]; i < end; ++i) add(sum, 1, from[(long long)x.ordered[i] * width.stride]);
    reinterpret_cast<Quad*>(x.tables[1])[((long long)copy * x.capacity + v) * width.stride + quad] = sum;
  });
}

// Along an axis, if there is such a one: from tables[1] for the first, then there and back.
template <int D>
__device__ __forceinline__ void blur(const Lattice<D>& x, Width width, int axis) {
  if (axis >= D) return;
  const A* const at = x.tables[(axis + 1) % 2];
  A* const out = x.tables[axis % 2];
  const Pack<int, 2>* const around = reinterpret_cast<const Pack<int, 2>*>(x.neighbours) + (long long)axis * x.capacity;
  for_each_quad(x.counts[0], width, [&](int copy, int v, int quad) {
    const Quad* const from = reinterpret_cast<const Quad*>(at) + (long long)copy * x.capacity * width.stride + quad;
    const Pack<int, 2> next = around[v];
    Quad sum = from[(long long)v * width.stride];
    if (next.v[0] >= 0) add(sum, (A)0.5, from[(long long)next.v[0] * width.stride]);
    if (next.v[1] >= 0) add(sum, (A)0.5, from[(long long)next.v[1] * width.stride]);
    reinterpret_cast<Quad*>(out)[((long long)copy * x.capacity + v) * width.stride + quad] = sum;
  });
}

// What all axes leave behind: the values of the vertices, from which pixels slice.
template <int D>
__device__ __forceinline__ const A* filtered(const Lattice<D>& x) {
  return x.tables[(D + 1) % 2];
}

// Step by step: FILTER_STEPS.
template <int D>
__device__ __forceinline__ void filter(const Lattice<D>& x, int step, const A* q, Width width) {
  if (step == 0) {
    splat(x, q, width);
  } else if (step == 1) {
    merge(x, width);
  } else {
    blur(x, width, step - 2);
  }
}
