// The connectivity rule of camguide_fast/ops/slic.py: components by union-find, small ones given away, numbers by root.
//
// The parent of a pixel is a pixel of its component before it in raster order, so that the root is the component's first pixel,
// whatever is joined first. A thread is a pixel; those of a warp follow one another.
#pragma once

constexpr int PART = 8;  // blocks of pixels that a block numbers

struct Pixel {
  long long offset;  // of the image
  int i;             // within it, and
  bool inside;       // whether it has one there
  __device__ __forceinline__ Pixel(int pixels, int block, int blocks_of_image)
      : offset((long long)(block / blocks_of_image) * pixels) {
    const long long at = (long long)(block % blocks_of_image) * blockDim.x + threadIdx.x;
    inside = at < pixels;
    i = inside ? (int)at : pixels - 1;
  }
};

// Others may be writing: what is read is a pixel further up then, or the same.
__device__ __forceinline__ int root_of(const volatile int* parent, int i) {
  for (int up; (up = parent[i]) != i;) i = up;
  return i;
}

__device__ __forceinline__ void unite(int* parent, int i, int j) {
  for (;;) {
    i = root_of(parent, i), j = root_of(parent, j);
    if (i == j) return;
    const int low = min(i, j), high = max(i, j);
    const int was = atomicMin(parent + high, low);
    if (was == high) return;
    i = low, j = was;  // high had become a child meanwhile, of a component that is to be joined as well
  }
}

// The first of the lanes, up to and with this one, since the last that is marked as the head of a run.
__device__ __forceinline__ int head_of_run(bool head) {
  const unsigned heads = __ballot_sync(FULL_WARP, head);
  return 31 - __clz(heads & (FULL_WARP >> (31 - threadIdx.x % 32)));
}

// A pixel's parent: where its run along the row begins within the warp.
extern "C" __global__ void __launch_bounds__(256)
    find_runs(const int* __restrict__ label, int* __restrict__ parent, int pixels, int W, int blocks) {
  const Pixel at(pixels, blockIdx.x, blocks);
  const int lane = threadIdx.x % 32;
  label += at.offset;
  const bool head = lane == 0 || at.i % W == 0 || label[at.i - 1] != label[at.i];
  const int first = head_of_run(head);
  if (at.inside) parent[at.offset + at.i] = at.i - (lane - first);
}

// Joins runs to what is left of their warp and above them.
extern "C" __global__ void __launch_bounds__(256)
    unite_runs(const int* __restrict__ label, int* parent, int pixels, int W, int blocks) {
  const Pixel at(pixels, blockIdx.x, blocks);
  if (!at.inside) return;
  label += at.offset, parent += at.offset;
  const int i = at.i, own = label[i];
  const bool left = i % W > 0 && label[i - 1] == own;
  if (left && threadIdx.x % 32 == 0) unite(parent, i, i - 1);
  // If the pixels left of both are of the run too, they are joined, and so are these.
  if (i >= W && label[i - W] == own && !(left && label[i - W - 1] == own)) unite(parent, i, i - W);
}

// Every pixel's parent is its root now; size [B, H * W], 0 before: of a root's component.
extern "C" __global__ void __launch_bounds__(256) find_roots(int* parent, int* __restrict__ size, int pixels, int blocks) {
  const Pixel at(pixels, blockIdx.x, blocks);
  parent += at.offset;
  const int lane = threadIdx.x % 32, root = at.inside ? root_of(parent, at.i) : -1;
  if (at.inside) *(volatile int*)(parent + at.i) = root;
  const int before = __shfl_up_sync(FULL_WARP, root, 1);
  const bool head = lane == 0 || before != root;
  const unsigned later = __ballot_sync(FULL_WARP, head) >> lane >> 1;  // the next head ends the run
  if (!at.inside || !head) return;
  atomicAdd(size + at.offset + root, later ? __ffs(later) : 32 - lane);
}

// group: the root of the component that a pixel's component ends up with. A small one joins what is left of its root, or above;
// roots fall along the way. roots [B, parts]: in each part; first_size [B], 0 before: pixels of the group of pixel 0.
extern "C" __global__ void __launch_bounds__(256)
    find_groups(const int* __restrict__ parent, const int* __restrict__ size, int* __restrict__ group, int* __restrict__ roots,
                int* __restrict__ first_size, int pixels, int W, int smallest, int parts) {
  const int b = blockIdx.x / parts;
  parent += (long long)b * pixels, size += (long long)b * pixels;
  int found = 0, first = 0;
  for (int part = 0; part < PART; ++part) {
    const Pixel at(pixels, b * parts * PART + blockIdx.x % parts * PART + part, parts * PART);
    int root = -1;
    if (at.inside) {
      root = parent[at.i];
      while (root > 0 && size[root] < smallest) root = parent[root % W > 0 ? root - 1 : root - W];
      group[at.offset + at.i] = root;
    }
    found += __syncthreads_count(at.inside && root == at.i);
    first += __syncthreads_count(root == 0);
  }
  if (threadIdx.x == 0) {
    roots[blockIdx.x] = found;
    if (first) atomicAdd(first_size + b, first);
  }
}

// number [B, H * W]: of a root, how many come before it. num [B]: segments of an image. Only the group of pixel 0 can still be
// small: it takes over another, see relabel.
extern "C" __global__ void __launch_bounds__(256)
    number_groups(const int* __restrict__ group, const int* __restrict__ roots, const int* __restrict__ first_size,
                  int* __restrict__ number, int* __restrict__ num, int pixels, int smallest, int parts) {
  __shared__ int of_warp[8];
  const int b = blockIdx.x / parts, own = blockIdx.x % parts, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The sum over a block, and over the warps before this one.
  int total = 0, before = 0;
  const auto add_up = [&](int mine) {
    mine = __reduce_add_sync(FULL_WARP, mine);
    if (lane == 0) of_warp[warp] = mine;
    __syncthreads();
    total = before = 0;
    for (int w = 0; w < 8; ++w) total += of_warp[w], before += w < warp ? of_warp[w] : 0;
    __syncthreads();
  };
  int earlier = 0;
  for (int i = threadIdx.x; i < own; i += blockDim.x) earlier += roots[b * parts + i];
  add_up(earlier);
  int next = total;
  for (int part = 0; part < PART; ++part) {
    const Pixel at(pixels, (b * parts + own) * PART + part, parts * PART);
    const bool root = at.inside && group[at.offset + at.i] == at.i;
    const unsigned votes = __ballot_sync(FULL_WARP, root);
    add_up(root);
    if (root) number[at.offset + at.i] = next + before + __popc(votes & ((1u << lane) - 1));
    next += total;
  }
  if (own == parts - 1 && threadIdx.x == 0) num[b] = next - (first_size[b] < smallest && next > 1);
}

// Groups become their numbers, in place. A group of pixel 0 that is small takes over that of the first pixel outside it, which is
// number 1.
extern "C" __global__ void __launch_bounds__(256)
    relabel(int* __restrict__ group, const int* __restrict__ number, const int* __restrict__ first_size, int pixels,
            int smallest, int blocks) {
  const Pixel at(pixels, blockIdx.x, blocks);
  if (!at.inside) return;
  int& mine = group[at.offset + at.i];
  const int label = number[at.offset + mine];
  mine = first_size[blockIdx.x / blocks] < smallest ? max(label - 1, 0) : label;
}
