// SPDX-License-Identifier: Apache-2.0
// The mean over tokens of LayerNorm(x), or of LayerNorm(x + residual), and each normed token's
// product with u. LayerNorm's weight g and bias b are folded into u first, once per image:
//
//   map_n = rstd_n (sum_d (x[n, d] - mean_n) (g_d u_d)) + sum_d b_d u_d
//
// Then partial sums over chunks of tokens, then their combination. A work item never depends on the
// batch or on who else computes, so neither do results.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/mean_layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// 32 tokens of 512 float32 channels are 64 KiB: enough work to be worth handing to a thread, and
// few enough that one image of 196 tokens still feeds seven threads. Results depend on this number.
constexpr int64_t kMeanLayerNormTokensPerChunk = 32;
// Tokens that wait in memory as x + residual: of 512 channels 8 KiB, which the first-level cache
// keeps over three readings. As many as are normalised together, at most.
constexpr int64_t kMeanLayerNormTokensAdded = 4;

struct MeanLayerNormArgs : MeanLayerNormInput {
  float* partial = nullptr;  // [B, chunks, padded D], scratch
  float* mean = nullptr;     // [B, D]
  // Where a residual is given:
  float* sums = nullptr;  // [B, chunks, kMeanLayerNormTokensAdded, padded D], scratch
  // Where u is given:
  float* folded = nullptr;      // [B, padded D], scratch: g u, zero beyond D
  float* folded_sum = nullptr;  // [B], scratch
  float* constant = nullptr;    // [B], scratch: sum_d b_d u_d
  float* map = nullptr;         // [B, N]

  int64_t chunks() const { return divide_up(tokens, kMeanLayerNormTokensPerChunk); }
  // Whole vectors, so that kernels need not treat the last channels of scratch apart.
  static constexpr int64_t padded(int64_t channels) { return round_up(channels, 16); }
};

struct MeanLayerNormKernels {
  // Work items [begin, end) of B; nothing to do without u.
  void (*fold)(const MeanLayerNormArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B * chunks.
  void (*partial_sums)(const MeanLayerNormArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B.
  void (*combine)(const MeanLayerNormArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(MeanLayerNormKernels, mean_layer_norm_kernels)

}  // namespace fiqa_fast
