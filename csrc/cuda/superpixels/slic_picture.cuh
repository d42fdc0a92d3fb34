// An image in the form in which slic clusters it: colours as integers of 2^-16 Lab units.
#pragma once

typedef IMAGE_TYPE Image;
typedef Wide<Image>::type Value;

// Unsigned integers in the order of the values.
__device__ __forceinline__ unsigned rank_of(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ unsigned long long rank_of(double x) {
  const unsigned long long bits = __double_as_longlong(x);
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}
__device__ __forceinline__ float of_rank(unsigned rank) { return __uint_as_float(rank >> 31 ? rank & ~(1u << 31) : ~rank); }
__device__ __forceinline__ double of_rank(unsigned long long rank) {
  return __longlong_as_double(rank >> 63 ? rank & ~(1ull << 63) : ~rank);
}
template <class A>
struct Rank {
  typedef unsigned type;
};
template <>
struct Rank<double> {
  typedef unsigned long long type;
};

__device__ __forceinline__ Value value_of(unsigned char x) { return (Value)x; }
template <class G>
__device__ __forceinline__ Value value_of(G x) {
  return widen(x);
}

// range [B, 2]: the highest rank of an image's values, and of their complements; 0 before. `size` values an image, `part` of them
// a block.
extern "C" __global__ void __launch_bounds__(256)
    image_range(const Image* __restrict__ image, Rank<Value>::type* __restrict__ range, int size, int part) {
  typedef Rank<Value>::type R;
  const int parts = (size - 1) / part + 1;
  const int b = blockIdx.x / parts, begin = blockIdx.x % parts * part, end = begin + min(part, size - begin);
  image += (long long)b * size;
  R high = 0, low = 0;
  for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const R rank = rank_of(value_of(image[i]));
    high = max(high, rank), low = max(low, (R)~rank);
  }
#pragma unroll
  for (int d = 16; d; d /= 2) {
    high = max(high, __shfl_xor_sync(FULL_WARP, high, d));
    low = max(low, __shfl_xor_sync(FULL_WARP, low, d));
  }
  if (threadIdx.x % 32 == 0) atomicMax(range + 2 * b, high), atomicMax(range + 2 * b + 1, low);
}

// Stretches the values to [0, 1] by their range and undoes the gamma; -> colours [B, 3, H * W].
extern "C" __global__ void __launch_bounds__(256)
    find_colours(const Image* __restrict__ image, const Rank<Value>::type* __restrict__ range, float* __restrict__ colours,
                 int B, int pixels) {
  const long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x, b = at / pixels;
  if (b >= B) return;
  const int i = at % pixels;
  const Value low = of_rank((Rank<Value>::type) ~range[2 * b + 1]), high = of_rank(range[2 * b]);
  const Value span = high > low ? sub(high, low) : (Value)1;
  float rgb[3];
#pragma unroll
  for (int c = 0; c < 3; ++c) rgb[c] = linear((float)(sub(value_of(image[(3 * b + c) * pixels + i]), low) / span));
  const Lab<float> colour = lab(rgb[0], rgb[1], rgb[2]);
  const float scale = 65536;
  colours += 3 * b * pixels + i;
  colours[0] = rintf(mul(colour.L, scale));
  colours[pixels] = rintf(mul(colour.a, scale));
  colours[2ll * pixels] = rintf(mul(colour.b, scale));
}
