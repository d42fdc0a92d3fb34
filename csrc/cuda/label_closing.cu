// label_closing and the other binary morphology of label maps; see camguide_fast/ops/label_closing.py.
//
// With a square of radius r a pixel depends on the labels within r for each step (dilation, erosion) alone. So a block takes a
// tile of pixels with that halo and works on one class after the other as a bit plane in shared memory: the host need not know
// which labels there are. The next class is that of the first pixel that belongs to none of those before. Their order does not
// matter: of several that grow into a pixel it keeps the smallest.
//
// A thread works on words: 32 neighbouring pixels of a row, whose labels it compares four at a time where they are bytes. Words
// lie row by row, so that the one `n` rows above is n * columns before, and what two threads next to each other read of the
// planes lies in neighbouring banks. A thread always meets the same words: what it alone needs takes no barrier.
//
// A dilation by up to 31 pixels along a row needs only the words next to it, and is made in registers; a longer one goes on in
// passes, from g to at most 2 g + 1. Along a column a pass takes the rows at a distance of up to 2 g + 1, and those 2 g + 1
// further: 0, 2, 12, 62, ... An erosion is the dilation of what is not there. Nothing lies outside the image, and nothing that
// a tile needs outside its region.
//
// Macros: LABEL_TYPE; PACK, the labels that can be read at once (rows begin at multiples of it); GROWS: the operation writes
// classes on background (dilation, closing), or else background on classes; IN_SHARED: the planes fit in shared memory, and lie
// in a workspace otherwise.
#include "common/camguide.cuh"

typedef LABEL_TYPE T;

constexpr int THREADS = 256, ALIGN = 16;  // ALIGN: what a region's left edge is a multiple of, for packs of bytes
constexpr int NONE = 0x7fffffff;

// The lowest n bits.
__device__ __forceinline__ unsigned lowest(int n) { return n >= 32 ? FULL_WARP : n <= 0 ? 0 : (1u << n) - 1; }

// The part of an image that a block looks at, as words [rows][columns], and where a thread begins in it.
struct Region {
  int top, left, rows, width, columns, words;
  int row, column, row_step, column_step;  // of THREADS words: nothing is divided from word to word
  __device__ __forceinline__ Region(int top, int left, int bottom, int right)
      : top(top), left(left), rows(bottom - top), width(right - left), columns((width + 31) / 32), words(rows * columns) {
    row = (int)threadIdx.x / columns, column = (int)threadIdx.x % columns;
    row_step = THREADS / columns, column_step = THREADS % columns;
  }
  __device__ __forceinline__ unsigned inside(int column) const { return lowest(width - 32 * column); }  // bits that are pixels

  // f(i, row, column) for each of this thread's words, which are `i`.
  template <class F>
  __device__ __forceinline__ void for_each_word(const F& f) const {
    int y = row, x = column;
    for (int i = threadIdx.x; i < words; i += THREADS) {
      f(i, y, x);
      y += row_step, x += column_step;
      if (x >= columns) x -= columns, ++y;
    }
  }
};

// The labels of a word: 32 at `at`, or `count` of them. The wide ones are read where they are used.
template <class V>
struct Labels {
  const V* at;
  int count;
  __device__ __forceinline__ Labels(const V* at, int count) : at(at), count(count) {}
  __device__ __forceinline__ unsigned equal(V value) const {
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 32; j += PACK) {
      if (j >= count) continue;
      const Pack<V, PACK> pack = *reinterpret_cast<const Pack<V, PACK>*>(at + j);
#pragma unroll
      for (int k = 0; k < PACK; ++k) bits |= (unsigned)(pack.v[k] == value) << (j + k);
    }
    return bits;
  }
  __device__ __forceinline__ void copy(V* to, unsigned owned) const {
#pragma unroll
    for (int j = 0; j < 32; j += PACK)
      if (owned >> j & 1) *reinterpret_cast<Pack<V, PACK>*>(to + j) = *reinterpret_cast<const Pack<V, PACK>*>(at + j);
  }
};

// Bytes: in registers, four in each.
template <>
struct Labels<unsigned char> {
  unsigned quad[8];
  int count;
  __device__ __forceinline__ Labels(const unsigned char* __restrict__ at, int count) : quad{}, count(count) {
#pragma unroll
    for (int j = 0; j < 32; j += PACK) {
      if (j >= count) continue;
#if PACK < 4
      quad[j / 4] |= (unsigned)at[j] << j % 4 * 8;
#else
      const Pack<unsigned, PACK / 4> pack = *reinterpret_cast<const Pack<unsigned, PACK / 4>*>(at + j);
#pragma unroll
      for (int k = 0; k < PACK / 4; ++k) quad[j / 4 + k] = pack.v[k];
#endif
    }
  }
  // The top bit of each byte tells whether it differs; a product with powers of two puts eight of these side by side.
  __device__ __forceinline__ unsigned equal(unsigned char value) const {
    const unsigned value4 = value * 0x01010101u;
    unsigned bits = 0;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      unsigned differ[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const unsigned x = quad[j + k] ^ value4;
        differ[k] = (((x & 0x7f7f7f7fu) + 0x7f7f7f7fu) | x) & 0x80808080u;
      }
      bits |= __dp4a(differ[1], 0x80402010u, __dp4a(differ[0], 0x08040201u, 0u)) >> 7 << 4 * j;
    }
    return ~bits & lowest(count);
  }
  __device__ __forceinline__ void copy(unsigned char* to, unsigned owned) const {
#pragma unroll
    for (int j = 0; j < 32; j += PACK) {
      if (!(owned >> j & 1)) continue;
#if PACK < 4
      to[j] = quad[j / 4] >> j % 4 * 8;
#else
      Pack<unsigned, PACK / 4> pack;
#pragma unroll
      for (int k = 0; k < PACK / 4; ++k) pack.v[k] = quad[j / 4 + k];
      *reinterpret_cast<Pack<unsigned, PACK / 4>*>(to + j) = pack;
#endif
    }
  }
};

// A label that the type does not hold is that of no pixel.
__device__ __forceinline__ unsigned equal_wide(const Labels<T>& labels, long long value) {
  return (long long)(T)value == value ? labels.equal((T)value) : 0;
}

// Dilation along the row by `reach` <= 31 pixels. By s it grows into one by s + t <= 2 s + 1 through a shift by t.
__device__ __forceinline__ unsigned dilate_word(unsigned left, unsigned word, unsigned right, int reach) {
  unsigned up = word, down = word;
  for (int grown = 0; grown < reach;) {
    const int by = min(grown + 1, reach - grown);
    up |= __funnelshift_l(left, up, by), left |= left << by;
    down |= __funnelshift_r(down, right, by), right |= right >> by;
    grown += by;
  }
  return up | down;
}

// A plane as it is read along a row: nothing outside.
struct Row {
  const unsigned* words;
  const Region& region;
  __device__ __forceinline__ unsigned operator()(int i, int column) const {  // i: of the word in that column
    return column < 0 || column >= region.columns ? 0 : words[i] & region.inside(column);
  }
  __device__ __forceinline__ unsigned dilated(int i, int column, int reach) const {
    const Row& row = *this;
    return dilate_word(row(i - 1, column - 1), row(i, column), row(i + 1, column + 1), reach);
  }
};

// The plane at work and one to write the next into; a pass ends with a barrier.
struct Planes {
  unsigned *plane, *other;
  __device__ __forceinline__ void pass_done() {
    __syncthreads();
    unsigned* const swap = plane;
    plane = other, other = swap;
  }

  __device__ __forceinline__ void dilate_rows(const Region& region, int radius) {
    if (radius == 0) return;
    int grown = min(31, radius);
    const Row near{plane, region};
    region.for_each_word([&](int i, int, int column) { other[i] = near.dilated(i, column, grown); });
    pass_done();
    while (grown < radius) {
      const int by = min(grown + 1, radius - grown), q = by / 32, b = by % 32;
      const Row from{plane, region};
      region.for_each_word([&](int i, int, int column) {
        const unsigned left = __funnelshift_l(from(i - q - 1, column - q - 1), from(i - q, column - q), b);
        const unsigned right = __funnelshift_r(from(i + q, column + q), from(i + q + 1, column + q + 1), b);
        other[i] = from(i, column) | left | right;
      });
      pass_done();
      grown += by;
    }
  }

  // Whether the last pass turns it over: all bits of the words, pixels or not.
  __device__ __forceinline__ void dilate_columns(const Region& region, int radius, bool turn) {
    for (int grown = 0; grown < radius;) {
      const int near = min(2 * grown + 1, radius - grown), far = min(near + 2 * grown + 1, radius - grown);
      const int one = near * region.columns, two = far * region.columns;
      grown += far;
      const unsigned flip = turn && grown == radius ? FULL_WARP : 0;
      region.for_each_word([&](int i, int, int column) {
        const int bottom = region.words - region.columns + column;  // beyond the region: the row at its edge, which sees those
        const unsigned above = plane[i < one ? column : i - one] | plane[i < two ? column : i - two];
        const unsigned below = plane[min(i + one, bottom)] | plane[min(i + two, bottom)];
        other[i] = (plane[i] | above | below) ^ flip;
      });
      pass_done();
    }
  }
};

__device__ __forceinline__ long long join(int high, int low) {
  return (long long)((unsigned long long)(unsigned)high << 32 | (unsigned)low);
}

// steps: 1 or 2, which alternate between dilation and erosion, beginning with an erosion or not. radius > 0.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    morphology(const T* __restrict__ labels, T* __restrict__ out, unsigned* __restrict__ workspace, int H, int W, int tile_rows,
               int tile_columns, int words, int radius, int steps, int erosion_first, int background_high, int background_low,
               int ignore_high, int ignore_low) {
  const long long background = join(background_high, background_low), ignore = join(ignore_high, ignore_low);
  const int across = (W + tile_columns - 1) / tile_columns, tiles = (H + tile_rows - 1) / tile_rows * across;
  const int y0 = blockIdx.x % tiles / across * tile_rows, x0 = blockIdx.x % tiles % across * tile_columns;
  const int y1 = min(y0 + tile_rows, H), x1 = min(x0 + tile_columns, W), halo = steps * radius;
  const Region region(max(y0 - halo, 0), max(x0 - halo, 0) / ALIGN * ALIGN, min(y1 + halo, H),
                      min((x1 + halo + ALIGN - 1) / ALIGN * ALIGN, W));
  const long long first = (long long)(blockIdx.x / tiles) * H * W + (long long)region.top * W + region.left;
  labels += first;
  out += first;
#if IN_SHARED
  DYNAMIC_SHARED(shared);
  unsigned* const memory = reinterpret_cast<unsigned*>(shared);
#else
  unsigned* const memory = workspace + (long long)blockIdx.x * 5 * words;
#endif
  Planes planes{memory, memory + words};
  unsigned* const rest = memory + 2 * words;   // of no class met so far, neither background nor ignored
  unsigned* const fixed = memory + 3 * words;  // GROWS: background; else the class itself
  unsigned* const free = memory + 4 * words;   // GROWS: background that no class has taken
  __shared__ int least[2];                     // the first pixel of all: of this class, and of the next, to be reset meanwhile
  if (threadIdx.x == 0) least[0] = NONE;

  const auto place = [&](int row, int column) { return (long long)row * W + 32 * column; };
  const auto own = [&](int row, int column) {  // the bits of a word that this block writes
    const int y = region.top + row, x = region.left + 32 * column;
    return y0 <= y && y < y1 ? lowest(x1 - x) & ~lowest(x0 - x) : 0;
  };
  int next = NONE;  // the first pixel of `rest` that this thread knows
  const auto keep = [&](int i, unsigned bits) {
    rest[i] = bits;
    if (bits) next = min(next, 32 * i + __ffs(bits) - 1);
  };
  region.for_each_word([&](int i, int row, int column) {
    const long long at = place(row, column);
    const Labels<T> word(labels + at, min(region.width - 32 * column, 32));
    const unsigned of_background = equal_wide(word, background);
    if (GROWS) fixed[i] = free[i] = of_background;
    keep(i, lowest(word.count) & ~of_background & ~equal_wide(word, ignore));
    word.copy(out + at, own(row, column));
  });
  const int tail = min(radius, 31);  // of the last step along the rows: made together with what follows from it
  const unsigned erodes_first = erosion_first ? FULL_WARP : 0, erodes_last = erosion_first != (steps > 1) ? FULL_WARP : 0;
  __syncthreads();
  for (int turn = 0;; turn ^= 1) {
    next = __reduce_min_sync(FULL_WARP, next);
    if (threadIdx.x % 32 == 0 && next != NONE) atomicMin(&least[turn], next);
    __syncthreads();
    const int pixel = least[turn];
    if (threadIdx.x == 0) least[turn ^ 1] = NONE;
    if (pixel == NONE) return;
    const int word = pixel / 32;
    const T current = labels[place(word / region.columns, word % region.columns) + pixel % 32];
    next = NONE;
    region.for_each_word([&](int i, int row, int column) {
      const unsigned left = rest[i];
      unsigned bits = 0;
      if (left) {  // else none of its pixels is of this class
        bits = Labels<T>(labels + place(row, column), min(region.width - 32 * column, 32)).equal(current);
        keep(i, left & ~bits);
      }
      planes.plane[i] = bits ^ erodes_first;
      if (!GROWS) fixed[i] = bits;
    });
    __syncthreads();
    if (steps > 1) {
      planes.dilate_rows(region, radius);
      planes.dilate_columns(region, radius, true);  // from a dilation to an erosion or back
    }
    planes.dilate_columns(region, radius, false);
    planes.dilate_rows(region, radius - tail);
    const Row from{planes.plane, region};
    region.for_each_word([&](int i, int row, int column) {
      const unsigned owned = own(row, column);
      if (!owned) return;
      const unsigned result = from.dilated(i, column, tail) ^ erodes_last;
      T* const to = out + place(row, column);
      unsigned changed = fixed[i] & (GROWS ? result : ~result) & owned;
      const unsigned claimed = GROWS ? ~free[i] : 0;
      if (GROWS && changed) free[i] &= ~result;
      for (; changed; changed &= changed - 1) {
        const int bit = __ffs(changed) - 1;
        if (!GROWS)
          to[bit] = (T)background;
        else if (!(claimed >> bit & 1) || current < to[bit])
          to[bit] = current;
      }
    });
  }
}
