// The connectivity rule of camguide_fast/ops/slic.py on runs: components by union-find, small ones given away, numbers by root.
//
// The parent of a run is a lower run, so the root of a component is its first run, which starts with its first pixel, and a
// pass in ascending order sees every parent before its children. What the threads join in which order does not matter.
#pragma once

#include "label_runs.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace camguide {

class Connectivity {
 public:
  Connectivity(int64_t height, int64_t width)
      : runs_(height, width), parent_(height * (width + 1)), size_(height * (width + 1)) {}

  // labels [H, stride] -> out [H, W]
  void operator()(const int32_t* labels, int64_t stride, int64_t smallest, int32_t* out) {
    find_components(labels, stride);
    number(smallest);
    torch::stable::parallel_for(0, runs_.height, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t id = runs_.first(y); id < runs_.end(y); ++id) {
          std::fill(out + y * runs_.width + runs_.start(id), out + y * runs_.width + runs_.stop(id), size_[parent_[id]]);
        }
      }
    });
  }

 private:
  static constexpr int64_t kGrain = 64;  // rows

  Runs runs_;
  Buffer<int32_t> parent_;
  Buffer<int32_t> size_;  // of a root: pixels of its component; then its number

  void find_components(const int32_t* labels, int64_t stride) {
    std::mutex mutex;
    std::vector<int64_t> seams;
    torch::stable::parallel_for(0, runs_.height, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        runs_.find(labels + y * stride, y);
        for (int64_t id = runs_.first(y); id < runs_.end(y); ++id) parent_[id] = static_cast<int32_t>(id);
        if (y > begin) join(labels, stride, y);
      }
      const std::lock_guard<std::mutex> lock(mutex);
      if (begin) seams.push_back(begin);
    });
    for (const int64_t y : seams) join(labels, stride, y);
  }

  void join(const int32_t* labels, int64_t stride, int64_t y) {
    const int32_t* const below = labels + y * stride;
    const int32_t* const above = below - stride;
    runs_.touching(y, [&](int64_t i, int64_t j) {
      if (above[runs_.start(i)] == below[runs_.start(j)]) unite(i, j);
    });
  }

  void unite(int64_t i, int64_t j) {
    const int32_t a = root(static_cast<int32_t>(i)), b = root(static_cast<int32_t>(j));
    parent_[std::max(a, b)] = std::min(a, b);
  }

  int32_t root(int32_t id) {
    while (parent_[id] != id) id = parent_[id] = parent_[parent_[id]];
    return id;
  }

  void number(int64_t smallest) {
    each_run([&](int64_t id, int64_t) {
      size_[id] = 0;
      parent_[id] = parent_[parent_[id]];
      size_[parent_[id]] += runs_.stop(id) - runs_.start(id);
    });
    int32_t next = 0;
    int64_t first_group = 0;  // pixels
    each_run([&](int64_t id, int64_t y) {
      const int32_t pixels = runs_.stop(id) - runs_.start(id);
      if (parent_[id] != id) {
        parent_[id] = parent_[parent_[id]];
      } else if (size_[id] < smallest && id > 0) {
        parent_[id] = parent_[runs_.start(id) > 0 ? id - 1 : runs_.first(y - 1)];
      } else {
        size_[id] = next++;
      }
      if (parent_[id] == 0) first_group += pixels;
    });
    if (first_group >= smallest || next == 1) return;
    // Only the group of pixel 0 can still be small: it takes over that of the first pixel outside it, which is number 1.
    each_run([&](int64_t id, int64_t) {
      if (parent_[id] == id && id > 0) --size_[id];
    });
  }

  template <class F>
  void each_run(const F& f) const {
    for (int64_t y = 0; y < runs_.height; ++y) {
      for (int64_t id = runs_.first(y); id < runs_.end(y); ++id) f(id, y);
    }
  }
};

}  // namespace camguide
