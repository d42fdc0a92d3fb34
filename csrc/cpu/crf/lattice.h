// Gaussian filtering on the permutohedral lattice: splat, blur along each axis, slice; symmetrically normalised.
//
// Tiles of pixels know their vertices by small numbers: a tile splats into rows of its own, and slices from copies of the
// lattice's rows in the same place, all near the core that works on it. A vertex then sums the rows of the tiles that touch it,
// in their order, so that nothing depends on the number of threads. The blur runs in place along the lines of the lattice: a
// vertex without neighbours on an axis is not touched, the others are read and written once.
#pragma once

#include <memory>
#include <vector>

#include "../common/buffer.h"
#include "../common/parallel.h"
#include "permutohedral.h"

namespace camguide {

// W values of A.
template <class A, int W>
struct RowOf {
  typedef A type __attribute__((vector_size(W * sizeof(A))));
  typedef std::conditional_t<sizeof(A) == 4, int32_t, int64_t> Int;
  typedef Int Mask __attribute__((vector_size(W * sizeof(A))));
  static CAMGUIDE_INLINE type keep(type row, bool yes) { return type(Mask(row) & -Int(yes)); }
};
template <class A>
struct RowOf<A, 1> {
  typedef A type;
  static CAMGUIDE_INLINE type keep(type row, bool yes) { return yes ? row : A(0); }
};
template <class A, int W>
using Row = typename RowOf<A, W>::type;

template <class A>
struct Lattice {
  Tiles tiles;
  int corners;                  // D = d + 1 in d dimensions
  Buffer<uint16_t> corner;      // [tiles, pixels, D]: 4 * which of its tile's vertices a pixel touches
  Buffer<A> weight;             // [tiles, pixels, D]: barycentric weights / sqrt(L 1)
  std::vector<int64_t> begin;   // [tiles + 1]: where a tile's rows begin among all, G in number
  Buffer<uint32_t> vertex;      // [G]: the vertex that a row of a tile belongs to
  int64_t vertices = 0;         // M
  Buffer<uint32_t> first_copy;  // [M + 1]: where a vertex begins in `copy`
  Buffer<uint32_t> copy;        // [G]: the rows that belong to each vertex in turn, ascending: 2 row + (whether more follow)
  std::vector<std::vector<uint32_t>> lines[6];  // for each axis: 2 vertex + (whether the next one follows it on its line)

  Lattice(const Tiles& tiles, int corners)
      : tiles(tiles), corners(corners), corner(tiles.count * Tiles::pixels * corners), weight(corner.size()) {}

  // The same lattice with the weights in another type.
  template <class B>
  explicit Lattice(Lattice<B>&& other)
      : tiles(other.tiles),
        corners(other.corners),
        corner(std::move(other.corner)),
        weight(other.weight.size()),
        begin(std::move(other.begin)),
        vertex(std::move(other.vertex)),
        vertices(other.vertices),
        first_copy(std::move(other.first_copy)),
        copy(std::move(other.copy)) {
    std::copy_n(other.weight.get(), weight.size(), weight.get());
    std::move(std::begin(other.lines), std::end(other.lines), lines);
  }

  int64_t rows() const { return begin.back(); }
};

// A corner is kept times 4, so that it takes no arithmetic to find its row: processors scale by 8 at most.
template <class R>
CAMGUIDE_INLINE R& row_of(R* rows, uint16_t corner) {
  using Byte = std::conditional_t<std::is_const_v<R>, const char, char>;
  return *reinterpret_cast<R*>(reinterpret_cast<Byte*>(rows) + corner * (sizeof(R) / 4));
}

// rows[corner] += weight * value(pixel), for the pixels of a tile.
template <int D, class A, class R, class F>
CAMGUIDE_INLINE void splat(const Lattice<A>& l, int64_t tile, R* rows, const F& value) {
  R* const own = rows + l.begin[tile];
  const int64_t count = l.begin[tile + 1] - l.begin[tile], n = l.tiles.size(tile);
  for (int64_t i = 0; i < count; ++i) own[i] = R{};
  const uint16_t* corner = &l.corner[tile * Tiles::pixels * D];
  const A* weight = &l.weight[tile * Tiles::pixels * D];
  for (int64_t p = 0; p < n; ++p, corner += D, weight += D) {
    const R x = value(p);
    for (int k = 0; k < D; ++k) row_of(own, corner[k]) += weight[k] * x;
  }
}

// out(pixel, factor * sum of weight * at[corner]), for the pixels of a tile; its rows hold copies of `at` then.
template <int D, class A, class R, class F>
CAMGUIDE_INLINE void slice(const Lattice<A>& l, int64_t tile, const R* at, A factor, R* rows, const F& out) {
  R* const own = rows + l.begin[tile];
  const uint32_t* const vertex = &l.vertex[l.begin[tile]];
  const int64_t count = l.begin[tile + 1] - l.begin[tile], n = l.tiles.size(tile);
  for (int64_t i = 0; i < count; ++i) own[i] = factor * at[vertex[i]];
  const uint16_t* corner = &l.corner[tile * Tiles::pixels * D];
  const A* weight = &l.weight[tile * Tiles::pixels * D];
  for (int64_t p = 0; p < n; ++p, corner += D, weight += D) {
    R sum = weight[0] * row_of(own, corner[0]);
    for (int k = 1; k < D; ++k) sum += weight[k] * row_of(own, corner[k]);
    out(p, sum);
  }
}

template <class A, int W>
CAMGUIDE_MULTIVERSION void merge_rows(const Lattice<A>& l, const Row<A, W>* rows, Row<A, W>* at, int64_t begin, int64_t end) {
  Row<A, W> sum = {};
  for (uint32_t i = l.first_copy[begin], stop = l.first_copy[end]; i < stop; ++i) {  // no branch: few vertices have many copies
    const uint32_t entry = l.copy[i];
    const bool goes_on = entry & 1;
    at[begin] = sum += rows[entry >> 1];
    sum = RowOf<A, W>::keep(sum, goes_on);
    begin += !goes_on;
  }
}

template <class A, int W>
CAMGUIDE_MULTIVERSION void blur_lines(const std::vector<uint32_t>& line, Row<A, W>* at) {
  using R = RowOf<A, W>;
  const int64_t n = static_cast<int64_t>(line.size()) - 1;  // the last entry repeats the one before it: nothing follows it
  Row<A, W> before = {}, here = n > 0 ? at[line[0] >> 1] : Row<A, W>{};
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t entry = line[i];
    const bool goes_on = entry & 1;
    const Row<A, W> next = at[line[i + 1] >> 1], after = R::keep(next, goes_on);
    at[entry >> 1] = here + A(0.5) * (before + after);
    before = R::keep(here, goes_on);
    here = next;
  }
}

// From the rows of the tiles to the blurred lattice.
template <class A, int W>
void merge_and_blur(const Lattice<A>& l, const Row<A, W>* rows, Row<A, W>* at) {
  for_each_block(l.vertices, 2048, [&](int64_t begin, int64_t end) { merge_rows<A, W>(l, rows, at, begin, end); });
  for (int axis = 0; axis < l.corners; ++axis) {
    const auto& lines = l.lines[axis];
    for_each(lines.size(), [&](int64_t i) { blur_lines<A, W>(lines[i], at); });
  }
}

template <class A>
CAMGUIDE_MULTIVERSION void splat_ones(const Lattice<A>& l, int64_t tile, A* rows) {
  const auto one = [](int64_t) { return A(1); };
  l.corners == 3 ? splat<3>(l, tile, rows, one) : splat<6>(l, tile, rows, one);
}

// The weights of a tile's pixels / sqrt(L 1).
template <class A>
CAMGUIDE_MULTIVERSION void scale_weights(const Lattice<A>& l, int64_t tile, const A* at, A* rows) {
  const int D = l.corners;
  A* const weight = &l.weight[tile * Tiles::pixels * D];
  const auto scale = [&](int64_t p, A sum) {
    const A by = 1 / std::sqrt(sum + A(1e-20));
    for (int k = 0; k < D; ++k) weight[p * D + k] *= by;
  };
  D == 3 ? slice<3>(l, tile, at, A(1), rows, scale) : slice<6>(l, tile, at, A(1), rows, scale);
}

// D^-1/2 on both sides of the filter, D = diag(L 1), goes into the weights. Sums are in A from here on.
template <class A>
std::shared_ptr<const Lattice<A>> normalize(Lattice<float>&& built) {
  const auto lattice = std::make_shared<const Lattice<A>>(std::move(built));
  const Lattice<A>& l = *lattice;
  const Buffer<A> rows(l.rows()), at(l.vertices);
  for_each(l.tiles.count, [&](int64_t tile) { splat_ones(l, tile, rows.get()); });
  merge_and_blur<A, 1>(l, rows.get(), at.get());
  for_each(l.tiles.count, [&](int64_t tile) { scale_weights(l, tile, at.get(), rows.get()); });
  return lattice;
}

}  // namespace camguide
