// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/mean_layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {

struct MeanLayerNormArgs : MeanLayerNormInput {
  float* partial = nullptr;  // [B, chunks, padded D], scratch
  float* mean = nullptr;     // [B, D]
  // Where u is given:
  float* folded = nullptr;      // [B, padded D], scratch at a multiple of 16 bytes
  float* folded_sum = nullptr;  // [B], scratch
  float* constant = nullptr;    // [B], scratch
  float* map = nullptr;         // [B, N]

  int64_t chunks() const;
  // Whole groups for either kind of dtype.
  FIQA_FAST_HOST_DEVICE static constexpr int64_t padded(int64_t channels) {
    return round_up(channels, 8);
  }
};

// B, N and D are at least 1; the residual has x's dtype, or x is float32. Returns the error of the
// launches.
cudaError_t launch_mean_layer_norm(const MeanLayerNormArgs& args, cudaStream_t stream);

}  // namespace fiqa_fast::cuda
