// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/linear.h"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {

struct BatchInvariantLinearArgs : LinearInput {
  float* partial = nullptr;  // [chunks, B, O], scratch
  float* out = nullptr;      // [B, O]

  // Of K: with 512 outputs, 73728 inputs and up to 32 rows, 36 x 16 blocks. Results depend on it.
  static constexpr int64_t kInputsPerChunk = 2048;
  FIQA_FAST_HOST_DEVICE int64_t chunks() const { return divide_up(inputs, kInputsPerChunk); }
};

// B, K and O are at least 1. Returns the error of the launches.
cudaError_t launch_batch_invariant_linear(const BatchInvariantLinearArgs& args,
                                          cudaStream_t stream);

}  // namespace fiqa_fast::cuda
