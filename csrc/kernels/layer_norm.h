// SPDX-License-Identifier: Apache-2.0
// What every operator on LayerNorm(x) reads, on any device.
#pragma once

#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast {

struct LayerNormInput {
  const void* x;  // [B, N, D]
  DType dtype;
  int64_t images, tokens, channels;                    // B, N, D
  int64_t image_stride, token_stride, channel_stride;  // of x, in elements
  Channelwise weight, bias;                            // [D]
  float eps;
};

}  // namespace fiqa_fast
