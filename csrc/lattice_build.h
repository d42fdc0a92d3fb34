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

template <class A, int d>
struct TileWork {
  Simplices<d> simplices;
  TileVertices vertices;
};

// Fills in the corners and weights of a tile's pixels, and returns the keys of its vertices.
template <class A, int d>
CAMGUIDE_MULTIVERSION std::vector<int64_t> number_vertices(const Lattice<A>& l, const Embedding<d>& e, int64_t tile, int64_t n,
                                                           TileWork<A, d>& work) {
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
  A* weight = &l.weight[tile * Tiles::pixels * D];
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
      corner[k] = work.vertices.number(key);
      key += per_remainder - back[d - k];
    }
  }
  return work.vertices.keys();
}

// key -> the first of the tiles' rows that has it. Threads own shares of the keys, so that none waits for another.
class VertexTable {
 public:
  explicit VertexTable(const Buffer<int64_t>& keys)
      : keys_(keys.get()), shares_(torch::stable::get_num_threads()), first(keys.size()) {
    for_each(shares_.size(), [&](int64_t share) { fill(share, keys.size()); });
  }

  CAMGUIDE_INLINE void prefetch(uint64_t mixed) const {
    const auto& slots = shares_[share_of(mixed)];
    __builtin_prefetch(&slots[mixed & (slots.size() - 1)]);
  }
  // The row, or -1.
  CAMGUIDE_INLINE int64_t find(int64_t key, uint64_t mixed) const {
    const auto& slots = shares_[share_of(mixed)];
    for (uint64_t i = mixed;; ++i) {
      const int64_t row = int64_t(slots[i & (slots.size() - 1)]) - 1;
      if (row < 0 || keys_[row] == key) return row;
    }
  }

 private:
  CAMGUIDE_INLINE uint64_t share_of(uint64_t mixed) const { return (mixed >> 32) * shares_.size() >> 32; }

  void fill(uint64_t share, int64_t n) {
    int64_t own = 0;
    for (int64_t g = 0; g < n; ++g) own += share_of(mix(keys_[g])) == share;
    std::vector<uint32_t>& slots = shares_[share];
    slots.resize(std::bit_ceil<uint64_t>(own + own / 2 + 1));  // 0 is free; never full
    constexpr int64_t ahead = 16;
    for (int64_t g = 0; g < n; ++g) {
      if (const uint64_t soon = g + ahead < n ? mix(keys_[g + ahead]) : 0; share_of(soon) == share) {
        __builtin_prefetch(&slots[soon & (slots.size() - 1)]);
      }
      const uint64_t mixed = mix(keys_[g]);
      if (share_of(mixed) != share) continue;
      for (uint64_t i = mixed;; ++i) {
        uint32_t& slot = slots[i & (slots.size() - 1)];
        if (slot == 0) slot = static_cast<uint32_t>(g + 1);
        if (keys_[slot - 1] == keys_[g]) {
          first[g] = slot - 1;
          break;
        }
      }
    }
  }

  const int64_t* keys_;
  std::vector<std::vector<uint32_t>> shares_;  // row + 1

 public:
  Buffer<uint32_t> first;  // [G]: the first row with the same key
};

// Lays out the lines of each axis: chains of neighbours, found from the vertex where they begin.
template <class A, int d>
void lay_out_lines(Lattice<A>& l, const Embedding<d>& e, const VertexTable& table, const Buffer<int64_t>& keys) {
  constexpr int D = d + 1;
  constexpr int64_t block = 1024;
  constexpr uint32_t none = ~0u;
  const int64_t m = l.vertices;
  const Buffer<uint32_t> next(D * m);
  const Buffer<uint8_t> follows(D * m);  // whether a vertex is the next of another
  std::fill_n(follows.get(), D * m, 0);
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
          const int64_t row = table.find(keys[v + i] + step[axis], mixed[i][axis]);
          next[axis * m + v + i] = row < 0 ? none : l.vertex[row];
          if (row >= 0) std::atomic_ref(follows[axis * m + l.vertex[row]]).store(1, std::memory_order_relaxed);
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
      if (follows[axis * m + head] || next[axis * m + head] == none) continue;
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

// `fill(tile, feature)` writes the features of a tile's pixels, which lie within [low, high].
template <class A, int d, class F>
std::unique_ptr<const Lattice<A>> build_lattice(int64_t h, int64_t w, const float (&low)[d], const float (&high)[d], const F& fill) {
  const Embedding<d> e(low, high);
  const Tiles tiles(h, w);
  STD_TORCH_CHECK(h * w * (d + 1) < (int64_t(1) << 31), "dense_crf: an image of ", h, " x ", w, " pixels is too large");
  auto l = std::make_unique<Lattice<A>>(tiles, d + 1);

  std::vector<std::vector<int64_t>> tile_keys(tiles.count);
  for_each(tiles.count, [] { return std::make_unique<TileWork<A, d>>(); }, [&](int64_t tile, auto& work) {
    int64_t n = tiles.size(tile);
    fill(tile, work->simplices.feature);
    // pydensecrf takes four pixels at a time and fills up the last four with zero features: their vertices exist too. The last
    // tile is not full then.
    if (tile == tiles.count - 1 && h * w % 4 != 0) {
      for (auto& feature : work->simplices.feature) feature[n] = 0;
      ++n;
    }
    find_simplices<d>(e, n, work->simplices);
    tile_keys[tile] = number_vertices<A, d>(*l, e, tile, n, *work);
  });

  l->begin.resize(tiles.count + 1);
  for (int64_t t = 0; t < tiles.count; ++t) l->begin[t + 1] = l->begin[t] + static_cast<int64_t>(tile_keys[t].size());
  const int64_t rows = l->rows();
  const Buffer<int64_t> keys(rows);
  for_each(tiles.count, [&](int64_t t) { std::copy(tile_keys[t].begin(), tile_keys[t].end(), &keys[l->begin[t]]); });

  const VertexTable table(keys);
  l->vertex = Buffer<uint32_t>(rows);
  std::vector<uint32_t> copies;
  const Buffer<int64_t> vertex_keys(rows);
  for (int64_t g = 0; g < rows; ++g) {  // numbered as the tiles touch them
    if (table.first[g] == g) {
      l->vertex[g] = static_cast<uint32_t>(copies.size());
      vertex_keys[copies.size()] = keys[g];
      copies.push_back(0);
    } else {
      l->vertex[g] = l->vertex[table.first[g]];
    }
    ++copies[l->vertex[g]];
  }
  l->vertices = static_cast<int64_t>(copies.size());
  l->first_copy = Buffer<uint32_t>(l->vertices + 1);
  l->copy = Buffer<uint32_t>(rows);
  uint32_t sum = 0;
  for (int64_t v = 0; v < l->vertices; ++v) {
    l->first_copy[v] = sum;
    sum += copies[v];
    copies[v] = l->first_copy[v];
  }
  l->first_copy[l->vertices] = sum;
  for (int64_t g = 0; g < rows; ++g) l->copy[copies[l->vertex[g]]++] = static_cast<uint32_t>(g);

  lay_out_lines<A, d>(*l, e, table, vertex_keys);
  normalize(*l);
  return l;
}

}  // namespace camguide
