// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast::cuda {

struct LayerNormDotArgs : LayerNormInput {
  const float* w;  // [N, D]
  int64_t w_token_stride, w_channel_stride;
  float* folded;        // [N, padded D], scratch at a multiple of 16 bytes
  float* folded_sum;    // [N], scratch
  float* constant;      // [N], scratch
  float* token_values;  // [B, N], scratch
  float* out;           // [B]

  // Whole groups for either kind of dtype.
  FIQA_FAST_HOST_DEVICE static constexpr int64_t padded(int64_t channels) {
    return round_up(channels, 8);
  }
};

// B, N and D are at least 1. Returns the error of the launches.
cudaError_t launch_layer_norm_dot(const LayerNormDotArgs& args, cudaStream_t stream);

}  // namespace fiqa_fast::cuda
