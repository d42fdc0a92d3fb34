// The lattice of images, once a call; csrc/cuda/crf/lattice.cu filters on it. Blocks are tiles of 16 x 16 pixels.
//
// A tile numbers the vertices that it touches, its rows, through a table in shared memory, and sorts (row, pixel) there: a splat
// into rows is then a gather in the order of the pixels. The rows' keys meet in one table for each image, by atomicCAS with open
// addressing; it has room for D vertices a pixel, so it cannot be full and nobody has to look. Vertices are numbered as they are
// won: by a race, which the results do not see, since a vertex sums its rows in the order of the tiles. That order is made by
// counting for each row how many come before it on its vertex's list.
//
// Macros: CORNERS; VALUE: type of the weights; IMAGE_TYPE, used in 5 dimensions.
#include "permutohedral.cuh"

typedef VALUE A;
typedef IMAGE_TYPE G;

constexpr int THREADS = PIXELS;
constexpr int SLOTS = D > 4 ? 2048 : 1024, EACH = SLOTS / THREADS;  // more than the D * PIXELS corners of a tile
static_assert(SLOTS > D * PIXELS, "");

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

__device__ __forceinline__ void sort(unsigned* codes) {  // bitonic
  for (int run = 2; run <= SLOTS; run *= 2) {
    for (int distance = run / 2; distance; distance /= 2) {
      for (int i = threadIdx.x; i < SLOTS / 2; i += THREADS) {
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

// range: least and greatest colours, 0 and 255 among them.
extern "C" __global__ void embed_image(const float* __restrict__ range, long long* __restrict__ embedding,
                                       float* __restrict__ scale, int H, int W, double sx, double sy, double sr, double sg,
                                       double sb) {
  const float sigma[5] = {(float)sx, (float)sy, (float)sr, (float)sg, (float)sb};
  float low[D - 1], high[D - 1];
  low[0] = low[1] = 0;
  high[0] = (float)(W - 1) / sigma[0], high[1] = (float)(H - 1) / sigma[1];
#pragma unroll
  for (int i = 2; i < D - 1; ++i) low[i] = range[i - 2] / sigma[i], high[i] = range[i + 1] / sigma[i];
  embed(low, high, embedding, scale);
}

// Capacities: D * PIXELS rows a tile, as many vertices in all. `vertex` gets the tile's own numbers of vertices, its rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    find_vertices(const G* __restrict__ image, const long long* __restrict__ embedding, const float* __restrict__ scale,
                  unsigned long long* __restrict__ keys, int* __restrict__ numbers, int* __restrict__ count,
                  A* __restrict__ weight, int* __restrict__ vertex, int* __restrict__ entries, int* __restrict__ starts,
                  int* __restrict__ rows, int* __restrict__ row_slot, int* __restrict__ vertex_slot, int H, int W, int slots,
                  double sx, double sy, double sr, double sg, double sb) {
  __shared__ unsigned long long table[SLOTS];
  __shared__ unsigned codes[SLOTS];  // slot << 11 | pixel << 3 | corner
  __shared__ int sums[THREADS / 32], first;
  const int tile = blockIdx.x, pixel = threadIdx.x, base = tile * D * PIXELS;
  for (int i = threadIdx.x; i < SLOTS; i += THREADS) table[i] = EMPTY, codes[i] = ~0u;
  __syncthreads();
  const Place place = find_place(tile, pixel, H, W);
  if (place.inside || place.filler) {
    const float sigma[5] = {(float)sx, (float)sy, (float)sr, (float)sg, (float)sb};
    float feature[D - 1];
    feature[0] = place.inside ? __fdiv_rn((float)place.x, sigma[0]) : 0;
    feature[1] = place.inside ? __fdiv_rn((float)place.y, sigma[1]) : 0;
#pragma unroll
    for (int i = 2; i < D - 1; ++i) {
      const long long at = (((long long)place.image * 3 + i - 2) * H + place.y) * W + place.x;
      feature[i] = place.inside ? __fdiv_rn(colour(image[at]), sigma[i]) : 0;
    }
    const Simplex s = find_simplex(feature, scale, embedding[VALID]);
#pragma unroll
    for (int k = 0; k < D; ++k) {
      bool fresh;
      const unsigned slot = insert(table, SLOTS, find_key(s, k, embedding), fresh);
      codes[k * PIXELS + pixel] = slot << 11 | pixel << 3 | k;
      weight[base + k * PIXELS + pixel] = place.inside ? (A)s.weight[k] : 0;
    }
  }
  __syncthreads();
  sort(codes);

  int heads = 0, total;
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = threadIdx.x * EACH + j;
    heads += codes[i] != ~0u && (i == 0 || codes[i] >> 11 != codes[i - 1] >> 11);
  }
  int row = scan(heads, sums, total) - 1, won = 0;
  int slot_of[EACH];  // where this thread's rows lie in the image's table, if it was the first to put them there, else -1
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const int i = threadIdx.x * EACH + j;
    const unsigned code = codes[i];
    slot_of[j] = -1;
    if (code == ~0u) continue;
    if (i == 0 || code >> 11 != codes[i - 1] >> 11) {
      ++row;
      starts[tile * (D * PIXELS + 1) + row] = i;
      bool fresh;
      const int slot = place.image * slots + insert(keys + (long long)place.image * slots, slots, table[code >> 11], fresh);
      row_slot[base + row] = slot;
      if (fresh) slot_of[j] = slot, ++won;
    }
    const int entry = (code & 7) * PIXELS + (code >> 3 & 255);
    entries[base + i] = entry;
    vertex[base + entry] = row;
    if (i == SLOTS - 1 || codes[i + 1] == ~0u) starts[tile * (D * PIXELS + 1) + total] = i + 1;
  }
  if (threadIdx.x == 0) rows[tile] = total;
  const int before = scan(won, sums, total);
  if (threadIdx.x == 0) first = atomicAdd(count, total);
  __syncthreads();
  int number = first + before;
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    if (slot_of[j] < 0) continue;
    numbers[slot_of[j]] = number;
    vertex_slot[number++] = slot_of[j];
  }
}

// The vertices that rows and pixels belong to, and how many rows a vertex has; `arrival` tells a vertex's rows apart.
extern "C" __global__ void __launch_bounds__(THREADS)
    number_rows(const int* __restrict__ numbers, const int* __restrict__ rows, const int* __restrict__ row_slot,
                int* __restrict__ vertex, int* __restrict__ row_vertex, int* __restrict__ arrival, int* __restrict__ uses,
                int H, int W) {
  const int base = blockIdx.x * D * PIXELS;
  for (int r = threadIdx.x; r < rows[blockIdx.x]; r += THREADS) {
    const int v = numbers[row_slot[base + r]];
    row_vertex[base + r] = v;
    arrival[base + r] = atomicAdd(&uses[v], 1);
  }
  if (!find_place(blockIdx.x, threadIdx.x, H, W).inside) return;
  for (int k = 0; k < D; ++k) {
    int& v = vertex[base + k * PIXELS + threadIdx.x];
    v = numbers[row_slot[base + v]];
  }
}

// ends: inclusive sums of `uses`.
extern "C" __global__ void __launch_bounds__(THREADS)
    list_rows(const int* __restrict__ rows, const int* __restrict__ row_vertex, const int* __restrict__ arrival,
              const int* __restrict__ uses, const int* __restrict__ ends, int* __restrict__ listed) {
  const int base = blockIdx.x * D * PIXELS;
  for (int r = threadIdx.x; r < rows[blockIdx.x]; r += THREADS) {
    const int v = row_vertex[base + r];
    listed[ends[v] - uses[v] + arrival[base + r]] = base + r;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    order_rows(const int* __restrict__ rows, const int* __restrict__ row_vertex, const int* __restrict__ uses,
               const int* __restrict__ ends, const int* __restrict__ listed, int* __restrict__ ordered) {
  const int base = blockIdx.x * D * PIXELS;
  for (int r = threadIdx.x; r < rows[blockIdx.x]; r += THREADS) {
    const int v = row_vertex[base + r], n = uses[v], begin = ends[v] - n;
    int rank = 0;
    for (int i = 0; i < n; ++i) rank += listed[begin + i] < base + r;
    ordered[begin + rank] = base + r;
  }
}

// neighbours: [D, capacity, 2], -1 where there is none.
extern "C" __global__ void __launch_bounds__(THREADS)
    find_neighbours(const long long* __restrict__ embedding, const unsigned long long* __restrict__ keys,
                    const int* __restrict__ numbers, const int* __restrict__ count, const int* __restrict__ vertex_slot,
                    int* __restrict__ neighbours, int capacity, int slots) {
  long long all = 0;
#pragma unroll
  for (int i = 0; i < D - 1; ++i) all += embedding[i];
  for (int v = blockIdx.x * THREADS + threadIdx.x; v < *count; v += gridDim.x * THREADS) {
    const int slot = vertex_slot[v];
    const long long table = slot & ~(slots - 1), key = keys[slot];
#pragma unroll
    for (int axis = 0; axis < D; ++axis) {
      const long long step = axis < D - 1 ? all - D * embedding[axis] : all;  // +1 everywhere, but 1 - D along the axis
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const unsigned long long wanted = side ? key - step : key + step;
        int i = mix(wanted) & (slots - 1);
        while (keys[table + i] != wanted && keys[table + i] != EMPTY) i = (i + 1) & (slots - 1);
        neighbours[((long long)axis * capacity + v) * 2 + side] = keys[table + i] == wanted ? numbers[table + i] : -1;
      }
    }
  }
}
