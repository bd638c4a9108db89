// SPDX-License-Identifier: Apache-2.0
// Means of the attention logits s q_i . k_j (the score of ATTN-FIQA, arXiv 2604.22841) without the
// logits: they are bilinear, so their means are products of the means of q and k. Three phases:
// sums of q and k over chunks of tokens; means and head scores; the two maps, from a second reading
// of q and k.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// See kMeanLayerNormTokensPerChunk. Here it also bounds what the map phase keeps on the stack.
constexpr int64_t kAttentionLogitsMeanTokensPerChunk = 32;

// q or k, with what is computed from it.
struct AttentionSide {
  const void* data;                                                 // [B, H, N, d]
  int64_t tokens;                                                   // N
  int64_t image_stride, head_stride, token_stride, channel_stride;  // in elements
  float* partial;  // [B, chunks, H, padded d], scratch
  float* mean;     // [B, H, padded d], scratch, padded with zeros
  float* map;      // [B, N]
  int64_t chunks() const { return divide_up(tokens, kAttentionLogitsMeanTokensPerChunk); }
};

struct AttentionLogitsMeanArgs {
  DType dtype;
  int64_t images, heads, head_dim;  // B, H, d
  float scale;
  AttentionSide q, k;
  float* head_scores;  // [B, H]
  float* q_mean;       // [B, H, d]

  int64_t chunks() const { return q.chunks() + k.chunks(); }
  static constexpr int64_t padded(int64_t head_dim) { return round_up(head_dim, 16); }
};

struct AttentionLogitsMeanKernels {
  // Work items [begin, end) of B * chunks: within an image those of q, then those of k.
  void (*partial_sums)(const AttentionLogitsMeanArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B.
  void (*combine)(const AttentionLogitsMeanArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of B * chunks, as above.
  void (*maps)(const AttentionLogitsMeanArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(AttentionLogitsMeanKernels, attention_logits_mean_kernels)

}  // namespace fiqa_fast
