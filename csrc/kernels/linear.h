// SPDX-License-Identifier: Apache-2.0
// What a linear layer over pooled rows reads and writes, on any device.
#pragma once

#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast {

struct LinearInput {
  const float* x;                  // [B, K]
  int64_t x_row_stride, x_stride;  // in elements
  const void* weight;              // [O, K]
  DType dtype;                     // of weight
  int64_t weight_row_stride, weight_stride;
  Channelwise bias;               // [O]
  int64_t rows, inputs, outputs;  // B, K, O
};

}  // namespace fiqa_fast
