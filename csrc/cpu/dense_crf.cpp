// dense_crf, dense_crf_labels: mean field on permutohedral lattices, as pydensecrf; see camguide_fast/ops/dense_crf.py.
//
// The lattice of the image is built once a call, that of positions alone once a size of image. csrc/lattice_build.h,
// csrc/lattice.h and csrc/mean_field.h hold the steps.
#include <deque>
#include <mutex>
#include <optional>
#include <tuple>

#include "common/camguide.h"
#include "crf/lattice_build.h"
#include "crf/mean_field.h"

namespace camguide {
namespace {

struct Colours {
  Buffer<float> data;  // [3, H, W]
  float low[3], high[3];
};

Colours colours(const Tensor& image) {  // [3, H, W]
  const int64_t n = image.size(1) * image.size(2);
  Colours c{Buffer<float>(3 * n), {0, 0, 0}, {255, 255, 255}};
  if (image.scalar_type() == ScalarType::Byte) {
    const uint8_t* from = image.const_data_ptr<uint8_t>();
    for_each_block(3 * n, 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) c.data[i] = from[i];
    });
    return c;
  }
  const Tensor wide = torch::stable::to(image, ScalarType::Float);
  const float* from = wide.const_data_ptr<float>();
  for (int channel = 0; channel < 3; ++channel) {
    for (int64_t i = channel * n; i < (channel + 1) * n; ++i) {
      c.data[i] = from[i] * 255;
      if (!std::isfinite(c.data[i])) continue;
      c.low[channel] = std::min(c.low[channel], c.data[i]);
      c.high[channel] = std::max(c.high[channel], c.data[i]);
    }
  }
  return c;
}

void fill_positions(const Tiles& tiles, int64_t tile, float sx, float sy, float* x_feature, float* y_feature) {
  for (int64_t y = tiles.top(tile), p = 0; y < tiles.top(tile) + tiles.height(tile); ++y) {
    for (int64_t x = tiles.left(tile); x < tiles.left(tile) + tiles.width(tile); ++x, ++p) {
      x_feature[p] = float(x) / sx;
      y_feature[p] = float(y) / sy;
    }
  }
}

Lattice<float> build_gaussian(int64_t h, int64_t w, float sx, float sy) {
  const float low[2] = {0, 0}, high[2] = {float(w - 1) / sx, float(h - 1) / sy};
  return build_lattice<2>(
      h, w, low, high, [&](int64_t tile, auto& feature) { fill_positions(Tiles(h, w), tile, sx, sy, feature[0], feature[1]); });
}

Lattice<float> build_bilateral(int64_t h, int64_t w, const Colours& c, const float (&sigma)[5]) {
  float low[5] = {0, 0}, high[5] = {float(w - 1) / sigma[0], float(h - 1) / sigma[1]};
  for (int i = 0; i < 3; ++i) low[2 + i] = c.low[i] / sigma[2 + i], high[2 + i] = c.high[i] / sigma[2 + i];
  return build_lattice<5>(h, w, low, high, [&](int64_t tile, auto& feature) {
    const Tiles tiles(h, w);
    fill_positions(tiles, tile, sigma[0], sigma[1], feature[0], feature[1]);
    for (int channel = 0; channel < 3; ++channel) {
      float* out = feature[2 + channel];
      for (int64_t y = 0; y < tiles.height(tile); ++y) {
        const float* from = &c.data[(channel * h + tiles.top(tile) + y) * w + tiles.left(tile)];
        for (int64_t x = 0; x < tiles.width(tile); ++x) *out++ = from[x] / sigma[2 + channel];
      }
    }
  });
}

// It depends on the size of the image alone: the last four are kept.
template <class A>
std::shared_ptr<const Lattice<A>> gaussian_lattice(int64_t h, int64_t w, float sx, float sy) {
  using Key = std::tuple<int64_t, int64_t, float, float>;
  static std::mutex mutex;
  static std::deque<std::pair<Key, std::shared_ptr<const Lattice<A>>>> kept;
  const Key key(h, w, sx, sy);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [of, lattice] : kept) {
      if (of == key) return lattice;
    }
  }
  const auto lattice = normalize<A>(build_gaussian(h, w, sx, sy));
  const std::lock_guard<std::mutex> lock(mutex);
  kept.emplace_front(key, lattice);
  if (kept.size() > 4) kept.pop_back();
  return lattice;
}

// gaussian: (sx, sy, weight) for each term; bilateral: (sx, sy, sr, sg, sb, weight).
template <class A>
std::vector<Term<A>> build_terms(const Tensor& image, const std::vector<double>& gaussian,
                                 const std::vector<double>& bilateral) {
  const int64_t h = image.size(1), w = image.size(2);
  std::vector<Term<A>> terms;
  for (const double* g = gaussian.data(); g < gaussian.data() + gaussian.size(); g += 3) {
    terms.push_back({gaussian_lattice<A>(h, w, float(g[0]), float(g[1])), A(g[2])});
  }
  if (bilateral.empty()) return terms;
  const Colours c = colours(image);
  for (const double* b = bilateral.data(); b < bilateral.data() + bilateral.size(); b += 6) {
    const float sigma[5] = {float(b[0]), float(b[1]), float(b[2]), float(b[3]), float(b[4])};
    terms.push_back({normalize<A>(build_bilateral(h, w, c, sigma)), A(b[5])});
  }
  return terms;
}

// f(mean field of `labels` labels, with rows as wide as there are labels).
template <class A, class F>
void with_mean_field(const Tiles& tiles, int64_t labels, const std::vector<Term<A>>& terms, const F& f) {
  if (labels <= 4) {
    f(MeanField<A, std::min<int64_t>(4, lanes<A>)>(tiles, labels, terms));
  } else {
    f(MeanField<A, std::min<int64_t>(8, lanes<A>)>(tiles, labels, terms));
  }
}

// f(position among a tile's pixels, position in the image) for each row of the tile, and its length.
template <class F>
void for_each_row(const Tiles& tiles, int64_t tile, const F& f) {
  const int64_t width = tiles.width(tile);
  for (int64_t y = 0; y < tiles.height(tile); ++y) f(y * width, (tiles.top(tile) + y) * tiles.w + tiles.left(tile), width);
}

template <class A>
CAMGUIDE_MULTIVERSION void negative_log(A* p, int64_t n) {  // of p clipped to [1e-5, 1]; NaN stays
  constexpr A least = A(1e-5);
  for (int64_t i = 0; i < n; i += lanes<A>) {
    Vec<A> x = load(p + i);
    x = x < least ? Vec<A>{} + least : x;
    x = x > 1 ? Vec<A>{} + 1 : x;
    store(p + i, -log(x));
  }
}

template <class A>
void crf(const A* given, bool is_prob, const Tensor& image, int64_t labels, int64_t iterations,
         const std::vector<double>& gaussian, const std::vector<double>& bilateral, A* out) {
  const Tiles tiles(image.size(1), image.size(2));
  const int64_t plane = tiles.h * tiles.w;
  const auto terms = iterations > 0 ? build_terms<A>(image, gaussian, bilateral) : std::vector<Term<A>>();
  with_mean_field(tiles, labels, terms, [&](auto&& field) {
    field.set_unary([&](int64_t tile, int64_t label, A* energy) {
      const A* const from = given + label * plane;
      for_each_row(tiles, tile, [&](int64_t p, int64_t at, int64_t n) { std::copy_n(from + at, n, energy + p); });
      if (is_prob) negative_log(energy, tiles.size(tile));
    });
    field.run(iterations, [&](int64_t tile, int64_t label, const A* q, int64_t distance) {
      for_each_row(tiles, tile, [&](int64_t p, int64_t at, int64_t n) {
        for (int64_t x = 0; x < n; ++x) out[label * plane + at + x] = q[(p + x) * distance];
      });
    });
  });
}

Tensor dense_crf(const std::optional<Tensor>& prob, const Tensor& image, int64_t iterations,
                 const std::vector<double>& gaussian, const std::vector<double>& bilateral,
                 const std::optional<Tensor>& unary) {
  const Tensor& given = prob ? *prob : *unary;
  Tensor out = torch::stable::new_empty(given, given.sizes());
  const ScalarType type = given.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (int64_t b = 0; b < given.size(0); ++b) {
    const Tensor one = torch::stable::contiguous(torch::stable::to(torch::stable::select(given, 0, b), type));
    const Tensor its_image = torch::stable::contiguous(torch::stable::select(image, 0, b));
    Tensor at = torch::stable::select(out, 0, b);
    const Tensor q = given.scalar_type() == type ? at : torch::stable::new_empty(one, one.sizes());
    const auto run = [&]<class A>(A) {
      crf<A>(one.const_data_ptr<A>(), prob.has_value(), its_image, given.size(1), iterations, gaussian, bilateral,
             q.mutable_data_ptr<A>());
    };
    type == ScalarType::Double ? run(0.0) : run(0.0f);
    if (given.scalar_type() != type) torch::stable::copy_(at, q);
  }
  return out;
}

constexpr uint8_t kUnknown = 255;

// A label map by the numbers 0, 1, .. of the labels that are present.
struct Numbered {
  Buffer<uint8_t> pixels;  // kUnknown where the label is none of the num_labels
  std::vector<uint8_t> present;

  template <class T>
  Numbered(const T* labels, int64_t n, int64_t num_labels) : pixels(n) {
    uint8_t number[256] = {};
    const auto known = [&](T label) { return int64_t(label) >= 0 && int64_t(label) < num_labels; };
    for (int64_t i = 0; i < n; ++i) number[known(labels[i]) ? uint8_t(labels[i]) : kUnknown] = 1;
    for (int label = 0; label < kUnknown; ++label) {
      if (!number[label]) continue;
      number[label] = static_cast<uint8_t>(present.size());
      present.push_back(static_cast<uint8_t>(label));
    }
    number[kUnknown] = kUnknown;
    for (int64_t i = 0; i < n; ++i) pixels[i] = number[known(labels[i]) ? uint8_t(labels[i]) : kUnknown];
  }
};

// The numbers of two or more labels are replaced by those of the most probable ones.
void refine(Numbered& labels, const Tensor& image, double gt_prob, int64_t iterations, const std::vector<double>& gaussian,
            const std::vector<double>& bilateral) {
  const Tiles tiles(image.size(1), image.size(2));
  const int64_t n = static_cast<int64_t>(labels.present.size());
  const float right = -std::log(gt_prob), wrong = -std::log((1 - gt_prob) / (n - 1)), none = std::log(double(n));
  const auto terms = iterations > 0 ? build_terms<float>(image, gaussian, bilateral) : std::vector<Term<float>>();
  uint8_t* const pixels = labels.pixels;
  with_mean_field(tiles, n, terms, [&](auto&& field) {
    field.set_unary([&](int64_t tile, int64_t label, float* energy) {
      for_each_row(tiles, tile, [&](int64_t p, int64_t at, int64_t width) {
        for (int64_t x = 0; x < width; ++x) {
          const uint8_t given = pixels[at + x];
          energy[p + x] = given == kUnknown ? none : given == label ? right : wrong;
        }
      });
    });
    const Buffer<float> greatest(tiles.count * Tiles::pixels);
    field.run(iterations, [&](int64_t tile, int64_t label, const float* q, int64_t distance) {
      float* const best = &greatest[tile * Tiles::pixels];
      for_each_row(tiles, tile, [&](int64_t p, int64_t at, int64_t width) {
        for (int64_t x = 0; x < width; ++x) {
          const float candidate = q[(p + x) * distance];
          if (label > 0 && !(candidate > best[p + x])) continue;
          best[p + x] = candidate;
          pixels[at + x] = static_cast<uint8_t>(label);
        }
      });
    });
  });
}

Tensor dense_crf_labels(const Tensor& labels, const Tensor& image, int64_t num_labels, double gt_prob, int64_t iterations,
                        const std::vector<double>& gaussian, const std::vector<double>& bilateral) {
  const Tensor from = torch::stable::contiguous(labels);
  Tensor out = torch::stable::new_empty(labels, labels.sizes());
  const int64_t plane = labels.size(1) * labels.size(2);
  with_integers(from, "labels", [&]<class T>(const T* given) {
    T* to = out.mutable_data_ptr<T>();
    for (int64_t b = 0; b < labels.size(0); ++b, given += plane, to += plane) {
      Numbered numbered(given, plane, num_labels);
      const std::vector<uint8_t>& present = numbered.present;
      if (present.size() >= 2) {
        const Tensor its_image = torch::stable::contiguous(torch::stable::select(image, 0, b));
        refine(numbered, its_image, gt_prob, iterations, gaussian, bilateral);
      } else if (present.size() == 1) {
        std::fill_n(+numbered.pixels, plane, uint8_t(0));
      }
      for (int64_t i = 0; i < plane; ++i) {
        to[i] = numbered.pixels[i] == kUnknown ? given[i] : static_cast<T>(present[numbered.pixels[i]]);
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(camguide_fast, CPU, m) {
  m.impl("dense_crf", TORCH_BOX(&dense_crf));
  m.impl("dense_crf_labels", TORCH_BOX(&dense_crf_labels));
}

}  // namespace camguide
