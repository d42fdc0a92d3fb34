// threshold_labels: the largest of the interpolated maps of present classes, where it exceeds tau; see
// camguide_fast/ops/threshold_labels.py. At pixel (y, x), with a = (y + 1/2) h / H - 1/2, not below 0, y0 = floor a,
// y1 = min(y0 + 1, h - 1), v = a - y0, and alike along x:
//
//     f_k = (1 - v) r_k(y0, x) + v r_k(y1, x),   r_k(y, x) = (1 - u) c_k(y, x0) + u c_k(y, x1)
//
// A row of a map is widened and stretched (r) once for all pixels between it and the next one, so that the gathers are as few as
// the maps' rows, and a pixel costs two products, two comparisons and selections for each present class. Bytes: the maps of
// present classes, `valid` and the labels, once. Maps of absent classes are not read.
#include "common/parallel.h"
#include "common/rows.h"

#include <optional>
#include <vector>

namespace camguide {
namespace {

constexpr int64_t kBand = 1 << 14;  // pixels, about, that a thread takes at once

// Which two of n pixels are mixed for each of `size`, and how much of the second.
template <class A>
struct Mix {
  Buffer<int32_t> first, second;
  Buffer<A> share;

  Mix(int64_t n, int64_t size) : first(size), second(size), share(size) {
    const A scale = static_cast<A>(n) / static_cast<A>(size);
    for (int64_t i = 0; i < size; ++i) {
      const A at = std::max(scale * (static_cast<A>(i) + A(0.5)) - A(0.5), A(0));
      const int64_t low = std::min(static_cast<int64_t>(at), n - 1);
      *(first + i) = static_cast<int32_t>(low);
      *(second + i) = static_cast<int32_t>(std::min(low + 1, n - 1));
      *(share + i) = std::min(at - static_cast<A>(low), A(1));
    }
  }
};

// A class of an image; without a map it is 0 everywhere.
template <class A>
struct Class {
  int64_t index;
  Source<A> map;
};

template <class A>
struct Scratch {
  Buffer<A> source;          // a row of a map
  Buffer<A> best, which;     // of the classes so far: the largest value and the label
  Buffer<A> stretched;       // two rows of each class
  std::vector<int64_t> row;  // which of the map's they are

  Scratch(int64_t w, int64_t width, int64_t classes)
      : source(round_to_lanes<A>(w)), best(width), which(width), stretched(2 * classes * width), row(2 * classes) {}
};

template <class A>
CAMGUIDE_MULTIVERSION void stretch(const A* __restrict from, const Mix<A>& x, int64_t n, A* __restrict to) {
  const int32_t* __restrict const first = x.first.get();
  const int32_t* __restrict const second = x.second.get();
  const A* __restrict const share = x.share.get();
  for (int64_t i = 0; i < n; ++i) to[i] = (1 - share[i]) * from[first[i]] + share[i] * from[second[i]];
}

template <class A>
CAMGUIDE_MULTIVERSION void take_larger(const A* __restrict above, const A* __restrict below, A share, A label, int64_t n,
                                       A* __restrict best, A* __restrict which) {
  for (int64_t i = 0; i < n; ++i) {
    const A value = (1 - share) * above[i] + share * below[i], before = best[i];
    const bool take = (value > before) | (value != value);  // a NaN stays
    best[i] = take ? value : before;
    which[i] = take ? label : which[i];
  }
}

template <class A>
CAMGUIDE_MULTIVERSION void write_labels(const A* __restrict best, const A* __restrict which, const uint8_t* __restrict valid,
                                        int64_t n, uint8_t* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(static_cast<int32_t>(best[i] == best[i] ? which[i] : A(0)));
  if (!valid) return;
  for (int64_t i = 0; i < n; ++i) to[i] = valid[i] ? to[i] : uint8_t{255};
}

// Rows [begin, end) of the labels of an image.
template <class A>
void band(const std::vector<Class<A>>& classes, const Mix<A>& y, const Mix<A>& x, A tau, int64_t begin, int64_t end, int64_t w,
          int64_t width, Scratch<A>& scratch, const uint8_t* valid, uint8_t* labels) {
  std::fill(scratch.row.begin(), scratch.row.end(), -1);
  for (int64_t i = begin; i < end; ++i) {
    std::fill_n(scratch.best.get(), width, tau);
    std::fill_n(scratch.which.get(), width, A(0));
    for (size_t k = 0; k < classes.size(); ++k) {
      int64_t* const held = scratch.row.data() + 2 * k;
      A* const at = scratch.stretched + 2 * k * width;
      // Row j lies in place j % 2; the two of a pixel are neighbours, or the same.
      const auto stretched = [&](int64_t j) {
        A* const to = at + j % 2 * width;
        if (held[j % 2] == j) return to;
        held[j % 2] = j;
        if (!classes[k].map) return std::fill_n(to, width, A(0)), to;
        read_row(classes[k].map + j * w, scratch.source.get(), w);
        stretch(scratch.source.get(), x, width, to);
        return to;
      };
      const A* const above = stretched(*(y.first + i));
      const A* const below = stretched(*(y.second + i));
      const A label = static_cast<A>(classes[k].index + 1);
      take_larger(above, below, *(y.share + i), label, width, scratch.best.get(), scratch.which.get());
    }
    write_labels(scratch.best.get(), scratch.which.get(), valid ? valid + i * width : nullptr, width, labels + i * width);
  }
}

Tensor threshold_labels(const Tensor& cam, const Tensor& label, const Tensor& tau, std::vector<int64_t> size,
                        const std::optional<Tensor>& valid) {
  const Tensor maps = torch::stable::contiguous(cam);
  const Tensor thresholds = torch::stable::contiguous(torch::stable::to(tau, wide(cam.scalar_type())));
  const int64_t images = maps.size(0), count = maps.size(1), h = maps.size(2), w = maps.size(3);
  const int64_t height = size[0], width = size[1];
  const std::vector<uint8_t> present = present_classes(label);
  Tensor known = valid ? torch::stable::contiguous(*valid) : maps;
  const uint8_t* const known_pixels = valid ? static_cast<const uint8_t*>(known.const_data_ptr()) : nullptr;
  Tensor out = torch::stable::new_empty(maps, {images, height, width}, ScalarType::Byte);
  uint8_t* const labels = static_cast<uint8_t*>(out.mutable_data_ptr());
  with_sums(maps, "cam", [&]<class A>(A) {
    const A* const threshold = static_cast<const A*>(thresholds.const_data_ptr());
    const Mix<A> y(h, height), x(w, width);
    std::vector<std::vector<Class<A>>> classes(images);
    size_t most = 0;
    for (int64_t b = 0; b < images; ++b) {
      bool zeros = threshold[b] < 0;  // an absent class exceeds it; of them all the first
      for (int64_t k = 0; k < count; ++k) {
        const bool there = present[b * count + k];
        if (there) classes[b].push_back({k, source_of<A>(maps) + (b * count + k) * h * w});
        if (!there && zeros) classes[b].push_back({k, {}});
        zeros &= there;
      }
      most = std::max(most, classes[b].size());
    }
    const int64_t rows = std::max<int64_t>(1, kBand / width), bands = (height + rows - 1) / rows;
    const auto scratch = [&] { return Scratch<A>(w, width, most); };
    for_each(images * bands, scratch, [&](int64_t i, Scratch<A>& own) {
      const int64_t b = i / bands, begin = i % bands * rows, end = std::min(height, begin + rows), at = b * height * width;
      band<A>(classes[b], y, x, threshold[b], begin, end, w, width, own, known_pixels ? known_pixels + at : nullptr,
              labels + at);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("threshold_labels", TORCH_BOX(&threshold_labels)); }

}  // namespace camguide
