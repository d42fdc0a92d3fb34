// label_closing: binary closing of each class, new pixels on background alone; see camguide_fast/ops/label_closing.py.
//
// A class is closed as a bit plane, in the rectangle that its closing cannot leave.
#include <array>
#include <unordered_map>

#include "../bit_planes.h"
#include "../camguide.h"
#include "../parallel.h"

namespace camguide {
namespace {

template <class T>
struct Class {
  T label;
  int64_t top, bottom, left, right;  // of its pixels, all included
};

// The classes of a map in ascending order.
template <class T>
class Classes {
 public:
  CAMGUIDE_INLINE void scan(const T* labels, int64_t h, int64_t w) {
    constexpr int64_t block = 32;
    for (int64_t y = 0; y < h; ++y, labels += w) {
      for (int64_t x = 0; x < w;) {
        const int64_t begin = x;
        const T label = labels[x];
        for (T differs = 0; x + block <= w; x += block) {  // label maps are made of runs
          for (int64_t i = 0; i < block; ++i) differs |= labels[x + i] ^ label;
          if (differs) break;
        }
        while (x < w && labels[x] == label) ++x;
        add(label, y, begin, x - 1);
      }
    }
  }

  std::vector<Class<T>> sorted() {
    std::sort(found_.begin(), found_.end(), [](const auto& a, const auto& b) { return a.label < b.label; });
    return std::move(found_);
  }

 private:
  void add(T label, int64_t y, int64_t left, int64_t right) {
    int32_t& at = 0 <= label && label < 256 ? small_[static_cast<uint8_t>(label)] : large_[label];
    if (at == 0) {
      found_.push_back({label, y, y, left, right});
      at = static_cast<int32_t>(found_.size());
      return;
    }
    Class<T>& c = found_[at - 1];
    c.bottom = y;
    c.left = std::min(c.left, left);
    c.right = std::max(c.right, right);
  }

  std::vector<Class<T>> found_;
  std::array<int32_t, 256> small_{};  // place + 1
  std::unordered_map<T, int32_t> large_;
};

template <class T>
CAMGUIDE_MULTIVERSION void close(const T* labels, int64_t h, int64_t w, int64_t radius, int64_t background, int64_t ignore,
                                 T* out) {
  std::copy_n(labels, h * w, out);
  Classes<T> classes;
  classes.scan(labels, h, w);
  const Area image{0, h, 0, (w + 63) / 64, w};
  std::vector<Word> free(h * image.columns());
  if (static_cast<T>(background) == background) pack(labels, static_cast<T>(background), image, free.data());
  for (const Class<T>& c : classes.sorted()) {  // a pixel claimed twice goes to the smallest label
    if (c.label == background || c.label == ignore) continue;
    // A closing stays within `radius` of its class, and one more keeps the outside of this area out of the erosion.
    const int64_t apart = radius + 1;
    const Area area{std::max<int64_t>(0, c.top - apart), std::min(h, c.bottom + apart + 1),
                    std::max<int64_t>(0, c.left - apart) / 64, std::min(image.last, (c.right + apart) / 64 + 1), w};
    std::vector<Word> plane(area.rows() * area.columns());
    pack(labels, c.label, area, plane.data());
    Dilation dilation(area, radius);
    dilation.run(plane.data(), area, false);
    dilation.run(plane.data(), area, true);
    for (int64_t column = 0; column < area.columns(); ++column) {
      for (int64_t row = 0; row < area.rows(); ++row) {
        Word& open = free[(area.first + column) * h + area.top + row];
        Word fresh = open & plane[column * area.rows() + row];
        open ^= fresh;
        for (T* at = out + (area.top + row) * w + 64 * (area.first + column); fresh; fresh &= fresh - 1) {
          at[__builtin_ctzll(fresh)] = c.label;
        }
      }
    }
  }
}

Tensor label_closing(const Tensor& labels, int64_t kernel_size, int64_t background, int64_t ignore) {
  const Tensor from = torch::stable::contiguous(labels);
  Tensor out = torch::stable::new_empty(labels, labels.sizes());
  const int64_t h = labels.size(1), w = labels.size(2);
  const int64_t radius = std::min(kernel_size / 2, std::max(h, w));
  with_labels(from, "labels", [&]<class T>(const T* data) {
    T* const to = out.mutable_data_ptr<T>();
    for_each(labels.size(0), [&](int64_t b) { close(data + b * h * w, h, w, radius, background, ignore, to + b * h * w); });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("label_closing", TORCH_BOX(&label_closing));
}

}  // namespace camguide
