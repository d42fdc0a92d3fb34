// superpixel_graph: counts, mean colours and degrees; offsets; then neighbours and their weights.
#pragma once

typedef IMAGE_TYPE Image;
typedef Wide<Image>::type A;  // of the weights

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }

// means [B, N, 3] Lab, 0 where there is no pixel. `words` at a time of the bits of N labels are in shared memory.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 8)
    find_nodes(const Image* __restrict__ image, const int* __restrict__ segments, const int* __restrict__ bounds,
               int* __restrict__ counts, double* __restrict__ means, int* __restrict__ degrees, int N, int H, int W,
               int words) {
  DYNAMIC_SHARED(bytes);
  unsigned* const marked = reinterpret_cast<unsigned*>(bytes);
  __shared__ double shared[WARPS * 5];
  const long long node = blockIdx.x, b = node / N, pixels = (long long)H * W;
  const int s = node % N;
  const Bounds own = bounds_of(bounds, node, H, W);
  segments += b * pixels, image += b * 3 * pixels;
  double sum[5] = {};  // L, a, b, pixels, neighbours
  each_pixel(segments, s, own, W, [&](long long i, int, int) {
    A rgb[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] = linear(unit<A>(image[c * pixels + i]));
    const Lab<A> colour = lab(rgb[0], rgb[1], rgb[2]);
    sum[0] += colour.L, sum[1] += colour.a, sum[2] += colour.b, sum[3] += 1;
  });
  for (int base = 0; own.bottom && base < N; base += 32 * words) {
    mark_neighbours(segments, s, own, H, W, N, base, words, marked);
    for (int i = threadIdx.x; i < words; i += blockDim.x) sum[4] += __popc(marked[i]);
    __syncthreads();
  }
  const double total = block_sum(sum, shared);
  if (threadIdx.x < 3) {
    double count = 0;
    for (int w = 0; w < WARPS; ++w) count += shared[w * 5 + 3];
    means[node * 3 + threadIdx.x] = count ? total / count : 0;
  }
  if (threadIdx.x == 3) counts[node] = (int)total;
  if (threadIdx.x == 4) degrees[node] = (int)total;
}

// degrees [B, N] -> offsets [B, N + 1]. A block an image.
extern "C" __global__ void __launch_bounds__(512)
    find_offsets(const int* __restrict__ degrees, int* __restrict__ offsets, int N) {
  __shared__ int of_warp[32];
  degrees += (long long)blockIdx.x * N, offsets += (long long)blockIdx.x * (N + 1);
  int total = 0;
  for (int base = 0; base < N; base += blockDim.x) {
    const int s = base + threadIdx.x;
    const int offset = block_scan(s < N ? degrees[s] : 0, of_warp, total);
    if (s < N) offsets[s] = offset;
  }
  if (threadIdx.x == 0) offsets[N] = total;
}

// Eq. 14-15. The largest exponent of a row cancels; without it no row underflows to 0 / 0.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 8)
    find_edges(const int* __restrict__ segments, const int* __restrict__ bounds, const double* __restrict__ means,
               const int* __restrict__ offsets, int* neighbours, A* __restrict__ transition, int N, int H, int W, int slots,
               int words, double sigma, int squared) {
  DYNAMIC_SHARED(bytes);
  unsigned* const marked = reinterpret_cast<unsigned*>(bytes);
  __shared__ int of_warp[32];
  __shared__ double shared[WARPS];
  const long long node = blockIdx.x, b = node / N;
  const int s = node % N;
  const int begin = offsets[b * (N + 1) + s], degree = offsets[b * (N + 1) + s + 1] - begin;
  if (degree == 0) return;  // the whole block
  const Bounds own = bounds_of(bounds, node, H, W);
  segments += b * H * W, neighbours += b * slots + begin, transition += b * slots + begin;
  for (int base = 0, count = 0; base < N; base += 32 * words) {
    mark_neighbours(segments, s, own, H, W, N, base, words, marked);
    list_marked(marked, base, words, of_warp, neighbours, count);
    __syncthreads();
  }

  const auto exponent = [&](int i) {
    const double* const mine = means + node * 3;
    const double* const theirs = means + (b * N + neighbours[i]) * 3;
    double norm = 0;
#pragma unroll
    for (int c = 0; c < 3; ++c) norm += (mine[c] - theirs[c]) * (mine[c] - theirs[c]);
    return -(squared ? norm : sqrt(norm)) / (2 * sigma * sigma);
  };
  double top = -__longlong_as_double(0x7FF0000000000000ll);
  for (int i = threadIdx.x; i < degree; i += blockDim.x) top = max(top, exponent(i));
#pragma unroll
  for (int d = 16; d; d /= 2) top = max(top, __shfl_xor_sync(FULL_WARP, top, d));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = top;
  __syncthreads();
  for (int w = 0; w < WARPS; ++w) top = max(top, shared[w]);
  __syncthreads();

  double sum[1] = {};
  for (int i = threadIdx.x; i < degree; i += blockDim.x) sum[0] += transition[i] = exp_of((A)(exponent(i) - top));
  const double total = block_sum(sum, shared);
  if (threadIdx.x == 0) shared[0] = total;
  __syncthreads();
  for (int i = threadIdx.x; i < degree; i += blockDim.x) transition[i] /= (A)shared[0];
}
