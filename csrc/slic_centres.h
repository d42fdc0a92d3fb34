// The centres of slic: seeds, sums of their pixels, and which of them a part of the image can see.
#pragma once

#include "slic_picture.h"

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
std::pair<std::pair<int64_t, int64_t>, std::pair<int64_t, int64_t>> regular_grid(
    int64_t height, int64_t width, int64_t points) {
  if (height * width <= points) return {{0, 1}, {0, 1}};
  const double side = std::pow(static_cast<double>(height * width) / static_cast<double>(points), 0.5);
  double y = side, x = side;
  if (side > static_cast<double>(std::min(height, width))) {  // a line of seeds
    const double along = static_cast<double>(std::max(height, width)) / static_cast<double>(points);
    y = height <= width ? static_cast<double>(height) : along;
    x = height <= width ? along : static_cast<double>(width);
  }
  const auto axis = [](double size) {
    return std::pair<int64_t, int64_t>(std::floor(size / 2), std::nearbyint(size));
  };
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
  int32_t index;
  float floor_y, floor_x, y, x, L, a, b;
};

// The centres that have pixels, sorted by tile (one reach wide), within it by index.
struct Centres {
  int64_t tiles_y, tiles_x;
  std::vector<Centre> sorted;
  std::vector<int32_t> tile_of, first;  // tile of each centre or -1; first centre of each tile

  Centres(const Picture& picture, const Grid& grid)
      : tiles_y(blocks_of(picture.height, grid.y.reach)),
        tiles_x(blocks_of(picture.width, grid.x.reach)),
        tile_of(grid.size()),
        first(tiles_y * tiles_x + 1) {}

  void update(const std::vector<Sum>& sums, const Grid& grid) {
    std::fill(first.begin(), first.end(), 0);
    const auto mean = [](int64_t total, int64_t n) { return static_cast<double>(total) / static_cast<double>(n); };
    for (size_t k = 0; k < tile_of.size(); ++k) {
      const Sum& s = sums[k];
      tile_of[k] = -1;
      if (s.count == 0) continue;
      tile_of[k] = static_cast<int32_t>(s.y / s.count / grid.y.reach * tiles_x + s.x / s.count / grid.x.reach);
      ++first[tile_of[k] + 1];
    }
    for (size_t i = 1; i < first.size(); ++i) first[i] += first[i - 1];
    sorted.resize(first.back());
    for (size_t k = 0; k < tile_of.size(); ++k) {
      if (tile_of[k] < 0) continue;
      const Sum& s = sums[k];
      const double y = mean(s.y, s.count), x = mean(s.x, s.count);
      sorted[first[tile_of[k]]++] = {
          static_cast<int32_t>(k),
          static_cast<float>(s.y / s.count),
          static_cast<float>(s.x / s.count),
          static_cast<float>(y),
          static_cast<float>(x),
          static_cast<float>(mean(s.colour[0], s.count)),
          static_cast<float>(mean(s.colour[1], s.count)),
          static_cast<float>(mean(s.colour[2], s.count))};
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
  std::vector<Centre> list;
  int64_t count = 0;  // with fillers
  Buffer<float> y, x, floor_y, floor_x, L, a, b;
  Buffer<float> lower;  // bound of the distances from a block

  explicit Near(int64_t centres) : Near(0, blocks_of(centres, kLanes) * kLanes) {}

  __attribute__((noinline)) void gather(const Centres& centres, const Grid& grid, const Extent& at) {
    list.clear();
    const int64_t y_window = 2 * grid.y.reach, x_window = 2 * grid.x.reach;
    const int64_t top = std::max<int64_t>(at.top - y_window, 0) / grid.y.reach;
    const int64_t bottom = std::min((at.bottom + y_window) / grid.y.reach, centres.tiles_y - 1);
    const int64_t left = std::max<int64_t>(at.left - x_window, 0) / grid.x.reach;
    const int64_t right = std::min((at.right + x_window) / grid.x.reach, centres.tiles_x - 1);
    for (int64_t row = top; row <= bottom; ++row) {
      const auto* const first = centres.first.data() + row * centres.tiles_x;
      list.insert(list.end(), centres.sorted.begin() + first[left], centres.sorted.begin() + first[right + 1]);
    }
    std::sort(list.begin(), list.end(), [](const Centre& i, const Centre& j) { return i.index < j.index; });
    count = blocks_of(static_cast<int64_t>(list.size()), kLanes) * kLanes;
    list.resize(count, Centre{-1, -kInfinity, -kInfinity, 0, 0, 0, 0, 0});
    for (int64_t i = 0; i < count; ++i) {
      const Centre& c = list[i];
      y[i] = c.y, x[i] = c.x, floor_y[i] = c.floor_y, floor_x[i] = c.floor_x, L[i] = c.L, a[i] = c.a, b[i] = c.b;
    }
  }

 private:
  Near(int, int64_t n) : y(n), x(n), floor_y(n), floor_x(n), L(n), a(n), b(n), lower(n) {}
};

}  // namespace
}  // namespace camguide
