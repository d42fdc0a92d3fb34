// Binary morphology on bit planes: 64 pixels of a row a word, the words of one column one after another, so that shifts along
// rows and along columns are both loops over consecutive words.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bits.h"
#include "simd.h"

namespace camguide {

using Word = uint64_t;

// Rows [top, bottom) and columns [64 first, min(64 last, width)) of an image.
struct Area {
  int64_t top, bottom, first, last, width;

  int64_t rows() const { return bottom - top; }
  int64_t columns() const { return last - first; }
  Word inside(int64_t column) const {  // which bits of a word are pixels
    const int64_t bits = width - 64 * (first + column);
    return bits >= 64 ? ~Word(0) : (Word(1) << bits) - 1;
  }
};

// plane[column][row] <- labels == label, within the area.
template <class T>
CAMGUIDE_INLINE void pack(const T* labels, T label, const Area& area, Word* plane) {
  for (int64_t column = 0; column < area.columns(); ++column) {
    const int64_t x = 64 * (area.first + column), n = std::min<int64_t>(64, area.width - x);
    for (int64_t row = 0; row < area.rows(); ++row) {
      const T* const from = labels + (area.top + row) * area.width + x;
      plane[column * area.rows() + row] = bits_of(n, [&](int64_t i) { return from[i] == label; });
    }
  }
}

// Dilation by a square, within an area: what lies outside holds nothing.
class Dilation {
 public:
  Dilation(const Area& area, int64_t radius)
      : rows_(area.rows()), columns_(area.columns()), down_(std::min(radius, rows_)), right_(std::min(radius, 64 * columns_)),
        tall_(rows_ + down_), wide_(columns_ + (right_ + 63) / 64), from_(tall_ * wide_), to_(tall_ * wide_) {}

  // plane <- its dilation, flipped where `flip` is set: erosion is the dilation of what is not there.
  CAMGUIDE_INLINE void run(Word* plane, const Area& area, bool flip) {
    std::fill(from_.begin(), from_.end(), 0);
    for (int64_t c = 0; c < columns_; ++c) {
      const Word all = flip ? area.inside(c) : 0;
      for (int64_t y = 0; y < rows_; ++y) from_[c * tall_ + y] = plane[c * rows_ + y] ^ all;
    }
    smear(2 * right_ + 1, [this](int64_t by) { shift_right(by); });
    smear(2 * down_ + 1, [this](int64_t by) { shift_down(by); });
    const int64_t q = right_ / 64, b = right_ % 64;  // back by the radius
    for (int64_t c = 0; c < columns_; ++c) {
      const Word inside = area.inside(c), all = flip ? inside : 0;
      const Word* low = &from_[(c + q) * tall_ + down_];
      const Word* high = b ? &from_[(c + q + 1) * tall_ + down_] : low;
      for (int64_t y = 0; y < rows_; ++y) {
        const Word back = b ? low[y] >> b | high[y] << (64 - b) : low[y];
        plane[c * rows_ + y] = (back & inside) ^ all;
      }
    }
  }

 private:
  // A run of `length` before each pixel: runs double, and the last one overlaps.
  template <class F>
  CAMGUIDE_INLINE void smear(int64_t length, const F& shift_by) {
    for (int64_t n = 1; n < length;) {
      const int64_t by = std::min(n, length - n);
      shift_by(by);
      from_.swap(to_);
      n += by;
    }
  }

  CAMGUIDE_INLINE void shift_right(int64_t by) {
    const int64_t q = by / 64, b = by % 64;
    for (int64_t c = 0; c < wide_; ++c) {
      const Word* at = &from_[c * tall_];
      const Word* low = c >= q ? &from_[(c - q) * tall_] : nullptr;
      const Word* under = b && c > q ? &from_[(c - q - 1) * tall_] : nullptr;
      Word* __restrict out = &to_[c * tall_];
      if (under) {
        for (int64_t y = 0; y < tall_; ++y) out[y] = at[y] | low[y] << b | under[y] >> (64 - b);
      } else if (low) {
        for (int64_t y = 0; y < tall_; ++y) out[y] = at[y] | low[y] << b;
      } else {
        std::copy_n(at, tall_, out);
      }
    }
  }

  CAMGUIDE_INLINE void shift_down(int64_t by) {
    for (int64_t c = 0; c < wide_; ++c) {
      const Word* at = &from_[c * tall_];
      Word* __restrict out = &to_[c * tall_];
      std::copy_n(at, by, out);
      for (int64_t y = by; y < tall_; ++y) out[y] = at[y] | at[y - by];
    }
  }

  const int64_t rows_, columns_, down_, right_, tall_, wide_;  // tall, wide: with room for what is shifted out
  std::vector<Word> from_, to_;
};

}  // namespace camguide
