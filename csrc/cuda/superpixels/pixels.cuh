// The pixels of a superpixel, and sums over them, in an order that is always the same.
#pragma once

constexpr int WARPS = 4;  // of a block that has a superpixel

struct Bounds {  // of the pixels of a superpixel, the ends outside; all 0 without any
  int top, bottom, left, right;
};

// bounds [B, N, 4], 0 before: the greatest H - y, y + 1, W - x and x + 1. A thread is a pixel; the first of a run acts for all.
// A label that is none of the N, which only the device knows, must not write to what is not its own.
extern "C" __global__ void __launch_bounds__(256)
    find_bounds(const int* __restrict__ segments, int* __restrict__ bounds, int N, int H, int W, int blocks) {
  const int pixels = H * W, b = blockIdx.x / blocks, lane = threadIdx.x % 32;
  const long long at = (long long)(blockIdx.x % blocks) * blockDim.x + threadIdx.x;
  const bool inside = at < pixels;
  const int i = inside ? (int)at : pixels - 1, x = i % W, y = i / W;
  const int label = segments[(long long)b * pixels + i];
  const int before = __shfl_up_sync(FULL_WARP, label, 1);
  const bool head = !inside || lane == 0 || x == 0 || before != label;
  const unsigned later = __ballot_sync(FULL_WARP, head) >> lane >> 1;  // the next head ends the run
  if (!inside || !head || (unsigned)label >= (unsigned)N) return;
  const int length = later ? __ffs(later) : 32 - lane;
  int* const own = bounds + ((long long)b * N + label) * 4;
  atomicMax(own, H - y), atomicMax(own + 1, y + 1), atomicMax(own + 2, W - x), atomicMax(own + 3, x + length);
}

__device__ __forceinline__ Bounds bounds_of(const int* bounds, long long superpixel, int H, int W) {
  const int* const own = bounds + superpixel * 4;
  if (own[1] == 0) return {0, 0, 0, 0};
  return {H - own[0], own[1], W - own[2], own[3]};
}

// f(index, y, x) for each pixel of the superpixel, a row a warp; each thread has its own in raster order.
template <class F>
__device__ __forceinline__ void each_pixel(const int* segments, int superpixel, const Bounds& bounds, int W, const F& f) {
  for (int y = bounds.top + threadIdx.x / 32; y < bounds.bottom; y += WARPS) {
    for (int x = (bounds.left & ~7) + threadIdx.x % 32; x < bounds.right; x += 32) {
      const long long i = (long long)y * W + x;
      if (segments[i] == superpixel) f(i, y, x);
    }
  }
}

// The sum over the block of v[q], for q = the index of the thread; for all threads, then to be followed by a barrier before
// `shared` [WARPS, Q] is used again.
template <int Q>
__device__ __forceinline__ double block_sum(const double (&v)[Q], double* shared) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    double sum = v[q];
#pragma unroll
    for (int d = 16; d; d /= 2) sum += __shfl_down_sync(FULL_WARP, sum, d);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32 * Q + q] = sum;
  }
  __syncthreads();
  double total = 0;
  if (threadIdx.x < Q)
    for (int w = 0; w < WARPS; ++w) total += shared[w * Q + threadIdx.x];
  return total;
}
