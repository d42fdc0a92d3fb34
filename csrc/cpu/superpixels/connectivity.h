// The connectivity rule of camguide_fast/ops/slic.py on runs: components by union-find, small ones given away, numbers by root.
//
// The parent of a run is a lower run, so the root of a component is its first run, which starts with its first pixel, and a
// pass in ascending order sees every parent before its children. What the threads join in which order does not matter.
#pragma once

#include "../common/bits.h"
#include "../common/buffer.h"
#include "../common/parallel.h"
#include "../common/spread.h"

#include <algorithm>
#include <vector>

namespace camguide {
namespace {

// Runs of equal label along the rows of a strip, in the order of the raster. Ids ascend, with gaps between strips.
struct Strip {
  int64_t top, bottom;  // rows
  int32_t first, end;   // ids of its runs
};

class Connectivity {
 public:
  // labels [H, W]
  Connectivity(const int32_t* labels, int64_t height, int64_t width)
      : labels_(labels),
        height_(height),
        width_(width),
        words_((width + 63) / 64),
        starts_(height * words_),
        start_(ids()),
        parent_(ids()),
        number_(ids() + kOverread),
        first_(height) {}

  // Writes [H, W], which may be the labels; returns the number of segments.
  int32_t operator()(int64_t smallest, int32_t* out) {
    for (int64_t y = 0; y < height_; y += kRows) strips_.push_back({y, std::min(y + kRows, height_), 0, 0});
    const int64_t strips = static_cast<int64_t>(strips_.size());
    for_each(strips, [&](int64_t i) { find_runs(*this, strips_[i]); });
    for (int64_t i = 1; i < strips; ++i) join(*this, strips_[i].top);
    const int32_t segments = number(smallest);
    for_each(strips, [&](int64_t i) { write(*this, strips_[i], out); });
    return segments;
  }

 private:
  static constexpr int64_t kRows = 64, kOverread = 16;

  const int32_t* const labels_;
  const int64_t height_, width_, words_;
  std::vector<Strip> strips_;
  Buffer<uint64_t> starts_;  // [H, words]: where runs start
  Buffer<int32_t> start_;    // first pixel of a run in the raster
  Buffer<int32_t> parent_;
  Buffer<int32_t> number_;  // of a root: pixels of its component, then its number; at last of every run
  Buffer<int32_t> first_;   // run of each row

  int64_t ids() const { return height_ * width_ + height_ / kRows + 2; }  // one more a strip, for the end of its last run

  static CAMGUIDE_MULTIVERSION void find_runs(Connectivity& c, Strip& strip) {
    int32_t id = strip.first = static_cast<int32_t>(strip.top * c.width_ + strip.top / kRows);
    for (int64_t y = strip.top; y < strip.bottom; ++y) {
      const int32_t* const row = c.labels_ + y * c.width_;
      c.first_[y] = id;
      for (int64_t x = 0; x < c.width_; x += 64) {
        const int64_t border = x == 0, n = std::min<int64_t>(64, c.width_ - x);  // the first pixel has nothing before it
        const int32_t* const at = row + x + border;
        const uint64_t changes = bits_of(n - border, [&](int64_t i) { return at[i] != at[i - 1]; }) << border | border;
        c.starts_[y * c.words_ + x / 64] = changes;
        each_bit(changes, [&](int64_t i) {
          c.parent_[id] = id;
          c.start_[id++] = static_cast<int32_t>(y * c.width_ + x + i);
        });
      }
      if (y > strip.top) c.join_row(y);
    }
    strip.end = id;
    c.start_[id] = static_cast<int32_t>(strip.bottom * c.width_);
  }

  static CAMGUIDE_MULTIVERSION void join(Connectivity& c, int64_t y) { c.join_row(y); }

  // Joins runs of rows y - 1 and y of equal label, at the first pixel along which they touch.
  CAMGUIDE_INLINE void join_row(int64_t y) {
    int32_t above = first_[y - 1] - 1, below = first_[y] - 1;  // runs of the pixels before the word
    for (int64_t w = 0; w < words_; ++w) {
      const int32_t* const at = labels_ + y * width_ + 64 * w;
      const uint64_t high = starts_[(y - 1) * words_ + w], low = starts_[y * words_ + w];
      const uint64_t equal =
          bits_of(std::min<int64_t>(64, width_ - 64 * w), [&](int64_t i) { return at[i] == at[i - width_]; });
      each_bit(equal & (high | low), [&](int64_t i) {
        const uint64_t up_to = ~uint64_t{0} >> (63 - i);
        unite(above + __builtin_popcountll(high & up_to), below + __builtin_popcountll(low & up_to));
      });
      above += __builtin_popcountll(high);
      below += __builtin_popcountll(low);
    }
  }

  CAMGUIDE_INLINE void unite(int32_t i, int32_t j) {
    const int32_t a = root(i), b = root(j);
    parent_[std::max(a, b)] = std::min(a, b);
  }

  CAMGUIDE_INLINE int32_t root(int32_t id) {
    while (parent_[id] != id) id = parent_[id] = parent_[parent_[id]];
    return id;
  }

  int32_t number(int64_t smallest) {
    each_run([&](int32_t id) {
      number_[id] = 0;
      parent_[id] = parent_[parent_[id]];
      number_[parent_[id]] += start_[id + 1] - start_[id];
    });
    int32_t next = 0;
    int64_t first_group = 0;  // pixels
    for (const Strip& strip : strips_) {
      for (int32_t id = strip.first; id < strip.end; ++id) {
        const int32_t at = start_[id];
        if (parent_[id] != id) {
          parent_[id] = parent_[parent_[id]];
        } else if (number_[id] < smallest && id > 0) {
          parent_[id] = parent_[at % width_ > 0 ? id - 1 : first_[at / width_ - 1]];
        } else {
          number_[id] = next++;
        }
        if (parent_[id] == 0) first_group += start_[id + 1] - at;
      }
    }
    // Only the group of pixel 0 can still be small: it takes over that of the first pixel outside it, which is number 1.
    const int32_t less = first_group < smallest && next > 1;
    each_run([&](int32_t id) { number_[id] = parent_[id] == id ? number_[id] - (id > 0 ? less : 0) : number_[parent_[id]]; });
    return next - less;
  }

  template <class F>
  void each_run(const F& f) const {
    for (const Strip& strip : strips_) {
      for (int32_t id = strip.first; id < strip.end; ++id) f(id);
    }
  }

  static CAMGUIDE_MULTIVERSION void write(const Connectivity& c, const Strip& strip, int32_t* out) {
    for (int64_t y = strip.top; y < strip.bottom; ++y) {
      spread<1>(c.starts_ + y * c.words_, c.number_ + c.first_[y], 0, c.width_, out + y * c.width_, 0);
    }
  }
};

}  // namespace
}  // namespace camguide
