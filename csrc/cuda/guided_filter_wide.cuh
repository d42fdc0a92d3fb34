// The part of guided_filter.cu for windows too large for a strip, any radius: sums run along columns (a thread each), then along
// rows (a warp each), through workspaces of one image. Twice for the maps (sums, then a and b), once for the guide.
#pragma once

// Sums over the windows around from, ..., to - 1 along a line of `size` elements: read(i, v) gives Q values, write(i, sum) takes
// their sums.
template <int Q, class Read, class Write>
__device__ __forceinline__ void running_sums(int from, int to, int size, int radius, const Read& read, const Write& write) {
  A sum[Q] = {}, v[Q];
  const int first = max(from - radius, 0);
#pragma unroll 1
  for (int i = first; i < min(from + radius, size); ++i) {
    read(i, v);
    for (int q = 0; q < Q; ++q) sum[q] += v[q];
  }
#pragma unroll 1
  for (int i = from; i < to; ++i) {
    if (i + radius < size) {
      read(i + radius, v);
      for (int q = 0; q < Q; ++q) sum[q] += v[q];
    }
    if (i - radius - 1 >= first) {
      read(i - radius - 1, v);
      for (int q = 0; q < Q; ++q) sum[q] -= v[q];
    }
    write(i, sum);
  }
}

// The same by a warp, whose lanes take neighbouring elements: along a row that is how they lie in memory. What the windows gain
// and lose from one to the next is added up across the lanes.
template <int Q, class Read, class Write>
__device__ __forceinline__ void running_sums_of_warp(int from, int to, int size, int radius, const Read& read,
                                                     const Write& write) {
  const int lane = threadIdx.x % 32, first = max(from - radius, 0);
  A before[Q] = {}, v[Q];  // the sum for the element before the lanes'
  for (int i = first + lane; i < min(from + radius, size); i += 32) {
    read(i, v);
    for (int q = 0; q < Q; ++q) before[q] += v[q];
  }
  for (int q = 0; q < Q; ++q)
    for (int distance = 16; distance; distance /= 2) before[q] += __shfl_xor_sync(FULL_WARP, before[q], distance);
#pragma unroll 1
  for (int at = from; at < to; at += 32) {
    const int i = at + lane;
    A sum[Q] = {};
    if (i < to && i + radius < size) read(i + radius, sum);
    if (i < to && i - radius - 1 >= first) {
      read(i - radius - 1, v);
      for (int q = 0; q < Q; ++q) sum[q] -= v[q];
    }
    for (int q = 0; q < Q; ++q) {
      for (int distance = 1; distance < 32; distance *= 2) {
        const A left = __shfl_up_sync(FULL_WARP, sum[q], distance);
        if (lane >= distance) sum[q] += left;
      }
      sum[q] += before[q];
      before[q] = __shfl_sync(FULL_WARP, sum[q], 31);
    }
    if (i < to) write(i, sum);
  }
}

// The share of thread or warp `i` of `planes` planes: `length` elements of one line, which runs along one side of the image and
// lies across the other. Neighbours take neighbouring lines.
struct Segment {
  int plane, line, from, to;
  __device__ __forceinline__ Segment(long long i, int planes, int lines, int size, int length) {
    const int segments = (size + length - 1) / length;
    line = i % lines;
    from = i / lines % segments * length;
    const long long p = i / lines / segments;
    plane = p < planes ? (int)p : -1;
    to = min(from + length, size);
  }
};

__device__ __forceinline__ long long this_thread() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// statistics[y, plane, x] of an image.
__device__ __forceinline__ long long at(int plane, int y, int x, int W) {
  return (long long)y * row_length(W) + column(x) + plane * BLOCK;
}

extern "C" __global__ void __launch_bounds__(128)
    wide_guide_columns(const G* __restrict__ guide, A* __restrict__ sums, int H, int W, int radius, int length) {
  const Segment s(this_thread(), 1, W, H, length);
  if (s.plane < 0) return;
  A middle[3];
  for (int c = 0; c < 3; ++c) middle[c] = origin(guide, c, H, W);
  const auto read = [&](int y, A(&v)[9]) {
    for (int c = 0; c < 3; ++c) v[c] = unit<A>(guide[((long long)c * H + y) * W + s.line]) - middle[c];
    for (int c = 0, q = 3; c < 3; ++c)
      for (int d = c; d < 3; ++d, ++q) v[q] = v[c] * v[d];
  };
  const auto write = [&](int y, const A(&sum)[9]) {
    for (int q = 0; q < 9; ++q) sums[((long long)q * H + y) * W + s.line] = sum[q];
  };
  running_sums<9>(s.from, s.to, H, radius, read, write);
}

extern "C" __global__ void __launch_bounds__(128)
    wide_guide_rows(const G* __restrict__ guide, const A* __restrict__ sums, A* __restrict__ statistics, int H, int W,
                    int radius, int length, double eps) {
  const Segment s(this_thread() / 32, 1, H, W, length);
  if (s.plane < 0) return;
  A middle[3];
  for (int c = 0; c < 3; ++c) middle[c] = origin(guide, c, H, W);
  const auto read = [&](int x, A(&v)[9]) {
    for (int q = 0; q < 9; ++q) v[q] = sums[((long long)q * H + s.line) * W + x];
  };
  const auto write = [&](int x, const A(&sum)[9]) {
    const A inverse_n = reciprocal((A)count(s.line, H, radius) * (A)count(x, W, radius));
    A mean[9], solved[9];
    for (int q = 0; q < 9; ++q) mean[q] = sum[q] * inverse_n;
    solve_guide(mean, (A)eps, solved);
    for (int c = 0; c < 3; ++c)
      statistics[at(GUIDE + c, s.line, x, W)] = unit<A>(guide[((long long)c * H + s.line) * W + x]) - middle[c];
    for (int q = 0; q < 9; ++q) statistics[at(MEAN + q, s.line, x, W)] = solved[q];
  };
  running_sums_of_warp<9>(s.from, s.to, W, radius, read, write);
}

extern "C" __global__ void __launch_bounds__(128)
    wide_z_columns(const T* __restrict__ z, const A* __restrict__ statistics, A* __restrict__ sums, int K, int H, int W,
                   int radius, int length, int adjoint) {
  const Segment s(this_thread(), K, W, H, length);
  if (s.plane < 0) return;
  const A columns = (A)count(s.line, W, radius);
  const auto read = [&](int y, A(&v)[4]) {
    v[0] = widen(z[((long long)s.plane * H + y) * W + s.line]);
    if (adjoint) v[0] *= reciprocal(columns * (A)count(y, H, radius));
    for (int c = 0; c < 3; ++c) v[c + 1] = statistics[at(GUIDE + c, y, s.line, W)] * v[0];
  };
  const auto write = [&](int y, const A(&sum)[4]) {
    for (int q = 0; q < 4; ++q) sums[(((long long)s.plane * 4 + q) * H + y) * W + s.line] = sum[q];
  };
  running_sums<4>(s.from, s.to, H, radius, read, write);
}

extern "C" __global__ void __launch_bounds__(128)
    wide_solve_rows(const A* __restrict__ sums, const A* __restrict__ statistics, A* __restrict__ ab, int K, int H, int W,
                    int radius, int length) {
  const Segment s(this_thread() / 32, K, H, W, length);
  if (s.plane < 0) return;
  const auto place = [&](int q, int x) { return (((long long)s.plane * 4 + q) * H + s.line) * W + x; };
  const auto read = [&](int x, A(&v)[4]) {
    for (int q = 0; q < 4; ++q) v[q] = sums[place(q, x)];
  };
  const auto write = [&](int x, const A(&sum)[4]) {
    A mu[3], factors[6], result[4];
    for (int q = 0; q < 3; ++q) mu[q] = statistics[at(MEAN + q, s.line, x, W)];
    for (int q = 0; q < 6; ++q) factors[q] = statistics[at(FACTORS + q, s.line, x, W)];
    solve(sum, reciprocal((A)count(s.line, H, radius) * (A)count(x, W, radius)), mu, factors, result);
    for (int q = 0; q < 4; ++q) ab[place(q, x)] = result[q];
  };
  running_sums_of_warp<4>(s.from, s.to, W, radius, read, write);
}

extern "C" __global__ void __launch_bounds__(128)
    wide_ab_columns(const A* __restrict__ ab, A* __restrict__ sums, int K, int H, int W, int radius, int length) {
  const Segment s(this_thread(), 4 * K, W, H, length);
  if (s.plane < 0) return;
  const auto place = [&](int y) { return ((long long)s.plane * H + y) * W + s.line; };
  const auto read = [&](int y, A(&v)[1]) { v[0] = ab[place(y)]; };
  const auto write = [&](int y, const A(&sum)[1]) { sums[place(y)] = sum[0]; };
  running_sums<1>(s.from, s.to, H, radius, read, write);
}

extern "C" __global__ void __launch_bounds__(128)
    wide_out_rows(const A* __restrict__ sums, const A* __restrict__ statistics, T* __restrict__ out, int K, int H, int W,
                  int radius, int length, int adjoint) {
  const Segment s(this_thread() / 32, K, H, W, length);
  if (s.plane < 0) return;
  const auto read = [&](int x, A(&v)[4]) {
    for (int q = 0; q < 4; ++q) v[q] = sums[(((long long)s.plane * 4 + q) * H + s.line) * W + x];
  };
  const auto write = [&](int x, const A(&sum)[4]) {
    A q = sum[3];
    for (int c = 0; c < 3; ++c) q += sum[c] * statistics[at(GUIDE + c, s.line, x, W)];
    if (!adjoint) q *= reciprocal((A)count(s.line, H, radius) * (A)count(x, W, radius));
    narrow(q, out[((long long)s.plane * H + s.line) * W + x]);
  };
  running_sums_of_warp<4>(s.from, s.to, W, radius, read, write);
}
