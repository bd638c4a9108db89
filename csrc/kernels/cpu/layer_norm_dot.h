// SPDX-License-Identifier: Apache-2.0
// sum_n sum_d LayerNorm(x)[n, d] w[n, d]. LayerNorm's weight g and bias b are folded into w first,
// once for all images:
//
//   out = sum_n rstd_n (sum_d (x[n, d] - mean_n) (g_d w[n, d])) + sum_n sum_d b_d w[n, d]
//
// unless there are none and w can be read as it is: for one image, folding costs as much as the dot
// product. Then partial sums over chunks of tokens, then their combination. A work item never
// depends on the batch or on who else computes, so neither do results.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/layer_norm.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// 32 tokens of 512 float32 channels are 64 KiB, and as much of w: enough work to be worth handing
// to a thread, and few enough that one image of 144 tokens still feeds five threads. Results depend
// on this number.
constexpr int64_t kLayerNormDotTokensPerChunk = 32;

struct LayerNormDotArgs : LayerNormInput {
  const float* w;  // [N, D]
  int64_t w_token_stride, w_channel_stride;
  float* folded = nullptr;  // [N, padded D], scratch: g w, zero beyond D; null: w is read as it is
  float* constant = nullptr;  // [N], scratch: sum_d b_d w[n, d]; used where folded is
  float* partial = nullptr;   // [B, chunks], scratch
  float* out = nullptr;       // [B]

  bool needs_folding() const {
    return weight.data || bias.data || w_channel_stride != 1 || channels != padded(channels);
  }
  int64_t chunks() const { return divide_up(tokens, kLayerNormDotTokensPerChunk); }
  // Whole vectors, so that kernels need not treat the last channels of scratch apart.
  static constexpr int64_t padded(int64_t channels) { return round_up(channels, 16); }
};

struct LayerNormDotKernels {
  // Work items [begin, end) of N; where folded is not null.
  void (*fold)(const LayerNormDotArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B * chunks.
  void (*partial_sums)(const LayerNormDotArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B.
  void (*combine)(const LayerNormDotArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(LayerNormDotKernels, layer_norm_dot_kernels)

}  // namespace fiqa_fast
