// label_closing and the other binary morphology of label maps; see camguide_fast/ops/label_closing.py.
//
// With a square of radius r a pixel depends on the labels within r for each step (dilation, erosion) alone. So a block takes a
// tile of pixels with that halo, goes through the classes that it finds there in ascending order, and works on each as a bit
// plane, 32 pixels of a row a word, in shared memory: the host need not know which labels there are.
//
// A dilation by s grows into one by s + t <= 2 s + 1 through two shifts by t, so that r takes log2(r + 1) passes in each
// direction. What is shifted out of the region is not missed: the pixels next to the edge see the others directly.
//
// Macros: LABEL_TYPE; IN_SHARED: the planes fit in shared memory, and lie in a workspace otherwise.
#include "common/camguide.cuh"

typedef LABEL_TYPE T;

constexpr int WARPS = 8;
constexpr long long LARGEST = 0x7fffffffffffffffll;

// The part of an image that a block looks at, as words [columns][rows].
struct Region {
  int top, left, rows, width, columns;
  __device__ __forceinline__ int words() const { return rows * columns; }
  __device__ __forceinline__ unsigned inside(int column) const {  // which bits of a word are pixels
    const int bits = width - 32 * column;
    return bits >= 32 ? FULL_WARP : (1u << bits) - 1;
  }
};

// The plane, flipped for an erosion, which is the dilation of what is not there. Nothing lies outside.
struct Plane {
  const unsigned* words;
  const Region& region;
  bool flip;
  __device__ __forceinline__ unsigned operator()(int column, int row) const {
    if (column < 0 || column >= region.columns || row < 0 || row >= region.rows) return 0;
    return words[column * region.rows + row] ^ (flip ? region.inside(column) : 0);
  }
};

// plane <- its dilation or erosion by a square; `other` is a workspace of the same size.
__device__ __forceinline__ void step(unsigned*& plane, unsigned*& other, const Region& region, int radius, bool erosion) {
  for (int direction = 0; direction < 2; ++direction) {
    for (int grown = 0; grown < radius;) {
      const int by = min(grown + 1, radius - grown);
      const Plane from{plane, region, erosion};
      for (int i = threadIdx.x; i < region.words(); i += 32 * WARPS) {
        const int column = i / region.rows, row = i % region.rows;
        unsigned word = from(column, row);
        if (direction == 0) {
          const int q = by / 32, b = by % 32;
          word |= __funnelshift_l(from(column - q - 1, row), from(column - q, row), b);
          word |= __funnelshift_r(from(column + q, row), from(column + q + 1, row), b);
        } else {
          word |= from(column, row - by) | from(column, row + by);
        }
        const unsigned inside = region.inside(column);
        other[i] = (word & inside) ^ (erosion ? inside : 0);
      }
      __syncthreads();
      unsigned* const swap = plane;
      plane = other;
      other = swap;
      grown += by;
    }
  }
}

__device__ __forceinline__ long long join(int high, int low) {
  return (long long)((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}

// Each warp walks over its words, a pixel a lane: f(word, x, y, whether that is a pixel). The same thread always meets a pixel.
template <class F>
__device__ __forceinline__ void for_each_pixel(const Region& region, const F& f) {
  for (int i = threadIdx.x / 32; i < region.words(); i += WARPS) {
    const int column = i / region.rows, bit = 32 * column + threadIdx.x % 32;
    f(i, region.left + bit, region.top + i % region.rows, bit < region.width);
  }
}

// steps: 1 or 2, which alternate between dilation and erosion, beginning with an erosion or not.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    morphology(const T* __restrict__ labels, T* __restrict__ out, unsigned* __restrict__ workspace, int H, int W, int tile,
               int words, int radius, int steps, int erosion_first, int background_high, int background_low, int ignore_high,
               int ignore_low) {
  const long long background = join(background_high, background_low), ignore = join(ignore_high, ignore_low);
  const int across = (W + tile - 1) / tile, tiles = (H + tile - 1) / tile * across, halo = steps * radius;
  const int y0 = blockIdx.x % tiles / across * tile, x0 = blockIdx.x % tiles % across * tile;
  const int y1 = min(y0 + tile, H), x1 = min(x0 + tile, W);
  Region region{max(y0 - halo, 0), max(x0 - halo, 0)};
  region.rows = min(y1 + halo, H) - region.top;
  region.width = min(x1 + halo, W) - region.left;
  region.columns = (region.width + 31) / 32;
  const long long image = (long long)(blockIdx.x / tiles) * H * W;
  labels += image;
  out += image;
#if IN_SHARED
  DYNAMIC_SHARED(shared);
  unsigned* plane = reinterpret_cast<unsigned*>(shared);
#else
  unsigned* plane = workspace + (long long)blockIdx.x * 3 * words;
#endif
  unsigned *other = plane + words, *const free = other + words;  // free: background that no class has taken
  __shared__ long long least;
  const int lane = threadIdx.x % 32;

  bool found = false;  // a class, of which `next` is the smallest that this thread knows
  long long next = LARGEST;
  const auto meet = [&](long long label) {
    if (label == background || label == ignore) return;
    found = true;
    next = min(next, label);
  };
  for_each_pixel(region, [&](int i, int x, int y, bool pixel) {
    const T label = pixel ? labels[(long long)y * W + x] : T();
    if (pixel) meet(label);
    const unsigned bits = __ballot_sync(FULL_WARP, pixel && label == background);
    if (lane == 0) free[i] = bits;
    if (y0 <= y && y < y1 && x0 <= x && x < x1) out[(long long)y * W + x] = label;
  });
  for (;;) {
    if (threadIdx.x == 0) least = LARGEST;
    if (!__syncthreads_or(found)) return;
    for (int distance = 16; distance; distance /= 2) next = min(next, __shfl_xor_sync(FULL_WARP, next, distance));
    if (lane == 0) atomicMin(&least, next);
    __syncthreads();
    const long long current = least;
    found = false;
    next = LARGEST;
    for_each_pixel(region, [&](int i, int x, int y, bool pixel) {
      const long long label = pixel ? labels[(long long)y * W + x] : background;
      if (label > current) meet(label);
      const unsigned bits = __ballot_sync(FULL_WARP, pixel && label == current);
      if (lane == 0) plane[i] = bits;
    });
    __syncthreads();
    for (int i = 0; i < steps; ++i) step(plane, other, region, radius, erosion_first != i % 2);
    for_each_pixel(region, [&](int i, int x, int y, bool) {  // what a class gains is background, and becomes it when lost
      const bool in_class = plane[i] >> lane & 1, is_free = free[i] >> lane & 1;
      if (y0 <= y && y < y1 && x0 <= x && x < x1) {
        const long long at = (long long)y * W + x;
        if (in_class && is_free) out[at] = (T)current;
        if (!in_class && labels[at] == current) out[at] = (T)background;
      }
      __syncwarp();
      if (lane == 0) free[i] &= ~plane[i];
    });
    __syncthreads();
  }
}
