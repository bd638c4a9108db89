// SPDX-License-Identifier: Apache-2.0
// What statistics of the attention logits there are, and where they go, on any device.
#pragma once

#include <stdint.h>

#include "kernels/shapes.h"

namespace fiqa_fast {

constexpr int64_t kAttentionLogitsStatsMaxHeadDim = 128;

namespace logits {

// What is asked for, a sum of these.
constexpr int64_t kMomentsBit = 1, kCenteredVarianceBit = 2, kSoftmaxBit = 4, kMedianBit = 8;
constexpr int64_t kEveryBit = kMomentsBit | kCenteredVarianceBit | kSoftmaxBit | kMedianBit;

// The values of one head's logits, or of one image's.
enum Value : int64_t {
  kMean,
  kMax,
  kMin,
  kVariance,          // over n
  kUnbiasedVariance,  // over n - 1
  kRowVariance,       // over n within a row, mean of the rows
  kCenteredVariance,  // of the doubly centred logits, over n; NaN unless asked for
  kValues
};

// The centred variance is a column of the moments, so either asks for all of them.
FIQA_FAST_HOST_DEVICE constexpr bool asks_moments(int64_t stats) {
  return stats & (kMomentsBit | kCenteredVarianceBit);
}
FIQA_FAST_HOST_DEVICE constexpr bool asks_centered_variance(int64_t stats) {
  return stats & kCenteredVarianceBit;
}
FIQA_FAST_HOST_DEVICE constexpr bool asks_softmax(int64_t stats) { return stats & kSoftmaxBit; }
FIQA_FAST_HOST_DEVICE constexpr bool asks_median(int64_t stats) { return stats & kMedianBit; }

}  // namespace logits

// q or k.
struct AttentionTokens {
  const void* data;                                                 // [B, H, N, d]
  int64_t tokens;                                                   // N
  int64_t image_stride, head_stride, token_stride, channel_stride;  // in elements
};

// Contiguous. H' is H, or 1 where the heads' logits are averaged first. What was not asked for has
// no elements.
struct AttentionLogitsStatsOutputs {
  float* head_values;   // [B, H', logits::kValues]
  float* image_values;  // [B, logits::kValues]
  float* key_map;       // [B, Nk]
  float* query_map;     // [B, Nq]
  float* logsumexp;     // [B, H', Nq]
  float* entropy;       // [B, H', Nq], in nats
  float* median;        // [B]
};

}  // namespace fiqa_fast
