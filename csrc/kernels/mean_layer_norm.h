// SPDX-License-Identifier: Apache-2.0
// What the mean over tokens of LayerNorm(x + residual), and a map beside it, read on any device.
#pragma once

#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/layer_norm.h"

namespace fiqa_fast {

struct MeanLayerNormInput : LayerNormInput {
  const void* residual = nullptr;  // [B, N, D]; or null: x alone is normalised
  DType residual_dtype = DType::kFloat32;
  int64_t residual_image_stride = 0, residual_token_stride = 0, residual_channel_stride = 0;
  const float* u = nullptr;  // [B, D]; or null: no map
  int64_t u_image_stride = 0, u_channel_stride = 0;
};

}  // namespace fiqa_fast
