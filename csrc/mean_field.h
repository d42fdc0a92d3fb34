// Mean field of a fully connected CRF with Potts labels: Q <- softmax(-U + sum_m w_m K_m Q) from Q = softmax(-U).
//
// Labels go W at a time, as the rows of the lattices, so that a lattice's values stay in cache however many labels there are. For
// each tile the slice, -U, the softmax and the splat of what comes next run in one go.
#pragma once

#include <limits>
#include <utility>

#include "exp_log.h"
#include "lattice.h"

namespace camguide {

template <class A>
struct Term {
  std::shared_ptr<const Lattice<A>> lattice;
  A weight;
};

// Swaps lanes whose numbers differ by S.
template <int S, class V, size_t... I>
CAMGUIDE_INLINE V swap_lanes(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (int(I) ^ S)...);
}

// Combines each group of W lanes; every lane gets the result.
template <class A, int W, int S = 1, class F>
CAMGUIDE_INLINE Vec<A> within_rows(Vec<A> v, const F& combine) {
  if constexpr (S < W) {
    const Vec<A> other = swap_lanes<S>(v, std::make_index_sequence<lanes<A>>());
    return within_rows<A, W, 2 * S>(combine(v, other), combine);
  } else {
    return v;
  }
}

template <class A, int W>
class MeanField {
 public:
  MeanField(const Tiles& tiles, int64_t labels, const std::vector<Term<A>>& terms)
      : tiles_(tiles), labels_(labels), chunks_((labels + W - 1) / W), unary_(tiles.count * chunks_ * Tiles::pixels), q_(unary_.size()) {
    for (const Term<A>& term : terms) {
      const Lattice<A>& l = *term.lattice;
      fields_.push_back({l, term.weight, Buffer<Row>(l.rows()), Buffer<Row>(l.vertices)});
    }
  }

  // energy(tile, label, out) writes the energies of a tile's pixels.
  template <class F>
  void set_unary(const F& energy) {
    for_each(tiles_.count, [&](int64_t tile) {
      A one_label[Tiles::pixels];
      for (int64_t label = 0; label < chunks_ * W; ++label) {
        const bool real = label < labels_;
        if (real) energy(tile, label, one_label);
        A* const out = reinterpret_cast<A*>(unary(tile, label / W)) + label % W;
        for (int64_t p = 0, n = tiles_.size(tile); p < n; ++p) out[p * W] = real ? one_label[p] : std::numeric_limits<A>::infinity();
      }
    });
  }

  void run(int64_t iterations) {
    if (fields_.empty()) iterations = 0;  // nothing pulls at Q
    for_each(tiles_.count, [&](int64_t tile) {
      start(*this, tile);
      if (iterations > 0) splat_chunk(*this, tile, 0);
    });
    for (int64_t step = 1; step <= iterations * chunks_; ++step) {
      const int64_t chunk = (step - 1) % chunks_, next = step % chunks_;
      for (const Field& f : fields_) merge_and_blur<A, W>(f.lattice, f.rows.get(), f.at.get());
      for_each(tiles_.count, [&](int64_t tile) {
        slice_chunk(*this, tile, chunk);
        if (next == 0) softmax_of_tile(*this, tile);
        if (step < iterations * chunks_) splat_chunk(*this, tile, next);
      });
    }
  }

  // take(tile, label, Q of the first pixel, distance to that of the next pixel)
  template <class F>
  void get(const F& take) const {
    for_each(tiles_.count, [&](int64_t tile) {
      for (int64_t label = 0; label < labels_; ++label) take(tile, label, reinterpret_cast<const A*>(q(tile, label / W)) + label % W, W);
    });
  }

 private:
  using Row = camguide::Row<A, W>;
  struct Field {
    const Lattice<A>& lattice;
    A weight;
    Buffer<Row> rows, at;  // of the tiles, of the vertices
  };

  Row* unary(int64_t tile, int64_t chunk) const { return &unary_[(tile * chunks_ + chunk) * Tiles::pixels]; }
  Row* q(int64_t tile, int64_t chunk) const { return &q_[(tile * chunks_ + chunk) * Tiles::pixels]; }

  // Q <- softmax(Q) over the labels of each pixel of the tile.
  static CAMGUIDE_INLINE void softmax(const MeanField& m, int64_t tile) {
    constexpr int64_t step = lanes<A>, distance = Tiles::pixels * W;
    const int64_t n = m.tiles_.size(tile) * W, all = m.chunks_ * distance;
    A* const first = reinterpret_cast<A*>(m.q(tile, 0));
    for (int64_t i = 0; i < n; i += step) {  // the last vector may reach into pixels that nobody reads
      Vec<A> greatest = load(first + i);
      for (int64_t j = i + distance; j < all; j += distance) {
        const Vec<A> x = load(first + j);
        greatest = x > greatest ? x : greatest;
      }
      greatest = within_rows<A, W>(greatest, [](Vec<A> a, Vec<A> b) { return a > b ? a : b; });
      Vec<A> sum = {};
      for (int64_t j = i; j < all; j += distance) {
        const Vec<A> x = exp(load(first + j) - greatest);
        sum += x;
        store(first + j, x);
      }
      const Vec<A> factor = A(1) / within_rows<A, W>(sum, [](Vec<A> a, Vec<A> b) { return a + b; });
      for (int64_t j = i; j < all; j += distance) store(first + j, load(first + j) * factor);
    }
  }

  CAMGUIDE_MULTIVERSION static void softmax_of_tile(const MeanField& m, int64_t tile) { softmax(m, tile); }

  CAMGUIDE_MULTIVERSION static void start(const MeanField& m, int64_t tile) {
    for (int64_t chunk = 0; chunk < m.chunks_; ++chunk) {
      const Row* const u = m.unary(tile, chunk);
      Row* const q = m.q(tile, chunk);
      for (int64_t p = 0, n = m.tiles_.size(tile); p < n; ++p) q[p] = -u[p];
    }
    softmax(m, tile);
  }

  CAMGUIDE_MULTIVERSION static void slice_chunk(const MeanField& m, int64_t tile, int64_t chunk) {
    const Row* const u = m.unary(tile, chunk);
    Row* const q = m.q(tile, chunk);
    const auto slice_all = [&](const Field& f, const auto& out) {
      if (f.lattice.corners == 3) {
        slice<3>(f.lattice, tile, f.at.get(), f.weight, f.rows.get(), out);
      } else {
        slice<6>(f.lattice, tile, f.at.get(), f.weight, f.rows.get(), out);
      }
    };
    for (size_t i = 0; i < m.fields_.size(); ++i) {
      if (i == 0) {
        slice_all(m.fields_[i], [q, u](int64_t p, Row x) { q[p] = x - u[p]; });
      } else {
        slice_all(m.fields_[i], [q](int64_t p, Row x) { q[p] += x; });
      }
    }
  }

  CAMGUIDE_MULTIVERSION static void splat_chunk(const MeanField& m, int64_t tile, int64_t chunk) {
    const Row* const q = m.q(tile, chunk);
    const auto value = [q](int64_t p) { return q[p]; };
    for (const Field& f : m.fields_) {
      f.lattice.corners == 3 ? splat<3>(f.lattice, tile, f.rows.get(), value) : splat<6>(f.lattice, tile, f.rows.get(), value);
    }
  }

  const Tiles tiles_;
  const int64_t labels_, chunks_;
  const Buffer<Row> unary_, q_;  // [tiles, chunks, pixels, W]
  std::vector<Field> fields_;
};

}  // namespace camguide
