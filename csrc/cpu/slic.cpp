// slic: local k-means in (position, Lab), the labels of camguide_fast/reference/slic.py bit for bit.
//
//   d(pixel, centre) = (dy^2 + dx^2) + w * ((dL^2 + da^2) + db^2),   inf outside of the centre's window
//
// in fp32, each operation rounded once (lab.h keeps the compiler from contracting them); sums of a centre are integers, so
// that neither threads nor the order of the pixels matter.
//
// A pixel lies in the windows of about 17 centres, but few can win a block of 8 x 8 pixels: a lower bound of d over the block
// follows from its extent in y, x, L, a, b, computed in the order above (rounding is monotonic, so the bound holds for the
// rounded values too). Centres whose bound exceeds a limit are left out, where the limit is guessed from the pass before:
// if then every pixel of the block is nearer than the limit to what it got, nothing was missed, else the block is done again
// with the distance found as its limit. From the second pass on the sums follow the pixels that change their centre.
#include "../lab.h"

#include "../buffer.h"
#include "../connectivity.h"
#include "../pixels.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

namespace camguide {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kColourScale = 65536;             // steps per Lab unit
constexpr int64_t kLanes = lanes<float>;          // pixels of a block along x
constexpr int64_t kBlockRows = 8;                 // and along y
constexpr int64_t kRegionRows = 16;               // blocks that look for their centres together
constexpr int64_t kRegionColumns = 64;
constexpr float kSlack = 1.25f;                   // of a limit guessed from the pass before

constexpr int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

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

struct Colours {  // of the pixels of a vector
  float Lab[3][kLanes];
};

struct Box {  // smallest and largest L, a, b
  float low[3], high[3];
};

// One image while it is clustered. What lies right of the image repeats its last column.
struct Picture {
  int64_t height, width, columns;  // columns of blocks
  Buffer<Colours> colours;         // [H, columns]
  Buffer<int32_t> label;           // [H, columns * kLanes]
  Buffer<Box> boxes;               // of blocks
  Buffer<float> limits;            // of blocks: what the largest distance is guessed to be

  Picture(int64_t height, int64_t width)
      : height(height),
        width(width),
        columns(blocks_of(width, kLanes)),
        colours(height * columns),
        label(height * columns * kLanes),
        boxes(blocks_of(height, kBlockRows) * columns),
        limits(blocks_of(height, kBlockRows) * columns) {}

  int64_t stride() const { return columns * kLanes; }
};

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

// --- Lab -------------------------------------------------------------------------------------------------------------

template <class T>
std::pair<Wide<T>, Wide<T>> range_of(const T* image, int64_t n) {
  using A = std::conditional_t<std::is_same_v<T, uint8_t>, T, Wide<T>>;
  constexpr int64_t at_once = 64;  // independent of one another, so that they make vectors
  A low = image[0], high = image[0];
  std::mutex mutex;
  torch::stable::parallel_for(0, n, 1 << 16, [&](int64_t begin, int64_t end) {
    A least[at_once], most[at_once];
    std::fill_n(least, at_once, image[begin]);
    std::fill_n(most, at_once, image[begin]);
    const auto take = [&](int64_t i, int64_t j) {
      const A v = image[i];
      least[j] = v < least[j] ? v : least[j];
      most[j] = v > most[j] ? v : most[j];
    };
    int64_t i = begin;
    for (; i + at_once <= end; i += at_once) {
      for (int64_t j = 0; j < at_once; ++j) take(i + j, j);
    }
    for (; i < end; ++i) take(i, 0);
    const std::lock_guard<std::mutex> lock(mutex);
    low = std::min(low, *std::min_element(least, least + at_once));
    high = std::max(high, *std::max_element(most, most + at_once));
  });
  return {low, high};
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

CAMGUIDE_MULTIVERSION void colours_of_row(const float* rgb, int64_t columns, Colours* out) {  // rgb: linear, [3, columns * kLanes]
  const float *r = rgb, *g = r + columns * kLanes, *b = g + columns * kLanes;
  for (int64_t i = 0; i < columns; ++i, r += kLanes, g += kLanes, b += kLanes) {
    Colours c;
    for (int64_t x = 0; x < kLanes; ++x) {
      const Lab<float> pixel = lab(r[x], g[x], b[x]);
      c.Lab[0][x] = round_even(pixel.L * kColourScale);
      c.Lab[1][x] = round_even(pixel.a * kColourScale);
      c.Lab[2][x] = round_even(pixel.b * kColourScale);
    }
    out[i] = c;
  }
}

CAMGUIDE_MULTIVERSION void find_boxes(const Picture& picture, int64_t block_row) {
  const int64_t top = block_row * kBlockRows, bottom = std::min(top + kBlockRows, picture.height);
  for (int64_t i = 0; i < picture.columns; ++i) {
    Box& box = picture.boxes[block_row * picture.columns + i];
    for (int64_t c = 0; c < 3; ++c) {
      float low[kLanes], high[kLanes];
      std::fill_n(low, kLanes, kInfinity);
      std::fill_n(high, kLanes, -kInfinity);
      for (int64_t y = top; y < bottom; ++y) {
        const float* const v = picture.colours[y * picture.columns + i].Lab[c];
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
  const int64_t pixels = picture.height * picture.width, stride = picture.stride();
  const auto [low, high] = range_of(image, 3 * pixels);
  const Stretch<Wide<T>> stretch{low, high > low ? high - low : Wide<T>(1)};
  float table[256];
  if constexpr (std::is_same_v<T, uint8_t>) {
    for (int v = 0; v < 256; ++v) table[v] = stretch(static_cast<float>(v));
  }
  torch::stable::parallel_for(0, blocks_of(picture.height, kBlockRows), 2, [&](int64_t begin, int64_t end) {
    const Buffer<float> rgb(3 * stride);
    for (int64_t y = begin * kBlockRows; y < std::min(end * kBlockRows, picture.height); ++y) {
      for (int64_t c = 0; c < 3; ++c) {
        const T* const row = image + c * pixels + y * picture.width;
        float* const out = rgb + c * stride;
        if constexpr (std::is_same_v<T, uint8_t>) {
          for (int64_t x = 0; x < picture.width; ++x) out[x] = table[row[x]];
        } else {
          stretch_row(row, stretch, picture.width, out);
        }
        std::fill(out + picture.width, out + stride, out[picture.width - 1]);
      }
      colours_of_row(rgb, picture.columns, picture.colours + y * picture.columns);
    }
    for (int64_t i = begin; i < end; ++i) find_boxes(picture, i);
  });
}

// --- centres ---------------------------------------------------------------------------------------------------------

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

// The centres whose windows meet a region, ascending by index, then fillers in nobody's reach up to a multiple of kLanes.
struct Near {
  std::vector<Centre> list;
  int64_t count = 0;  // with fillers
  Buffer<float> y, x, floor_y, floor_x, L, a, b;
  Buffer<float> lower;  // bound of the distances from a block

  explicit Near(int64_t centres) : Near(0, round_to_lanes<float>(centres)) {}

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
    count = round_to_lanes<float>(static_cast<int64_t>(list.size()));
    list.resize(count, Centre{-1, -kInfinity, -kInfinity, 0, 0, 0, 0, 0});
    for (int64_t i = 0; i < count; ++i) {
      const Centre& c = list[i];
      y[i] = c.y, x[i] = c.x, floor_y[i] = c.floor_y, floor_x[i] = c.floor_x, L[i] = c.L, a[i] = c.a, b[i] = c.b;
    }
  }

 private:
  Near(int, int64_t n) : y(n), x(n), floor_y(n), floor_x(n), L(n), a(n), b(n), lower(n) {}
};

// A centre that may win a block.
struct alignas(64) Rival {
  float dy2[kLanes], dx2[kLanes];  // to the rows and columns of the block
  float L, a, b;
  int32_t index;
};

// --- assignment ------------------------------------------------------------------------------------------------------

// How far m lies outside of [low, high].
CAMGUIDE_INLINE float outside(float m, float low, float high) {
  const float under = low - m, over = m - high;
  const float most = under > over ? under : over;
  return most > 0 ? most : 0;
}

// A lower bound of the distances from the pixels of a block to each centre.
CAMGUIDE_INLINE void bound_distances(const Near& near, const Extent& at, const Box& box, const Grid& grid, float weight) {
  const float top = at.top, bottom = at.bottom, left = at.left, right = at.right;
  const float y_window = 2 * grid.y.reach, x_window = 2 * grid.x.reach;
  const float *const y = near.y, *const x = near.x, *const floor_y = near.floor_y, *const floor_x = near.floor_x;
  const float *const L = near.L, *const a = near.a, *const b = near.b;
  float* const lower = near.lower;
  for (int64_t i = 0; i < near.count; i += kLanes) {
#pragma GCC ivdep
    for (int64_t j = i; j < i + kLanes; ++j) {
      const float dy = outside(y[j], top, bottom), dx = outside(x[j], left, right);
      const float dL = outside(L[j], box.low[0], box.high[0]);
      const float da = outside(a[j], box.low[1], box.high[1]);
      const float db = outside(b[j], box.low[2], box.high[2]);
      const float d = (dy * dy + dx * dx) + weight * ((dL * dL + da * da) + db * db);
      const float out_y = outside(floor_y[j], top, bottom), out_x = outside(floor_x[j], left, right);
      const float within = out_y <= y_window ? d : kInfinity;
      lower[j] = out_x <= x_window ? within : kInfinity;
    }
  }
}

// -1 in the lanes where a < b, for a, b >= 0: such floats are ordered as the integers of their bits. A comparison would be
// taken apart lane by lane where vectors are shorter than 64 bytes.
CAMGUIDE_INLINE Vec<int32_t> less(Vec<float> a, Vec<float> b) { return ((Vec<int32_t>)a - (Vec<int32_t>)b) >> 31; }
CAMGUIDE_INLINE Vec<int32_t> select(Vec<int32_t> mask, Vec<int32_t> a, Vec<int32_t> b) { return (a & mask) | (b & ~mask); }
CAMGUIDE_INLINE Vec<float> select(Vec<int32_t> mask, Vec<float> a, Vec<float> b) {
  return (Vec<float>)select(mask, (Vec<int32_t>)a, (Vec<int32_t>)b);
}

// Coordinates of a vector of pixels; those behind the last repeat it.
CAMGUIDE_INLINE Vec<float> positions(int64_t first, int64_t last) {
  Vec<float> at;
  for (int64_t i = 0; i < kLanes; ++i) at[i] = static_cast<float>(first + i);
  const Vec<float> end = Vec<float>{} + static_cast<float>(last);
  return select(less(end, at), end, at);
}

// Squared distances along one axis from pixels to a centre, inf outside of its window.
CAMGUIDE_INLINE Vec<float> squares_in_window(Vec<float> at, float mean, float floor, float window) {
  const Vec<float> d = at - mean;
  const Vec<float> off = (Vec<float>)((Vec<int32_t>)(at - floor) & std::numeric_limits<int32_t>::max());
  return select(less(Vec<float>{} + window, off), Vec<float>{} + kInfinity, d * d);
}

CAMGUIDE_INLINE bool any(Vec<int32_t> v) {
  const Vec<int64_t> w = (Vec<int64_t>)v;
  return (w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) != 0;
}

// The nearest of the rivals for a vector of pixels, the first of several; returns the distances.
template <bool with_colour>
CAMGUIDE_INLINE Vec<float> nearest(
    const Rival* rivals, int64_t count, int64_t row, const Colours& colours, float weight, Vec<int32_t>& label) {
  const Vec<float> L = load(colours.Lab[0]), a = load(colours.Lab[1]), b = load(colours.Lab[2]);
  Vec<float> best = Vec<float>{} + kInfinity;
  for (const Rival* r = rivals; r < rivals + count; ++r) {
    Vec<float> d = load(r->dx2) + r->dy2[row];
    if (with_colour) {
      const Vec<float> dL = L - r->L, da = a - r->a, db = b - r->b;
      d = d + ((dL * dL + da * da) + db * db) * weight;
    }
    const Vec<int32_t> nearer = less(d, best);
    best = select(nearer, d, best);
    label = select(nearer, Vec<int32_t>{} + r->index, label);
  }
  return best;
}

// Assigns one block; its new labels go to `now`; returns whether one is new indeed. A pixel that no window reaches keeps its
// label, which is 0 before the first pass.
CAMGUIDE_INLINE bool assign_block(
    const Picture& picture, const Near& near, const Grid& grid, const Extent& at, bool first, float weight, Rival* rivals,
    Vec<int32_t>* now) {
  const int64_t rows = at.bottom - at.top + 1, column = at.left / kLanes;
  const int64_t block = at.top / kBlockRows * picture.columns + column;
  const Vec<float> y = positions(at.top, at.bottom), x = positions(at.left, at.right);
  float& limit = picture.limits[block];
  bound_distances(near, at, picture.boxes[block], grid, weight);
  Vec<int32_t> changed;
  for (;;) {
    int64_t count = 0;
    for (int64_t i = 0; i < near.count; ++i) {
      rivals[count].index = static_cast<int32_t>(i);
      count += near.lower[i] <= limit;
    }
    for (Rival* r = rivals; r < rivals + count; ++r) {
      const Centre& c = near.list[r->index];
      store(r->dy2, squares_in_window(y, c.y, c.floor_y, 2 * grid.y.reach));
      store(r->dx2, squares_in_window(x, c.x, c.floor_x, 2 * grid.x.reach));
      r->L = c.L, r->a = c.a, r->b = c.b, r->index = c.index;
    }
    Vec<float> worst{};
    changed = Vec<int32_t>{};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t line = (at.top + row) * picture.columns + column;
      const Colours& colours = picture.colours[line];
      const Vec<int32_t> was = load(picture.label + line * kLanes);
      Vec<int32_t> label = first ? Vec<int32_t>{} : was;
      const Vec<float> d = first ? nearest<false>(rivals, count, row, colours, weight, label)
                                 : nearest<true>(rivals, count, row, colours, weight, label);
      worst = select(less(worst, d), d, worst);
      changed |= label ^ was;
      now[row] = label;
    }
    float found[kLanes];
    store(found, worst);
    const float farthest = std::min(*std::max_element(found, found + kLanes), FLT_MAX);
    const bool complete = !(farthest > limit);
    limit = farthest;
    if (complete) break;
  }
  limit = std::min(limit * kSlack, FLT_MAX);
  return any(changed);
}

// Moves the pixels of a row of a block from the sums of their old centres to those of their new ones.
CAMGUIDE_INLINE void move(const int32_t* now, int32_t* was, int64_t n, int64_t y, int64_t x, const Colours& c, Sum* sums) {
  for (int64_t i = 0; i < n;) {
    if (now[i] == was[i]) {
      ++i;
      continue;
    }
    const int32_t from = was[i], to = now[i];
    const int64_t begin = i;
    Sum run{};
    for (; i < n && now[i] == to && was[i] == from; ++i) {
      run.x += x + i;
      for (int channel = 0; channel < 3; ++channel) run.colour[channel] += static_cast<int32_t>(c.Lab[channel][i]);
    }
    run.count = i - begin;
    run.y = run.count * y;
    sums[to] += run;
    sums[from] -= run;
  }
}

// One pass over the regions [begin, end); what the sums of the centres gain and lose goes to `moved`.
CAMGUIDE_MULTIVERSION void assign_regions(
    const Picture& picture, const Centres& centres, const Grid& grid, bool first, float weight, int64_t begin, int64_t end,
    Near& near, Rival* rivals, Sum* moved) {
  const int64_t across = blocks_of(picture.width, kRegionColumns);
  for (int64_t region = begin; region < end; ++region) {
    const int64_t top = region / across * kRegionRows, left = region % across * kRegionColumns;
    const int64_t bottom = std::min(top + kRegionRows, picture.height) - 1;
    const int64_t right = std::min(left + kRegionColumns, picture.width) - 1;
    near.gather(centres, grid, {top, bottom, left, right});
    for (int64_t y = top; y <= bottom; y += kBlockRows) {
      for (int64_t x = left; x <= right; x += kLanes) {
        const Extent at{y, std::min(y + kBlockRows - 1, bottom), x, std::min(x + kLanes - 1, right)};
        Vec<int32_t> now[kBlockRows];
        if (!assign_block(picture, near, grid, at, first, weight, rivals, now)) continue;
        for (int64_t row = at.top; row <= at.bottom; ++row) {
          const int64_t line = row * picture.columns + x / kLanes;
          int32_t* const was = picture.label + line * kLanes;
          if (!any(now[row - y] ^ load(was))) continue;
          int32_t labels[kLanes];
          store(labels, now[row - y]);
          move(labels, was, at.right - x + 1, row, x, picture.colours[line], moved);
          store(was, now[row - y]);
        }
      }
    }
  }
}

// Leaves the index of each pixel's centre in picture.label.
void cluster(const Picture& picture, const Grid& grid, double compactness, int64_t iterations) {
  const double scale = static_cast<double>(std::max(grid.y.step, grid.x.step)) / (compactness * kColourScale);
  const float weight = static_cast<float>(std::pow(scale, 2.0));
  const int64_t n = grid.size();
  std::vector<Sum> sums(n + 1);  // the last for pixels that have no centre yet
  for (int64_t i = 0; i < n; ++i) {
    sums[i] = {1, grid.y.start + i / grid.x.count * grid.y.step, grid.x.start + i % grid.x.count * grid.x.step, {}};
  }
  std::fill_n(+picture.label, picture.height * picture.stride(), static_cast<int32_t>(n));
  std::fill_n(+picture.limits, blocks_of(picture.height, kBlockRows) * picture.columns, FLT_MAX);
  Centres centres(picture, grid);
  const int64_t regions = blocks_of(picture.height, kRegionRows) * blocks_of(picture.width, kRegionColumns);
  // A thread must have more pixels to assign than sums to add up.
  const int64_t grain = std::max<int64_t>(4 * n / (kRegionRows * kRegionColumns), 1);
  for (int64_t pass = 0; pass < iterations; ++pass) {
    centres.update(sums, grid);
    if (pass == 0) std::fill(sums.begin(), sums.end(), Sum{});
    std::mutex mutex;
    torch::stable::parallel_for(0, regions, grain, [&](int64_t begin, int64_t end) {
      std::vector<Sum> moved(n + 1);
      Near near(static_cast<int64_t>(centres.sorted.size()));
      const Buffer<Rival> rivals(static_cast<int64_t>(centres.sorted.size()) + 1);
      assign_regions(picture, centres, grid, pass == 0, weight, begin, end, near, rivals, moved.data());
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t i = 0; i < n; ++i) sums[i] += moved[i];
    });
  }
}

template <class T>
void slic_image(
    const T* image, int64_t height, int64_t width, int64_t n_segments, double compactness, int64_t iterations,
    double min_size_factor, int32_t* out) {
  const Grid grid = seed_grid(height, width, n_segments);
  const Picture picture(height, width);
  find_colours(image, picture);
  cluster(picture, grid, compactness, iterations);
  if (min_size_factor > 0) {
    const double mean_size = static_cast<double>(height * width) / static_cast<double>(grid.size());
    Connectivity(height, width)(picture.label, picture.stride(), static_cast<int64_t>(min_size_factor * mean_size), out);
  } else {
    for (int64_t y = 0; y < height; ++y) {
      std::copy_n(picture.label + y * picture.stride(), width, out + y * width);
    }
  }
}

Tensor slic(
    const Tensor& image, int64_t n_segments, double compactness, int64_t iterations, double min_size_factor) {
  const int64_t batch = image.size(0), height = image.size(2), width = image.size(3);
  STD_TORCH_CHECK(height * (width + 1) <= std::numeric_limits<int32_t>::max(), "image must have less than 2^31 pixels");
  const Tensor pixels = torch::stable::contiguous(image);
  Tensor out = torch::stable::new_empty(image, {batch, height, width}, ScalarType::Int);
  int32_t* const segments = out.mutable_data_ptr<int32_t>();
  with_image(pixels, "image", [&](auto* data) {
    for_each_image(batch, [&](int64_t i) {
      slic_image(
          data + i * 3 * height * width, height, width, n_segments, compactness, iterations, min_size_factor,
          segments + i * height * width);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("slic", TORCH_BOX(&slic));
}

}  // namespace camguide
