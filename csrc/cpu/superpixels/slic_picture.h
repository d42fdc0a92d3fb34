// An image in the form in which slic clusters it: colours as integers of 2^-16 Lab units, in blocks of 16 x 8 pixels.
#pragma once

#include "lab.h"

#include "../common/buffer.h"
#include "../common/parallel.h"
#include "../common/value_range.h"

#include <algorithm>
#include <limits>

namespace camguide {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kColourScale = 65536;  // steps per Lab unit
constexpr int64_t kLanes = 16;         // pixels of a block along x: vectors of any machine divide it
constexpr int64_t kBlockRows = 8;      // and along y

constexpr int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct Colours {  // of 16 pixels
  float Lab[3][kLanes];
};

struct alignas(64) Labels {  // of a block, row by row
  int32_t of[kBlockRows * kLanes];
};

struct Box {  // smallest and largest L, a, b
  float low[3], high[3];
};

// One image while it is clustered. What lies right of the image repeats its last column.
struct Picture {
  int64_t height, width, rows, columns;  // rows and columns of blocks
  Buffer<Colours> colours;               // [rows, columns, 8]
  Buffer<Labels> label;                  // [rows, columns]
  Buffer<Box> boxes;                     // the same
  Buffer<float> limits;                  // the same: what the largest distance is guessed to be

  Picture(int64_t height, int64_t width)
      : height(height),
        width(width),
        rows(blocks_of(height, kBlockRows)),
        columns(blocks_of(width, kLanes)),
        colours(rows * columns * kBlockRows),
        label(rows * columns),
        boxes(rows * columns),
        limits(rows * columns) {}
};

template <class T>
Range<Wide<T>> range_of(const T* image, int64_t n) {
  if constexpr (std::is_same_v<T, uint8_t>) {
    const auto of_block = [&](int64_t begin, int64_t size) {
      return range_of_integers<false>(image + begin, size, uint8_t(0));
    };
    const auto [low, high] = range_over_blocks<uint8_t>(n, {255, 0}, of_block);
    return {Wide<T>(low), Wide<T>(high)};
  } else {
    return range_of_floats_in_threads<Wide<T>>(image, n);
  }
}

// Stretches values to [0, 1] and undoes the gamma.
template <class A>
struct Stretch {
  A low, span;

  CAMGUIDE_INLINE float operator()(A v) const { return linear(static_cast<float>((v - low) / span)); }
};

template <class T>
CAMGUIDE_INLINE void stretch_row(const T* row, Stretch<Wide<T>> stretch, int64_t width, float* out) {
  for (int64_t x = 0; x < width; ++x) out[x] = stretch(row[x]);
}

CAMGUIDE_MULTIVERSION void stretch_row(const float* row, Stretch<float> stretch, int64_t width, float* out) {
  stretch_row<float>(row, stretch, width, out);
}

// A row of blocks' rows, out[0] in the first of them; rgb: linear, [3, columns * 16].
CAMGUIDE_MULTIVERSION void colours_of_row(const float* rgb, int64_t columns, Colours* out) {
  const float *r = rgb, *g = r + columns * kLanes, *b = g + columns * kLanes;
  for (int64_t i = 0; i < columns; ++i, r += kLanes, g += kLanes, b += kLanes) {
    Colours c;
    for (int64_t x = 0; x < kLanes; ++x) {
      const Lab<float> pixel = lab(r[x], g[x], b[x]);
      c.Lab[0][x] = round_even(pixel.L * kColourScale);
      c.Lab[1][x] = round_even(pixel.a * kColourScale);
      c.Lab[2][x] = round_even(pixel.b * kColourScale);
    }
    out[i * kBlockRows] = c;
  }
}

CAMGUIDE_MULTIVERSION void find_boxes(const Picture& picture, int64_t block_row) {
  const int64_t rows = std::min(kBlockRows, picture.height - block_row * kBlockRows);
  for (int64_t i = 0; i < picture.columns; ++i) {
    const int64_t block = block_row * picture.columns + i;
    Box& box = picture.boxes[block];
    for (int64_t c = 0; c < 3; ++c) {
      float low[kLanes], high[kLanes];
      std::fill_n(low, kLanes, kInfinity);
      std::fill_n(high, kLanes, -kInfinity);
      for (int64_t row = 0; row < rows; ++row) {
        const float* const v = picture.colours[block * kBlockRows + row].Lab[c];
        for (int64_t x = 0; x < kLanes; ++x) {
          low[x] = v[x] < low[x] ? v[x] : low[x];
          high[x] = v[x] > high[x] ? v[x] : high[x];
        }
      }
      box.low[c] = *std::min_element(low, low + kLanes);
      box.high[c] = *std::max_element(high, high + kLanes);
    }
  }
}

template <class T>
void find_colours(const T* image, const Picture& picture) {  // image [3, H, W]
  const int64_t pixels = picture.height * picture.width, stride = picture.columns * kLanes;
  const auto [low, high] = range_of(image, 3 * pixels);
  const Stretch<Wide<T>> stretch{low, high > low ? high - low : Wide<T>(1)};
  float table[256];
  if constexpr (std::is_same_v<T, uint8_t>) {
    for (int v = 0; v < 256; ++v) table[v] = stretch(static_cast<float>(v));
  }
  for_each(picture.rows, [&] { return Buffer<float>(3 * stride); }, [&](int64_t i, const Buffer<float>& rgb) {
    for (int64_t y = i * kBlockRows; y < std::min((i + 1) * kBlockRows, picture.height); ++y) {
      for (int64_t c = 0; c < 3; ++c) {
        const T* const row = image + c * pixels + y * picture.width;
        float* const out = rgb + c * stride;
        if constexpr (std::is_same_v<T, uint8_t>) {
          look_up(table, row, picture.width, out);
        } else {
          stretch_row(row, stretch, picture.width, out);
        }
        std::fill(out + picture.width, out + stride, out[picture.width - 1]);
      }
      colours_of_row(rgb, picture.columns, picture.colours + i * picture.columns * kBlockRows + y % kBlockRows);
    }
    find_boxes(picture, i);
  });
}

}  // namespace
}  // namespace camguide
