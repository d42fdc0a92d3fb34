// A label map as runs of equal label along its rows: an order of magnitude fewer than pixels.
#pragma once

#include "buffer.h"

#include <cstdint>

namespace camguide {

// Runs are found row by row, by whoever is given the rows. Run j of row y has the id y * (width + 1) + j: ids ascend in raster
// order, with gaps.
class Runs {
 public:
  const int64_t height, width;

  Runs(int64_t height, int64_t width) : height(height), width(width), start_(height * (width + 1)), count_(height) {}

  void find(const int32_t* labels, int64_t y) {
    int32_t* const start = start_ + first(y);
    int32_t last = 0;
    start[0] = 0;
    for (int32_t x = 1; x < width; ++x) {
      start[last + 1] = x;
      last += labels[x] != labels[x - 1];
    }
    start[last + 1] = static_cast<int32_t>(width);
    count_[y] = last + 1;
  }

  int64_t first(int64_t y) const { return y * (width + 1); }
  int64_t end(int64_t y) const { return first(y) + count_[y]; }
  int32_t start(int64_t id) const { return start_[id]; }
  int32_t stop(int64_t id) const { return start_[id + 1]; }

  // f(run of row y - 1, run of row y) for each two that share an edge.
  template <class F>
  void touching(int64_t y, const F& f) const {
    for (int64_t i = first(y - 1), j = first(y), end_i = end(y - 1), end_j = end(y); i < end_i && j < end_j;) {
      f(i, j);
      const int32_t stop_i = stop(i), stop_j = stop(j);
      i += stop_i <= stop_j;
      j += stop_j <= stop_i;
    }
  }

 private:
  Buffer<int32_t> start_;
  Buffer<int32_t> count_;
};

}  // namespace camguide
