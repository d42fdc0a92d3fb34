// Builds the lattice of lattice.cuh, once a call.
//
// A tile numbers the vertices that it touches, its rows, through a table in shared memory, and sorts (row, pixel) there: a splat
// into rows is then a gather in the order of the pixels. The rows' keys meet in one table for each image, by atomicCAS with open
// addressing; it has room for D vertices a pixel, so it cannot be full and nobody has to look. Vertices are numbered as they are
// won: by a race, which the results do not see, since a vertex sums its rows in the order of the tiles. That order is made by
// counting for each row how many come before it on its vertex's list.
//
// Macro: IMAGE_TYPE, used in 5 dimensions.
#pragma once
#include "lattice.cuh"

typedef IMAGE_TYPE G;

// Of a tile's table: more than the D * PIXELS corners of its pixels.
template <int D>
struct Slots {
  enum { COUNT = D > 4 ? 2048 : 1024, EACH = COUNT / THREADS };
  static_assert(COUNT > D * PIXELS, "");
};

// In shared memory.
struct Scratch {
  unsigned long long table[Slots<6>::COUNT];
  unsigned codes[Slots<6>::COUNT];  // slot << 11 | pixel << 3 | corner
  int sums[THREADS / 32], first;
};

struct Place {
  int x, y, image;
  bool inside, filler;
};

// pydensecrf takes four pixels at a time and fills up the last four with zero features, whose vertices exist too. The last pixel
// of the last tile stands for them: it lies outside of the image whenever H * W is no multiple of 4.
__device__ __forceinline__ Place find_place(int tile, int pixel, int H, int W) {
  const int across = (W + TILE - 1) / TILE, tiles = (H + TILE - 1) / TILE * across, own = tile % tiles;
  Place p;
  p.image = tile / tiles;
  p.x = own % across * TILE + pixel % TILE;
  p.y = own / across * TILE + pixel / TILE;
  p.inside = p.x < W && p.y < H;
  p.filler = own == tiles - 1 && pixel == PIXELS - 1 && (H % 4) * (W % 4) % 4 != 0;
  return p;
}

__device__ __forceinline__ float colour(unsigned char x) { return x; }
template <class V>
__device__ __forceinline__ float colour(V x) {
  return __fmul_rn((float)widen(x), 255.0f);
}

// Exclusive sums of the threads' values, and that of all; `sums` holds a word for each warp.
__device__ __forceinline__ int scan(int value, int* sums, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(FULL_WARP, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < THREADS / 32; ++i) {
    if (i < warp) before += sums[i];
    total += sums[i];
  }
  __syncthreads();
  return before + sum - value;
}

template <int COUNT>
__device__ __forceinline__ void sort(unsigned* codes) {  // bitonic
  for (int run = 2; run <= COUNT; run *= 2) {
    for (int distance = run / 2; distance; distance /= 2) {
      for (int i = threadIdx.x; i < COUNT / 2; i += THREADS) {
        const int low = 2 * i - i % distance, high = low + distance;
        const unsigned a = codes[low], b = codes[high];
        if ((a > b) == !(low & run)) {
          codes[low] = b;
          codes[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The place of a key in a table of `size` slots, a power of two; `fresh`: it was not there.
__device__ __forceinline__ int insert(unsigned long long* table, int size, unsigned long long key, bool& fresh) {
  for (int i = mix(key) & (size - 1);; i = (i + 1) & (size - 1)) {
    unsigned long long found = table[i];
    if (found == EMPTY) found = atomicCAS(&table[i], EMPTY, key);
    fresh = found == EMPTY;
    if (fresh || found == key) return i;
  }
}

template <int D>
__device__ __forceinline__ void clear(const Lattice<D>& x, int H, int W) {
  const int thread = blockIdx.x * THREADS + threadIdx.x, all = gridDim.x * THREADS;
  for (int i = thread; i < x.tiles / tiles_of(H, W) * x.slots; i += all) x.keys[i] = EMPTY;
  for (int i = thread; i < x.tiles * D * PIXELS; i += all) x.uses[i] = 0;
  if (thread < 2) x.counts[thread] = 0;
}

// `vertex` gets the tile's own numbers of vertices, its rows. Not inlined, since it takes more registers than all the rest.
template <int D>
__device__ __noinline__ void find_vertices(const Lattice<D>& x, const G* image, Scratch& scratch, int H, int W) {
  enum { SLOTS = Slots<D>::COUNT, EACH = Slots<D>::EACH };
  unsigned long long* const table = scratch.table;
  unsigned* const codes = scratch.codes;
  const Term& term = *x.term;
  for (int tile = blockIdx.x; tile < x.tiles; tile += gridDim.x) {
    const int pixel = threadIdx.x, base = tile * D * PIXELS;
    for (int i = threadIdx.x; i < SLOTS; i += THREADS) table[i] = EMPTY, codes[i] = ~0u;
    __syncthreads();
    const Place place = find_place(tile, pixel, H, W);
    if (place.inside || place.filler) {
      float feature[D - 1];
      feature[0] = place.inside ? __fdiv_rn((float)place.x, term.sigma[0]) : 0;
      feature[1] = place.inside ? __fdiv_rn((float)place.y, term.sigma[1]) : 0;
#pragma unroll
      for (int i = 2; i < D - 1; ++i) {
        const long long at = (((long long)(x.image + place.image) * 3 + i - 2) * H + place.y) * W + place.x;
        feature[i] = place.inside ? __fdiv_rn(colour(image[at]), term.sigma[i]) : 0;
      }
      const Simplex<D> s = find_simplex<D>(feature, term);
#pragma unroll
      for (int k = 0; k < D; ++k) {
        bool fresh;
        const unsigned slot = insert(table, SLOTS, find_key<D>(s, k, term), fresh);
        codes[k * PIXELS + pixel] = slot << 11 | pixel << 3 | k;
        x.weight[base + k * PIXELS + pixel] = place.inside ? (A)s.weight[k] : 0;
      }
    }
    __syncthreads();
    sort<SLOTS>(codes);

    int heads = 0, total;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const int i = threadIdx.x * EACH + j;
      heads += codes[i] != ~0u && (i == 0 || codes[i] >> 11 != codes[i - 1] >> 11);
    }
    int row = scan(heads, scratch.sums, total) - 1, won = 0;
    int slot_of[EACH];  // where this thread's rows lie in the image's table, if it was the first to put them there, else -1
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const int i = threadIdx.x * EACH + j;
      const unsigned code = codes[i];
      slot_of[j] = -1;
      if (code == ~0u) continue;
      if (i == 0 || code >> 11 != codes[i - 1] >> 11) {
        ++row;
        x.starts[tile * (D * PIXELS + 1) + row] = i;
        bool fresh;
        const int own = place.image * x.slots, slot = own + insert(x.keys + own, x.slots, table[code >> 11], fresh);
        x.row_slot[base + row] = slot;
        if (fresh) slot_of[j] = slot, ++won;
      }
      const int entry = (code & 7) * PIXELS + (code >> 3 & 255);
      x.entries[base + i] = entry;
      x.vertex[base + entry] = row;
      if (i == SLOTS - 1 || codes[i + 1] == ~0u) x.starts[tile * (D * PIXELS + 1) + total] = i + 1;
    }
    if (threadIdx.x == 0) x.rows[tile] = total;
    const int before = scan(won, scratch.sums, total);
    if (threadIdx.x == 0) scratch.first = atomicAdd(&x.counts[0], total);
    __syncthreads();
    int number = scratch.first + before;
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      if (slot_of[j] < 0) continue;
      x.numbers[slot_of[j]] = number;
      x.vertex_slot[number++] = slot_of[j];
    }
  }
}

// The vertices that rows and pixels belong to, and how many rows a vertex has; `arrival` tells a vertex's rows apart.
template <int D>
__device__ __forceinline__ void number_rows(const Lattice<D>& x, int H, int W) {
  for (int tile = blockIdx.x; tile < x.tiles; tile += gridDim.x) {
    const int base = tile * D * PIXELS;
    for (int r = threadIdx.x; r < x.rows[tile]; r += THREADS) {
      const int v = x.numbers[x.row_slot[base + r]];
      x.row_vertex[base + r] = v;
      x.arrival[base + r] = atomicAdd(&x.uses[v], 1);
    }
    if (!find_place(tile, threadIdx.x, H, W).inside) continue;
    for (int k = 0; k < D; ++k) {
      int& v = x.vertex[base + k * PIXELS + threadIdx.x];
      v = x.numbers[x.row_slot[base + v]];
    }
  }
}

// -1 where there is none.
template <int D>
__device__ __forceinline__ void find_neighbours(const Lattice<D>& x) {
  const Term& term = *x.term;
  long long all = 0;
#pragma unroll
  for (int i = 0; i < D - 1; ++i) all += term.stride[i];
  for (int v = blockIdx.x * THREADS + threadIdx.x; v < x.counts[0]; v += gridDim.x * THREADS) {
    const int slot = x.vertex_slot[v], table = slot & ~(x.slots - 1);
    const long long key = x.keys[slot];
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
      const long long step = axis < D - 1 ? all - D * term.stride[axis] : all;  // +1 everywhere, but 1 - D along the axis
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const unsigned long long wanted = side ? key - step : key + step;
        int i = mix(wanted) & (x.slots - 1);
        while (x.keys[table + i] != wanted && x.keys[table + i] != EMPTY) i = (i + 1) & (x.slots - 1);
        x.neighbours[((long long)axis * x.capacity + v) * 2 + side] = x.keys[table + i] == wanted ? x.numbers[table + i] : -1;
      }
    }
  }
}

// Where the rows of a vertex lie among all: side by side, but vertices as blocks come.
template <int D>
__device__ __forceinline__ void place_rows(const Lattice<D>& x, Scratch& scratch) {
  for (int begin = blockIdx.x * THREADS; begin < x.counts[0]; begin += gridDim.x * THREADS) {
    const int v = begin + threadIdx.x, n = v < x.counts[0] ? x.uses[v] : 0;
    int total;
    const int before = scan(n, scratch.sums, total);
    if (threadIdx.x == 0) scratch.first = atomicAdd(&x.counts[1], total);
    __syncthreads();
    if (n) x.ends[v] = scratch.first + before + n;
  }
}

template <int D>
__device__ __forceinline__ void list_rows(const Lattice<D>& x) {
  for (int tile = blockIdx.x; tile < x.tiles; tile += gridDim.x) {
    const int base = tile * D * PIXELS;
    for (int r = threadIdx.x; r < x.rows[tile]; r += THREADS) {
      const int v = x.row_vertex[base + r];
      x.listed[x.ends[v] - x.uses[v] + x.arrival[base + r]] = base + r;
    }
  }
}

template <int D>
__device__ __forceinline__ void order_rows(const Lattice<D>& x) {
  for (int tile = blockIdx.x; tile < x.tiles; tile += gridDim.x) {
    const int base = tile * D * PIXELS;
    for (int r = threadIdx.x; r < x.rows[tile]; r += THREADS) {
      const int v = x.row_vertex[base + r], n = x.uses[v], begin = x.ends[v] - n;
      int rank = 0;
      for (int i = 0; i < n; ++i) rank += x.listed[begin + i] < base + r;
      x.ordered[begin + rank] = base + r;
    }
  }
}

__device__ __forceinline__ float inverse_root(float x) { return __frsqrt_rn(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }

// D^-1/2 on both sides of the filter, D = diag(L 1), goes into the weights; what becomes of ones is L 1 before its slice.
template <int D>
__device__ __forceinline__ void normalise(const Lattice<D>& x, int H, int W) {
  const A* const ones = filtered(x);
  for (int tile = blockIdx.x; tile < x.tiles; tile += gridDim.x) {
    if (!find_place(tile, threadIdx.x, H, W).inside) continue;
    const long long base = (long long)tile * D * PIXELS + threadIdx.x;
    A sum = 0;
    for (int k = 0; k < D; ++k) sum += x.weight[base + k * PIXELS] * ones[(long long)x.vertex[base + k * PIXELS] * 4];
    const A scale = inverse_root(sum + (A)1e-20);
    for (int k = 0; k < D; ++k) x.weight[base + k * PIXELS] *= scale;
  }
}

enum { BUILD_STEPS = 7 + FILTER_STEPS };

// Step by step, those of a filter of ones among them.
template <int D>
__device__ __forceinline__ void build(const Lattice<D>& x, int step, const G* image, Scratch& scratch, int H, int W) {
  switch (step) {
    case 0:
      return clear(x, H, W);
    case 1:
      return find_vertices(x, image, scratch, H, W);
    case 2:
      find_neighbours(x);
      return number_rows(x, H, W);
    case 3:
      return place_rows(x, scratch);
    case 4:
      return list_rows(x);
    case 5:
      return order_rows(x);
    case 6 + FILTER_STEPS:
      return normalise(x, H, W);
    default:
      return filter(x, step - 6, nullptr, {1, 1, 1});
  }
}
