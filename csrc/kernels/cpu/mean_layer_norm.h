// SPDX-License-Identifier: Apache-2.0
// The mean over tokens of LayerNorm(x), in two phases: partial sums over chunks of tokens, then
// their combination. A work item never depends on the batch or on who else computes, so neither do
// results.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// 32 tokens of 512 float32 channels are 64 KiB: enough work to be worth handing to a thread, and
// few enough that one image of 196 tokens still feeds seven threads. Results depend on this number.
constexpr int64_t kMeanLayerNormTokensPerChunk = 32;

struct MeanLayerNormArgs : LayerNormInput {
  float* partial;  // [B, chunks, padded D], scratch
  float* out;      // [B, D]

  int64_t chunks() const { return divide_up(tokens, kMeanLayerNormTokensPerChunk); }
  // Whole vectors, so that kernels need not treat the last channels of scratch apart.
  static constexpr int64_t padded(int64_t channels) { return round_up(channels, 16); }
};

struct MeanLayerNormKernels {
  // Work items [begin, end) of B * chunks.
  void (*partial_sums)(const MeanLayerNormArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B.
  void (*combine)(const MeanLayerNormArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(MeanLayerNormKernels, mean_layer_norm_kernels)

}  // namespace fiqa_fast
