// affinity_random_walk: x T^n, n = 2^log2_steps, x = cam (1 - edge); see camguide_fast/ops/affinity_walk.py. The sum that is
// computed, T^n as a short series of Chebyshev polynomials, is that of csrc/cpu/affinity_walk.cpp, which derives it:
//
//     (P - 1) y at j = sum_i A_ij (y_i - y_j) / d_j,   v += (first step: 1, then 2) (P - 1) y,   y += v,   result += c_k v
//
// 88 steps for n = 256, and each must wait for the one before: what bounds this op is not work (0.8 M weights for a grid of
// 94 x 125) but the time from step to step. So the walk is one launch where its blocks fit on the GPU together: a block keeps the
// weights of its 2 x 32 cells in registers, the offsets shared out among four groups of warps; a step reads y of the tile and its
// surroundings into shared memory, adds up the groups' shares in their order, writes y and meets the other blocks at a barrier.
// Larger walks are one launch a step of the same kernel. Weights lie in one plane for each pair of opposite offsets, whose values
// serve both: j gives and takes the same. Maps are padded with zeros, weights with affinities of 0.
//
// Compulsory bytes: cam, edge and the result once. Read again and again, in the cache: y, and the weights if they are not held.
//
// Macros: CAM_TYPE, EDGE_TYPE; OFFSETS, one {dy, dx} of each pair of opposites, dy >= 0, and their COUNT; REACH_Y and REACH_X,
// the largest dy and dx; CLASSES that a block walks; COEFFICIENTS, c_k of each step.
#include "common/grid.cuh"

typedef CAM_TYPE T;
typedef EDGE_TYPE E;
typedef Wide<T>::type A;

struct Offset {
  int dy, dx;
};
__device__ constexpr Offset offsets[] = {OFFSETS};
__device__ constexpr A coefficients[] = {COEFFICIENTS};

#define HELD (COUNT <= 64)  // whether a block holds its weights in registers, and y in shared memory

enum { THREADS = 256, ROWS = 2, COLUMNS = 32, CELLS = ROWS * COLUMNS, GROUPS = THREADS / CELLS };
enum { SHARE = (COUNT + GROUPS - 1) / GROUPS > 0 ? (COUNT + GROUPS - 1) / GROUPS : 1 };
enum { STEPS = sizeof(coefficients) / sizeof(A) };
enum { REGION_ROW = COLUMNS + 2 * REACH_X, REGION = REGION_ROW * (ROWS + 2 * REACH_Y) };

// A padded map of one image. Cell (y, x) lies at (y + REACH_Y) * row + x + REACH_X.
struct Padded {
  int row;
  long long size;
  __device__ Padded(int H, int W) : row(W + 2 * REACH_X), size((long long)(H + 2 * REACH_Y) * (W + 2 * REACH_X)) {}
};

__device__ __forceinline__ float power(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double power(double x, double y) { return pow(x, y); }

// weights [B, COUNT, padded]: A_ij = (1 - max edge)^beta for the cell j and i = j + offset, 0 if one is outside the image.
extern "C" __global__ void __launch_bounds__(256) affinities(const E* edge, A* weights, int B, int H, int W, double beta) {
  const Padded map(H, W);
  const long long i = (long long)blockIdx.x * 256 + threadIdx.x, image = i / (COUNT * map.size);
  if (image >= B) return;
  const Offset o = offsets[i / map.size % COUNT];
  const int y = (int)(i % map.size / map.row) - REACH_Y, x = (int)(i % map.row) - REACH_X;
  const bool inside = y >= 0 && y + o.dy < H && x >= 0 && x < W && x + o.dx >= 0 && x + o.dx < W;
  A affinity = 0;
  if (inside) {
    const E* const from = edge + (image * H + y) * W + x;
    A highest = 0;
    for (int py = 0; py <= o.dy; ++py)  // a cell outside the box of the ends is at least 1 away from the segment
      for (int px = min(o.dx, 0); px <= max(o.dx, 0); ++px) {
        const int distance = o.dy * px - o.dx * py;  // times the length of the segment
        const A e = (A)widen(from[py * W + px]);
        if (distance * distance < o.dy * o.dy + o.dx * o.dx) highest = e > highest ? e : highest;
      }
    affinity = power(1 - highest, (A)beta);
  }
  weights[i] = affinity;
}

// The inverse column sums [B, padded], and the maps before the first step: [B, classes in whole groups, padded] each.
extern "C" __global__ void __launch_bounds__(256) start(const T* cam, const E* edge, const A* weights, A* inverse, A* y0, A* y1,
                                                        A* velocity, A* sum, int B, int K, int H, int W) {
  const Padded map(H, W);
  const long long i = (long long)blockIdx.x * 256 + threadIdx.x, image = i / map.size, at = i % map.size;
  if (image >= B) return;
  const int y = (int)(at / map.row) - REACH_Y, x = (int)(at % map.row) - REACH_X;
  const bool inside = y >= 0 && y < H && x >= 0 && x < W;
  const long long cell = (long long)y * W + x, cells = (long long)H * W;
  if (inside) {
    const A* const from = weights + image * COUNT * map.size + at;
    A d = 1;  // A_jj
    for (int o = 0; o < COUNT; ++o)
      d += from[o * map.size] + from[o * map.size - (long long)offsets[o].dy * map.row - offsets[o].dx];
    inverse[i] = 1 / d;
  }
  const int classes = (K + CLASSES - 1) / CLASSES * CLASSES;
  for (int k = 0; k < classes; ++k) {
    const long long to = (image * classes + k) * map.size + at;
    A value = 0;
    if (inside && k < K) value = (A)widen(cam[(image * K + k) * cells + cell]) * (1 - (A)widen(edge[image * cells + cell]));
    y0[to] = y1[to] = sum[to] = value;
    velocity[to] = 0;
  }
}

// Not through the cache of the multiprocessor, which does not see what others write.
__device__ __forceinline__ A fresh(const A* from) { return *(const volatile A*)from; }

#if HELD
// The weights of offsets G, G + GROUPS, ... at a cell, as seen from it and from the opposite.
template <int G>
__device__ __forceinline__ void hold(const A* weights, Padded map, A (&forth)[SHARE], A (&back)[SHARE]) {
#pragma unroll
  for (int i = 0; i < SHARE; ++i) {
    const int o = G + GROUPS * i;
    if (o >= COUNT) continue;
    forth[i] = weights[o * map.size];
    back[i] = weights[o * map.size - offsets[o].dy * map.row - offsets[o].dx];
  }
}

template <int G>
__device__ __forceinline__ void add_share(const A* near, const A (&forth)[SHARE], const A (&back)[SHARE], A (&gain)[CLASSES]) {
#pragma unroll
  for (int c = 0; c < CLASSES; ++c) {
    const A here = near[c * REGION];
    A ahead = 0, behind = 0;
#pragma unroll
    for (int i = 0; i < SHARE; ++i) {
      const int o = G + GROUPS * i;
      if (o >= COUNT) continue;
      const int shift = offsets[o].dy * REGION_ROW + offsets[o].dx;
      ahead += forth[i] * (near[c * REGION + shift] - here);
      behind += back[i] * (near[c * REGION - shift] - here);
    }
    gain[c] = ahead + behind;
  }
}

#define OF_GROUP(group, f, ...) \
  switch (group) {              \
    case 0:                     \
      f<0>(__VA_ARGS__);        \
      break;                    \
    case 1:                     \
      f<1>(__VA_ARGS__);        \
      break;                    \
    case 2:                     \
      f<2>(__VA_ARGS__);        \
      break;                    \
    default:                    \
      f<3>(__VA_ARGS__);        \
  }
#endif

// Steps [first, last) of STEPS for the maps from `first_map` on, a map being CLASSES classes of one image. A block has one tile
// of one map. More than one step at a time takes blocks that run together.
extern "C" __global__ void __launch_bounds__(256, 2)
    walk(A* y0, A* y1, A* velocity, A* sum, const A* inverse, const A* weights, T* out, unsigned* counter, int K, int H, int W,
         int first_map, int first, int last) {
  __shared__ A partial[GROUPS * CLASSES * CELLS];
  const Padded map(H, W);
  const int tiles_x = (W + COLUMNS - 1) / COLUMNS, tiles = tiles_x * ((H + ROWS - 1) / ROWS),
            parts = (K + CLASSES - 1) / CLASSES;
  const long long m = first_map + blockIdx.x / tiles, image = m / parts;
  const int top = blockIdx.x % tiles / tiles_x * ROWS, left = blockIdx.x % tiles % tiles_x * COLUMNS;
  const int cell = threadIdx.x % CELLS, group = threadIdx.x / CELLS;
  const int y = top + cell / COLUMNS, x = left + cell % COLUMNS;
  const bool inside = y < H && x < W;
  const int at = inside ? (y + REACH_Y) * map.row + x + REACH_X : REACH_Y * map.row + REACH_X;
  const long long maps = m * CLASSES * map.size;
  weights += image * COUNT * map.size + at;
  const A scale = inverse[image * map.size + at];
#if HELD
  __shared__ A region[CLASSES * REGION];
  const A* const near = region + (cell / COLUMNS + REACH_Y) * REGION_ROW + cell % COLUMNS + REACH_X;
  A forth[SHARE], back[SHARE];
  OF_GROUP(group, hold, weights, map, forth, back)
#endif
  A v[CLASSES], total[CLASSES];
  if (group == 0)
    for (int c = 0; c < CLASSES; ++c) v[c] = velocity[maps + c * map.size + at], total[c] = sum[maps + c * map.size + at];

  for (int k = first; k < last; ++k) {
    if (k > first) meet(counter, k - first);
    const A* const from = (k % 2 ? y1 : y0) + maps;
    A* const to = (k % 2 ? y0 : y1) + maps;
    A here[CLASSES], gain[CLASSES];
#if HELD
    for (int i = threadIdx.x; i < REGION; i += THREADS) {
      const int row = top + i / REGION_ROW, column = left + i % REGION_ROW;
      const bool read = row < H + 2 * REACH_Y && column < map.row;
#pragma unroll
      for (int c = 0; c < CLASSES; ++c)
        region[c * REGION + i] = read ? fresh(from + c * map.size + row * map.row + column) : (A)0;
    }
    __syncthreads();
    for (int c = 0; c < CLASSES; ++c) here[c] = near[c * REGION];
    OF_GROUP(group, add_share, near, forth, back, gain)
#else
    for (int c = 0; c < CLASSES; ++c) here[c] = fresh(from + c * map.size + at), gain[c] = 0;
    for (int o = group; o < COUNT; o += GROUPS) {
      const int shift = offsets[o].dy * map.row + offsets[o].dx;
      const A forth = weights[o * map.size], back = weights[o * map.size - shift];
#pragma unroll
      for (int c = 0; c < CLASSES; ++c) {
        const A* const neighbour = from + c * map.size + at;
        gain[c] += forth * (fresh(neighbour + shift) - here[c]) + back * (fresh(neighbour - shift) - here[c]);
      }
    }
#endif
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) partial[(group * CLASSES + c) * CELLS + cell] = gain[c];
    __syncthreads();
    if (group == 0 && inside)
#pragma unroll
      for (int c = 0; c < CLASSES; ++c) {
        A all = 0;
        for (int g = 0; g < GROUPS; ++g) all += partial[(g * CLASSES + c) * CELLS + cell];
        v[c] += (k == 0 ? 1 : 2) * scale * all;
        total[c] += coefficients[k] * v[c];
        to[c * map.size + at] = here[c] + v[c];
      }
  }

  if (group != 0 || !inside) return;
  for (int c = 0; c < CLASSES; ++c) {
    const int k = (int)(m % parts) * CLASSES + c;
    if (last < STEPS) {
      velocity[maps + c * map.size + at] = v[c], sum[maps + c * map.size + at] = total[c];
    } else if (k < K) {
      narrow(total[c], out[((image * K + k) * H + y) * W + x]);
    }
  }
}
