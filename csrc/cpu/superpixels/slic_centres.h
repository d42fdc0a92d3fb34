// The centres of slic: seeds, sums of their pixels, and which of them a part of the image can see.
#pragma once

#include "slic_picture.h"

#include "../common/bits.h"

#include <cmath>
#include <vector>

namespace camguide {
namespace {

struct Grid {
  struct Axis {
    int64_t start, step, count, reach;
  } y, x;

  int64_t size() const { return y.count * x.count; }
};

// Start and step along y and x as skimage.util.regular_grid gives them.
std::pair<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>> regular_grid(int64_t height, int64_t width,
                                                                                 int64_t points) {
  if (height * width <= points) return {{0, 1}, {0, 1}};
  const double side = std::pow(static_cast<double>(height * width) / static_cast<double>(points), 0.5);
  double y = side, x = side;
  if (side > static_cast<double>(std::min(height, width))) {  // a line of seeds
    const double along = static_cast<double>(std::max(height, width)) / static_cast<double>(points);
    y = height <= width ? static_cast<double>(height) : along;
    x = height <= width ? along : static_cast<double>(width);
  }
  const auto axis = [](double size) { return std::pair<int64_t, int64_t>(std::floor(size / 2), std::nearbyint(size)); };
  return {axis(y), axis(x)};
}

Grid seed_grid(int64_t height, int64_t width, int64_t n_segments) {
  const auto [y, x] = regular_grid(height, width, n_segments);
  const int64_t rows = blocks_of(height - y.first, y.second), columns = blocks_of(width - x.first, x.second);
  const auto window = regular_grid(height, width, rows * columns);
  return {{y.first, y.second, rows, window.first.second}, {x.first, x.second, columns, window.second.second}};
}

struct Sum {  // of the pixels of a centre
  int64_t count, y, x, colour[3];

  void operator+=(const Sum& other) {
    count += other.count, y += other.y, x += other.x;
    for (int c = 0; c < 3; ++c) colour[c] += other.colour[c];
  }
  void operator-=(const Sum& other) {
    count -= other.count, y -= other.y, x -= other.x;
    for (int c = 0; c < 3; ++c) colour[c] -= other.colour[c];
  }
};

struct Centre {
  float floor_y, floor_x, y, x, L, a, b;
};

// The centres that have pixels, by index, and the indices by tile (one reach wide).
struct Centres {
  Grid grid;
  int64_t tiles_y, tiles_x;
  std::vector<Centre> of;
  std::vector<int32_t> tile_of, by_tile, first;  // tile of each centre or -1; first of each tile

  Centres(const Picture& picture, const Grid& grid)
      : grid(grid),
        tiles_y(blocks_of(picture.height, grid.y.reach)),
        tiles_x(blocks_of(picture.width, grid.x.reach)),
        of(grid.size()),
        tile_of(grid.size()),
        by_tile(grid.size()),
        first(tiles_y * tiles_x + 1) {}

  void update(const std::vector<Sum>& sums) {
    std::fill(first.begin(), first.end(), 0);
    for (size_t k = 0; k < of.size(); ++k) {
      const Sum& s = sums[k];
      tile_of[k] = -1;
      if (s.count == 0) continue;
      const double n = static_cast<double>(s.count);
      const auto mean = [&](int64_t total) { return static_cast<float>(static_cast<double>(total) / n); };
      const int64_t y = s.y / s.count, x = s.x / s.count;
      of[k] = {static_cast<float>(y), static_cast<float>(x), mean(s.y),        mean(s.x),
               mean(s.colour[0]),     mean(s.colour[1]),     mean(s.colour[2])};
      tile_of[k] = static_cast<int32_t>(y / grid.y.reach * tiles_x + x / grid.x.reach);
      ++first[tile_of[k] + 1];
    }
    for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    for (size_t k = 0; k < of.size(); ++k) {
      if (tile_of[k] >= 0) by_tile[first[tile_of[k]]++] = static_cast<int32_t>(k);
    }
    for (size_t i = first.size() - 1; i > 0; --i) first[i] = first[i - 1];
    first[0] = 0;
  }
};

struct Extent {  // of pixels, ends included
  int64_t top, bottom, left, right;
};

// The centres whose windows meet a region, ascending by index, then fillers in nobody's reach up to a multiple of 16.
struct Near {
  const int64_t room;  // a multiple of 64
  const float y_window, x_window;
  int64_t count = 0;  // with fillers
  Buffer<float> y{room}, x{room}, floor_y{room}, floor_x{room}, L{room}, a{room}, b{room};
  Buffer<int32_t> index{room};
  Buffer<float> lower{room};  // bound of the distances from a block; inf behind the last, up to a multiple of 64

  explicit Near(const Grid& grid)
      : room(blocks_of(grid.size(), 64) * 64), y_window(2 * grid.y.reach), x_window(2 * grid.x.reach) {
    std::fill_n(+seen, room / 64, 0);
  }

  __attribute__((noinline)) void gather(const Centres& centres, const Extent& at) {
    const int64_t y_reach = centres.grid.y.reach, x_reach = centres.grid.x.reach;
    const int64_t top = std::max<int64_t>(at.top - 2 * y_reach, 0) / y_reach;
    const int64_t bottom = std::min(at.bottom / y_reach + 2, centres.tiles_y - 1);
    const int64_t left = std::max<int64_t>(at.left - 2 * x_reach, 0) / x_reach;
    const int64_t right = std::min(at.right / x_reach + 2, centres.tiles_x - 1);
    int32_t low = std::numeric_limits<int32_t>::max(), high = 0;
    for (int64_t row = top; row <= bottom; ++row) {
      const int32_t* const first = centres.first.data() + row * centres.tiles_x;
      for (int32_t i = first[left]; i < first[right + 1]; ++i) {
        const int32_t k = centres.by_tile[i];
        seen[k / 64] |= uint64_t{1} << (k % 64);
        low = std::min(low, k), high = std::max(high, k);
      }
    }
    count = 0;
    for (int64_t word = low / 64; word <= high / 64; ++word) {
      each_bit(seen[word], [&](int64_t bit) {
        const Centre& c = centres.of[64 * word + bit];
        const bool out = c.floor_y < at.top - y_window || c.floor_y > at.bottom + y_window || c.floor_x < at.left - x_window ||
                         c.floor_x > at.right + x_window;
        append(c, static_cast<int32_t>(64 * word + bit));
        count -= out;
      });
      seen[word] = 0;
    }
    while (count % kLanes) append({-kInfinity, -kInfinity, 0, 0, 0, 0, 0}, -1);
    std::fill(lower + count, lower + blocks_of(count, 64) * 64, kInfinity);
  }

 private:
  Buffer<uint64_t> seen{room / 64};  // bit k: centre k has been met

  CAMGUIDE_INLINE void append(const Centre& c, int32_t k) {
    y[count] = c.y, x[count] = c.x, floor_y[count] = c.floor_y, floor_x[count] = c.floor_x;
    L[count] = c.L, a[count] = c.a, b[count] = c.b, index[count] = k;
    ++count;
  }
};

}  // namespace
}  // namespace camguide
