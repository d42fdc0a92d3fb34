// A label map as bit planes of its classes, in tiles: eight rows of a vector of columns. Few labels meet in a tile, so the tiles
// of all classes together take about one pass over the map, however many classes there are.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "bit_planes.h"

namespace camguide {

class LabelTiles {
 public:
  static constexpr int64_t kWide = lanes<uint8_t>;

  struct Tile {
    int32_t row, column, previous;  // of its first pixel; the tile before it of the same class, or -1
    uint8_t bits[kWide];            // as in a Plane
  };
  struct Class {
    int64_t label;
    int32_t last;  // of its tiles
    Area area;     // of its tiles
  };

  // Once: the tiles of all pixels but those labelled `ignore`.
  template <class T>
  CAMGUIDE_INLINE void scan(const T* labels, int64_t height, int64_t width, int64_t ignore) {
    T edge[8 * kWide] = {};
    for (int64_t row = 0; row < height; row += 8) {
      const int64_t rows = std::min<int64_t>(8, height - row);
      for (int64_t column = 0; column < width; column += kWide) {
        const int64_t columns = std::min(kWide, width - column);
        const T* const at = labels + row * width + column;
        if (rows == 8 && columns == kWide) {
          split(at, width, row, column, splat(0xff), ignore);
          continue;
        }
        alignas(64) uint8_t inside[kWide] = {};
        std::fill_n(inside, columns, static_cast<uint8_t>((1 << rows) - 1));
        for (int64_t i = 0; i < rows; ++i) std::copy_n(at + i * width, columns, edge + i * kWide);
        split(edge, kWide, row, column, load(inside), ignore);
      }
    }
    std::sort(classes_.begin(), classes_.end(), [](const Class& a, const Class& b) { return a.label < b.label; });
  }

  // In the order of labels.
  const std::vector<Class>& classes() const { return classes_; }

  // f(tile) for the tiles of a class.
  template <class F>
  CAMGUIDE_INLINE void for_each_tile(const Class& c, const F& f) const {
    for (int32_t i = c.last; i >= 0; i = tiles_[i].previous) f(tiles_[i]);
  }

 private:
  template <class T>
  CAMGUIDE_INLINE void split(const T* at, int64_t stride, int64_t row, int64_t column, Bytes rest, int64_t ignore) {
    for (int64_t first; (first = first_bit(rest)) >= 0;) {
      const T label = at[first % 8 * stride + first / 8];
      Bytes bits{};
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) bits |= equal(at + i * stride, label) & splat(1 << i);
      bits &= rest;
      rest ^= bits;
      if (label != ignore) add(label, row, column, bits);
    }
  }

  // The first bit that is set, 8 * byte + bit, or -1.
  static CAMGUIDE_INLINE int64_t first_bit(Bytes v) {
    const auto w = reinterpret_cast<Vec<uint64_t>>(v);
    for (int64_t i = 0; i < lanes<uint64_t>; ++i) {
      if (w[i]) return 64 * i + __builtin_ctzll(w[i]);
    }
    return -1;
  }

  template <class T>
  static CAMGUIDE_INLINE Bytes equal(const T* at, T label) {
    if constexpr (sizeof(T) == 1) {
      return reinterpret_cast<Bytes>(load(at) == splat(label));
    } else {
      alignas(64) uint8_t same[kWide];
      for (int64_t x = 0; x < kWide; ++x) same[x] = at[x] == label ? 0xff : 0;
      return load(same);
    }
  }

  CAMGUIDE_INLINE void add(int64_t label, int64_t row, int64_t column, Bytes bits) {
    int32_t& place = 0 <= label && label < 256 ? small_[static_cast<uint8_t>(label)] : large_[label];
    if (place == 0) {
      classes_.push_back({label, -1, {row, 0, column, 0}});
      place = static_cast<int32_t>(classes_.size());
    }
    Class& c = classes_[place - 1];
    c.area = {c.area.top, row + 8, std::min(c.area.left, column), std::max(c.area.right, column + kWide)};
    Tile& tile = tiles_.emplace_back();
    tile.row = static_cast<int32_t>(row);
    tile.column = static_cast<int32_t>(column);
    tile.previous = c.last;
    store(tile.bits, bits);
    c.last = static_cast<int32_t>(tiles_.size()) - 1;
  }

  std::vector<Tile> tiles_;
  std::vector<Class> classes_;
  std::array<int32_t, 256> small_{};  // place in classes_, + 1
  std::unordered_map<int64_t, int32_t> large_;
};

}  // namespace camguide
