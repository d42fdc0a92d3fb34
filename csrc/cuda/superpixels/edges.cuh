// The neighbours of a superpixel as a set of bits in shared memory: each once, in ascending order, without a sort.
#pragma once

// Marks the neighbours among the labels from `base` on, 32 a word.
__device__ __forceinline__ void mark_neighbours(const int* segments, int superpixel, const Bounds& bounds, int H, int W, int N,
                                                int base, int words, unsigned* marked) {
  for (int i = threadIdx.x; i < words; i += blockDim.x) marked[i] = 0;
  __syncthreads();
  const auto mark = [&](int label) {
    const unsigned bit = (unsigned)label - (unsigned)base;
    const bool known = (unsigned)label < (unsigned)N;  // another would make the list longer than it may be
    if (known && label != superpixel && bit / 32 < (unsigned)words) atomicOr(marked + bit / 32, 1u << bit % 32);
  };
  each_pixel(segments, superpixel, bounds, W, [&](long long i, int y, int x) {
    if (x > 0) mark(segments[i - 1]);
    if (x < W - 1) mark(segments[i + 1]);
    if (y > 0) mark(segments[i - W]);
    if (y < H - 1) mark(segments[i + W]);
  });
  __syncthreads();
}

// `total` and what the threads before this one have in `mine`; then adds the block's sum to `total`. of_warp [32]; ends with a
// barrier.
__device__ __forceinline__ int block_scan(int mine, int* of_warp, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int upto = mine;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(FULL_WARP, upto, d);
    upto += lane >= d ? before : 0;
  }
  if (lane == 31) of_warp[warp] = upto;
  __syncthreads();
  int earlier = total + upto - mine;
  for (int w = 0; w < (int)blockDim.x / 32; ++w) {
    if (w < warp) earlier += of_warp[w];
    total += of_warp[w];
  }
  __syncthreads();
  return earlier;
}

// Lists the marked labels from `to` on, `count` of them being there already.
__device__ __forceinline__ void list_marked(const unsigned* marked, int base, int words, int* of_warp, int* to, int& count) {
  const int share = (words - 1) / blockDim.x + 1, begin = min((int)threadIdx.x * share, words), end = min(begin + share, words);
  int mine = 0;
  for (int i = begin; i < end; ++i) mine += __popc(marked[i]);
  to += block_scan(mine, of_warp, count);
  for (int i = begin; i < end; ++i)
    for (unsigned bits = marked[i]; bits; bits &= bits - 1) *to++ = base + i * 32 + __ffs(bits) - 1;
}
