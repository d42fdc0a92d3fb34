// What both edge ops do first: a Gaussian blur, then the Scharr gradient, border replicated in each of them.
//
// Of a constant plane the gradient is exactly 0, in every lane: all pixels of a row, its end too, are made by the same
// instructions, and differences are taken of finished values, before any product that could be contracted with a sum.
#pragma once

#include "rows.h"

#include <array>
#include <cmath>

namespace camguide {

// Taps 0 .. R of a Gaussian whose 2R+1 taps sum to 1.
template <int R, class A>
std::array<A, R + 1> gaussian_taps(double sigma) {
  double taps[R + 1], sum = 0;
  for (int i = 0; i <= R; ++i) {
    taps[i] = std::exp(-i * i / (2 * sigma * sigma));
    sum += (i ? 2 : 1) * taps[i];
  }
  std::array<A, R + 1> result;
  for (int i = 0; i <= R; ++i) result[i] = static_cast<A>(taps[i] / sum);
  return result;
}

// The sum of the taps over the neighbours at(-R) .. at(R).
template <int R, class A, class At>
CAMGUIDE_INLINE Vec<A> blur(const std::array<A, R + 1>& taps, const At& at) {
  Vec<A> sum = taps[0] * at(0);
  for (int i = 1; i <= R; ++i) sum += taps[i] * (at(-i) + at(i));
  return sum;
}

template <class A>
CAMGUIDE_INLINE void replicate(A* row, int64_t width, int64_t by) {
  std::fill_n(row - by, by, row[0]);
  std::fill_n(row + width, by, row[width - 1]);
}

// Rows of the Scharr gradient of a plane blurred with radius R, one after the other.
template <int R, class A>
class EdgeRows {
 public:
  static constexpr int64_t pad = lanes<A>;

  EdgeRows(int64_t height, int64_t width, double sigma)
      : height_(height),
        width_(width),
        n_(round_to_lanes<A>(width)),
        taps_(gaussian_taps<R, A>(sigma)),
        source_((2 * R + 1) * n_),
        column_(n_ + 2 * pad),
        blurred_(3 * (n_ + 2 * pad)) {}

  // read(y, to): row y of the plane. use(y, x, gx, gy): the gradient at 64 bytes of pixels of row y, y0 <= y < y1; end(y): the
  // row is complete.
  template <class Read, class Use, class End>
  CAMGUIDE_INLINE void run(int64_t y0, int64_t y1, const Read& read, const Use& use, const End& end) {
    int64_t next = std::max<int64_t>(y0 - 1, 0), next_source = std::max<int64_t>(next - R, 0);
    for (int64_t y = y0; y < y1; ++y) {
      for (; next <= std::min(y + 1, height_ - 1); ++next) {
        for (; next_source <= std::min(next + R, height_ - 1); ++next_source) {
          read(next_source, source_ + next_source % (2 * R + 1) * n_);
        }
        blur_row(next);
      }
      const A* const above = row(std::max<int64_t>(y - 1, 0));
      const A* const here = row(y);
      const A* const below = row(std::min(y + 1, height_ - 1));
      for (int64_t x = 0; x < n_; x += lanes<A>) {
        const Vec<A> left = load(below + x - 1) - load(above + x - 1), right = load(below + x + 1) - load(above + x + 1);
        const Vec<A> gy = 3 * (left + right) + 10 * (load(below + x) - load(above + x));
        const Vec<A> outer = (load(above + x + 1) - load(above + x - 1)) + (load(below + x + 1) - load(below + x - 1));
        use(y, x, 3 * outer + 10 * (load(here + x + 1) - load(here + x - 1)), gy);
      }
      end(y);
    }
  }

 private:
  A* row(int64_t y) { return blurred_ + (y % 3 * (n_ + 2 * pad) + pad); }

  CAMGUIDE_INLINE void blur_row(int64_t y) {
    const A* rows[2 * R + 1];
    for (int64_t i = -R; i <= R; ++i) rows[R + i] = source_ + std::clamp<int64_t>(y + i, 0, height_ - 1) % (2 * R + 1) * n_;
    A* const column = column_ + pad;
    for (int64_t x = 0; x < n_; x += lanes<A>) {
      store(column + x, blur<R, A>(taps_, [&](int i) { return load(rows[R + i] + x); }));
    }
    replicate(column, width_, R);
    A* const to = row(y);
    for (int64_t x = 0; x < n_; x += lanes<A>) {
      store(to + x, blur<R, A>(taps_, [&](int i) { return load(column + x + i); }));
    }
    replicate(to, width_, 1);
  }

  int64_t height_, width_, n_;
  std::array<A, R + 1> taps_;
  Zeroed<A> source_;   // [2R + 1, n]: rows of the plane
  Zeroed<A> column_;   // [pad + n + pad]: one of them blurred along y
  Zeroed<A> blurred_;  // [3, pad + n + pad]
};

}  // namespace camguide
