// The lattice of an image: each tile numbers its own vertices, the tiles' lists are joined in one table, and the lines of the
// lattice are laid out once for all blurs to come.
#pragma once

#include <bit>

#include "lattice.h"

namespace camguide {

CAMGUIDE_INLINE uint64_t mix(int64_t key) {
  uint64_t x = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

// Numbers the vertices of one tile in the order in which its pixels touch them.
class TileVertices {
 public:
  void clear() {
    std::fill_n(slot_, slots, 0);
    count_ = 0;
  }
  CAMGUIDE_INLINE uint16_t number(int64_t key) {
    for (uint64_t i = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> 50;; i = (i + 1) % slots) {
      if (slot_[i] == 0) {
        key_[count_] = key;
        return static_cast<uint16_t>((slot_[i] = static_cast<uint16_t>(++count_)) - 1);
      }
      if (key_[slot_[i] - 1] == key) return static_cast<uint16_t>(slot_[i] - 1);
    }
  }
  std::vector<int64_t> keys() const { return {key_, key_ + count_}; }

 private:
  static constexpr uint64_t slots = 1 << 14;  // more than twice the corners of all pixels
  static_assert(slots > 2 * 6 * Tiles::pixels);
  uint16_t slot_[slots];  // number + 1
  int64_t key_[6 * Tiles::pixels], count_;
};

template <int d>
struct TileWork {
  Simplices<d> simplices;
  TileVertices vertices;
};

// Fills in the corners and weights of a tile's pixels, and returns the keys of its vertices.
template <int d>
CAMGUIDE_MULTIVERSION std::vector<int64_t> number_vertices(const Lattice<float>& l, const Embedding<d>& e, int64_t tile,
                                                           int64_t n, TileWork<d>& work) {
  constexpr int D = d + 1;
  const Simplices<d>& s = work.simplices;
  work.vertices.clear();
  int64_t low = 0, per_remainder = 0, around[D];
  for (int i = 0; i < d; ++i) {
    low += e.low[i] * e.stride[i];
    per_remainder += e.stride[i];
    around[i] = D * e.stride[i];
  }
  around[d] = 0;
  uint16_t* corner = &l.corner[tile * Tiles::pixels * D];
  float* weight = &l.weight[tile * Tiles::pixels * D];
  int64_t last_base = 0;
  int32_t last_ranks = -1;
  for (int64_t p = 0; p < n; ++p, corner += D, weight += D) {
    for (int k = 0; k < D; ++k) weight[k] = s.weight[k][p];
    int64_t key = -low;
    for (int i = 0; i < d; ++i) key += s.corner[i][p] * e.stride[i];
    const int32_t ranks = s.ranks[p];
    if (ranks == last_ranks && key == last_base) {  // the simplex of the pixel before
      for (int k = 0; k < D; ++k) corner[k] = corner[k - D];
      continue;
    }
    last_ranks = ranks;
    last_base = key;
    int64_t back[8];  // by rank
    for (int i = 0; i < D; ++i) back[(ranks >> (3 * i)) & 7] = around[i];
    for (int k = 0; k < D; ++k) {
      corner[k] = 4 * work.vertices.number(key);
      key += per_remainder - back[d - k];
    }
  }
  return work.vertices.keys();
}

// Keys of vertices -> numbers. Threads own shares of the keys, so that none waits for another.
class VertexTable {
 public:
  // `keys` of the tiles' rows; first[g] is the first row with the key of row g.
  VertexTable(const Buffer<int64_t>& keys, const Buffer<uint32_t>& first) : shares_(threads_at_hand()) {
    for_each(shares_.size(), [&](int64_t share) { fill(share, keys, first); });
  }

  // From here on the table gives vertex[row] in place of the row.
  void number(const Buffer<uint32_t>& vertex) {
    for_each(shares_.size(), [&](int64_t share) {
      for (Slot& slot : shares_[share]) slot.number = slot.number == none ? none : vertex[slot.number];
    });
  }

  static constexpr uint32_t none = ~0u;

  CAMGUIDE_INLINE void prefetch(uint64_t mixed) const {
    const auto& slots = shares_[share_of(mixed)];
    __builtin_prefetch(&slots[mixed & (slots.size() - 1)]);
  }
  CAMGUIDE_INLINE uint32_t find(int64_t key, uint64_t mixed) const {
    const auto& slots = shares_[share_of(mixed)];
    const uint64_t mask = slots.size() - 1;
    uint64_t i = mixed & mask;
    while ((slots[i].key != key) & (slots[i].number != none)) i = (i + 1) & mask;
    return slots[i].number;  // a free slot's is `none`
  }

 private:
  struct Slot {
    int64_t key = -1;  // of no vertex
    uint32_t number = none;
  };

  CAMGUIDE_INLINE uint64_t share_of(uint64_t mixed) const { return (mixed >> 32) * shares_.size() >> 32; }

  void fill(uint64_t share, const Buffer<int64_t>& keys, const Buffer<uint32_t>& first) {
    const int64_t n = keys.size();
    std::vector<Slot>& slots = shares_[share];
    slots.resize(256);
    int64_t used = 0;
    constexpr int64_t ahead = 16;
    for (int64_t g = 0; g < n; ++g) {
      const uint64_t mixed = mix(keys[g]);
      if (g + ahead < n) {
        if (const uint64_t soon = mix(keys[g + ahead]); share_of(soon) == share) prefetch(soon);
      }
      if (share_of(mixed) != share) continue;
      const uint64_t mask = slots.size() - 1;
      uint64_t i = mixed & mask;
      while ((slots[i].key != keys[g]) & (slots[i].number != none)) i = (i + 1) & mask;
      if (slots[i].number == none) {
        slots[i] = {keys[g], static_cast<uint32_t>(g)};
        first[g] = static_cast<uint32_t>(g);
        if (2 * ++used > static_cast<int64_t>(slots.size())) grow(slots);
      } else {
        first[g] = slots[i].number;
      }
    }
  }

  static void grow(std::vector<Slot>& slots) {
    std::vector<Slot> larger(4 * slots.size());
    const uint64_t mask = larger.size() - 1;
    for (const Slot& slot : slots) {
      if (slot.number == none) continue;
      uint64_t i = mix(slot.key) & mask;
      while (larger[i].number != none) i = (i + 1) & mask;
      larger[i] = slot;
    }
    slots.swap(larger);
  }

  std::vector<std::vector<Slot>> shares_;
};

// Lays out the lines of each axis: chains of neighbours, found from the vertex where they begin.
template <int d>
void lay_out_lines(Lattice<float>& l, const Embedding<d>& e, const VertexTable& table, const Buffer<int64_t>& keys) {
  constexpr int D = d + 1;
  constexpr int64_t block = 1024;
  constexpr uint32_t none = VertexTable::none;
  const int64_t m = l.vertices;
  const Buffer<uint32_t> next(D * m);
  const Buffer<uint8_t> follows(D * (m + 1));  // whether a vertex is the next of another; one more where there is none
  std::fill_n(follows.get(), follows.size(), 0);
  int64_t step[D];
  for (int axis = 0; axis < D; ++axis) step[axis] = e.step(axis);
  for_each_block(m, block, [&](int64_t begin, int64_t end) {
    constexpr int64_t batch = 8;
    for (int64_t v = begin; v < end; v += batch) {
      uint64_t mixed[batch][D];
      const int64_t n = std::min(batch, end - v);
      for (int64_t i = 0; i < n; ++i) {
        for (int axis = 0; axis < D; ++axis) table.prefetch(mixed[i][axis] = mix(keys[v + i] + step[axis]));
      }
      for (int64_t i = 0; i < n; ++i) {
        for (int axis = 0; axis < D; ++axis) {
          const uint32_t found = table.find(keys[v + i] + step[axis], mixed[i][axis]);
          next[axis * m + v + i] = found;
          std::atomic_ref(follows[axis * (m + 1) + std::min<int64_t>(found, m)]).store(1, std::memory_order_relaxed);
        }
      }
    }
  });
  const int64_t blocks = (m + 4 * block - 1) / (4 * block);
  for (int axis = 0; axis < D; ++axis) l.lines[axis].resize(blocks);
  for_each(D * blocks, [&](int64_t i) {
    const int64_t axis = i / blocks, begin = i % blocks * 4 * block;
    std::vector<uint32_t>& line = l.lines[axis][i % blocks];
    for (int64_t head = begin; head < std::min(m, begin + 4 * block); ++head) {
      if (follows[axis * (m + 1) + head] || next[axis * m + head] == none) continue;
      for (uint32_t v = static_cast<uint32_t>(head); v != none;) {
        const uint32_t after = next[axis * m + v];
        line.push_back(2 * v + (after != none));
        v = after;
      }
    }
    if (!line.empty()) line.push_back(line.back());
    line.shrink_to_fit();
  });
}

// The lattice, not normalised yet. `fill(tile, feature)` writes the features of a tile's pixels, which lie within [low, high].
template <int d, class F>
Lattice<float> build_lattice(int64_t h, int64_t w, const float (&low)[d], const float (&high)[d], const F& fill) {
  const Embedding<d> e(low, high);
  const Tiles tiles(h, w);
  STD_TORCH_CHECK(h * w * (d + 1) < (int64_t(1) << 31), "dense_crf: an image of ", h, " x ", w, " pixels is too large");
  Lattice<float> l(tiles, d + 1);

  std::vector<std::vector<int64_t>> tile_keys(tiles.count);
  for_each(tiles.count, [] { return std::make_unique<TileWork<d>>(); }, [&](int64_t tile, auto& work) {
    int64_t n = tiles.size(tile);
    fill(tile, work->simplices.feature);
    // pydensecrf takes four pixels at a time and fills up the last four with zero features: their vertices exist too. The last
    // tile is not full then.
    if (tile == tiles.count - 1 && h * w % 4 != 0) {
      for (auto& feature : work->simplices.feature) feature[n] = 0;
      ++n;
    }
    find_simplices<d>(e, n, work->simplices);
    tile_keys[tile] = number_vertices<d>(l, e, tile, n, *work);
  });

  l.begin.resize(tiles.count + 1);
  for (int64_t t = 0; t < tiles.count; ++t) l.begin[t + 1] = l.begin[t] + static_cast<int64_t>(tile_keys[t].size());
  const int64_t rows = l.rows();
  const Buffer<int64_t> keys(rows);
  for_each(tiles.count, [&](int64_t t) { std::copy(tile_keys[t].begin(), tile_keys[t].end(), &keys[l.begin[t]]); });

  const Buffer<uint32_t> first(rows);
  VertexTable table(keys, first);
  l.vertex = Buffer<uint32_t>(rows);
  std::vector<uint32_t> copies;
  const Buffer<int64_t> vertex_keys(rows);
  for (int64_t g = 0; g < rows; ++g) {  // numbered as the tiles touch them
    if (first[g] == g) {
      l.vertex[g] = static_cast<uint32_t>(copies.size());
      vertex_keys[copies.size()] = keys[g];
      copies.push_back(0);
    } else {
      l.vertex[g] = l.vertex[first[g]];
    }
    ++copies[l.vertex[g]];
  }
  l.vertices = static_cast<int64_t>(copies.size());
  l.first_copy = Buffer<uint32_t>(l.vertices + 1);
  l.copy = Buffer<uint32_t>(rows);
  uint32_t sum = 0;
  for (int64_t v = 0; v < l.vertices; ++v) {
    l.first_copy[v] = sum;
    sum += copies[v];
    copies[v] = l.first_copy[v];
  }
  l.first_copy[l.vertices] = sum;
  for (int64_t g = 0; g < rows; ++g) {
    const uint32_t v = l.vertex[g], i = copies[v]++;
    l.copy[i] = static_cast<uint32_t>(2 * g) + (i + 1 < l.first_copy[v + 1]);
  }

  table.number(l.vertex);
  lay_out_lines<d>(l, e, table, vertex_keys);
  return l;
}

}  // namespace camguide
