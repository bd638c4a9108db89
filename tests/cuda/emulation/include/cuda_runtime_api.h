// SPDX-License-Identifier: Apache-2.0
// CUDA, as far as the kernels use it, for a C++ compiler; -include puts it before every source, as
// nvcc does with its own. What is missing does not compile, rather than to do something else.
#pragma once

#include <math.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
// Blocks run one after the other, so a block's variables can be the program's. They are poisoned
// before each block (static_shared.cpp). alignas() stands before it; for `extern __shared__` there
// is dynamic_shared().
#define __shared__ static

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct CUstream_st*;

#include "runtime/atomics.h"
#include "runtime/intrinsics.h"
#include "runtime/thread.h"
#include "runtime/vector_types.h"

#define threadIdx (::emulation::current().thread_index)
#define blockIdx (::emulation::current().block_index)
#define blockDim (::emulation::current().block_dim)
#define gridDim (::emulation::current().grid_dim)
