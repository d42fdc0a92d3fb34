// The pairs of cells near each other on a grid, and the cells on the way from one to the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace camguide {

struct Offset {
  int64_t dy, dx;
  // (y, x) of the cells nearer than 1 to the segment (0, 0)-(dy, dx), row by row
  std::vector<std::pair<int64_t, int64_t>> path;
};

// One of each pair of opposites with 0 < |(dy, dx)| < radius that some pair of cells in the image has.
inline std::vector<Offset> half_plane_offsets(int64_t radius, int64_t height, int64_t width) {
  radius = std::min(radius, height + width);
  std::vector<Offset> offsets;
  for (int64_t dy = 0; dy < std::min(radius, height); ++dy)
    for (int64_t dx = std::max(1 - radius, 1 - width); dx < std::min(radius, width); ++dx) {
      const int64_t square = dy * dy + dx * dx;
      if (square >= radius * radius || (dy == 0 && dx <= 0)) continue;
      Offset offset{dy, dx, {}};
      for (int64_t y = 0; y <= dy; ++y)  // a cell outside the box of the ends is at least 1 away from the segment
        for (int64_t x = std::min<int64_t>(dx, 0); x <= std::max<int64_t>(dx, 0); ++x)
          if ((dy * x - dx * y) * (dy * x - dx * y) < square) offset.path.emplace_back(y, x);
      offsets.push_back(std::move(offset));
    }
  return offsets;
}

}  // namespace camguide
