// dense_crf, dense_crf_labels: mean field of a fully connected CRF with Potts labels, as pydensecrf; see
// camguide_fast/ops/dense_crf.py. Q <- softmax(-U + sum_m w_m K_m Q) from Q = softmax(-U).
//
// Some sixty steps an image, each of which needs the one before: what bounds this op is not work but the time from step to step.
// So the whole batch is one launch of blocks that run together and meet after each phase: crf/lattice_build.cuh builds the lattices
// of as many images as memory holds at once, crf/lattice.cuh filters Q as far as their vertices, here pixels slice those, add -U,
// which is made from the input again each time, and take the softmax.
//
// LANES threads work on a pixel and hold its labels in registers. More than those, or what memory bounds, go in groups of QUADS
// * 4: their sums wait in memory for `softmax`. Quads that hold no label of any image are left out.
//
// Macros: those of crf/; BLOCKS that a multiprocessor has room for.
#include "common/grid.cuh"
#include "crf/lattice_build.cuh"
#include "crf/unary.cuh"

// What is in memory, of the images that are worked on at once.
struct Field {
  Lattice<3> near[NEAR > 0 ? NEAR : 1];
  Lattice<6> far[FAR > 0 ? FAR : 1];
  A *q, *sums;                       // [groups, images * tiles * PIXELS] of `quads`
  int tiles, images, quads, groups;  // tiles of an image

  // As many images as `size` times 256 bytes hold, at most `most` and at least one.
  __device__ void lay_out(unsigned char* memory, int size, int most, int active, const long long* terms, int H, int W) {
    tiles = tiles_of(H, W);
    quads = min(active, QUADS);
    groups = (active + QUADS - 1) / QUADS;
    const long long one = lay_out(memory, 1, terms, H, W), more = lay_out(memory, 2, terms, H, W) - one;
    const long long rounding = (2 + 20 * (NEAR + FAR)) * 16, others = (size * 256ll - one - rounding) / more;
    lay_out(memory, others < 1 ? 1 : others < most ? 1 + (int)others : most, terms, H, W);
  }

  // Returns the bytes that it takes.
  __device__ long long lay_out(unsigned char* memory, int at_once, const long long* terms, int H, int W) {
    const Term* const all = reinterpret_cast<const Term*>(terms);
    Pool pool = {memory};
    for (int t = 0; t < NEAR; ++t) near[t].lay_out(pool, all + t, 1, at_once, quads, H, W);
    for (int t = 0; t < FAR; ++t) far[t].lay_out(pool, all + NEAR + t, at_once, 1, quads, H, W);
    const long long values = (long long)at_once * tiles * PIXELS * 4 * quads * groups;
    pool.take(q, values);
    pool.take(sums, groups > 1 ? values : 0);
    images = at_once;
    return pool.at - memory;
  }

  __device__ void turn_to(int first, int count) {
    images = count;
    for (int t = 0; t < FAR; ++t) far[t].image = first, far[t].tiles = count * tiles;
  }
};

// From the values of vertices to a pixel's sums.
template <int D>
__device__ __forceinline__ void slice(const Lattice<D>& x, const Pixel& p, int quads, int stride, Quad (&sums)[EACH]) {
  const int tile = p.slot / PIXELS, copy = tile / x.tiles;
  const long long base = (long long)(tile - copy * x.tiles) * D * PIXELS + p.slot % PIXELS;
  const Quad* const from = reinterpret_cast<const Quad*>(filtered(x)) + (long long)copy * x.capacity * stride + p.lane;
  const A factor = (A)x.term->weight;
#pragma unroll
  for (int k = 0; k < D; ++k) {
    const A weight = factor * x.weight[base + k * PIXELS];
    const Quad* const row = from + (long long)x.vertex[base + k * PIXELS] * stride;
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (i * LANES < quads) add(sums[i], weight, row[i * LANES]);
  }
}

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

enum { TO_SUMS, TO_Q, TO_RESULT };

struct Given {
  const T* __restrict__ values;
  const Labels* __restrict__ labels;
  T* result;
  int first, L, H, W;  // the first image
};

// -U, and what the terms add to it where they are filtered; for the quads of labels from `first` on, of which whole lanes are made.
__device__ __forceinline__ void add_up(const Given& given, const Field& field, bool filtered, int first, int active, int to) {
  const int quads = max(min(active - first, QUADS), 0), stride = field.quads;
  const int blocks = field.images * field.tiles * LANES;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Pixel p(block, given.first, given.H, given.W);
    Quad x[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int label = 4 * (first + i * LANES + p.lane) + j;
        x[i].v[j] = !p.inside           ? (A)0
                    : i * LANES < quads ? pull(given.values, given.labels, p, label, given.L, given.H, given.W)
                                        : minus_infinity();
      }
    }
    if (p.inside && filtered) {
      for (int t = 0; t < NEAR; ++t) slice(field.near[t], p, quads, stride, x);
      for (int t = 0; t < FAR; ++t) slice(field.far[t], p, quads, stride, x);
    }
    if (to == TO_SUMS) {
      const long long group = (long long)(first / QUADS) * blocks * (THREADS / LANES);
#pragma unroll
      for (int i = 0; i < EACH; ++i) reinterpret_cast<Quad*>(field.sums)[(group + p.slot) * stride + i * LANES + p.lane] = x[i];
      continue;
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
    Result r(given.result, given.values, given.labels, p, given.L, given.H, given.W);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[i].v[j] *= scale;
        if (to == TO_RESULT) r.put(4 * (i * LANES + p.lane) + j, x[i].v[j]);
      }
      if (to == TO_Q && i * LANES < quads)
        reinterpret_cast<Quad*>(field.q)[(long long)p.slot * stride + i * LANES + p.lane] = x[i];
    }
    if (to == TO_RESULT) r.finish();
  }
}

// The same from the sums of several groups of labels.
__device__ __forceinline__ void softmax(const Given& given, const Field& field, int to) {
  const int blocks = field.images * field.tiles * LANES;
  const long long group = (long long)blocks * (THREADS / LANES) * QUADS;
  const Quad* const from = reinterpret_cast<const Quad*>(field.sums);
  for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
    const Pixel p(block, given.first, given.H, given.W);
    const long long own = (long long)p.slot * QUADS + p.lane;
    A most = minus_infinity(), sum = 0;
    for (int i = 0; i < field.groups * EACH; ++i) {
      const Quad x = from[i / EACH * group + own + i % EACH * LANES];
#pragma unroll
      for (int j = 0; j < 4; ++j) most = x.v[j] > most ? x.v[j] : most;
    }
    most = greatest(most);
    for (int i = 0; i < field.groups * EACH; ++i) {
      const Quad x = from[i / EACH * group + own + i % EACH * LANES];
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += exponential(x.v[j] - most);
    }
    sum = total(sum);
    const A scale = p.inside ? 1 / sum : 0;
    Result r(given.result, given.values, given.labels, p, given.L, given.H, given.W);
    for (int i = 0; i < field.groups * EACH; ++i) {
      Quad x = from[i / EACH * group + own + i % EACH * LANES];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x.v[j] = exponential(x.v[j] - most) * scale;
        if (to == TO_RESULT) r.put(4 * (i / EACH * QUADS + i % EACH * LANES + p.lane) + j, x.v[j]);
      }
      if (to == TO_Q) reinterpret_cast<Quad*>(field.q)[i / EACH * group + own + i % EACH * LANES] = x;
    }
    if (to == TO_RESULT) r.finish();
  }
}

// A step of the filter on all lattices.
__device__ __forceinline__ void filter_step(const Field& field, int step, int group, int active) {
  const int first = group * QUADS, quads = min(active - first, QUADS);
  const A* const q = field.q + (long long)group * field.images * field.tiles * PIXELS * 4 * field.quads;
  for (int t = 0; t < NEAR; ++t) filter(field.near[t], step, q, {field.images, quads, field.quads});
  for (int t = 0; t < FAR; ++t) filter(field.far[t], step, q, {1, quads, field.quads});
}

// memory: `size` times 256 bytes, enough for one image at least; at most `most` are worked on at once. Phases [first, last), more
// than one of them with blocks that run together.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    mean_field(const T* __restrict__ given, const G* __restrict__ image, const long long* terms, const int* __restrict__ labels,
               const int* __restrict__ active_quads, unsigned char* memory, T* result, unsigned* counter, int size, int most,
               int B, int H, int W, int L, int iterations, int first, int last) {
  __shared__ Scratch scratch;
  __shared__ Field field;
  const int active = *active_quads, steps = NEAR + FAR > 0 ? iterations : 0;
  if (threadIdx.x == 0) field.lay_out(memory, size, min(most, B), active, terms, H, W);
  __syncthreads();
  const int at_once = field.images;
  Phases phases = {counter, first, last, 0};
  Given maps = {given, reinterpret_cast<const Labels*>(labels), result, 0, L, H, W};
  for (; maps.first < B; maps.first += at_once) {
    __syncthreads();
    if (threadIdx.x == 0) field.turn_to(maps.first, min(at_once, B - maps.first));
    __syncthreads();
    for (int step = 0; step < (steps > 0 ? BUILD_STEPS : 0); ++step) {
      if (!phases.next()) continue;
      if (maps.first == 0)  // of positions, which all images share
        for (int t = 0; t < NEAR; ++t) build(field.near[t], step, image, scratch, H, W);
      for (int t = 0; t < FAR; ++t) build(field.far[t], step, image, scratch, H, W);
    }
    for (int i = 0; i <= steps; ++i) {
      const int to = i < steps ? TO_Q : TO_RESULT;
      for (int group = 0; group < field.groups; ++group) {
        for (int step = 0; step < (i > 0 ? FILTER_STEPS : 0); ++step)
          if (phases.next()) filter_step(field, step, group, active);
        if (phases.next()) add_up(maps, field, i > 0, group * QUADS, active, field.groups > 1 ? TO_SUMS : to);
      }
      if (field.groups > 1 && phases.next()) softmax(maps, field, to);
    }
  }
}
