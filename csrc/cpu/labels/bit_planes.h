// Binary morphology with squares on bit planes. A byte holds eight pixels of a column, so that packing, shifts along rows and
// shifts along columns are all loops over vectors of consecutive bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/buffer.h"
#include "../common/simd.h"

namespace camguide {

using Bytes = Vec<uint8_t>;

// By eights: compilers set the bytes of a vector one by one.
CAMGUIDE_INLINE Bytes splat(int value) {
  return reinterpret_cast<Bytes>(Vec<uint64_t>{} + (value & 0xff) * uint64_t{0x0101010101010101});
}

// There are no shifts of bytes: pairs are shifted, and what crossed over is cut off.
CAMGUIDE_INLINE Bytes shift_up(Bytes v, int by) {
  return reinterpret_cast<Bytes>(reinterpret_cast<Vec<uint16_t>>(v) << by) & splat(0xff << by);
}
CAMGUIDE_INLINE Bytes shift_down(Bytes v, int by) {
  return reinterpret_cast<Bytes>(reinterpret_cast<Vec<uint16_t>>(v) >> by) & splat(0xff >> by);
}

// The bits that are set in any byte.
CAMGUIDE_INLINE int any(Bytes v) {
  const auto w = reinterpret_cast<Vec<uint64_t>>(v);
  uint64_t all = 0;
  for (int64_t i = 0; i < lanes<uint64_t>; ++i) all |= w[i];
  all |= all >> 32;
  all |= all >> 16;
  return static_cast<int>((all | all >> 8) & 0xff);
}

// Pixels of an image: rows [top, bottom) of columns [left, right).
struct Area {
  int64_t top, bottom, left, right;

  int64_t rows() const { return bottom - top; }
  int64_t columns() const { return right - left; }
};

// Bit y % 8 of byte [y / 8][x] is the pixel in row y - dy and column x - dx, where (dy, dx) is the plane's offset: a smear
// reaches forward alone, and instead of shifting its result back, a plane begins as far down and right as its smears will reach.
// What is no pixel is 0; so is a vector of bytes after each row of them.
class Plane {
 public:
  Plane(int64_t rows, int64_t columns)
      : blocks_((rows + 7) / 8),
        width_(columns),
        stride_(round_to_lanes<uint8_t>(columns) + lanes<uint8_t>),
        bytes_(blocks_ * stride_) {
    std::memset(bytes_, 0, blocks_ * stride_);
  }

  int64_t blocks() const { return blocks_; }
  uint8_t* block(int64_t j) { return bytes_ + j * stride_; }

  // Adds eight rows of a vector of columns that begin in row y and column x.
  CAMGUIDE_INLINE void add(Bytes eight, int64_t y, int64_t x) {
    uint8_t* const at = block(y / 8) + x;
    if (const int by = y % 8) {
      store(at, load(at) | shift_up(eight, by));
      const Bytes rest = shift_down(eight, 8 - by);
      if (any(rest)) store(at + stride_, load(at + stride_) | rest);
    } else {
      store(at, load(at) | eight);
    }
  }

  // Each pixel becomes the union of the `tall` rows and `wide` columns that begin at it.
  CAMGUIDE_INLINE void smear(int64_t tall, int64_t wide) {
    for (int64_t j = 0; j < blocks_; ++j) {
      uint8_t* const at = block(j);
      double_up(wide, [&](int64_t by) __attribute__((always_inline)) {
        for (int64_t x = 0; x + by < width_; x += lanes<uint8_t>) store(at + x, load(at + x) | load(at + x + by));
      });
    }
    double_up(tall, [&](int64_t by) __attribute__((always_inline)) { reach_down(by); });
  }

  // The complement among the pixels of an area of `rows` and `columns`, at the given offset.
  CAMGUIDE_INLINE void flip(int64_t rows, int64_t columns, int64_t dy, int64_t dx) {
    for (int64_t j = 0; j < blocks_; ++j) {
      const int64_t begin = std::clamp<int64_t>(dy - 8 * j, 0, 8), end = std::clamp<int64_t>(dy + rows - 8 * j, 0, 8);
      const Bytes pixels = splat((1 << end) - (1 << std::min(begin, end)));
      uint8_t* const at = block(j);
      std::memset(at, 0, dx);
      for (int64_t x = dx; x < dx + columns; x += lanes<uint8_t>) store(at + x, ~load(at + x) & pixels);
      std::memset(at + dx + columns, 0, stride_ - dx - columns);
    }
  }

 private:
  // Runs double in length, and the last one overlaps.
  template <class F>
  CAMGUIDE_INLINE void double_up(int64_t length, const F& reach) {
    for (int64_t n = 1; n < length;) {
      const int64_t by = std::min(n, length - n);
      reach(by);
      n += by;
    }
  }

  CAMGUIDE_INLINE void reach_down(int64_t by) {
    const int64_t q = by / 8;
    const int b = by % 8;
    for (int64_t j = 0; j + q < blocks_; ++j) {
      uint8_t* const at = block(j);
      const uint8_t* const low = block(j + q);
      if (b == 0) {
        for (int64_t x = 0; x < width_; x += lanes<uint8_t>) store(at + x, load(at + x) | load(low + x));
      } else if (j + q + 1 == blocks_) {
        for (int64_t x = 0; x < width_; x += lanes<uint8_t>) store(at + x, load(at + x) | shift_down(load(low + x), b));
      } else {
        const uint8_t* const high = low + stride_;
        for (int64_t x = 0; x < width_; x += lanes<uint8_t>) {
          store(at + x, load(at + x) | shift_down(load(low + x), b) | shift_up(load(high + x), 8 - b));
        }
      }
    }
  }

  int64_t blocks_, width_, stride_;
  Buffer<uint8_t> bytes_;
};

}  // namespace camguide
