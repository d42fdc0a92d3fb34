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
#include "superpixels/lab.h"

#include "superpixels/connectivity.h"
#include "common/parallel.h"
#include "superpixels/slic_rivals.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <mutex>
#include <tuple>
#include <vector>

namespace camguide {
namespace {

constexpr int64_t kRegionRows = 32;  // blocks that look for their centres together
constexpr int64_t kRegionColumns = 64;
constexpr float kSlack = 1.25f;  // of a limit guessed from the pass before

struct Pass {
  const Picture& picture;
  const Centres& centres;
  bool first;
  float weight;
};

struct Block {  // of the picture
  Extent at;
  const Colours* colours;  // [8]
  const Box& box;
  float& limit;
  Labels& labels;
};

// The new labels of a block.
template <class S>
CAMGUIDE_INLINE Labels assign_block(const Pass& pass, const Near& near, const Block& block, Rival* rivals) {
  const int64_t rows = block.at.bottom - block.at.top + 1;
  const float weight = pass.first ? 0 : pass.weight;
  const Labels kept = pass.first ? Labels{} : block.labels;
  Labels now = block.labels;  // rows below the image keep theirs
  float& limit = block.limit;
  bound_distances(near, block.at, block.box, weight);
  for (;;) {
    const int64_t count = find_rivals<S>(near, block.at, limit, rivals);
    typename S::Floats worst{};
    const auto each_row = [&](const auto& find) {
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t i = row * kLanes;
        find(rivals, count, row, block.colours[row], weight, kept.of + i, now.of + i, worst);
      }
    };
    if (pass.first) {
      each_row(nearest<S, false>);
    } else {
      each_row(nearest<S, true>);
    }
    float farthest = 0;
    for (int64_t i = 0; i < S::count; ++i) farthest = std::max(farthest, worst[i]);
    farthest = std::min(farthest, FLT_MAX);
    const bool complete = !(farthest > limit);
    limit = farthest;
    if (complete) break;
  }
  if (pass.first) {  // colours join in: a centre is about half the extent of the block's away
    float square = 0;
    for (int c = 0; c < 3; ++c) square += (block.box.high[c] - block.box.low[c]) * (block.box.high[c] - block.box.low[c]);
    limit += pass.weight * square / 4;
  }
  limit = std::min(limit * kSlack, FLT_MAX);
  return now;
}

// Moves the pixels whose label is new from the sums of their old centres to those of their new ones, in runs along the rows.
CAMGUIDE_INLINE void move(const Block& block, const Labels& now, Sum* sums) {
  const Labels& was = block.labels;
  const Extent& at = block.at;
  static_assert(kLanes == 16);
  const uint64_t columns = 0x0001000100010001u * ((uint64_t{2} << (at.right - at.left)) - 1);  // those in the image
  for (int64_t first = 0; first < kBlockRows * kLanes; first += 64) {
    uint64_t bits = bits_of(64, [&](int64_t i) { return was.of[first + i] != now.of[first + i]; }) & columns;
    while (bits) {
      const int64_t begin = first + __builtin_ctzll(bits), row = begin / kLanes;
      const int32_t from = was.of[begin], to = now.of[begin];
      Sum run{};
      int64_t i = begin;
      do {
        const int64_t x = i % kLanes;
        for (int c = 0; c < 3; ++c) run.colour[c] += static_cast<int32_t>(block.colours[row].Lab[c][x]);
        run.x += at.left + x;
        bits &= bits - 1;
        ++i;
      } while (i / kLanes == row && bits >> (i - first) & 1 && now.of[i] == to && was.of[i] == from);
      run.count = i - begin;
      run.y = run.count * (at.top + row);
      sums[to] += run;
      sums[from] -= run;
    }
  }
}

// The regions of a pass that a thread takes; what the sums of the centres gain and lose goes to `moved`.
template <class S>
CAMGUIDE_INLINE void assign_regions(const Pass& pass, Share& regions, Sum* moved) {
  const Picture& picture = pass.picture;
  Near near(pass.centres.grid);
  const Buffer<Rival> rivals(pass.centres.grid.size());
  const int64_t across = blocks_of(picture.width, kRegionColumns);
  for (int64_t region; regions.take(region);) {
    const int64_t top = region / across * kRegionRows, left = region % across * kRegionColumns;
    const int64_t bottom = std::min(top + kRegionRows, picture.height) - 1;
    const int64_t right = std::min(left + kRegionColumns, picture.width) - 1;
    near.gather(pass.centres, {top, bottom, left, right});
    for (int64_t y = top; y <= bottom; y += kBlockRows) {
      for (int64_t x = left; x <= right; x += kLanes) {
        const int64_t i = y / kBlockRows * picture.columns + x / kLanes;
        const Block block{{y, std::min(y + kBlockRows - 1, bottom), x, std::min(x + kLanes - 1, right)},
                          picture.colours + i * kBlockRows,
                          picture.boxes[i],
                          picture.limits[i],
                          picture.label[i]};
        const Labels now = assign_block<S>(pass, near, block, rivals);
        move(block, now, moved);
        block.labels = now;
      }
    }
  }
}

// Chosen by hand, as target_clones would, but each with vectors of its own length.
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("arch=x86-64-v4"), flatten)) void assign_v4(const Pass& pass, Share& regions, Sum* moved) {
  assign_regions<Simd<64>>(pass, regions, moved);
}

__attribute__((target("arch=x86-64-v3"), flatten)) void assign_v3(const Pass& pass, Share& regions, Sum* moved) {
  assign_regions<Simd<32>>(pass, regions, moved);
}

void assign(const Pass& pass, Share& regions, Sum* moved) {
  if (__builtin_cpu_supports("x86-64-v4")) return assign_v4(pass, regions, moved);
  if (__builtin_cpu_supports("x86-64-v3")) return assign_v3(pass, regions, moved);
  assign_regions<Simd<16>>(pass, regions, moved);
}
#else
void assign(const Pass& pass, Share& regions, Sum* moved) { assign_regions<Simd<16>>(pass, regions, moved); }
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
  Labels none;
  std::fill_n(none.of, kBlockRows * kLanes, static_cast<int32_t>(n));
  std::fill_n(+picture.label, picture.rows * picture.columns, none);
  const float from_seed = static_cast<float>(grid.y.step * grid.y.step + grid.x.step * grid.x.step) / 2;
  std::fill_n(+picture.limits, picture.rows * picture.columns, from_seed);
  Centres centres(picture, grid);
  const int64_t regions = blocks_of(picture.height, kRegionRows) * blocks_of(picture.width, kRegionColumns);
  // A thread must have more pixels to assign than sums to add up.
  const int64_t least = std::max<int64_t>(4 * n / (kRegionRows * kRegionColumns), 1);
  for (int64_t i = 0; i < iterations; ++i) {
    centres.update(sums);
    if (i == 0) std::fill(sums.begin(), sums.end(), Sum{});
    const Pass pass{picture, centres, i == 0, weight};
    std::mutex mutex;
    share_out(regions, least, [&](Share& left) {
      std::vector<Sum> moved(n + 1);
      assign(pass, left, moved.data());
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t k = 0; k < n; ++k) sums[k] += moved[k];
    });
  }
}

void write_labels(const Picture& picture, int32_t* out) {  // [H, W]
  for_each_block(picture.height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      const Labels* const labels = picture.label + y / kBlockRows * picture.columns;
      for (int64_t x = 0; x < picture.width; x += kLanes) {
        const int32_t* const from = labels[x / kLanes].of + y % kBlockRows * kLanes;
        std::copy_n(from, std::min(kLanes, picture.width - x), out + y * picture.width + x);
      }
    }
  });
}

template <class T>
int32_t slic_image(const T* image, int64_t height, int64_t width, int64_t n_segments, double compactness, int64_t iterations,
                   double min_size_factor, int32_t* out) {
  const Grid grid = seed_grid(height, width, n_segments);
  const Picture picture(height, width);
  find_colours(image, picture);
  cluster(picture, grid, compactness, iterations);
  write_labels(picture, out);
  if (min_size_factor == 0) return static_cast<int32_t>(grid.size());
  const double pixels = static_cast<double>(height * width), mean_size = pixels / static_cast<double>(grid.size());
  return Connectivity(out, height, width)(static_cast<int64_t>(std::min(min_size_factor * mean_size, pixels)), out);
}

std::tuple<Tensor, Tensor> slic(const Tensor& image, int64_t n_segments, double compactness, int64_t iterations,
                                double min_size_factor) {
  const int64_t batch = image.size(0), height = image.size(2), width = image.size(3);
  STD_TORCH_CHECK(height * (width + 1) <= std::numeric_limits<int32_t>::max(), "image must have less than 2^31 pixels");
  const Tensor pixels = torch::stable::contiguous(image);
  Tensor out = torch::stable::new_empty(image, {batch, height, width}, ScalarType::Int);
  Tensor num = torch::stable::new_empty(image, {batch}, ScalarType::Int);
  int32_t *const segments = out.mutable_data_ptr<int32_t>(), *const numbers = num.mutable_data_ptr<int32_t>();
  with_image(pixels, "image", [&](auto* data) {
    for_each_image(batch, [&](int64_t i) {
      numbers[i] = slic_image(data + i * 3 * height * width, height, width, n_segments, compactness, iterations,
                              min_size_factor, segments + i * height * width);
    });
  });
  return {out, num};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("slic", TORCH_BOX(&slic)); }

}  // namespace camguide
