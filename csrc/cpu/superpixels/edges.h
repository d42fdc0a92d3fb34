// Which superpixels are 4-neighbours: sorted neighbour lists (CSR) from a label map.
#pragma once

#include "../common/bits.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace camguide {
namespace {

struct Edge {
  int32_t low, high;

  bool operator==(const Edge& other) const = default;
};

// Edges as they are met. Two superpixels touch at many pixels: a table of recent edges drops most repetitions.
class Edges {
 public:
  std::vector<Edge> list;

  Edges() : recent_(kSlots, {-1, -1}) {}

  CAMGUIDE_INLINE void add(int32_t s, int32_t t) {
    const Edge edge{std::min(s, t), std::max(s, t)};
    Edge& slot = recent_[(static_cast<uint32_t>(edge.low) * 2654435761u + static_cast<uint32_t>(edge.high)) % kSlots];
    if (slot == edge) return;
    list.push_back(slot = edge);
  }

 private:
  static constexpr uint32_t kSlots = 1024;
  std::vector<Edge> recent_;
};

// What pixels [begin, end) of the raster have to their left and above them: of the pixels along which two runs of equal label
// touch the first, and no pair that the row above has at the same place.
CAMGUIDE_MULTIVERSION void find_edges(const int32_t* labels, int64_t width, int64_t begin, int64_t end, Edges& edges) {
  for (int64_t i = begin, n; i < end; i += n) {
    n = std::min<int64_t>(64, std::min(end, (i / width + 1) * width) - i);  // within a row
    const bool has_left = i % width != 0;
    const uint64_t inner = has_left ? ~uint64_t{0} : ~uint64_t{1};
    const int64_t unread = i == 0 || i == width;  // before it, or before the pixel above it, the memory begins
    const auto changes_of = [&](const int32_t* row) {
      return bits_of(n - unread, [from = row + unread](int64_t j) { return from[j] != from[j - 1]; }) << unread & inner;
    };
    const int32_t* const at = labels + i;
    const uint64_t changes = changes_of(at);
    const auto add_left = [&](int64_t j) { edges.add(at[j - 1], at[j]); };
    if (i < width) {
      each_bit(changes, add_left);
      continue;
    }
    const int32_t* const above = at - width;
    const uint64_t differ = bits_of(n, [&](int64_t j) { return at[j] != above[j]; });
    const uint64_t differ_left = differ << 1 | (has_left && at[-1] != above[-1]);
    each_bit(changes & (differ | differ_left), add_left);
    each_bit(differ & (changes | changes_of(above) | ~inner), [&](int64_t j) { edges.add(above[j], at[j]); });
  }
}

// Sorts by one of the two ends, keeping the order of those that share it.
void sort_by(int32_t Edge::* key, int64_t n, const std::vector<Edge>& from, std::vector<Edge>& to) {
  std::vector<int32_t> place(n + 1);
  for (const Edge& e : from) ++place[e.*key + 1];
  for (int64_t s = 0; s < n; ++s) place[s + 1] += place[s];
  to.resize(from.size());
  for (const Edge& e : from) to[place[e.*key]++] = e;
}

// Each edge once, ascending.
void sort_edges(std::vector<Edge>& edges, int64_t n) {
  std::vector<Edge> other;
  sort_by(&Edge::high, n, edges, other);
  sort_by(&Edge::low, n, other, edges);
  edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
}

// Both directions of sorted edges, ascending by (node, neighbour): f(edge, place of low -> high, place of high -> low).
template <class F>
void place_edges(const std::vector<Edge>& edges, int64_t n, int32_t* offsets, const F& f) {
  std::fill_n(offsets, n + 1, 0);
  for (const Edge& e : edges) ++offsets[e.low + 1], ++offsets[e.high + 1];
  for (int64_t s = 0; s < n; ++s) offsets[s + 1] += offsets[s];
  std::vector<int32_t> lower(offsets, offsets + n), upper(n);  // where the next neighbour below and above a node goes
  for (const Edge& e : edges) ++upper[e.high];
  for (int64_t s = 0; s < n; ++s) upper[s] += offsets[s];
  for (const Edge& e : edges) f(e, upper[e.low]++, lower[e.high]++);
}

}  // namespace
}  // namespace camguide
