// One pass of slic over the pixels. A warp has a tile of 32 x 8 pixels, a column a lane, and needs no other.
//
// A tile lies in the windows of about 25 centres, but in photographs some 15 can win a pixel of it: a lower bound of d over the
// tile follows from its extent in y, x, L, a, b, computed in the order of d (rounding is monotonic, so the bound holds for the
// rounded values too). Centres whose bound exceeds a limit are left out, where the limit is guessed from the pass before: if then
// every pixel of the tile is nearer than the limit to what it got, nothing was missed, else the tile is done again with the
// distance found as its limit. The sums follow the pixels that change their centre.
#pragma once

constexpr int ROWS = 8;         // of a tile
constexpr int WARPS = 4;        // of a block
constexpr int CAPACITY = 64;    // centres considered together
constexpr float SLACK = 1.25f;  // of a limit guessed from the pass before
constexpr float LARGEST = 3.402823466e+38f;

// A centre that may win a pixel of the tile.
struct alignas(16) Rival {
  float dy2[ROWS];  // to the rows, inf outside of the window
  float x, floor_x, L, a, b;
  int index;
};

// How far m lies outside of [low, high].
__device__ __forceinline__ float outside(float m, float low, float high) {
  return fmaxf(fmaxf(sub(low, m), sub(m, high)), 0.0f);
}

__device__ __forceinline__ float square_in_window(float at, float mean, float floor, float window) {
  const float d = sub(at, mean);
  return fabsf(sub(at, floor)) <= window ? mul(d, d) : __int_as_float(0x7F800000);
}

__device__ __forceinline__ float distance(float spatial, float dL, float da, float db, float weight) {
  return add(spatial, mul(add(add(mul(dL, dL), mul(da, da)), mul(db, db)), weight));
}

struct Tile {
  int top, left;                    // of its first pixel
  float bottom, right;              // of its last one inside the image
  float low[3], high[3];            // least and greatest L, a, b
  float L[ROWS], a[ROWS], b[ROWS];  // of this lane's column; beyond the image its last pixels again
};

// The nearest so far of this lane's pixels; ascending rivals, so that the first of equals stays.
__device__ __forceinline__ void consider(const Rival* rivals, int count, const Tile& tile, float x, float x_window,
                                         float weight, float (&best)[ROWS], int (&own)[ROWS]) {
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Rival r = rivals[i];
    const float dx2 = square_in_window(x, r.x, r.floor_x, x_window);
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const float d =
          distance(add(r.dy2[row], dx2), sub(tile.L[row], r.L), sub(tile.a[row], r.a), sub(tile.b[row], r.b), weight);
      const bool nearer = d < best[row];
      best[row] = nearer ? d : best[row];
      own[row] = nearer ? r.index : own[row];
    }
  }
}

// Moves the pixels whose bit is set in `arrived` to the sums of `own`, those in `left` away from the sums of `was`, one centre
// after the other. The sums of 256 colours of less than 2^23 steps fit in 32 bits.
__device__ __forceinline__ void move(const Tile& tile, const int (&own)[ROWS], const int (&was)[ROWS], unsigned arrived,
                                     unsigned left, unsigned long long* sums) {
  const int lane = threadIdx.x % 32;
  for (unsigned lanes; (lanes = __ballot_sync(FULL_WARP, (arrived | left) != 0));) {
    int any = 0;
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      if (arrived >> row & 1) any = own[row];
      if (left >> row & 1) any = was[row];
    }
    const int k = __shfl_sync(FULL_WARP, any, __ffs(lanes) - 1);
    int sum[6] = {};
#pragma unroll
    for (int row = 0; row < ROWS; ++row) {
      const bool comes = (arrived >> row & 1) && own[row] == k, goes = (left >> row & 1) && was[row] == k;
      const int sign = (int)comes - (int)goes;
      if (!sign) continue;
      (comes ? arrived : left) &= ~(1u << row);
      sum[0] += sign, sum[1] += sign * row, sum[2] += sign * lane;
      sum[3] += sign * (int)tile.L[row], sum[4] += sign * (int)tile.a[row], sum[5] += sign * (int)tile.b[row];
    }
    long long mine = 0;
    const int count = __reduce_add_sync(FULL_WARP, sum[0]);
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      const long long total = i ? __reduce_add_sync(FULL_WARP, sum[i]) : count;
      const long long origin = i == 1 ? (long long)count * tile.top : i == 2 ? (long long)count * tile.left : 0;
      if (lane == i) mine = total + origin;
    }
    if (lane < 6) atomicAdd(sums + 6ll * k + lane, (unsigned long long)mine);
  }
}

// colours [B, 3, H * W], centres and boxes as update_centres leaves them; limits [B, tiles], label [B, H * W] and sums [B, n, 6]
// from pass to pass. A pixel that no window reaches keeps its label, which is 0 before the first pass.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 4)
    assign(const float* __restrict__ colours, const float* __restrict__ centres, const int* __restrict__ boxes,
           float* __restrict__ limits, int* __restrict__ label, unsigned long long* __restrict__ sums, int B, int H, int W,
           int n, int chunks, int y_reach, int x_reach, double weight_of_colour, int first) {
  __shared__ Rival shared[WARPS][CAPACITY];
  Rival* const rivals = shared[threadIdx.x / 32];
  const int lane = threadIdx.x % 32, across = (W - 1) / 32 + 1, down = (H - 1) / ROWS + 1;
  const long long index = (long long)blockIdx.x * WARPS + threadIdx.x / 32, image = index / across / down;
  if (image >= B) return;  // whole warps
  const int pixels = H * W;
  colours += 3 * image * pixels, label += image * pixels, sums += image * n * 6;
  const Centre* const own_centres = reinterpret_cast<const Centre*>(centres) + image * chunks * 32;
  const Box* const own_boxes = reinterpret_cast<const Box*>(boxes) + image * chunks;

  int was[ROWS];
  Tile tile;
  tile.top = (int)(index / across % down) * ROWS, tile.left = (int)(index % across) * 32;
  const int bottom = min(tile.top + ROWS, H) - 1, right = min(tile.left + 32, W) - 1, column = min(tile.left + lane, right);
  tile.bottom = (float)bottom, tile.right = (float)right;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    const int i = min(tile.top + row, bottom) * W + column;
    tile.L[row] = colours[i], tile.a[row] = colours[(long long)pixels + i], tile.b[row] = colours[2ll * pixels + i];
    was[row] = first ? -1 : label[i];
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const float (&v)[ROWS] = c == 0 ? tile.L : c == 1 ? tile.a : tile.b;
    float low = v[0], high = v[0];
#pragma unroll
    for (int row = 1; row < ROWS; ++row) low = fminf(low, v[row]), high = fmaxf(high, v[row]);
    tile.low[c] = (float)__reduce_min_sync(FULL_WARP, (int)low), tile.high[c] = (float)__reduce_max_sync(FULL_WARP, (int)high);
  }

  const float weight = (float)weight_of_colour, x = (float)column, top = (float)tile.top, left = (float)tile.left;
  const int y_window = 2 * y_reach, x_window = 2 * x_reach;
  float limit = first ? LARGEST : limits[index], best[ROWS];
  int own[ROWS];
  for (;;) {
#pragma unroll
    for (int row = 0; row < ROWS; ++row) best[row] = __int_as_float(0x7F800000), own[row] = max(was[row], 0);
    int count = 0;
    for (int first_box = 0; first_box < chunks; first_box += 32) {
      const int i = first_box + lane;
      bool meets = false;
      if (i < chunks) {
        const Box box = own_boxes[i];
        meets = box.bottom >= tile.top - y_window && box.top <= bottom + y_window && box.right >= tile.left - x_window &&
                box.left <= right + x_window;
      }
      for (unsigned near = __ballot_sync(FULL_WARP, meets); near; near &= near - 1) {
        const int k = (first_box + __ffs(near) - 1) * 32 + lane;
        const Centre c = own_centres[k];
        const float dy = outside(c.y, top, tile.bottom), dx = outside(c.x, left, tile.right);
        const float lower = distance(add(mul(dy, dy), mul(dx, dx)), outside(c.L, tile.low[0], tile.high[0]),
                                     outside(c.a, tile.low[1], tile.high[1]), outside(c.b, tile.low[2], tile.high[2]), weight);
        const bool chosen = outside(c.floor_y, top, tile.bottom) <= (float)y_window &&
                            outside(c.floor_x, left, tile.right) <= (float)x_window && lower <= limit;
        const unsigned votes = __ballot_sync(FULL_WARP, chosen);
        if (chosen) {
          Rival& r = rivals[count + __popc(votes & ((1u << lane) - 1))];
#pragma unroll 1
          for (int row = 0; row < ROWS; ++row) {
            const float y = (float)min(tile.top + row, bottom);
            r.dy2[row] = square_in_window(y, c.y, c.floor_y, (float)y_window);
          }
          r.x = c.x, r.floor_x = c.floor_x, r.L = c.L, r.a = c.a, r.b = c.b, r.index = k;
        }
        count += __popc(votes);
        if (count > CAPACITY - 32) {
          __syncwarp();
          consider(rivals, count, tile, x, (float)x_window, weight, best, own);
          __syncwarp();
          count = 0;
        }
      }
    }
    __syncwarp();
    consider(rivals, count, tile, x, (float)x_window, weight, best, own);
    float worst = best[0];
#pragma unroll
    for (int row = 1; row < ROWS; ++row) worst = fmaxf(worst, best[row]);
    // Such floats are ordered as the integers of their bits.
    const float farthest = fminf(__int_as_float(__reduce_max_sync(FULL_WARP, __float_as_int(worst))), LARGEST);
    const bool complete = !(farthest > limit);
    limit = farthest;
    if (complete) break;
    __syncwarp();
  }
  if (lane == 0) limits[index] = fminf(mul(limit, SLACK), LARGEST);

  unsigned changed = 0;
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    if (tile.top + row >= H || tile.left + lane >= W || own[row] == was[row]) continue;
    changed |= 1u << row;
    label[(tile.top + row) * W + column] = own[row];
  }
  move(tile, own, was, changed, first ? 0 : changed, sums);
}
