// dense_crf, dense_crf_labels: mean field of a fully connected CRF with Potts labels, as pydensecrf; see
// camguide_fast/ops/dense_crf.py. Q <- softmax(-U + sum_m w_m K_m Q) from Q = softmax(-U).
//
// csrc/cuda/crf/lattice.cu filters Q as far as the values of the lattice's vertices; `mean_field` slices those of up to two terms,
// adds -U, which it makes from the input as it goes, and takes the softmax. LANES threads work on a pixel and hold its labels in
// registers. Labels beyond 32, or what memory bounds, go in groups of QUADS * 4: their sums wait in memory for `softmax`.
//
// Pixels lie in tiles of 16 x 16 as csrc/cuda/_lattice_build.cu has them: [images, tiles, PIXELS] of QUADS * 4 labels.
//
// Macros: INPUT: 0 probabilities, 1 energies, 2 label maps; INPUT_TYPE; VALUE; QUADS; CORNERS_0, CORNERS_1 of the two terms, 0
// for none.
#include "common/camguide.cuh"

typedef INPUT_TYPE T;
typedef VALUE A;
typedef Pack<A, 4> Quad;

constexpr int TILE = 16, PIXELS = TILE * TILE, THREADS = 256, UNKNOWN = 255;
constexpr int LANES = QUADS > 1 ? 2 : 1, EACH = QUADS / LANES;
static_assert(QUADS % LANES == 0, "");

enum { TO_SUMS = 0, TO_Q = 1, TO_RESULT = 2 };

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

struct Pixel {
  int slot, lane, x, y, image;
  bool inside;
  __device__ __forceinline__ Pixel(int H, int W) {
    const int thread = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES, across = (W + TILE - 1) / TILE;
    const int tiles = (H + TILE - 1) / TILE * across, tile = thread / PIXELS % tiles;
    slot = thread;
    lane = threadIdx.x % LANES;
    image = thread / PIXELS / tiles;
    x = tile % across * TILE + thread % TILE;
    y = tile / across * TILE + thread % PIXELS / TILE;
    inside = x < W && y < H;
  }
};

// What a label map says about an image: the labels in it, ascending; `number` of each among them; -U where a label is given, of
// the others there, and where none is.
struct Labels {
  int count, number[UNKNOWN], label[UNKNOWN];
  float right, wrong, none;
};

__device__ __forceinline__ A minus_infinity() { return -(A)__int_as_float(0x7f800000); }

#if INPUT == 2

__device__ __forceinline__ int known(T label, int L) {
  return (long long)label >= 0 && (long long)label < L ? (int)label : UNKNOWN;
}

// -U of a label of a pixel.
__device__ __forceinline__ A pull(const T* given, const Labels* labels, const Pixel& p, int label, int L, int H, int W) {
  const Labels& own = labels[p.image];
  if (label >= max(own.count, 1)) return minus_infinity();
  const int at = known(given[((long long)p.image * H + p.y) * W + p.x], L);
  return at == UNKNOWN ? own.none : own.number[at] == label ? own.right : own.wrong;
}

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

#else

__device__ __forceinline__ A pull(const T* given, const Labels*, const Pixel& p, int label, int L, int H, int W) {
  if (label >= L) return minus_infinity();
  const A x = widen(given[(((long long)p.image * L + label) * H + p.y) * W + p.x]);
#if INPUT == 1
  return -x;
#else
  constexpr A least = (A)1e-5;
  return logarithm(x < least ? least : x > 1 ? (A)1 : x);  // NaN stays
#endif
}

#endif

// From a vertex's values to a pixel's sums.
template <int D>
__device__ __forceinline__ void slice(const int* vertex, const A* weight, const A* at, A factor, int tiles, int capacity,
                                      const Pixel& p, int quads, Quad (&x)[EACH]) {
  const int tile = p.slot / PIXELS, copy = tile / tiles;
  const long long base = (long long)(tile - copy * tiles) * D * PIXELS + p.slot % PIXELS;
  const Quad* const from = reinterpret_cast<const Quad*>(at) + (long long)copy * capacity * QUADS + p.lane;
  Quad sum[EACH] = {};
#pragma unroll
  for (int k = 0; k < D; ++k) {
    const A w = weight[base + k * PIXELS];
    const Quad* const row = from + (long long)vertex[base + k * PIXELS] * QUADS;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      if (i * LANES >= quads) continue;
      const Quad value = row[i * LANES];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i].v[j] += w * value.v[j];
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i].v[j] += factor * sum[i].v[j];
  }
}
template <>
__device__ __forceinline__ void slice<0>(const int*, const A*, const A*, A, int, int, const Pixel&, int, Quad (&)[EACH]) {}

// Combines the lanes of a pixel.
__device__ __forceinline__ A greatest(A x) {
  if (LANES == 1) return x;
  const A other = __shfl_xor_sync(FULL_WARP, x, 1);
  return other > x ? other : x;
}
__device__ __forceinline__ A total(A x) { return LANES == 1 ? x : x + __shfl_xor_sync(FULL_WARP, x, 1); }

// The result of a pixel, label by label: Q, or else the label where it is greatest, the smallest of several.
struct Result {
  T* out;
  const T* given;
  const Labels* labels;
  const Pixel& p;
  int L, H, W, best;
  A best_q;

  __device__ __forceinline__ Result(T* out, const T* given, const Labels* labels, const Pixel& p, int L, int H, int W)
      : out(out), given(given), labels(labels), p(p), L(L), H(H), W(W), best(0), best_q(-1) {}

  __device__ __forceinline__ void put(int label, A q) {
#if INPUT == 2
    if (q > best_q) best = label, best_q = q;
#else
    if (p.inside && label < L) narrow(q, out[(((long long)p.image * L + label) * H + p.y) * W + p.x]);
#endif
  }

  __device__ __forceinline__ void finish() {
#if INPUT == 2
    if (LANES == 2) {
      const A q = __shfl_xor_sync(FULL_WARP, best_q, 1);
      const int label = __shfl_xor_sync(FULL_WARP, best, 1);
      if (q > best_q || (q == best_q && label < best)) best = label;
    }
    if (!p.inside || p.lane > 0) return;
    const Labels& own = labels[p.image];
    const long long at = ((long long)p.image * H + p.y) * W + p.x;
    out[at] = own.count ? (T)own.label[best] : given[at];
#endif
  }
};

// begin: the sums start with -U, otherwise with what `sums` holds. to: where they go, those of the labels from 4 * first on.
extern "C" __global__ void __launch_bounds__(THREADS, sizeof(A) > 4 ? 1 : 2)
    mean_field(const T* __restrict__ given, const int* __restrict__ labels, A* __restrict__ sums, A* __restrict__ q,
               T* __restrict__ result, const int* __restrict__ active, const int* __restrict__ vertex_0,
               const A* __restrict__ weight_0, const A* __restrict__ at_0, double factor_0, int tiles_0, int capacity_0,
               const int* __restrict__ vertex_1, const A* __restrict__ weight_1, const A* __restrict__ at_1, double factor_1,
               int tiles_1, int capacity_1, int H, int W, int L, int first, int begin, int to) {
  const Pixel p(H, W);
  const Labels* const tables = reinterpret_cast<const Labels*>(labels);
  const int quads = max(min(*active - first, QUADS), 0);  // of which whole lanes are made
  Quad* const own_sums = reinterpret_cast<Quad*>(sums) + (long long)p.slot * QUADS + p.lane;
  Quad x[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i].v[j] = p.inside ? minus_infinity() : 0;
    if (!p.inside || i * LANES >= quads) continue;
    if (!begin) {
      x[i] = own_sums[i * LANES];
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i].v[j] = pull(given, tables, p, 4 * (first + i * LANES + p.lane) + j, L, H, W);
  }
  if (p.inside) {
    slice<CORNERS_0>(vertex_0, weight_0, at_0, (A)factor_0, tiles_0, capacity_0, p, quads, x);
    slice<CORNERS_1>(vertex_1, weight_1, at_1, (A)factor_1, tiles_1, capacity_1, p, quads, x);
  }
  if (to == TO_SUMS) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) own_sums[i * LANES] = x[i];
    return;
  }
  A most = minus_infinity(), sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) most = x[i].v[j] > most ? x[i].v[j] : most;
  }
  most = greatest(most);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += x[i].v[j] = exponential(x[i].v[j] - most);
  }
  sum = total(sum);
  const A scale = p.inside ? 1 / sum : 0;
  Result r(result, given, tables, p, L, H, W);
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[i].v[j] *= scale;
      if (to == TO_RESULT) r.put(4 * (i * LANES + p.lane) + j, x[i].v[j]);
    }
    if (to == TO_Q) reinterpret_cast<Quad*>(q)[(long long)p.slot * QUADS + i * LANES + p.lane] = x[i];
  }
  if (to == TO_RESULT) r.finish();
}

// The same from sums of several groups of labels, [groups, pixels] of QUADS; q likewise.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    softmax(const T* __restrict__ given, const int* __restrict__ labels, const A* __restrict__ sums, A* __restrict__ q,
            T* __restrict__ result, int groups, int slots, int H, int W, int L, int to) {
  const Pixel p(H, W);
  const long long stride = (long long)slots * QUADS, first = (long long)p.slot * QUADS + p.lane;
  const Quad* const from = reinterpret_cast<const Quad*>(sums);
  A most = minus_infinity(), sum = 0;
  for (int i = 0; i < groups * EACH; ++i) {
    const Quad x = from[i / EACH * stride + first + i % EACH * LANES];
#pragma unroll
    for (int j = 0; j < 4; ++j) most = x.v[j] > most ? x.v[j] : most;
  }
  most = greatest(most);
  for (int i = 0; i < groups * EACH; ++i) {
    const Quad x = from[i / EACH * stride + first + i % EACH * LANES];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += exponential(x.v[j] - most);
  }
  sum = total(sum);
  const A scale = p.inside ? 1 / sum : 0;
  Result r(result, given, reinterpret_cast<const Labels*>(labels), p, L, H, W);
  for (int i = 0; i < groups * EACH; ++i) {
    Quad x = from[i / EACH * stride + first + i % EACH * LANES];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x.v[j] = exponential(x.v[j] - most) * scale;
      if (to == TO_RESULT) r.put(4 * (i / EACH * QUADS + i % EACH * LANES + p.lane) + j, x.v[j]);
    }
    if (to == TO_Q) reinterpret_cast<Quad*>(q)[i / EACH * stride + first + i % EACH * LANES] = x;
  }
  if (to == TO_RESULT) r.finish();
}
