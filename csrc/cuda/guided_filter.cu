// guided_filter: q = GF(z, I), He, Sun & Tang (2013), Eq. 14-16; see camguide_fast/ops/guided_filter.py. Per window w of n pixels
// (2r+1 wide, clipped at the border), with E the mean over it:
//
//     a = (cov(I, I) + eps)^-1 (E[I p] - mu E[p]),   b = E[p] - a.mu,   q_i = (1/n_i) sum of (a_w . I_i + b_w), w around i
//
// As a matrix that is D^-1 S with D = diag(n) and S symmetric. Its adjoint S D^-1 is the same pass with p = z / n and without
// the last 1/n: that is the backward.
//
// The guide's share (mu and the inverse, the same for all channels) is computed first and stays in the cache: `guide_statistics`.
// Then one pass over z, both box stages on chip. A warp marches down a strip of 128 columns of one channel, four neighbouring
// columns a thread: vertical sums run in registers (add the row that enters, subtract the one that leaves), horizontal ones are
// put together from shuffles of the neighbours' partial sums, and the rows of (a, b) that the second vertical sum will have to
// subtract wait in shared memory. A warp needs no other, so there is no barrier. Per pixel and channel at r = 4 that costs about
// 140 instructions and 45 words through the shared-memory pipe, where taps read one by one would cost 210 words.
//
// Compulsory bytes: z, q and the guide once. Sums restart every `rows` rows, which bounds both their drift and how far a NaN gets.
//
// Macros: Z_TYPE and GUIDE_TYPE; RADIUS; VECTOR: rows of z and q can be read by fours; WARPS of a block; GUIDE_ROWS that a warp
// marches down for the statistics. RADIUS 0 selects the form for windows too large for a strip.
#include "common/camguide.cuh"

typedef Z_TYPE T;
typedef GUIDE_TYPE G;
typedef Wide<T>::type A;  // of everything in between

// The statistics are [B, H, blocks of columns, PLANES, BLOCK]: a thread finds all planes at fixed distances.
// The factors of the inverse M^T D^-1 M, M lower triangular with ones on its diagonal: M (yx zx zy), 1 / D (x y z).
enum { GUIDE = 0, MEAN = 3, FACTORS = 6, PLANES = 12, BLOCK = 32 };

__device__ __forceinline__ int row_length(int W) { return (W + BLOCK - 1) / BLOCK * PLANES * BLOCK; }
__device__ __forceinline__ int column(int x) { return x / BLOCK * PLANES * BLOCK + x % BLOCK; }

// The pixels of the window around i that lie inside the image, along one direction.
__device__ __forceinline__ int count(int i, int size, int radius) { return min(i + radius, size - 1) - max(i - radius, 0) + 1; }

// The filter does not see a shift of the guide, and rounding is least around 0: everything is relative to the middle pixel.
__device__ __forceinline__ A origin(const G* guide, int c, int H, int W) {
  return unit<A>(guide[((long long)c * H + H / 2) * W + W / 2]);
}

// The nine means over a window (I, then xx xy xz yy yz zz) -> the planes from MEAN on, by LDL^T of the covariance + eps. Its
// pivots are at least eps, and rounding must not bring them below. The inverse stays in its factors M = L^-1 and D: written out,
// its entries would lose what eps adds where the guide is grey and the covariance singular.
__device__ __forceinline__ void solve_guide(const A (&mean)[9], A eps, A (&solved)[9]) {
  const A x = mean[0], y = mean[1], z = mean[2];
  const A xy = mean[4] - x * y, xz = mean[5] - x * z, yz = mean[7] - y * z;
  A d0 = mean[3] - x * x + eps, d1, d2;
  d0 = d0 < eps ? eps : d0;
  const A i0 = reciprocal(d0), l10 = xy * i0, l20 = xz * i0;
  d1 = mean[6] - y * y + eps - l10 * xy;
  d1 = d1 < eps ? eps : d1;
  const A i1 = reciprocal(d1), l21 = (yz - l20 * xy) * i1;
  d2 = mean[8] - z * z + eps - l20 * xz - l21 * l21 * d1;
  d2 = d2 < eps ? eps : d2;
  const A i2 = reciprocal(d2);
  solved[0] = x, solved[1] = y, solved[2] = z;
  solved[3] = -l10, solved[4] = l10 * l21 - l20, solved[5] = -l21;
  solved[6] = i0, solved[7] = i1, solved[8] = i2;
}

// Window sums of p, xp, yp, zp and 1/n -> a, b.
__device__ __forceinline__ void solve(const A* sum, A inverse_n, const A* mu, const A* factors, A* ab) {
  const A p = sum[0] * inverse_n;
  const A x = sum[1] * inverse_n - mu[0] * p, y = sum[2] * inverse_n - mu[1] * p, z = sum[3] * inverse_n - mu[2] * p;
  ab[2] = factors[5] * (z + factors[1] * x + factors[2] * y);
  ab[1] = factors[4] * (y + factors[0] * x);
  ab[0] = factors[3] * x + factors[0] * ab[1] + factors[1] * ab[2];
  ab[1] += factors[2] * ab[2];
  ab[3] = p - ab[0] * mu[0] - ab[1] * mu[1] - ab[2] * mu[2];
}

#if RADIUS > 0

#include "guided_filter_strip.cuh"

// Shared memory, not registers, bounds the warps of a multiprocessor (5 on sm_89, 12 on sm_90 at r = 4). __launch_bounds__(n, 1)
// tells the compiler, which else would save registers at the price of loads that wait.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    guide_statistics(const G* __restrict__ guide, A* __restrict__ statistics, int B, int H, int W, int strips, double eps) {
  const long long warp = (long long)blockIdx.x * WARPS + threadIdx.x / 32;
  const int chunks = (H + GUIDE_ROWS - 1) / GUIDE_ROWS, strip = warp % strips, chunk = warp / strips % chunks;
  const long long b = warp / strips / chunks;
  if (b >= B) return;
  const Place at(strip, 0, W);
  if (!at.inside) return;
  const int y0 = chunk * GUIDE_ROWS, y1 = min(y0 + GUIDE_ROWS, H);
  guide += b * 3 * H * W;
  statistics += b * H * row_length(W) + column(at.x);

  // Each thread sums relative to a pixel of its own, in the middle of what it sees: where the guide is flat, all it adds up is
  // small, and what E[II] - mu mu loses is small beside eps. So it reads its neighbours' columns instead of taking their sums.
  A near[3], shift[3];  // that pixel, and from the image's origin to it
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    near[c] = unit<A>(guide[((long long)c * H + (y0 + y1) / 2) * W + min(at.x + 2, W - 1)]);
    shift[c] = near[c] - origin(guide, c, H, W);
  }
  A inverse_n[4];  // 1 / columns of the window
#pragma unroll
  for (int j = 0; j < 4; ++j) inverse_n[j] = reciprocal((A)count(min(at.x + j, W - 1), W, R));
  A core[9] = {}, sum[9][4] = {};  // of the columns that all four windows have, and of each window's others
  const auto add = [&](int y, A sign) {
#pragma unroll
    for (int i = 0; i < 2 * R + 4; ++i) {
      const int x = at.x - R + i;
      if (x < 0 || x >= W) continue;
      A v[3], product[9];
#pragma unroll
      for (int c = 0; c < 3; ++c) v[c] = unit<A>(guide[((long long)c * H + y) * W + x]) - near[c];
#pragma unroll
      for (int c = 0, q = 3; c < 3; ++c) {
        product[c] = sign * v[c];
#pragma unroll
        for (int d = c; d < 3; ++d, ++q) product[q] = product[c] * v[d];
      }
#pragma unroll
      for (int q = 0; q < 9; ++q) {
        if (i >= 3 && i <= 2 * R) {
          core[q] += product[q];
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (j <= i && i <= j + 2 * R) sum[q][j] += product[q];
        }
      }
    }
  };
  const int first = max(y0 - R, 0);
#pragma unroll 1
  for (int y = first; y < min(y0 + R, H); ++y) add(y, 1);
#pragma unroll 1
  for (int y = y0; y < y1; ++y) {
#pragma unroll 1
    for (int leaves = 0; leaves < 2; ++leaves) {
      const int from = leaves ? y - R - 1 : y + R;
      if (leaves ? from >= first : from < H) add(from, leaves ? -1 : 1);
    }
    A solved[9][4], value[4];
    const A inverse_rows = reciprocal((A)count(y, H, R));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const A inverse = inverse_rows * inverse_n[j];
      A mean[9], result[9];
#pragma unroll
      for (int q = 0; q < 9; ++q) mean[q] = (core[q] + sum[q][j]) * inverse;
      solve_guide(mean, (A)eps, result);
#pragma unroll
      for (int q = 0; q < 9; ++q) solved[q][j] = result[q] + (q < 3 ? shift[q] : 0);
    }
    A* const row = statistics + (long long)y * row_length(W);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        value[j] = unit<A>(guide[((long long)c * H + y) * W + min(at.x + j, W - 1)]) - near[c] + shift[c];
      store4(row + (GUIDE + c) * BLOCK, value);
    }
#pragma unroll
    for (int q = 0; q < 9; ++q) store4(row + (MEAN + q) * BLOCK, solved[q]);
  }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    guided_filter(const T* __restrict__ z, const A* __restrict__ statistics, T* __restrict__ out, int K, int H, int W,
                  int strips, int rows, int adjoint) {
  DYNAMIC_SHARED(shared);
  // Channels of one strip are neighbours: what they read of the guide is in the L1 cache for all but the first.
  const int groups = (K + WARPS - 1) / WARPS, chunks = (H + rows - 1) / rows;
  const int warp = threadIdx.x / 32, k = blockIdx.x % groups * WARPS + warp;
  const int strip = blockIdx.x / groups % strips, chunk = blockIdx.x / groups / strips % chunks;
  const long long b = blockIdx.x / groups / strips / chunks;
  if (k >= K) return;
  const Place at(strip, round4(2 * R), W);
  const int y0 = chunk * rows, y1 = min(y0 + rows, H);
  z += (b * K + k) * H * W;
  out += (b * K + k) * H * W;
  const long long length = row_length(W);
  statistics += b * H * length + column(min(at.x, W - 1) & ~3);  // beyond the image: anything, to be multiplied by 0
  A* const ring = reinterpret_cast<A*>(shared) + (warp * RING * 4 * 32 + at.lane) * 4;  // [RING, 4, 32, 4]
  const A zero[4] = {};
  for (int i = 0; i < RING * 4; ++i) store4(ring + i * 32 * 4, zero);

  A inverse_n[4];  // 1 / columns of the window; 0 beyond the image, where a = b = 0 then
#pragma unroll
  for (int j = 0; j < 4; ++j) inverse_n[j] = at.x + j < W ? reciprocal((A)count(at.x + j, W, R)) : 0;

  // Row t enters (sign 1) or leaves (-1) the vertical sums of p, xp, yp, zp.
  A sum[4][4] = {};
  const auto add = [&](int t, A(&p)[4], A sign) {
    if (adjoint) {
      const A inverse_rows = reciprocal((A)count(t, H, R));
#pragma unroll
      for (int j = 0; j < 4; ++j) p[j] *= inverse_rows * inverse_n[j];
    }
    const A* const row = statistics + t * length + GUIDE * BLOCK;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[0][j] += sign * p[j];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      A guide[4];
      load4(row + c * BLOCK, guide);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[c + 1][j] = fma(sign * guide[j], p[j], sum[c + 1][j]);
    }
  };

  const int begin = max(y0 - R, 0), first = max(begin - R, 0);  // rows of (a, b), rows of z
  A row[4], next[4];
  for (int t = first; t < min(begin + R, H); ++t) {
    load4(z + (long long)t * W, at.x, W, row);
    add(t, row, 1);
  }
  load4(z + (long long)min(begin + R, H - 1) * W, at.x, W, next);  // fetched one row ahead: it comes from far
  A total[4][4] = {};                                              // vertical sums of a, b
#pragma unroll 1
  for (int t = begin, slot = 0; t < y1 + R; ++t, slot = slot + 1 < RING ? slot + 1 : 0) {
    A ab[4][4] = {};
    if (t < H) {
      if (t + R < H) {
#pragma unroll
        for (int j = 0; j < 4; ++j) row[j] = next[j];
        load4(z + (long long)min(t + R + 1, H - 1) * W, at.x, W, next);
        add(t + R, row, 1);
      }
      if (t - R - 1 >= first) {
        load4(z + (long long)(t - R - 1) * W, at.x, W, row);
        add(t - R - 1, row, -1);
      }
      const A* const guide = statistics + t * length;
      A window[4][4], mean[3][4], factors[6][4];
#pragma unroll
      for (int q = 0; q < 3; ++q) load4(guide + (MEAN + q) * BLOCK, mean[q]);
#pragma unroll
      for (int q = 0; q < 6; ++q) load4(guide + (FACTORS + q) * BLOCK, factors[q]);
#pragma unroll
      for (int q = 0; q < 4; ++q) window_sums(sum[q], window[q], at.lane);
      const A inverse_rows = reciprocal((A)count(t, H, R));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const A s[4] = {window[0][j], window[1][j], window[2][j], window[3][j]}, mu[3] = {mean[0][j], mean[1][j], mean[2][j]};
        const A f[6] = {factors[0][j], factors[1][j], factors[2][j], factors[3][j], factors[4][j], factors[5][j]};
        A result[4];
        solve(s, inverse_rows * inverse_n[j], mu, f, result);
#pragma unroll
        for (int q = 0; q < 4; ++q) ab[q][j] = result[q];
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      A* const old = ring + (slot * 4 + q) * 32 * 4;
      A leaving[4];
      load4(old, leaving);
      store4(old, ab[q]);
#pragma unroll
      for (int j = 0; j < 4; ++j) total[q][j] += ab[q][j] - leaving[j];
    }
    const int y = t - R;
    if (y < y0) continue;
    const A* const guide = statistics + y * length + GUIDE * BLOCK;
    A result[4], window[4], channel[4];
    window_sums(total[3], result, at.lane);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      load4(guide + c * BLOCK, channel);
      window_sums(total[c], window, at.lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) result[j] = fma(window[j], channel[j], result[j]);
    }
    if (!adjoint) {
      const A inverse_rows = reciprocal((A)count(y, H, R));
#pragma unroll
      for (int j = 0; j < 4; ++j) result[j] *= inverse_rows * inverse_n[j];
    }
    Pack<T, 4> pack;
#pragma unroll
    for (int j = 0; j < 4; ++j) narrow(result[j], pack.v[j]);
    if (at.owned) {
      T* const to = out + (long long)y * W + at.x;
#if VECTOR
      *reinterpret_cast<Pack<T, 4>*>(to) = pack;
#else
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (at.x + j < W) to[j] = pack.v[j];
#endif
    }
  }
}

#else
#include "guided_filter_wide.cuh"
#endif
