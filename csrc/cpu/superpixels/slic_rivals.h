// Which centres may win a block of pixels, and which of them does.
#pragma once

#include "slic_centres.h"

#include "../common/bits.h"

#include <bit>
#include <cstring>

namespace camguide {
namespace {

// A centre that may win a block.
struct alignas(64) Rival {
  float dx2[kLanes], dy2[kLanes];  // to the columns and rows of the block
  float L, a, b;
  int32_t index;
};

// How far m lies outside of [low, high].
CAMGUIDE_INLINE float outside(float m, float low, float high) {
  const float under = low - m, over = m - high;
  const float most = under > over ? under : over;
  return most > 0 ? most : 0;
}

// A lower bound of the distances from the pixels of a block to each centre.
CAMGUIDE_INLINE void bound_distances(const Near& near, const Extent& at, const Box& box, float weight) {
  const float top = at.top, bottom = at.bottom, left = at.left, right = at.right;
  const float *const y = near.y, *const x = near.x, *const floor_y = near.floor_y, *const floor_x = near.floor_x;
  const float *const L = near.L, *const a = near.a, *const b = near.b;
  float* const lower = near.lower;
  for (int64_t i = 0; i < near.count; i += kLanes) {
#pragma GCC ivdep
    for (int64_t j = i; j < i + kLanes; ++j) {
      const float dy = outside(y[j], top, bottom), dx = outside(x[j], left, right);
      const float dL = outside(L[j], box.low[0], box.high[0]);
      const float da = outside(a[j], box.low[1], box.high[1]);
      const float db = outside(b[j], box.low[2], box.high[2]);
      const float d = (dy * dy + dx * dx) + weight * ((dL * dL + da * da) + db * db);
      const float out_y = outside(floor_y[j], top, bottom), out_x = outside(floor_x[j], left, right);
      const float within = out_y <= near.y_window ? d : kInfinity;
      lower[j] = out_x <= near.x_window ? within : kInfinity;
    }
  }
}

// Vectors as long as a register: GCC keeps longer ones in memory.
template <int64_t bytes>
struct Simd {
  typedef float Floats __attribute__((vector_size(bytes)));
  typedef int32_t Ints __attribute__((vector_size(bytes)));
  static constexpr int64_t count = bytes / sizeof(float);

  template <class V, class A>
  static CAMGUIDE_INLINE V load(const A* from) {
    V v;
    std::memcpy(&v, from, bytes);
    return v;
  }

  // -1 in the lanes where a < b, for a, b >= 0: such floats are ordered as the integers of their bits. (A comparison whose
  // result a function hands on may be taken apart lane by lane.)
  static CAMGUIDE_INLINE Ints less(Floats a, Floats b) { return ((Ints)a - (Ints)b) >> 31; }
  static CAMGUIDE_INLINE Ints select(Ints mask, Ints a, Ints b) { return (a & mask) | (b & ~mask); }
  static CAMGUIDE_INLINE Floats select(Ints mask, Floats a, Floats b) { return (Floats)select(mask, (Ints)a, (Ints)b); }
};

// Squared distances along one axis from 16 pixels to a centre, inf outside of its window; pixels behind the last repeat it.
template <class S>
CAMGUIDE_INLINE void squares_in_window(int64_t first, int64_t last, float mean, float floor, float window, float* out) {
  using Floats = typename S::Floats;
  using Ints = typename S::Ints;
  static constexpr float steps[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats end = Floats{} + static_cast<float>(last);
  for (int64_t i = 0; i < kLanes; i += S::count) {
    Floats at = S::template load<Floats>(steps + i) + static_cast<float>(first);
    at = S::select(S::less(end, at), end, at);
    const Floats d = at - mean;
    const Floats off = (Floats)((Ints)(at - floor) & std::numeric_limits<int32_t>::max());
    const Floats squares = S::select(S::less(Floats{} + window, off), Floats{} + kInfinity, d * d);
    std::memcpy(out + i, &squares, sizeof squares);
  }
}

// The centres whose bound is within the limit, >= 0; returns how many.
template <class S>
CAMGUIDE_INLINE int64_t find_rivals(const Near& near, const Extent& at, float limit, Rival* rivals) {
  Rival* r = rivals;
  for (int64_t first = 0; first < near.count; first += 64) {
    const float* const lower = near.lower + first;
    const int32_t most = std::bit_cast<int32_t>(limit);  // as integers: GCC takes 64 comparisons of floats apart
    each_bit(bits_of(64, [&](int64_t i) { return std::bit_cast<int32_t>(lower[i]) <= most; }), [&](int64_t i) {
      const int64_t c = first + i;
      squares_in_window<S>(at.left, at.right, near.x[c], near.floor_x[c], near.x_window, r->dx2);
      squares_in_window<S>(at.top, at.bottom, near.y[c], near.floor_y[c], near.y_window, r->dy2);
      r->L = near.L[c], r->a = near.a[c], r->b = near.b[c], r->index = near.index[c];
      ++r;
    });
  }
  return r - rivals;
}

// The nearest of the rivals for the 16 pixels of row `row` of a block, the first of several; a pixel that no window reaches
// keeps its label. Raises `worst` to the distances.
template <class S, bool with_colour>
CAMGUIDE_INLINE void nearest(const Rival* rivals, int64_t count, int64_t row, const Colours& colours, float weight,
                             const int32_t* kept, int32_t* label, typename S::Floats& worst) {
  using Floats = typename S::Floats;
  using Ints = typename S::Ints;
  for (int64_t x = 0; x < kLanes; x += S::count) {
    const Floats L = S::template load<Floats>(colours.Lab[0] + x), a = S::template load<Floats>(colours.Lab[1] + x),
                 b = S::template load<Floats>(colours.Lab[2] + x);
    Floats best = Floats{} + kInfinity;
    Ints own = S::template load<Ints>(kept + x);
    for (const Rival* r = rivals; r < rivals + count; ++r) {
      Floats d = S::template load<Floats>(r->dx2 + x) + r->dy2[row];
      if (with_colour) {
        const Floats dL = L - r->L, da = a - r->a, db = b - r->b;
        d = d + ((dL * dL + da * da) + db * db) * weight;
      }
      const auto nearer = d < best;
      best = nearer ? d : best;
      own = nearer ? Ints{} + r->index : own;
    }
    worst = worst < best ? best : worst;
    std::memcpy(label + x, &own, sizeof own);
  }
}

}  // namespace
}  // namespace camguide
