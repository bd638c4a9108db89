// SPDX-License-Identifier: Apache-2.0
// x + residual and its LayerNorm, chunk of tokens by chunk: a chunk stays in the nearest caches
// between being added, measured and normalised. A row depends on nothing beside it.
#pragma once

#include <stdint.h>

#include "kernels/add_layer_norm.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/layer_norm_dot.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// That of layer_norm_dot, whose partial sums a chunk can give on its way.
constexpr int64_t kAddLayerNormTokensPerChunk = kLayerNormDotTokensPerChunk;

struct AddLayerNormCpuArgs : AddLayerNormArgs {
  // A dot product over all tokens beside the norm, as layer_norm_dot takes it of w as it is; or
  // null.
  const float* w = nullptr;  // [N, D]
  int64_t w_token_stride = 0;
  float* partial = nullptr;  // [B, chunks], scratch

  int64_t chunks() const { return divide_up(tokens, kAddLayerNormTokensPerChunk); }
};

struct AddLayerNormKernels {
  // Work items [begin, end) of B * chunks.
  void (*add_and_norm)(const AddLayerNormCpuArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(AddLayerNormKernels, add_layer_norm_kernels)

}  // namespace fiqa_fast
