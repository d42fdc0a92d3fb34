// edge_support: the image branch of section I.3, see camguide_fast/ops/edge_support.py.
//
// Per channel, blur 9x9 and the Scharr norm; their sum over the channels; dilation 3x3; mean over each cell. The division by the
// image's maximum commutes with the last two, so it comes last, on the cells, as does the 1/3 of the mean: one pass over the
// image. Channels take turns over a band of rows, so that the nine rows of a channel that the blur looks at stay in the first
// cache. Bytes: the image once (halos of 6 rows a band twice), the cells.
#include "common/edges.h"
#include "common/parallel.h"

namespace camguide {
namespace {

struct Shape {
  int64_t height, width, rows, columns;  // of the image, of the cells

  int64_t band() const { return std::max<int64_t>(1, 64 * rows / height); }  // rows of cells
  int64_t bands() const { return (rows + band() - 1) / band(); }
  int64_t top(int64_t row) const { return row * height / rows; }
  int64_t bottom(int64_t row) const { return ((row + 1) * height + rows - 1) / rows; }
  int64_t left(int64_t column) const { return column * width / columns; }
  int64_t right(int64_t column) const { return ((column + 1) * width + columns - 1) / columns; }
};

template <class A>
struct Scratch {
  static constexpr int64_t pad = lanes<A>;
  int64_t n, pitch;
  EdgeRows<4, A> filter;
  Zeroed<A> square;   // [n]
  Zeroed<A> edges;    // [rows of a band and one around, pad + n + pad]
  Zeroed<A> column;   // [pad + n + pad]: maximum of three rows
  Zeroed<A> sum;      // [n]: dilated rows of a cell
  Zeroed<A> largest;  // [n]

  explicit Scratch(const Shape& s)
      : n(round_to_lanes<A>(s.width)),
        pitch(n + 2 * pad),
        filter(s.height, s.width, 3.0),
        square(n),
        edges((s.band() * s.height / s.rows + 4) * pitch),
        column(pitch),
        sum(n),
        largest(n) {}
};

// The rows [first, last) of cells of one image, not yet divided by the image's maximum; returns the maximum of what they see.
template <class A>
CAMGUIDE_MULTIVERSION A cells(const Shape& s, Scratch<A>& w, const Source<A>& image, float* to, int64_t first, int64_t last) {
  const int64_t y0 = std::max<int64_t>(s.top(first) - 1, 0), y1 = std::min(s.bottom(last - 1) + 1, s.height);
  const auto edges = [&](int64_t y) { return w.edges + ((y - y0) * w.pitch + w.pad); };
  for (int c = 0; c < 3; ++c) {
    w.filter.run(y0, y1, [&](int64_t y, A* row) { read_row(image + (c * s.height + y) * s.width, row, s.width); },
                 [&](int64_t, int64_t x, Vec<A> gx, Vec<A> gy) { store(w.square + x, gx * gx + gy * gy); }, [&](int64_t y) {
      const A* __restrict const square = w.square + 0;
      A* __restrict const row = edges(y);
      if (c == 0) {
        for (int64_t x = 0; x < w.n; ++x) row[x] = std::sqrt(square[x]);
      } else {
        for (int64_t x = 0; x < w.n; ++x) row[x] += std::sqrt(square[x]);
      }
    });
  }
  A* __restrict const column = w.column + w.pad;
  A* __restrict const sum = w.sum + 0;
  A* __restrict const largest = w.largest + 0;
  w.largest.clear();
  for (int64_t i = first; i < last; ++i) {
    w.sum.clear();
    for (int64_t y = s.top(i); y < s.bottom(i); ++y) {
      const A* __restrict const above = edges(std::max<int64_t>(y - 1, 0));
      const A* __restrict const here = edges(y);
      const A* __restrict const below = edges(std::min(y + 1, s.height - 1));
      for (int64_t x = 0; x < w.n; ++x) column[x] = std::max(std::max(above[x], below[x]), here[x]);
      replicate(column, s.width, 1);
      for (int64_t x = 0; x < w.n; ++x) {
        const A dilated = std::max(std::max(column[x - 1], column[x + 1]), column[x]);
        sum[x] += dilated;
        largest[x] = std::max(largest[x], dilated);
      }
    }
    for (int64_t j = 0; j < s.columns; ++j) {
      A cell = 0;
      for (int64_t x = s.left(j); x < s.right(j); ++x) cell += sum[x];
      const int64_t pixels = (s.bottom(i) - s.top(i)) * (s.right(j) - s.left(j));
      to[i * s.columns + j] = static_cast<float>(cell / static_cast<A>(pixels));
    }
  }
  return *std::max_element(largest, largest + s.width);
}

template <class A>
void support(const Shape& s, int64_t images, const Source<A>& image, float* to) {
  std::vector<A> largest(images * s.bands());
  for_each(largest.size(), [&] { return Scratch<A>(s); }, [&](int64_t i, Scratch<A>& scratch) {
    const int64_t b = i / s.bands(), first = i % s.bands() * s.band();
    largest[i] = cells<A>(s, scratch, image + b * 3 * s.height * s.width, to + b * s.rows * s.columns, first,
                          std::min(first + s.band(), s.rows));
  });
  const double least = 1e-12 * 3 * (image.type == ScalarType::Byte ? 255 : 1);  // these edges are sums, of channels in 0..255
  for (int64_t b = 0; b < images; ++b) {
    const auto of_bands = largest.begin() + b * s.bands();
    const double divisor = std::max<double>(*std::max_element(of_bands, of_bands + s.bands()), least);
    float* const cell = to + b * s.rows * s.columns;
    for (int64_t i = 0; i < s.rows * s.columns; ++i) cell[i] = static_cast<float>(cell[i] / divisor);
  }
}

Tensor edge_support(const Tensor& image, std::vector<int64_t> size) {
  const Tensor from = torch::stable::contiguous(image);
  const Shape shape{from.size(2), from.size(3), size[0], size[1]};
  Tensor result = torch::stable::new_empty(from, {from.size(0), 1, size[0], size[1]}, ScalarType::Float);
  float* const to = result.mutable_data_ptr<float>();
  with_image_sums(from, "image", [&]<class A>(A) { support(shape, from.size(0), source_of<A>(from), to); });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) { m.impl("edge_support", TORCH_BOX(&edge_support)); }

}  // namespace camguide
