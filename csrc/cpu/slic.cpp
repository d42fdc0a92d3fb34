// slic: local k-means in (position, Lab), the labels of camguide_fast/reference/slic.py bit for bit.
//
//   d(pixel, centre) = (dy^2 + dx^2) + w * ((dL^2 + da^2) + db^2),   inf outside of the centre's window
//
// in fp32, each operation rounded once (lab.h keeps the compiler from contracting them); sums of a centre are integers, so
// that neither threads nor the order of the pixels matter.
//
// A pixel lies in the windows of about 17 centres, but few can win a block of 16 x 8 pixels: a lower bound of d over the block
// follows from its extent in y, x, L, a, b, computed in the order above (rounding is monotonic, so the bound holds for the
// rounded values too). Centres whose bound exceeds a limit are left out, where the limit is guessed from the pass before:
// if then every pixel of the block is nearer than the limit to what it got, nothing was missed, else the block is done again
// with the distance found as its limit. From the second pass on the sums follow the pixels that change their centre.
#include "../lab.h"

#include "../connectivity.h"
#include "../pixels.h"
#include "../slic_centres.h"
#include "../slic_picture.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

namespace camguide {
namespace {

constexpr int64_t kRegionRows = 16;  // blocks that look for their centres together
constexpr int64_t kRegionColumns = 64;
constexpr float kSlack = 1.25f;  // of a limit guessed from the pass before

// A centre that may win a block.
struct alignas(64) Rival {
  float dy2[kLanes], dx2[kLanes];  // to the rows and columns of the block
  float L, a, b;
  int32_t index;
};

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

// Vectors as long as a register: GCC keeps longer ones in memory.
template <int64_t bytes>
struct Simd {
  typedef float Floats __attribute__((vector_size(bytes)));
  typedef int32_t Ints __attribute__((vector_size(bytes)));
  static constexpr int64_t count = bytes / sizeof(float);

  template <class V, class A>
  static CAMGUIDE_INLINE V load(const A* from) {
    V v;
    std::memcpy(&v, from, bytes);
    return v;
  }

  // -1 in the lanes where a < b, for a, b >= 0: such floats are ordered as the integers of their bits. (A comparison may be
  // taken apart lane by lane.)
  static CAMGUIDE_INLINE Ints less(Floats a, Floats b) { return ((Ints)a - (Ints)b) >> 31; }
  static CAMGUIDE_INLINE Ints select(Ints mask, Ints a, Ints b) { return (a & mask) | (b & ~mask); }
  static CAMGUIDE_INLINE Floats select(Ints mask, Floats a, Floats b) { return (Floats)select(mask, (Ints)a, (Ints)b); }
};

// Squared distances along one axis from 16 pixels to a centre, inf outside of its window; pixels behind the last repeat it.
template <class S>
CAMGUIDE_INLINE void squares_in_window(int64_t first, int64_t last, float mean, float floor, float window, float* out) {
  using Floats = typename S::Floats;
  using Ints = typename S::Ints;
  static constexpr float steps[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats end = Floats{} + static_cast<float>(last);
  for (int64_t i = 0; i < kLanes; i += S::count) {
    Floats at = S::template load<Floats>(steps + i) + static_cast<float>(first);
    at = S::select(S::less(end, at), end, at);
    const Floats d = at - mean;
    const Floats off = (Floats)((Ints)(at - floor) & std::numeric_limits<int32_t>::max());
    const Floats squares = S::select(S::less(Floats{} + window, off), Floats{} + kInfinity, d * d);
    std::memcpy(out + i, &squares, sizeof squares);
  }
}

CAMGUIDE_INLINE bool differ(const int32_t* a, const int32_t* b) {  // 16 labels
  int32_t bits = 0;
  for (int64_t i = 0; i < kLanes; ++i) bits |= a[i] ^ b[i];
  return bits != 0;
}

// The nearest of the rivals for the 16 pixels of row `row` of a block, the first of several. `label` holds what a pixel keeps
// that no window reaches. Raises `worst` to the distances.
template <class S, bool with_colour>
CAMGUIDE_INLINE void nearest(
    const Rival* rivals, int64_t count, int64_t row, const Colours& colours, float weight, int32_t* label,
    typename S::Floats& worst) {
  using Floats = typename S::Floats;
  using Ints = typename S::Ints;
  for (int64_t x = 0; x < kLanes; x += S::count) {
    const Floats L = S::template load<Floats>(colours.Lab[0] + x), a = S::template load<Floats>(colours.Lab[1] + x),
                 b = S::template load<Floats>(colours.Lab[2] + x);
    Floats best = Floats{} + kInfinity;
    Ints own = S::template load<Ints>(label + x);
    for (const Rival* r = rivals; r < rivals + count; ++r) {
      Floats d = S::template load<Floats>(r->dx2 + x) + r->dy2[row];
      if (with_colour) {
        const Floats dL = L - r->L, da = a - r->a, db = b - r->b;
        d = d + ((dL * dL + da * da) + db * db) * weight;
      }
      const Ints nearer = S::less(d, best);
      best = S::select(nearer, d, best);
      own = S::select(nearer, Ints{} + r->index, own);
    }
    worst = S::select(S::less(worst, best), best, worst);
    std::memcpy(label + x, &own, sizeof own);
  }
}

struct Pass {
  const Picture& picture;
  const Centres& centres;
  const Grid& grid;
  bool first;
  float weight;
};

// Assigns one block; its new labels go to `now`; returns whether one is new indeed. What no window reaches keeps its label,
// which is 0 before the first pass.
template <class S>
CAMGUIDE_INLINE bool assign_block(const Pass& pass, const Near& near, const Extent& at, Rival* rivals, int32_t (*now)[kLanes]) {
  const auto& [picture, centres, grid, first, weight] = pass;
  const int64_t rows = at.bottom - at.top + 1, column = at.left / kLanes;
  const int64_t block = at.top / kBlockRows * picture.columns + column;
  float& limit = picture.limits[block];
  bound_distances(near, at, picture.boxes[block], grid, weight);
  int64_t changed;
  for (;;) {
    int64_t count = 0;
    for (int64_t i = 0; i < near.count; ++i) {
      rivals[count].index = static_cast<int32_t>(i);
      count += near.lower[i] <= limit;
    }
    for (Rival* r = rivals; r < rivals + count; ++r) {
      const Centre& c = near.list[r->index];
      squares_in_window<S>(at.top, at.bottom, c.y, c.floor_y, 2 * grid.y.reach, r->dy2);
      squares_in_window<S>(at.left, at.right, c.x, c.floor_x, 2 * grid.x.reach, r->dx2);
      r->L = c.L, r->a = c.a, r->b = c.b, r->index = c.index;
    }
    typename S::Floats worst{};
    changed = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t line = (at.top + row) * picture.columns + column;
      const Colours& colours = picture.colours[line];
      const int32_t* const was = picture.label + line * kLanes;
      for (int64_t x = 0; x < kLanes; ++x) now[row][x] = first ? 0 : was[x];
      if (first) {
        nearest<S, false>(rivals, count, row, colours, weight, now[row], worst);
      } else {
        nearest<S, true>(rivals, count, row, colours, weight, now[row], worst);
      }
      changed += differ(now[row], was);
    }
    float farthest = 0;
    for (int64_t i = 0; i < S::count; ++i) farthest = std::max(farthest, worst[i]);
    farthest = std::min(farthest, FLT_MAX);
    const bool complete = !(farthest > limit);
    limit = farthest;
    if (complete) break;
  }
  limit = std::min(limit * kSlack, FLT_MAX);
  return changed != 0;
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

// The regions [begin, end) of a pass; what the sums of the centres gain and lose goes to `moved`.
template <class S>
CAMGUIDE_INLINE void assign_regions(const Pass& pass, int64_t begin, int64_t end, Sum* moved) {
  const Picture& picture = pass.picture;
  const int64_t centres = static_cast<int64_t>(pass.centres.sorted.size());
  Near near(centres);
  const Buffer<Rival> rivals(centres + 1);
  const int64_t across = blocks_of(picture.width, kRegionColumns);
  for (int64_t region = begin; region < end; ++region) {
    const int64_t top = region / across * kRegionRows, left = region % across * kRegionColumns;
    const int64_t bottom = std::min(top + kRegionRows, picture.height) - 1;
    const int64_t right = std::min(left + kRegionColumns, picture.width) - 1;
    near.gather(pass.centres, pass.grid, {top, bottom, left, right});
    for (int64_t y = top; y <= bottom; y += kBlockRows) {
      for (int64_t x = left; x <= right; x += kLanes) {
        const Extent at{y, std::min(y + kBlockRows - 1, bottom), x, std::min(x + kLanes - 1, right)};
        alignas(64) int32_t now[kBlockRows][kLanes];
        if (!assign_block<S>(pass, near, at, rivals, now)) continue;
        for (int64_t row = at.top; row <= at.bottom; ++row) {
          const int64_t line = row * picture.columns + x / kLanes;
          int32_t* const was = picture.label + line * kLanes;
          if (!differ(now[row - y], was)) continue;
          move(now[row - y], was, at.right - x + 1, row, x, picture.colours[line], moved);
          std::copy_n(now[row - y], kLanes, was);
        }
      }
    }
  }
}

// Chosen by hand, as target_clones would, but each with vectors of its own length.
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("arch=x86-64-v4"), flatten)) void assign_v4(const Pass& pass, int64_t begin, int64_t end, Sum* moved) {
  assign_regions<Simd<64>>(pass, begin, end, moved);
}

__attribute__((target("arch=x86-64-v3"), flatten)) void assign_v3(const Pass& pass, int64_t begin, int64_t end, Sum* moved) {
  assign_regions<Simd<32>>(pass, begin, end, moved);
}

void assign(const Pass& pass, int64_t begin, int64_t end, Sum* moved) {
  if (__builtin_cpu_supports("x86-64-v4")) return assign_v4(pass, begin, end, moved);
  if (__builtin_cpu_supports("x86-64-v3")) return assign_v3(pass, begin, end, moved);
  assign_regions<Simd<16>>(pass, begin, end, moved);
}
#else
void assign(const Pass& pass, int64_t begin, int64_t end, Sum* moved) {
  assign_regions<Simd<16>>(pass, begin, end, moved);
}
#endif

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
      assign({picture, centres, grid, pass == 0, weight}, begin, end, moved.data());
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
    Connectivity(picture.label, picture.stride(), height, width)(static_cast<int64_t>(min_size_factor * mean_size), out);
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
