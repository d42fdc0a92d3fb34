// Mean field of a fully connected CRF with Potts labels: Q <- softmax(-U + sum_m w_m K_m Q) from Q = softmax(-U).
//
// For each tile the slice, -U, the softmax and the next splat run in one go, so that Q is never written to memory. Labels go W
// at a time, as the rows of the lattices: the values that are blurred together stay in cache however many labels there are.
#pragma once

#include <limits>
#include <utility>

#include "../common/exp_log.h"
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
  static_assert(lanes<A> % W == 0, "the softmax takes whole rows in a vector");

 public:
  MeanField(const Tiles& tiles, int64_t labels, const std::vector<Term<A>>& terms)
      : tiles_(tiles), labels_(labels), chunks_((labels + W - 1) / W), unary_(tiles.count * chunks_ * Tiles::pixels) {
    for (const Term<A>& term : terms) {
      const Lattice<A>& l = *term.lattice;
      fields_.push_back({l, term.weight, Buffer<Row>(chunks_ * l.rows()), Buffer<Row>(chunks_ * l.vertices)});
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
        const int64_t n = tiles_.size(tile);
        for (int64_t p = 0; p < n; ++p) out[p * W] = real ? one_label[p] : std::numeric_limits<A>::infinity();
      }
    });
  }

  // take(tile, label, Q of the tile's first pixel, distance to that of the next one)
  template <class F>
  void run(int64_t iterations, const F& take) const {
    if (fields_.empty()) iterations = 0;  // nothing pulls at Q
    for (int64_t step = 0; step <= iterations; ++step) {
      for (const Field& f : fields_) {
        for (int64_t chunk = 0; step > 0 && chunk < chunks_; ++chunk) {
          merge_and_blur<A, W>(f.lattice, f.rows_of(chunk), f.at_of(chunk));
        }
      }
      const auto make_q = [&] { return Buffer<Row>(chunks_ * Tiles::pixels); };
      for_each(tiles_.count, make_q, [&](int64_t tile, const Buffer<Row>& q) {
        if (step == 0) {
          start(*this, tile, q.get());
        } else {
          slice_all(*this, tile, q.get());
        }
        if (step < iterations) {
          splat_all(*this, tile, q.get());
        } else {
          for (int64_t label = 0; label < labels_; ++label) {
            take(tile, label, reinterpret_cast<const A*>(&q[label / W * Tiles::pixels]) + label % W, W);
          }
        }
      });
    }
  }

 private:
  using Row = camguide::Row<A, W>;
  struct Field {
    const Lattice<A>& lattice;
    A weight;
    Buffer<Row> rows, at;  // [chunks, G] of the tiles, [chunks, M] of the vertices

    Row* rows_of(int64_t chunk) const { return &rows[chunk * lattice.rows()]; }
    Row* at_of(int64_t chunk) const { return &at[chunk * lattice.vertices]; }
  };

  Row* unary(int64_t tile, int64_t chunk) const { return &unary_[(tile * chunks_ + chunk) * Tiles::pixels]; }

  // q <- softmax(q) over the labels of each pixel; q is [chunks, pixels, W].
  static CAMGUIDE_INLINE void softmax(const MeanField& m, int64_t tile, Row* q) {
    constexpr int64_t step = lanes<A>, distance = Tiles::pixels * W;
    const int64_t n = m.tiles_.size(tile) * W, all = m.chunks_ * distance;
    A* const first = reinterpret_cast<A*>(q);
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

  CAMGUIDE_MULTIVERSION static void start(const MeanField& m, int64_t tile, Row* q) {
    for (int64_t chunk = 0; chunk < m.chunks_; ++chunk) {
      const Row* const u = m.unary(tile, chunk);
      for (int64_t p = 0, n = m.tiles_.size(tile); p < n; ++p) q[chunk * Tiles::pixels + p] = -u[p];
    }
    softmax(m, tile, q);
  }

  CAMGUIDE_MULTIVERSION static void slice_all(const MeanField& m, int64_t tile, Row* q) {
    for (int64_t chunk = 0; chunk < m.chunks_; ++chunk) {
      const Row* const u = m.unary(tile, chunk);
      Row* const sum = q + chunk * Tiles::pixels;
      for (const Field& f : m.fields_) {
        const auto slice_to = [&](const auto& out) {
          if (f.lattice.corners == 3) {
            slice<3>(f.lattice, tile, f.at_of(chunk), f.weight, f.rows_of(chunk), out);
          } else {
            slice<6>(f.lattice, tile, f.at_of(chunk), f.weight, f.rows_of(chunk), out);
          }
        };
        if (&f == &m.fields_[0]) {
          slice_to([sum, u](int64_t p, Row x) { sum[p] = x - u[p]; });
        } else {
          slice_to([sum](int64_t p, Row x) { sum[p] += x; });
        }
      }
    }
    softmax(m, tile, q);
  }

  CAMGUIDE_MULTIVERSION static void splat_all(const MeanField& m, int64_t tile, const Row* q) {
    for (const Field& f : m.fields_) {
      for (int64_t chunk = 0; chunk < m.chunks_; ++chunk) {
        const auto value = [at = q + chunk * Tiles::pixels](int64_t p) { return at[p]; };
        Row* const rows = f.rows_of(chunk);
        f.lattice.corners == 3 ? splat<3>(f.lattice, tile, rows, value) : splat<6>(f.lattice, tile, rows, value);
      }
    }
  }

  const Tiles tiles_;
  const int64_t labels_, chunks_;
  const Buffer<Row> unary_;  // [tiles, chunks, pixels, W]
  std::vector<Field> fields_;
};

}  // namespace camguide
