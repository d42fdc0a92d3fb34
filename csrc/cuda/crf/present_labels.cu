// The labels that are present in each label map, numbered. Macros: INPUT_TYPE; LANES that share the labels of a pixel.
#include "label_table.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    find_labels(const T* __restrict__ given, unsigned* __restrict__ present, int L, int pixels, int blocks) {
  __shared__ unsigned bits[8];
  if (threadIdx.x < 8) bits[threadIdx.x] = 0;
  __syncthreads();
  const int image = blockIdx.x / blocks;
  given += (long long)image * pixels;
  int last = UNKNOWN;
  for (int i = blockIdx.x % blocks * THREADS + threadIdx.x; i < pixels; i += blocks * THREADS) {
    const int label = known(given[i], L);
    if (label == last) continue;  // label maps are made of runs
    last = label;
    if (label != UNKNOWN) atomicOr(&bits[label / 32], 1u << label % 32);
  }
  __syncthreads();
  if (threadIdx.x < 8 && bits[threadIdx.x]) atomicOr(&present[image * 8 + threadIdx.x], bits[threadIdx.x]);
}

// One thread an image. active: the most quads of an image, in whole lanes.
extern "C" __global__ void number_labels(const unsigned* __restrict__ present, int* __restrict__ table,
                                         int* __restrict__ active, double gt_prob) {
  Labels& own = reinterpret_cast<Labels*>(table)[blockIdx.x];
  int n = 0;
  for (int label = 0; label < UNKNOWN; ++label) {
    if (!(present[blockIdx.x * 8 + label / 32] >> label % 32 & 1)) continue;
    own.number[label] = n;
    own.label[n++] = label;
  }
  own.count = n;
  own.right = (float)log(gt_prob);
  own.wrong = (float)log((1 - gt_prob) / max(n - 1, 1));
  own.none = -(float)log((double)max(n, 1));
  atomicMax(active, (max(n, 1) + 4 * LANES - 1) / (4 * LANES) * LANES);
}
