// label_closing, label_morphology: binary morphology of each class of a label map; see camguide_fast/ops/label_closing.py.
//
// An image is worked on in strips, which read as many rows beyond their own as the squares reach: strips that share no result
// keep all threads at work, and their planes stay in the cache. Within a strip each class is a bit plane, in the rectangle that
// it cannot leave.
#include <string>

#include "common/camguide.h"
#include "labels/label_tiles.h"
#include "common/parallel.h"

namespace camguide {
namespace {

struct Operation {
  bool grows;      // writes classes on background; otherwise background on classes
  int64_t passes;  // dilations and erosions in turn
  bool erodes_first;
};

constexpr Operation kClosing{true, 2, false};

Operation operation_of(const std::string& name) {
  if (name == "dilation") return {true, 1, false};
  if (name == "erosion") return {false, 1, true};
  if (name == "opening") return {false, 2, true};
  STD_TORCH_CHECK(false, "operation must be opening, erosion or dilation");
}

// A label map and what becomes of it, uint8, int32 or int64. Which of them is asked by those who read or write labels: the planes
// of bits are the same for all.
struct Maps {
  const void* labels;
  void* out;
  ScalarType type;

  // f(labels, out)
  template <class F>
  CAMGUIDE_INLINE void typed(const F& f) const {
    if (type == ScalarType::Byte) return f(static_cast<const uint8_t*>(labels), static_cast<uint8_t*>(out));
    if (type == ScalarType::Int) return f(static_cast<const int32_t*>(labels), static_cast<int32_t*>(out));
    f(static_cast<const int64_t*>(labels), static_cast<int64_t*>(out));
  }
};

// The tiles of `rows` rows of pixels from pixel `at` on.
CAMGUIDE_MULTIVERSION __attribute__((noinline)) void scan(const Maps& maps, int64_t at, int64_t rows, int64_t w, int64_t ignore,
                                                          LabelTiles& tiles) {
  maps.typed([&](const auto* labels, auto*) __attribute__((always_inline)) { tiles.scan(labels + at, rows, w, ignore); });
}

// out <- label where `bits` are set: eight rows of a vector of columns, from pixel `at` on.
CAMGUIDE_MULTIVERSION __attribute__((noinline)) void write(const Bytes& bits, int64_t label, const Maps& maps, int64_t at,
                                                           int64_t stride, int64_t columns) {
  const int rows = any(bits);
  alignas(64) uint8_t bit[lanes<uint8_t>];
  store(bit, bits);
  maps.typed([&]<class T>(const T*, T* out) __attribute__((always_inline)) {
    for (int64_t i = 0; i < 8; ++i) {
      if (!(rows >> i & 1)) continue;
      T* const to = out + at + i * stride;
      if (columns >= lanes<uint8_t>) {
        for (int64_t x = 0; x < lanes<uint8_t>; ++x) to[x] = bit[x] >> i & 1 ? static_cast<T>(label) : to[x];
      } else {
        for (int64_t x = 0; x < columns; ++x) to[x] = bit[x] >> i & 1 ? static_cast<T>(label) : to[x];
      }
    }
  });
}

// The rows [begin, end) of the image of h rows that begins at pixel `image`; strips begin at multiples of eight.
CAMGUIDE_MULTIVERSION void apply(const Maps& maps, int64_t image, int64_t h, int64_t w, int64_t begin, int64_t end,
                                 Operation operation, int64_t radius, int64_t background, int64_t ignore) {
  const int64_t reach = operation.passes * radius;
  const int64_t top = std::max<int64_t>(0, begin - reach) / 8 * 8, rows = std::min(h, end + reach) - top;
  const int64_t first = image + begin * w;
  maps.typed([&](const auto* labels, auto* out) { std::copy_n(labels + first, (end - begin) * w, out + first); });
  LabelTiles tiles;
  scan(maps, image + top * w, rows, w, ignore, tiles);
  const int64_t above = begin - top;
  Plane open(end - begin, w);  // what growing classes may take, or what shrinking ones have not kept
  for (const auto& c : tiles.classes()) {
    if ((c.label == background) != operation.grows) continue;
    tiles.for_each_tile(c, [&](const auto& tile) __attribute__((always_inline)) {
      const int64_t row = tile.row - above;
      if (0 <= row && row < end - begin) open.add(load(tile.bits), row, tile.column);
    });
  }
  for (const auto& c : tiles.classes()) {  // ascending: a pixel claimed twice goes to the smallest label
    if (c.label == background) continue;
    // A growing class stays within `radius` of itself; one more keeps the outside of this area out of an erosion.
    const int64_t apart = operation.grows ? radius + 1 : 1;
    const Area area{std::max<int64_t>(0, c.area.top - apart) / 8 * 8, std::min(rows, c.area.bottom + apart),
                    std::max<int64_t>(0, c.area.left - apart), std::min(w, c.area.right + apart)};
    const int64_t down = std::min(radius, area.rows()), right = std::min(radius, area.columns());
    int64_t left = operation.passes;  // each takes its share of the plane's offset
    Plane plane(area.rows() + left * down, area.columns() + left * right);
    tiles.for_each_tile(c, [&](const auto& tile) __attribute__((always_inline)) {
      plane.add(load(tile.bits), tile.row - area.top + left * down, tile.column - area.left + left * right);
    });
    for (bool erodes = operation.erodes_first; left > 0; erodes = !erodes) {
      if (erodes) plane.flip(area.rows(), area.columns(), left * down, left * right);  // of what is not there: a dilation
      plane.smear(2 * down + 1, 2 * right + 1);
      --left;
      if (erodes) plane.flip(area.rows(), area.columns(), left * down, left * right);
    }
    const int64_t bottom = std::min(area.bottom, end - top);
    for (int64_t y = std::max(area.top, above); y < bottom; y += 8) {
      for (int64_t x = 0; x < area.columns(); x += lanes<uint8_t>) {
        uint8_t* const at = open.block((y - above) / 8) + area.left + x;
        const Bytes free = load(at), taken = free & load(plane.block((y - area.top) / 8) + x);
        if (!any(taken)) continue;
        store(at, free ^ taken);
        if (operation.grows) write(taken, c.label, maps, first + (y - above) * w + area.left + x, w, area.columns() - x);
      }
    }
  }
  if (operation.grows) return;
  for (int64_t y = 0; y < end - begin; y += 8) {
    for (int64_t x = 0; x < w; x += lanes<uint8_t>) {
      const Bytes lost = load(open.block(y / 8) + x);
      if (any(lost)) write(lost, background, maps, first + y * w + x, w, w - x);
    }
  }
}

Tensor transform(const Tensor& labels, Operation operation, int64_t kernel_size, int64_t background, int64_t ignore) {
  const Tensor from = torch::stable::contiguous(labels);
  Tensor out = torch::stable::new_empty(labels, labels.sizes());
  const int64_t h = labels.size(1), w = labels.size(2);
  const int64_t radius = std::min(kernel_size / 2, std::max(h, w));
  const int64_t strip = std::max<int64_t>(128, 8 * operation.passes * radius), strips = (h + strip - 1) / strip;
  with_labels(from, "labels", [](auto*) {});  // or they are of no type that Maps knows
  const Maps maps{from.const_data_ptr(), out.mutable_data_ptr(), from.scalar_type()};
  for_each(labels.size(0) * strips, [&](int64_t i) {
    const int64_t begin = i % strips * strip;
    apply(maps, i / strips * h * w, h, w, begin, std::min(h, begin + strip), operation, radius, background, ignore);
  });
  return out;
}

Tensor label_closing(const Tensor& labels, int64_t kernel_size, int64_t background, int64_t ignore) {
  return transform(labels, kClosing, kernel_size, background, ignore);
}

Tensor label_morphology(const Tensor& labels, std::string operation, int64_t kernel_size, int64_t background, int64_t ignore) {
  return transform(labels, operation_of(operation), kernel_size, background, ignore);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("label_closing", TORCH_BOX(&label_closing));
  m.impl("label_morphology", TORCH_BOX(&label_morphology));
}

}  // namespace camguide
