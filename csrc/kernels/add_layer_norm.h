// SPDX-License-Identifier: Apache-2.0
// What adding a residual and normalising the sum reads and writes, on any device.
#pragma once

#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast {

struct AddLayerNormArgs {
  const float* x;                                            // [B, N, D]
  int64_t x_image_stride, x_token_stride, x_channel_stride;  // in elements
  const void* residual;                                      // [B, N, D]
  DType residual_dtype;
  int64_t residual_image_stride, residual_token_stride, residual_channel_stride;
  Channelwise weight, bias;          // [D]
  int64_t images, tokens, channels;  // B, N, D
  float eps;
  float* sum;    // [B, N, D], contiguous
  void* normed;  // [B, N, D], contiguous
  DType normed_dtype;
};

}  // namespace fiqa_fast
