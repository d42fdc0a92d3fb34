// Kernels of test_cuda_host.py: right ones, and ones with the mistakes that the emulation must catch.
#include "common/camguide.cuh"

extern "C" __global__ void reversed(const int* in, int* out, int n, int barrier) {
  __shared__ int shared[256];
  const int i = threadIdx.x;
  shared[i] = in[blockIdx.x * n + i];
  if (barrier) __syncthreads();
  out[blockIdx.x * n + i] = shared[n - 1 - i];
}

extern "C" __global__ void reversed_in_warp(int* out, int barrier) {
  DYNAMIC_SHARED(bytes);
  int* shared = reinterpret_cast<int*>(bytes);
  shared[threadIdx.x] = threadIdx.x;
  if (barrier) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 31];
}

extern "C" __global__ void lost_updates(int* out, int atomic) {
  if (atomic) {
    atomicAdd(out, 1);
  } else {
    const int old = *out;
    atomicAdd(out + 1, 1);  // others may run here
    *out = old + 1;
  }
}

extern "C" __global__ void uninitialised(float* out, int dynamic) {
  DYNAMIC_SHARED(bytes);
  __shared__ float shared[32];
  out[threadIdx.x] = dynamic ? reinterpret_cast<float*>(bytes)[threadIdx.x] : shared[threadIdx.x];
}

extern "C" __global__ void touch(const int* in, int* out, int i, int write) {
  if (write == 2)
    const_cast<int*>(in)[i] = 1;
  else if (write)
    out[i] = 1;
  else
    out[0] = in[i];
}

extern "C" __global__ void touch_shared(int* out, int i) {
  DYNAMIC_SHARED(bytes);
  reinterpret_cast<int*>(bytes)[i] = 1;
  out[0] = reinterpret_cast<int*>(bytes)[i];
}

extern "C" __global__ void touch_static(int* out, int i) {
  __shared__ int shared[8];
  shared[i] = 1;
  out[0] = shared[i];
}

extern "C" __global__ void by_fours(const float* in, float* out, int first) {
  *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(in + first);
}

extern "C" __global__ void recurse(int* out, int n) {
  volatile int frame[256];
  frame[0] = n;
  if (n) recurse(out, n - 1);
  out[0] += frame[0];
}

extern "C" __global__ void some_return(int* out, int returning) {
  if ((int)threadIdx.x < returning) return;
  const int here = __syncthreads_count(1);
  out[threadIdx.x] = here;
}

extern "C" __global__ void divergent(int* out, int how) {
  const bool low = threadIdx.x < 16;
  if (how == 0 && low) __syncthreads();
  if (how == 0 && !low) __syncwarp();
  if (how == 1) out[threadIdx.x] = low ? __shfl_sync(~0u, 1, 0) : __shfl_xor_sync(~0u, 1, 1);
  if (how == 2) out[threadIdx.x] = low ? __shfl_sync(~0u, 1, 0) : 0;
  if (how == 3) __syncwarp(0xffff);
}

extern "C" __global__ void barriers(int* out) {
  const int t = threadIdx.x;
  const int any = __syncthreads_or(t == 5), none = __syncthreads_or(0);
  const int all = __syncthreads_and(1), not_all = __syncthreads_and(t);
  out[t] = any + 2 * none + 4 * all + 8 * not_all + 16 * __syncthreads_count(t % 3 == 0);
}

extern "C" __global__ void warps(long long* out) {
  const int t = threadIdx.x, lane = t % 32;
  long long r[16] = {__shfl_sync(~0u, t, 3),
                     __shfl_up_sync(~0u, t, 2),
                     __shfl_down_sync(~0u, t, 5),
                     __shfl_xor_sync(~0u, t, 6),
                     __shfl_sync(~0u, t, 9, 8),
                     __shfl_up_sync(~0u, t, 3, 8),
                     __shfl_down_sync(~0u, t, 3, 8),
                     (long long)(8 * __shfl_down_sync(~0u, t / 8.0, 1)),
                     __ballot_sync(~0u, lane % 3 == 0),
                     __any_sync(~0u, lane == 7),
                     __all_sync(~0u, lane < 31),
                     __match_any_sync(~0u, lane % 4),
                     __reduce_add_sync(~0u, t),
                     __reduce_max_sync(~0u, t)};
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;  // two halves, each on its own
  if (lane < 16)
    r[14] = __shfl_down_sync(half, t, 1);
  else
    r[14] = __shfl_up_sync(half, t, 1);
  r[15] = __reduce_min_sync(half, t);
  for (int i = 0; i < 16; ++i) out[t * 16 + i] = r[i];
}

extern "C" __global__ void atomics(int* out, float* sum, unsigned long long* wide, int* lock) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(out, t), atomicMax(out + 1, t), atomicMin(out + 2, -t);
  atomicOr(out + 3, 1 << t % 31), atomicXor(out + 4, 1 << t % 31);
  atomicExch(out + 5, 7), atomicAdd(sum, 0.5f), atomicMax(wide, (unsigned long long)t << 33);
  while (atomicCAS(lock, 0, 1)) {
  }
  out[6] = out[6] + 1;
  atomicExch(lock, 0);
}

extern "C" __global__ void integers(int* out, int x) {
  const int r[] = {__popc(x),
                   __clz(x),
                   __ffs(x),
                   (int)__brev(x),
                   __popcll(((long long)x << 32) | 1),
                   __clzll(x),
                   (int)__umulhi(x, 1 << 30),
                   (int)__funnelshift_l(x, 1, 4),
                   (int)__funnelshift_r(x, 1, 4),
                   __float_as_int((float)x),
                   __float2int_rn(x % 5 + .5f),
                   (int)__byte_perm(x, 0x4b000000, 0x7451)};
  for (int i = 0; i < 12; ++i) out[i] = r[i];
}

extern "C" __global__ void from_half(const half_t* h, const bfloat_t* b, float* out_h, float* out_b) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out_h[i] = widen(h[i]), out_b[i] = widen(b[i]);
}

extern "C" __global__ void to_half(const float* x, half_t* h, bfloat_t* b) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  narrow(x[i], h[i]), narrow(x[i], b[i]);
}
