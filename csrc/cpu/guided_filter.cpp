// guided_filter (Eq. 19): He, Sun & Tang (2013), Eq. 14-16, windows w_i clipped at the border, N_i pixels in each:
//
//   stage 1, window k:  mu = mean(I), S = cov(I) + eps, a_k = S^-1 (mean(I p) - mu mean(p)), b_k = mean(p) - a_k . mu
//   stage 2, pixel i:   q_i = sum_{k in w_i} (a_k . I_i + b_k) / N_i
//
// As a matrix GF = N^-1 M with M symmetric, so the adjoint N GF(g / N) divides on the way in instead of on the way out.
//
// A tile is walked down row by row. The sums over a window's rows run: a row enters, another leaves; they start anew in every tile,
// which bounds the drift. Sums along the row follow at once (windows.h), and stage 2 takes a row of a and b as soon as stage 1 has
// made it. The statistics of the guide, mu and the factors of S^-1 = M^T D^-1 M, are made once a tile and serve all channels. They
// and the rows of two windows are all the memory there is.
//
// S is all but singular where the guide is grey, and where it is flat little is left of E[II] - mu mu. So it is summed and taken
// apart in fp64, and solved by its factors: a cofactor or an entry of S^-1 would lose in fp32 what eps adds.
#include "common/parallel.h"
#include "common/rows.h"
#include "common/windows.h"

#include <algorithm>

namespace camguide {
namespace {

constexpr int64_t kTileBytes = 768 << 10;  // of the guide and its statistics: with the window rows, within a core's L2 cache
constexpr int64_t kTileColumns = 256;

// Rows or columns of the image, cut into tiles of equal size. The cut does not depend on the number of threads.
struct Axis {
  int64_t size, radius, tile, tiles;

  Axis(int64_t size, int64_t radius, int64_t most) : size(size), radius(radius) {
    tiles = (size + most - 1) / most;
    tile = (size + tiles - 1) / tiles;
    tiles = (size + tile - 1) / tile;
  }
  int64_t window() const { return 2 * radius + 1; }
  // 1 / (pixels of i's window inside the image). 0 outside the image: what is made there counts nowhere.
  double inverse_count(int64_t i) const {
    if (i < 0 || i >= size) return 0;
    return 1. / (std::min(i + radius, size - 1) - std::max<int64_t>(i - radius, 0) + 1);
  }
};

struct Problem {
  int64_t channels;
  double eps;
  bool adjoint;
  Axis columns, rows;
};

template <class A>
Problem problem(int64_t channels, int64_t height, int64_t width, int64_t radius, double eps, bool adjoint) {
  const int64_t rx = std::min(radius, width - 1), ry = std::min(radius, height - 1);  // a larger window holds no more
  const Axis columns(width, rx, std::max(kTileColumns, 4 * rx));
  const int64_t row_bytes = 12 * sizeof(A) * (columns.tile + 3 * rx);
  return {channels, eps, adjoint, columns, Axis(height, ry, std::max({kTileBytes / row_bytes - 3 * ry, 4 * ry, int64_t(16)}))};
}

// What a thread works with. Frame 0 is the tile; frame 1, where windows have their centres, is a radius larger on every side;
// frame 2, what those windows see, another radius.
template <class A>
struct Workspace {
  const Axis &columns, &rows;
  int64_t n0, n1, n2, h1, h2;  // columns and rows of the frames
  int64_t s1, s2;              // strides of rows of frames 1 and 2
  RowSums<double> moments;     // over the sums of columns, which are their rows
  RowSums<A> stage1, stage2;
  Arena<double> exact;
  Arena<A> arena;
  A *guide, *stats, *rn, *p, *entered1, *entered2, *q;

  explicit Workspace(const Problem& f)
      : columns(f.columns),
        rows(f.rows),
        n0(columns.tile),
        n1(n0 + 2 * columns.radius),
        n2(n1 + 2 * columns.radius),
        h1(rows.tile + 2 * rows.radius),
        h2(h1 + 2 * rows.radius),
        s1(round_to_lanes<A>(n1) + lanes<A>),
        s2(round_to_lanes<A>(n2) + lanes<A>),
        moments(columns.window(), n1, 9),
        stage1(columns.window(), n1, 4),
        stage2(columns.window(), n0, 4),
        exact(moments.size()),
        arena(3 * h2 * s2 + 9 * h1 * s1 + 2 * s2 + rows.window() * (s2 + 4 * s1) + s1 + stage1.size() + stage2.size()),
        guide(arena.take(3 * h2 * s2)),
        stats(arena.take(9 * h1 * s1)),
        rn(arena.take(s2)),
        p(arena.take(s2)),
        entered1(arena.take(rows.window() * s2)),
        entered2(arena.take(rows.window() * 4 * s1)),
        q(arena.take(s1)) {
    moments.use(exact);
    stage1.use(arena);
    stage2.use(arena);
  }
};

// The tile's guide around its mean - GF does not see a shift of I, and small numbers cancel less - with zeros outside the image.
template <class A>
void load_guide(Workspace<A>& w, const Source<A>& image, A unit, int64_t y0, int64_t x0) {
  const int64_t height = w.rows.size, width = w.columns.size, top = y0 - 2 * w.rows.radius, left = x0 - 2 * w.columns.radius;
  const int64_t y_begin = std::max<int64_t>(top, 0), y_end = std::min(top + w.h2, height);
  const int64_t x_begin = std::max<int64_t>(left, 0), x_end = std::min(left + w.n2, width);
  std::fill_n(w.guide, 3 * w.h2 * w.s2, A(0));
  for (int64_t c = 0; c < 3; ++c) {
    const Source<A> plane = image + c * height * width;
    A* const out = w.guide + c * w.s2 - top * 3 * w.s2 - left;
    double sum = 0;
    for (int64_t y = y_begin; y < y_end; ++y) {
      A* const row = out + y * 3 * w.s2;
      read_row(plane + (y * width + x_begin), row + x_begin, x_end - x_begin);
      for (int64_t x = x_begin; x < x_end; ++x) sum += row[x] /= unit;
    }
    const A mean = static_cast<A>(sum / ((y_end - y_begin) * (x_end - x_begin)));
    for (int64_t y = y_begin; y < y_end; ++y)
      for (int64_t x = x_begin; x < x_end; ++x) out[y * 3 * w.s2 + x] -= mean;
  }
}

CAMGUIDE_INLINE Vec<double> at_least(Vec<double> x, double least) { return x < least ? Vec<double>{} + least : x; }

// stats [h1, 9, s1] = mu (3), M (10 20 21: lower triangular with ones on its diagonal, L^-1 of S = L D L^T), 1 / D (3).
template <class A>
CAMGUIDE_MULTIVERSION void guide_statistics(Workspace<A>& w, double eps, int64_t y0) {
  const int64_t wy = w.rows.window(), s1 = w.s1, s2 = w.s2, stride = w.moments.stride();
  double* const sums = w.moments.row();
  for (int p = 0; p < 9; ++p) std::fill_n(sums + p * stride, stride, 0.);
  for (int64_t t = 0; t < w.h2; ++t) {
    const auto load_guide = [&](const A* row, Vec<double>(&v)[3]) {
      for (int c = 0; c < 3; ++c) v[c] = load_doubles(row + c * s2);
    };
    const A* const guide = w.guide + t * 3 * s2;
    for (int64_t i = 0; i < w.n2; i += lanes<double>) {
      Vec<double> v[3], left[3] = {};  // what enters and what leaves
      load_guide(guide + i, v);
      if (t >= wy) load_guide(guide - wy * 3 * s2 + i, left);
      double* to = sums + i;
      const auto add = [&](Vec<double> x) {
        store(to, load(to) + x);
        to += stride;
      };
      for (int c = 0; c < 3; ++c) add(v[c] - left[c]);
      for (int c = 0; c < 3; ++c)
        for (int d = c; d < 3; ++d) add(v[c] * v[d] - left[c] * left[d]);
    }
    if (t + 1 < wy) continue;
    w.moments.template build<9>(w.n1);
    A* const stats = w.stats + (t + 1 - wy) * 9 * s1;
    const double rn_row = w.rows.inverse_count(y0 + t - 3 * w.rows.radius);
    for (int64_t i = 0; i < w.n1; i += lanes<double>) {
      const Vec<double> rn = rn_row * load_doubles(w.rn + w.columns.radius + i);
      Vec<double> m[9];
      for (int p = 0; p < 9; ++p) m[p] = rn * w.moments.at(p, i);
      const Vec<double> s01 = m[4] - m[0] * m[1], s02 = m[5] - m[0] * m[2], s12 = m[7] - m[1] * m[2];
      const Vec<double> i0 = 1 / at_least(m[3] - m[0] * m[0] + eps, eps);  // rounding brings no pivot below eps
      const Vec<double> l10 = s01 * i0, l20 = s02 * i0;
      const Vec<double> d1 = at_least(m[6] - m[1] * m[1] + eps - l10 * s01, eps), i1 = 1 / d1, l21 = (s12 - l20 * s01) * i1;
      const Vec<double> i2 = 1 / at_least(m[8] - m[2] * m[2] + eps - l20 * s02 - l21 * l21 * d1, eps);
      const Vec<double> made[9] = {m[0], m[1], m[2], -l10, l10 * l21 - l20, -l21, i0, i1, i2};
      for (int p = 0; p < 9; ++p) store_doubles(stats + p * s1 + i, made[p]);
    }
  }
}

// One channel of one tile: z and out point to its plane.
template <class A>
CAMGUIDE_MULTIVERSION void filter_channel(Workspace<A>& w, bool adjoint, const Source<A>& z, const Target<A>& out, int64_t y0,
                                          int64_t x0) {
  const int64_t height = w.rows.size, width = w.columns.size, ry = w.rows.radius, rx = w.columns.radius, wy = w.rows.window();
  const int64_t left = x0 - 2 * rx, begin = std::max<int64_t>(-left, 0), end = std::min(w.n2, width - left);
  const int64_t s1 = w.s1, s2 = w.s2, stride1 = w.stage1.stride(), stride2 = w.stage2.stride();
  const RowSums<A>&stage1 = w.stage1, &stage2 = w.stage2;
  A *const sums1 = stage1.row(), *const sums2 = stage2.row(), *const p = w.p, *const rn = w.rn;
  std::fill_n(sums1, 4 * stride1, A(0));
  std::fill_n(sums2, 4 * stride2, A(0));
  std::fill_n(w.entered1, wy * s2, A(0));  // rows above the tile's first: zeros leave
  std::fill_n(w.entered2, wy * 4 * s1, A(0));
  std::fill_n(p, s2, A(0));
  for (int64_t t = 0; t < w.h2; ++t) {
    const int64_t y2 = y0 + t - 2 * ry, y1 = y2 - ry, y = y1 - ry;  // the row that enters, and the centres of the two windows
    if (y >= height) break;
    if (y2 >= 0 && y2 < height) {
      read_row(z + (y2 * width + left + begin), p + begin, end - begin);
      if (adjoint) {
        const A rn_row = static_cast<A>(w.rows.inverse_count(y2));
        for (int64_t i = begin; i < end; ++i) p[i] *= rn_row * rn[i];
      }
    } else {
      std::fill_n(p, s2, A(0));
    }
    const A* const guide = w.guide + t * 3 * s2;
    const A* const guide_left = t < wy ? guide : guide - wy * 3 * s2;
    A* const entered1 = w.entered1 + t % wy * s2;
    for (int64_t i = 0; i < w.n2; i += lanes<A>) {
      const Vec<A> enters = load(p + i), leaves = load(entered1 + i);
      store(entered1 + i, enters);
      store(sums1 + i, load(sums1 + i) + (enters - leaves));
      for (int c = 0; c < 3; ++c) {
        A* const sum = sums1 + (c + 1) * stride1 + i;
        store(sum, load(sum) + (enters * load(guide + c * s2 + i) - leaves * load(guide_left + c * s2 + i)));
      }
    }
    if (t + 1 < wy) continue;

    stage1.template build<4>(w.n1);
    const A* const stats = w.stats + (t + 1 - wy) * 9 * s1;
    const A rn1 = static_cast<A>(w.rows.inverse_count(y1));
    A* const entered2 = w.entered2 + t % wy * 4 * s1;
    for (int64_t i = 0; i < w.n1; i += lanes<A>) {
      const auto stat = [&](int j) { return load(stats + j * s1 + i); };
      const Vec<A> n = rn1 * load(rn + rx + i), mean = n * stage1.at(0, i), mu0 = stat(0), mu1 = stat(1), mu2 = stat(2);
      const Vec<A> c0 = n * stage1.at(1, i) - mu0 * mean, c1 = n * stage1.at(2, i) - mu1 * mean;
      const Vec<A> c2 = n * stage1.at(3, i) - mu2 * mean;
      Vec<A> ab[4];
      const Vec<A> m10 = stat(3), m20 = stat(4), m21 = stat(5);
      ab[3] = stat(8) * (c2 + m20 * c0 + m21 * c1);
      ab[2] = stat(7) * (c1 + m10 * c0);
      ab[1] = stat(6) * c0 + m10 * ab[2] + m20 * ab[3];
      ab[2] += m21 * ab[3];
      ab[0] = mean - ab[1] * mu0 - ab[2] * mu1 - ab[3] * mu2;  // b
      for (int c = 0; c < 4; ++c) {
        A *const sum = sums2 + c * stride2 + i, *const entered = entered2 + c * s1 + i;
        store(sum, load(sum) + (ab[c] - load(entered)));
        store(entered, ab[c]);
      }
    }
    if (t + 1 < 2 * wy - 1) continue;

    stage2.template build<4>(w.n0);
    const A* const here = w.guide + (t - 2 * ry) * 3 * s2 + 2 * rx;
    const A rn0 = static_cast<A>(w.rows.inverse_count(y));
    for (int64_t i = 0; i < w.n0; i += lanes<A>) {
      Vec<A> q = stage2.at(0, i);
      for (int c = 0; c < 3; ++c) q += stage2.at(c + 1, i) * load(here + c * s2 + i);
      store(w.q + i, adjoint ? q : rn0 * load(rn + 2 * rx + i) * q);
    }
    write_row(w.q, out + (y * width + x0), std::min(w.n0, width - x0));
  }
}

template <class A>
void filter_tile(const Problem& f, Workspace<A>& w, const Source<A>& guide, A unit, const Source<A>& z, const Target<A>& out,
                 int64_t tile) {
  const int64_t y0 = tile / w.columns.tiles * w.rows.tile, x0 = tile % w.columns.tiles * w.columns.tile;
  const int64_t plane = w.rows.size * w.columns.size;
  for (int64_t i = 0; i < w.n2; ++i) w.rn[i] = static_cast<A>(w.columns.inverse_count(x0 - 2 * w.columns.radius + i));
  load_guide(w, guide, unit, y0, x0);
  guide_statistics(w, f.eps, y0);
  for (int64_t k = 0; k < f.channels; ++k) filter_channel(w, f.adjoint, z + k * plane, out + k * plane, y0, x0);
}

Tensor guided_filter(const Tensor& z, const Tensor& guide, int64_t radius, double eps, bool adjoint) {
  const ScalarType type = wide(z.scalar_type());
  const Tensor p = torch::stable::contiguous(z);
  const Tensor image = torch::stable::contiguous(wide(guide.scalar_type()) == type ? guide : torch::stable::to(guide, type));
  Tensor q = torch::stable::new_empty(z, {z.size(0), z.size(1), z.size(2), z.size(3)});
  const int64_t batch = p.size(0), channels = p.size(1), height = p.size(2), width = p.size(3), plane = height * width;
  with_sums(p, "z", [&]<class A>(A) {
    const Source<A> from = source_of<A>(p), guide_from = source_of<A>(image);
    const Target<A> to = target_of<A>(q);
    const A unit = guide.scalar_type() == ScalarType::Byte ? A(255) : A(1);
    const Problem f = problem<A>(channels, height, width, radius, eps, adjoint);
    const int64_t tiles = f.rows.tiles * f.columns.tiles;
    for_each(batch * tiles, [&] { return Workspace<A>(f); }, [&](int64_t i, Workspace<A>& w) {
      const int64_t b = i / tiles, maps = b * channels * plane;
      filter_tile(f, w, guide_from + b * 3 * plane, unit, from + maps, to + maps, i % tiles);
    });
  });
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("guided_filter", TORCH_BOX(&guided_filter)); }

}  // namespace camguide
