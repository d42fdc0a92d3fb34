// Sums over the windows of a row, and the memory in which rows are kept.
#pragma once

#include "buffer.h"
#include "simd.h"

#include <algorithm>
#include <vector>

namespace camguide {

// Zeroed memory, handed out in pieces whose sizes are multiples of a vector. One Buffer a piece would be as many allocations,
// and on pages of its own each, for a thread that needs a dozen rows.
template <class A>
class Arena {
 public:
  explicit Arena(int64_t size) : data_(size), next_(data_.get()) {}
  A* take(int64_t size) {
    A* const piece = next_;
    next_ += size;
    return piece;
  }

 private:
  const Zeroed<A> data_;
  A* next_;
};

// x[i] + ... + x[i + w - 1] of planes of rows, by the ternary digits of w: sums of 3, 9, ... elements are rows of their own, and
// a window is a few of them side by side. w = 9 takes three sums of three. Nothing runs along the row, so every lane is alike.
template <class A>
class RowSums {
 public:
  // For rows of up to `planes` planes, n windows in each.
  RowSums(int64_t w, int64_t n, int64_t planes) : w_(w), stride_(round_to_lanes<A>(n + w) + lanes<A>), planes_(planes) {
    int64_t span = 1;
    for (; w > 5 * span; span *= 3) ++levels_;  // up to five terms cost no more than another level
    for (int64_t level = levels_, at = 0; at < w; --level, span /= 3)
      for (; w - at >= span; at += span) terms_.push_back(level * planes * stride_ + at);
  }

  int64_t stride() const { return stride_; }
  int64_t size() const { return (levels_ + 1) * planes_ * stride_; }
  void use(Arena<A>& arena) { rows_ = arena.take(size()); }

  // [P, stride] the row itself, n + w - 1 elements in each plane; the caller writes it.
  A* row() const { return rows_; }

  // The levels above the row, for n windows in each of P planes.
  template <int P>
  CAMGUIDE_INLINE void build(int64_t n) const {
    int64_t span = 1;
    for (int64_t level = 0; level < levels_; ++level, span *= 3) {
      const A* const from = rows_ + level * planes_ * stride_;
      A* const to = rows_ + (level + 1) * planes_ * stride_;
      for (int p = 0; p < P; ++p)
        for (int64_t j = p * stride_, end = j + n + w_; j < end; j += lanes<A>)
          store(to + j, load(from + j) + load(from + j + span) + load(from + j + 2 * span));
    }
  }

  // The sums of windows i, i + 1, ... in plane p.
  CAMGUIDE_INLINE Vec<A> at(int p, int64_t i) const {
    const A* const x = rows_ + p * stride_ + i;
    Vec<A> sum = load(x + terms_[0]);
    for (size_t t = 1; t < terms_.size(); ++t) sum += load(x + terms_[t]);
    return sum;
  }

 private:
  int64_t w_, stride_, planes_, levels_ = 0;
  std::vector<int64_t> terms_;  // where the pieces of a window begin
  A* rows_ = nullptr;           // [levels + 1, planes, stride]
};

}  // namespace camguide
