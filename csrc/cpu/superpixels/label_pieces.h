// A label map as pieces of equal label along its raster, none longer than two wide vectors: an order of magnitude fewer than
// pixels, and each of them takes the same instructions.
#pragma once

#include "../common/bits.h"
#include "../common/buffer.h"

#include <algorithm>
#include <cstdint>

namespace camguide {

constexpr int64_t kPiece = 16;    // pixels at most
constexpr int64_t kChunk = 2048;  // pixels that are cut apart from the others: what is worked on stays in the cache

struct Piece {
  int32_t at, label, length;  // `at` in the raster
};

// The pieces of pixels [begin, end), at most a chunk; a row may end in the middle of one. Bit i of `starts` is whether one
// starts at begin + i. Returns their number.
CAMGUIDE_INLINE int64_t cut(const int32_t* labels, int64_t begin, int64_t end, Piece* pieces, uint64_t* starts) {
  int64_t count = 0, last = begin;
  const auto put = [&](int64_t length) {
    pieces[count++] = {static_cast<int32_t>(last), labels[last], static_cast<int32_t>(length)};
    last += length;
  };
  const auto put_run = [&](int64_t stop) {
    while (stop - last > kPiece) {
      put(kPiece);
      starts[(last - begin) / 64] |= uint64_t{1} << (last - begin) % 64;
    }
    put(stop - last);
  };
  std::fill_n(starts, (end - begin + 63) / 64, 0);
  starts[0] = 1;
  for (int64_t i = begin; i < end; i += 64) {
    const int64_t first = i == begin;  // has nothing before it
    const int32_t* const from = labels + i + first;
    const uint64_t changes = bits_of(std::min<int64_t>(end - i, 64) - first, [&](int64_t j) { return from[j] != from[j - 1]; })
                             << first;
    starts[(i - begin) / 64] |= changes;
    each_bit(changes, [&](int64_t j) { put_run(i + j); });
  }
  put_run(end);
  return count;
}

// Whether all labels lie in [0, n).
CAMGUIDE_INLINE bool below(const Piece* pieces, int64_t count, int64_t n) {
  uint32_t largest = 0;  // a negative label is a large one
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<uint32_t>(pieces[i].label));
  return largest < n;
}

// The pieces of a whole image, chunk by chunk.
class Pieces {
 public:
  const int64_t pixels;

  explicit Pieces(int64_t pixels) : pixels(pixels), piece_(pixels), starts_(chunks() * kWords), count_(chunks()) {}

  int64_t chunks() const { return (pixels + kChunk - 1) / kChunk; }
  int64_t begin(int64_t chunk) const { return chunk * kChunk; }
  int64_t end(int64_t chunk) const { return std::min(begin(chunk) + kChunk, pixels); }
  const Piece* of(int64_t chunk) const { return piece_ + begin(chunk); }
  int64_t count(int64_t chunk) const { return count_[chunk]; }
  const uint64_t* starts(int64_t chunk) const { return starts_ + chunk * kWords; }

  CAMGUIDE_INLINE void find(const int32_t* labels, int64_t chunk) {
    count_[chunk] =
        static_cast<int32_t>(cut(labels, begin(chunk), end(chunk), piece_ + begin(chunk), starts_ + chunk * kWords));
  }

 private:
  static constexpr int64_t kWords = kChunk / 64;

  Buffer<Piece> piece_;
  Buffer<uint64_t> starts_;
  Buffer<int32_t> count_;
};

}  // namespace camguide
