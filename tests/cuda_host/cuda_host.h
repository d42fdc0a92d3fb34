// CUDA C++ on a CPU, for tests: the threads of a block are fibers, which run until they wait (barrier, shuffle) or touch an
// atomic, in an order that a seed chooses. What depends on the order - a race, a missing barrier - comes out different under
// another seed.
//
// Blocks run one after the other, in an order of the seed's choice too. Shared memory is poisoned before each. Tensors and
// dynamic shared memory lie between inaccessible pages and inputs are read-only, so an access out of bounds stops the launch
// with a message; with -fsanitize in trap mode a misaligned vector, a shift too far or an index beyond an array does the same.
// So does a deadlock: threads that wait for each other in different places, a lane that shuffles outside its mask.
//
// Not here: several blocks at a time (no grid-wide waiting), textures, cooperative groups, asynchronous copies, inline PTX (a
// kernel puts it behind #ifndef CUDA_HOST). __shared__ works in kernels and plain functions, not in templates. Two lanes that
// read and write one word between the same two waits are seen only where their order matters to the result.
#pragma once

#include "language.h"
#include "memory.h"
#include "fibers.h"
#include "warp.h"
#include "atomics.h"
#include "numbers.h"
#include "launch.h"
