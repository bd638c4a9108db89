// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/attention_logits_stats.h"
#include "kernels/dtype.h"

namespace fiqa_fast::cuda {

struct LogitsInput {
  DType dtype;
  int64_t images, heads, head_dim;  // B, H, d
  int64_t matrices;                 // H': H, or 1 for the average of all heads
  float scale;                      // of the products: s, or s / H for the average
  AttentionTokens q, k;
};

// What a warp counts for the median: 16 values of a digit, and NaN.
constexpr int kCountsSize = 16 + 1;
constexpr int kWarpsPerChunk = 4;
// Of the median's key of 32 bits.
constexpr int kDigits = 8;

struct MedianSearch {
  int64_t rank;     // of the median, from 0, among the logits that begin with
  uint32_t prefix;  // these digits
};

struct AttentionLogitsStatsArgs : LogitsInput {
  int64_t stats;
  AttentionLogitsStatsOutputs out;
  // Scratch; sizes are below.
  float* row_moments;      // [B, H', Nq, 4]: mean, squares about it, maximum, minimum
  float* column_sums;      // [B, H', chunks, Nk]
  float* column_means;     // [B, H', Nk]
  float* centred_squares;  // [B, H', Nq]
  uint32_t* counts;        // [B, H', chunks, kWarpsPerChunk, kCountsSize]
  MedianSearch* searches;  // [kDigits, B]
};

// Numbers of elements that the scratch arrays need, 0 where they are not used.
struct AttentionLogitsStatsScratch {
  int64_t row_moments, column_sums, column_means, centred_squares, counts, searches;
};
AttentionLogitsStatsScratch attention_logits_stats_scratch(const AttentionLogitsStatsArgs& args);

// All sizes are at least 1. Returns the error of the launches.
cudaError_t launch_attention_logits_stats(const AttentionLogitsStatsArgs& args,
                                          cudaStream_t stream);

}  // namespace fiqa_fast::cuda
