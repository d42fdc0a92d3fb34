// A warp's strip of columns, four neighbouring ones a thread: where a thread stands, how it reads and writes, and sums over windows
// along a row by shuffles.
#pragma once

constexpr int R = RADIUS, STRIP = 128, RING = 2 * R + 1;

__device__ __forceinline__ int round4(int n) { return (n + 3) & ~3; }

// From four columns a thread to the sums over the windows around them. Columns beyond the strip count 0.
__device__ __forceinline__ void window_sums(const A (&v)[4], A (&sum)[4], int lane) {
  A head[4], tail[4];  // v[0] + ... + v[i], v[i] + ... + v[3]
  head[0] = v[0], tail[3] = v[3];
#pragma unroll
  for (int i = 1; i < 4; ++i) head[i] = head[i - 1] + v[i], tail[3 - i] = tail[4 - i] + v[3 - i];
  A left[R / 4 + 1], right[R / 4 + 1];  // sums of the whole threads next to this one
#pragma unroll
  for (int d = 1; d <= R / 4; ++d) {
    const A l = __shfl_up_sync(FULL_WARP, head[3], d) * (A)(lane >= d);
    const A r = __shfl_down_sync(FULL_WARP, head[3], d) * (A)(lane < 32 - d);
    left[d] = d > 1 ? left[d - 1] + l : l;
    right[d] = d > 1 ? right[d - 1] + r : r;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int first = j > R ? j - R : 0, last = j + R < 3 ? j + R : 3;  // of the window's columns in this thread
    A s = first == 0 ? head[last] : tail[first];                        // a window of 3 or more reaches one end or the other
    if (j < R) {
      const int n = R - j;  // columns to the left
      if (n / 4) s += left[n / 4];
      if (n % 4) s += __shfl_up_sync(FULL_WARP, tail[4 - n % 4], n / 4 + 1) * (A)(lane > n / 4);
    }
    if (j + R > 3) {
      const int n = j + R - 3;
      if (n / 4) s += right[n / 4];
      if (n % 4) s += __shfl_down_sync(FULL_WARP, head[n % 4 - 1], n / 4 + 1) * (A)(lane < 31 - n / 4);
    }
    sum[j] = s;
  }
}

// Four neighbouring elements from the column x on; 0 beyond the row's end.
template <class V>
__device__ __forceinline__ void load4(const V* row, int x, int W, A (&v)[4]) {
  Pack<V, 4> pack;
#if VECTOR
  const bool inside = x < W;
  if (inside) pack = *reinterpret_cast<const Pack<V, 4>*>(row + x);
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = inside ? widen(pack.v[j]) : 0;
#else
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const bool inside = x + j < W;
    if (inside) pack.v[j] = row[x + j];
    v[j] = inside ? widen(pack.v[j]) : 0;
  }
#endif
}

// The same of statistics and of the ring, where all is aligned and there is always something to read.
__device__ __forceinline__ void load4(const A* at, A (&v)[4]) {
  const Pack<A, 4> pack = *reinterpret_cast<const Pack<A, 4>*>(at);
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = pack.v[j];
}

__device__ __forceinline__ void store4(A* at, const A (&v)[4]) {
  Pack<A, 4> pack;
#pragma unroll
  for (int j = 0; j < 4; ++j) pack.v[j] = v[j];
  *reinterpret_cast<Pack<A, 4>*>(at) = pack;
}

// Where a thread stands: four columns from x on, `columns` of them inside the image, of a strip whose outermost `halo` columns on
// either side only serve the sums of the others, unless the image ends there.
struct Place {
  int x, lane;
  bool inside, owned;
  __device__ __forceinline__ Place(int strip, int halo, int W) {
    lane = threadIdx.x % 32;
    const int x0 = strip * (STRIP - 2 * halo);
    x = x0 + 4 * lane;
    inside = x < W;
    owned = inside && (strip == 0 || 4 * lane >= halo) && (x0 + STRIP >= W || 4 * lane < STRIP - halo);
  }
};
