// superpixel_random_walk: means of the maps over superpixels, the steps, and back to the pixels.
//
// u is [B, groups, N, GROUP]: a node's values of a group of maps are read at once, and a block walks with one group. From step to
// step they stay in shared memory if they fit, else each step is a launch.
#pragma once

typedef TARGET_TYPE T;
typedef TRANSITION_TYPE P;
typedef Wide<T>::type A;

constexpr int GROUP = 4;            // maps
constexpr int AT_ONCE = 2 * GROUP;  // whose means a block finds: enough loads under way

typedef Pack<A, GROUP> Maps;

// Eq. 13.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 6)
    find_means(const T* __restrict__ target, const int* __restrict__ segments, const int* __restrict__ bounds,
               const int* __restrict__ counts, A* __restrict__ u, int K, int N, int H, int W, int groups) {
  __shared__ double shared[WARPS * AT_ONCE];
  const int s = blockIdx.x % N, pairs = (groups + 1) / 2, pair = blockIdx.x / N % pairs, first = pair * AT_ONCE;
  const long long b = blockIdx.x / N / pairs, pixels = (long long)H * W;
  target += (b * K + first) * pixels;
  double sum[AT_ONCE] = {};
  each_pixel(segments + b * pixels, s, bounds_of(bounds, b * N + s, H, W), W, [&](long long i, int, int) {
#pragma unroll
    for (int k = 0; k < AT_ONCE; ++k)
      if (first + k < K) sum[k] += widen(target[k * pixels + i]);
  });
  const double total = block_sum(sum, shared);
  const int group = pair * 2 + threadIdx.x / GROUP;
  if (threadIdx.x >= AT_ONCE || group >= groups) return;
  u[((b * groups + group) * N + s) * GROUP + threadIdx.x % GROUP] = (A)(total / max(counts[b * N + s], 1));
}

// Eq. 16 for one node; without neighbours it keeps its values.
__device__ __forceinline__ Maps step(const Maps* u, int s, const int* offsets, const int* neighbours, const P* transition) {
  const int begin = offsets[s], end = offsets[s + 1];
  if (begin == end) return u[s];
  Maps sum = {};
  for (int i = begin; i < end; ++i) {
    const A p = (A)transition[i];
    const Maps theirs = u[neighbours[i]];
#pragma unroll
    for (int k = 0; k < GROUP; ++k) sum.v[k] += p * theirs.v[k];
  }
  return sum;
}

// All steps of one group, in place; shared memory: 2 N Maps.
extern "C" __global__ void __launch_bounds__(512, 1)
    walk_in_shared(A* __restrict__ u, const int* __restrict__ offsets, const int* __restrict__ neighbours,
                   const P* __restrict__ transition, int N, int groups, int slots, int iterations) {
  DYNAMIC_SHARED(bytes);
  Maps* from = reinterpret_cast<Maps*>(bytes);
  Maps* to = from + N;
  const long long b = blockIdx.x / groups;
  Maps* const own = reinterpret_cast<Maps*>(u) + (long long)blockIdx.x * N;
  offsets += b * (N + 1), neighbours += b * slots, transition += b * slots;
  for (int s = threadIdx.x; s < N; s += blockDim.x) from[s] = own[s];
  for (int i = 0; i < iterations; ++i) {
    __syncthreads();
    for (int s = threadIdx.x; s < N; s += blockDim.x) to[s] = step(from, s, offsets, neighbours, transition);
    Maps* const swap = from;
    from = to, to = swap;
  }
  // What a thread wrote last is what it reads here.
  for (int s = threadIdx.x; s < N; s += blockDim.x) own[s] = from[s];
}

// One step of all groups; a thread is a node of one.
extern "C" __global__ void __launch_bounds__(256)
    walk_one_step(const A* __restrict__ u, A* __restrict__ next, const int* __restrict__ offsets,
                  const int* __restrict__ neighbours, const P* __restrict__ transition, int B, int N, int groups, int slots) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, group = at / N, b = group / groups;
  if (b >= B) return;
  const Maps* const own = reinterpret_cast<const Maps*>(u) + group * N;
  reinterpret_cast<Maps*>(next)[at] =
      step(own, (int)(at % N), offsets + b * (N + 1), neighbours + b * slots, transition + b * slots);
}

// Gives each pixel the values of its superpixel.
extern "C" __global__ void __launch_bounds__(256) spread(const A* __restrict__ u, const int* __restrict__ segments,
                                                         T* __restrict__ out, int B, int K, int N, int H, int W, int groups) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, pixels = (long long)H * W, b = at / pixels;
  if (b >= B) return;
  const int label = segments[at];
  if ((unsigned)label >= (unsigned)N) return;
  const Maps* const own = reinterpret_cast<const Maps*>(u) + b * groups * N + label;
  out += b * K * pixels + at % pixels;
  for (int group = 0; group < groups; ++group) {
    const Maps values = own[(long long)group * N];
#pragma unroll
    for (int j = 0; j < GROUP; ++j) {
      const int k = group * GROUP + j;
      if (k < K) narrow(values.v[j], out[k * pixels]);
    }
  }
}
