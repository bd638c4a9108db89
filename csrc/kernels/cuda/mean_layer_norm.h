// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/layer_norm.h"

namespace fiqa_fast::cuda {

struct MeanLayerNormArgs : LayerNormInput {
  float* partial;  // scratch, of mean_layer_norm_scratch() floats
  float* out;      // [B, D]
};

// How many floats of scratch memory the launch needs.
int64_t mean_layer_norm_scratch(const MeanLayerNormArgs& args);
// B, N and D are at least 1. Returns the error of the launches.
cudaError_t launch_mean_layer_norm(const MeanLayerNormArgs& args, cudaStream_t stream);

}  // namespace fiqa_fast::cuda
