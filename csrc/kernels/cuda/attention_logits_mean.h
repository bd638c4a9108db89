// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast::cuda {

// q or k, with what is computed from it.
struct AttentionSide {
  const void* data;                                                 // [B, H, N, d]
  int64_t tokens;                                                   // N
  int64_t image_stride, head_stride, token_stride, channel_stride;  // in elements
  float* mean;  // [B, H, d]: the output q_mean, or scratch for k
  float* map;   // [B, N]
};

struct AttentionLogitsMeanArgs {
  DType dtype;
  int64_t images, heads, head_dim;  // B, H, d
  float scale;
  AttentionSide q, k;
  float* head_scores;  // [B, H]
};

// All sizes are at least 1. Returns the error of the launches.
cudaError_t launch_attention_logits_mean(const AttentionLogitsMeanArgs& args, cudaStream_t stream);

}  // namespace fiqa_fast::cuda
