// The centres of slic: the means of their pixels, 32 of neighbouring index in a box, by which a part of the image finds those
// that it can see in the order of their indices, without a sort.
#pragma once

struct alignas(16) Centre {
  float floor_y, floor_x, y, x, L, a, b, unused;
};

struct alignas(16) Box {  // of the floors of 32 centres; empty if none of them has a pixel
  int top, bottom, left, right;
};

// sums [B, n, 6]: count, y, x, L, a, b. -> centres [B, chunks * 32, 8], boxes [B, chunks, 4]. In the first pass the centres are
// the seeds, and the sums begin at 0.
extern "C" __global__ void __launch_bounds__(128)
    update_centres(unsigned long long* __restrict__ sums, float* __restrict__ centres, int* __restrict__ boxes, int B, int n,
                   int chunks, int y_start, int y_step, int x_start, int x_step, int x_count, int first) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, chunk = at / 32;
  if (chunk >= (long long)B * chunks) return;  // whole warps
  const int k = chunk % chunks * 32 + at % 32;
  long long sum[6] = {};
  if (k < n) {
    unsigned long long* const mine = sums + (chunk / chunks * n + k) * 6;
    if (first) {
      sum[0] = 1, sum[1] = y_start + (long long)(k / x_count) * y_step, sum[2] = x_start + (long long)(k % x_count) * x_step;
#pragma unroll
      for (int i = 0; i < 6; ++i) mine[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < 6; ++i) sum[i] = (long long)mine[i];
    }
  }
  const bool alive = sum[0] > 0;
  const int y = alive ? sum[1] / sum[0] : 0, x = alive ? sum[2] / sum[0] : 0;
  float mean[6];
#pragma unroll
  for (int i = 1; i < 6; ++i) mean[i] = alive ? (float)((double)sum[i] / (double)sum[0]) : 0;
  const float nowhere = -__int_as_float(0x7F800000);  // in nobody's reach
  reinterpret_cast<Centre*>(centres)[at] = {
      alive ? (float)y : nowhere, alive ? (float)x : nowhere, mean[1], mean[2], mean[3], mean[4], mean[5], 0};
  constexpr int far = 0x7FFFFFFF;
  const Box box = {__reduce_min_sync(FULL_WARP, alive ? y : far), __reduce_max_sync(FULL_WARP, alive ? y : -far),
                   __reduce_min_sync(FULL_WARP, alive ? x : far), __reduce_max_sync(FULL_WARP, alive ? x : -far)};
  if (at % 32 == 0) reinterpret_cast<Box*>(boxes)[chunk] = box;
}
