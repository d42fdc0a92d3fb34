// Work of one launch in phases, which all of its blocks finish before one of them begins the next.
#pragma once
#include "camguide.cuh"

// All blocks of the launch have come here `round` times. What they wrote before can be read after: by a plain load, if it is not
// declared `const __restrict__`, whose cache does not see what others write. The blocks must run together.
__device__ __forceinline__ void meet(unsigned* counter, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1u);
    while ((int)(*(volatile unsigned*)counter - round * gridDim.x) < 0) {
    }
    __threadfence();
  }
  __syncthreads();
}

// `if (phases.next()) ...` does this phase if it is one of [first, last), those before it done: all in one launch whose blocks
// run together, or a launch a phase.
struct Phases {
  unsigned* counter;
  int first, last, phase;

  __device__ __forceinline__ bool next() {
    const bool ours = phase >= first && phase < last;
    if (ours && phase > first) meet(counter, phase - first);
    ++phase;
    return ours;
  }
};
