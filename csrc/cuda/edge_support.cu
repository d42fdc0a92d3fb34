// edge_support: the image branch of section I.3, see camguide_fast/ops/edge_support.py. Blur 9x9 and the Scharr norm of each
// channel, their sum, dilation 3x3, mean over each cell; over the image's maximum, which commutes with the last two.
//
// A block marches down a strip of the image. A third of its threads each take one channel, a thread COLUMNS neighbouring ones:
//   - the next row is blurred along itself, from the thread's own columns and four on either side;
//   - blur down the columns: the nine taps as a polynomial have all zeros on the unit circle, so they are four filters (1 c 1),
//     one after the other, two operations each; what each needs of earlier rows (two) stays in registers, in place, where nine
//     rows of a window would have to be moved or the code be nine times as long;
//   - Scharr: the sums and differences down a column, of which the neighbouring threads need the outermost;
//   - norms meet in shared memory, where other threads (four columns each) add the channels up, dilate, and sum over the rows of
//     a cell and over POOL of its columns.
// Every row has one barrier: what is written before it is read after it, in buffers that take turns.
// The second kernel adds up the columns of a cell and divides by the largest of the first kernel's maxima.
//
// Compulsory bytes: the image and the result, 27.3 MB at 32x3x512x512 uint8 -> 128x128. Beyond that: the sums (as large as the
// result there, and in the L2 cache), and the image's rows between bands again. Per pixel and channel of bytes the
// inner loop is 52 instructions (33 of them the filters and the norm, 7 moves), 62 with the 13 rows that go before every 64:
// 1.6 G in all, which is the bound, not memory, on any GPU that does 57 operations or less in the time of a byte.
//
// Macros: IMAGE_TYPE; VECTOR: rows can be read by fours; COLUMNS of a thread; WHOLE: the width is a multiple of them; GROUP:
// threads of a channel; POOL: 1, 2 or 4 columns, of which all cells are multiples.
#include "common/camguide.cuh"
#include "common/edges.cuh"

typedef IMAGE_TYPE T;
typedef Wide<T>::type A;

constexpr int R = 4, REACH = R + 2;  // of the blur; of blur, Scharr and dilation
constexpr int STRIP = GROUP * COLUMNS, OWNED = STRIP - 2 * COLUMNS, PITCH = STRIP + 8;  // norms have four columns of 0 around
constexpr int BLOCKS = COLUMNS == 8 ? 2 : 1;  // of a multiprocessor, at least: bounds the registers
constexpr int PACKS = COLUMNS / 4 + 2;        // that a thread reads of a row: its columns and four on either side

// Four neighbours as they are read; bytes as one word, or the compiler takes them apart too early.
template <class V>
struct Four {
  Pack<V, 4> pack;
};
template <>
struct Four<unsigned char> {
  unsigned word;
};
#if VECTOR
typedef Four<T> Quad;
#else
typedef Pack<T, 4> Quad;
#endif

struct Raw {
  Quad quad[PACKS];
};

__device__ __forceinline__ Raw load(const T* row, int x, int W) {
  Raw raw;
#pragma unroll
  for (int k = 0; k < PACKS; ++k) {
    const int first = x + 4 * (k - 1);
#if VECTOR
    raw.quad[k] = *reinterpret_cast<const Quad*>(row + min(max(first, 0), W - 4));
#else
#pragma unroll
    for (int i = 0; i < 4; ++i) raw.quad[k].v[i] = row[min(max(first + i, 0), W - 1)];
#endif
  }
  return raw;
}

template <class V>
__device__ __forceinline__ void widen4(const Pack<V, 4>& from, A* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = widen(from.v[i]);
}
template <class V>
__device__ __forceinline__ void widen4(const Four<V>& from, A* to) {
  widen4(from.pack, to);
}

// Bytes less 128, which no edge sees, by way of the last bits of 2^23 + byte: the conversion proper is slow.
__device__ __forceinline__ float widen_byte(unsigned word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7550u + i)) - 8388736.0f;
}
__device__ __forceinline__ void widen4(const Four<unsigned char>& from, float* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = widen_byte(from.word, i);
}
__device__ __forceinline__ void widen4(const Pack<unsigned char, 4>& from, float* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = widen_byte(from.v[i], 0);
}

// A row blurred along itself; beyond the image its last column, as Scharr is to see it.
__device__ __forceinline__ void blur_row(const Raw& raw, int x, int W, A (&to)[COLUMNS]) {
  A v[4 * PACKS];
#pragma unroll
  for (int k = 0; k < PACKS; ++k) widen4(raw.quad[k], v + 4 * k);
#if VECTOR
  if (x == 0) v[0] = v[1] = v[2] = v[3] = v[4];  // outside the image, where `load` read what is inside
#pragma unroll
  for (int k = PACKS - 1 - (COLUMNS == 8 && !WHOLE); k < PACKS; ++k)
    if (x + 4 * (k - 1) >= W) v[4 * k] = v[4 * k + 1] = v[4 * k + 2] = v[4 * k + 3] = v[4 * k - 1];
#endif
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const A* const at = v + 4 + i;
    A sum = fma((A)0.94595946890676546289, at[-1] + at[1], at[0]);  // exp(-i^2 / (2 3^2))
    sum = fma((A)0.80073740291680804077, at[-2] + at[2], sum);
    sum = fma((A)0.60653065971263342360, at[-3] + at[3], sum);
    to[i] = fma((A)0.41111229050718743592, at[-4] + at[4], sum);
  }
  if (!WHOLE && x + COLUMNS > W) {
#pragma unroll
    for (int i = 1; i < COLUMNS; ++i) to[i] = x + i < W ? to[i] : to[i - 1];
  }
}

// Where the i-th of `cells` intervals that pooling makes of n begins and ends; neighbours may share a pixel.
__device__ __forceinline__ int begin_of(int i, int cells, int n) { return (int)((long long)i * n / cells); }
__device__ __forceinline__ int end_of(int i, int cells, int n) { return (int)(((i + 1ll) * n + cells - 1) / cells); }

extern "C" __global__ void __launch_bounds__(3 * GROUP, BLOCKS)
    edge_cells(const T* __restrict__ image, A* __restrict__ sums, A* __restrict__ peaks, int H, int W, int rows, int band,
               int strips) {
  DYNAMIC_SHARED(shared);
  A* const norms = reinterpret_cast<A*>(shared);                                   // [2, 3, PITCH]
  Pack<A, 4>* const outermost = reinterpret_cast<Pack<A, 4>*>(norms + 6 * PITCH);  // [2, 3, GROUP]: sums and differences
  int* const ends =
      reinterpret_cast<int*>(outermost + 6 * GROUP + STRIP / 4);  // [band]: of rows of cells; where the next begins
  __shared__ A largest[3 * GROUP / 32];

  const int bands = (rows + band - 1) / band, strip = blockIdx.x % strips, first_row = blockIdx.x / strips % bands * band;
  const long long b = blockIdx.x / strips / bands;
  const int thread = threadIdx.x, channel = thread / GROUP, g = thread % GROUP, x0 = strip * OWNED, x = x0 + g * COLUMNS;
  const int end_row = min(first_row + band, rows);
  const int y0 = begin_of(first_row, rows, H), y1 = end_of(end_row - 1, rows, H);
  const T* const plane = image + (b * 3 + channel) * H * W;

  for (int i = thread; i < 6 * PITCH; i += 3 * GROUP) norms[i] = 0;
  for (int i = thread; i < STRIP; i += 3 * GROUP) outermost[6 * GROUP + i / 4].v[i % 4] = 0;
  for (int i = first_row + thread; i < end_row; i += 3 * GROUP)
    ends[i - first_row] = 2 * end_of(i, rows, H) + (begin_of(i + 1, rows, H) < end_of(i, rows, H));
  __syncthreads();

  // Of the columns this thread blurs: rows between the four filters, and blurred ones; even and odd rows take turns.
  A between[4][2][COLUMNS] = {}, blurred[2][COLUMNS] = {};
  // Of the four columns it dilates: the last row dilated along itself, and the larger of this and the row before.
  const int q = 4 * thread, quad = x0 + q;
  const bool dilates = q < STRIP && quad < W;
  const bool owned = dilates && (strip == 0 || q >= COLUMNS) && (strip == strips - 1 || q < STRIP - COLUMNS);
  A last[4] = {}, pair[4] = {}, peak = 0;
  Pack<A, 4>* const sum_of_rows = outermost + 6 * GROUP + thread;  // a thread's own, where registers are short
  int cell = first_row;                                            // the row of cells being summed

  const auto source = [&](int y) { return plane + (long long)min(max(y, 0), H - 1) * W; };
  const bool inside = x < W;
  Raw raw = {};
  if (inside) raw = load(source(y0 - REACH), x, W);

  for (int start = y0 - REACH; start <= y1 + REACH; start += 2) {
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
      const int y = start + turn;        // the row that enters
      const int blur_y = y - R;          // ... that is then blurred
      const int edge_y = y - R - 1;      // ... whose edges are found
      const int summed_y = y - R - 2;    // ... whose edges of all channels are there
      A across[COLUMNS], down[COLUMNS];  // (3 10 3) and (-1 0 1) down the columns
      Pack<A, 4>* const border = outermost + (turn * 3 + channel) * GROUP + g;
      if (inside) {  // around all of it: what is mixed with other work does not fit in the registers
        A row[COLUMNS];
        blur_row(raw, x, W, row);
        constexpr double c[4] = {1.8860368147073996047743, 1.0554420484337036274549, -0.215725724833082375859,
                                 -1.250412522817398574764};
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
#pragma unroll
          for (int f = 0; f < 4; ++f) {
            const A filtered = fma((A)c[f], between[f][1 - turn][i], between[f][turn][i] + row[i]);
            between[f][turn][i] = row[i];
            row[i] = filtered;
          }
        }
        if (blur_y == 0 || blur_y == H) {  // the rows beyond the image's ends are copies of blurred ones
#pragma unroll
          for (int i = 0; i < COLUMNS; ++i) {
            if (blur_y == 0) blurred[1 - turn][i] = row[i];
            row[i] = blurred[1 - turn][i];
          }
        }
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
          across[i] = smooth(blurred[turn][i], blurred[1 - turn][i], row[i]);
          down[i] = row[i] - blurred[turn][i];
          blurred[turn][i] = row[i];
        }
        Pack<A, 4> mine;
        mine.v[0] = across[0], mine.v[1] = down[0], mine.v[2] = across[COLUMNS - 1], mine.v[3] = down[COLUMNS - 1];
        *border = mine;
      }
      __syncthreads();
      if (inside && edge_y >= 0 && edge_y < H) {
        const A* const left = g > 0 ? border[-1].v + 2 : border->v;
        const A* const right = g < GROUP - 1 && x + COLUMNS < W ? border[1].v : border->v + 2;
        A* const to = norms + (turn * 3 + channel) * PITCH + 4 + g * COLUMNS;
#pragma unroll
        for (int k = 0; k < COLUMNS / 4; ++k) {
          Pack<A, 4> norm;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int i = 4 * k + j;
            const A gx = (i < COLUMNS - 1 ? across[i + 1] : right[0]) - (i > 0 ? across[i - 1] : left[0]);
            const A gy = smooth(i > 0 ? down[i - 1] : left[1], down[i], i < COLUMNS - 1 ? down[i + 1] : right[1]);
            norm.v[j] = root(fma(gx, gx, gy * gy));
          }
          if (!WHOLE && x + 4 * k + 3 >= W) {
#pragma unroll
            for (int j = 0; j < 4; ++j) norm.v[j] = x + 4 * k + j < W ? norm.v[j] : 0;
          }
          *reinterpret_cast<Pack<A, 4>*>(to + 4 * k) = norm;
        }
      }
      if (inside) raw = load(source(y + 1), x, W);  // no earlier: there are registers to spare from here on
      if (dilates) {
        const A* const at = norms + (1 - turn) * 3 * PITCH + 4 + q;
        A edge[6], dilated[4];
#pragma unroll
        for (int k = 0; k < 6; ++k)
          edge[k] = summed_y >= 0 && summed_y < H ? at[k - 1] + at[PITCH + k - 1] + at[2 * PITCH + k - 1] : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const A row = larger(larger(edge[j], edge[j + 2]), edge[j + 1]);
          dilated[j] = larger(pair[j], row);
          pair[j] = larger(last[j], row);
          last[j] = row;
        }
        const int dilated_y = summed_y - 1;
        if (owned && dilated_y >= y0 && dilated_y < y1) {
#pragma unroll
          for (int j = 0; j < 4; ++j) peak = larger(peak, dilated[j]);
          Pack<A, 4> sum = *sum_of_rows;
          bool shared_row = true;
          while (shared_row && cell < end_row) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.v[j] += dilated[j];
            const int end = ends[cell - first_row];
            if (dilated_y + 1 < end >> 1) break;
            shared_row = end & 1;
            A* const to = sums + (b * rows + cell++) * (W / POOL) + quad / POOL;
#pragma unroll
            for (int j = 0; j < 4; j += POOL) {
              A total = sum.v[j];
#pragma unroll
              for (int i = 1; i < POOL; ++i) total += sum.v[j + i];
              if (quad + j < W) to[j / POOL] = total;
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.v[j] = 0;
          }
          *sum_of_rows = sum;
        }
      }
    }
  }

#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) peak = larger(peak, __shfl_xor_sync(FULL_WARP, peak, lanes));
  if (thread % 32 == 0) largest[thread / 32] = peak;
  __syncthreads();
  if (thread == 0) {
    for (int i = 1; i < 3 * GROUP / 32; ++i) peak = larger(peak, largest[i]);
    peaks[blockIdx.x] = peak;
  }
}

// parts: how many maxima each image has. least: of what is divided by.
extern "C" __global__ void __launch_bounds__(256)
    edge_means(const A* __restrict__ sums, const A* __restrict__ peaks, float* __restrict__ out, int H, int W, int rows,
               int columns, int parts, int blocks, double least) {
  const long long b = blockIdx.x / blocks;
  A peak = 0;
  for (int i = threadIdx.x % 32; i < parts; i += 32) peak = larger(peak, peaks[b * parts + i]);
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) peak = larger(peak, __shfl_xor_sync(FULL_WARP, peak, lanes));
  peak = peak < (A)least ? (A)least : peak;  // a NaN stays one

  const long long at = (long long)(blockIdx.x % blocks) * 256 + threadIdx.x;
  if (at >= (long long)rows * columns) return;
  const int i = (int)(at / columns), j = (int)(at % columns);
  const int left = begin_of(j, columns, W), right = end_of(j, columns, W);
  const A* const from = sums + (b * rows + i) * (W / POOL);
  A sum = 0;
  for (int x = left / POOL; x < right / POOL; ++x) sum += from[x];
  const A pixels = (A)(end_of(i, rows, H) - begin_of(i, rows, H)) * (A)(right - left);
  out[b * rows * columns + at] = (float)(sum / pixels / peak);
}
