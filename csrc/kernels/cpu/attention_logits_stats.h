// SPDX-License-Identifier: Apache-2.0
// Statistics of the attention logits s q_i . k_j that need every logit (the ablations of ATTN-FIQA,
// arXiv 2604.22841). A work item forms the logits of one head, or of the heads' average, between a
// chunk of queries and all keys, in memory of its thread, and reduces them; the logits of a whole
// image never exist. Up to three passes form them anew: what needs another pass is the variance
// about means of the first, and the median, found digit by digit.
#pragma once

#include <stdint.h>

#include "kernels/attention_logits_stats.h"
#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// Four vectors of queries: as many as a product of registers takes.
constexpr int64_t kAttentionLogitsStatsQueriesPerChunk = 64;
// Of a tile, which stays in the innermost cache while all queries of a chunk pass by.
constexpr int64_t kAttentionLogitsStatsKeysPerTile = 64;
// Counters of one digit, of at most 11 bits, of the median.
constexpr int64_t kLogitDigits = 2048;

// What one query's logits come to.
struct LogitsRow {
  double mean, squares;  // the sum of squares about the mean; later, of the doubly centred logits
  double max, min;
};

// The search for one image's median: the digits found so far, and its rank, from 0, among the
// logits that begin with them.
struct MedianSearch {
  int64_t digits, rank;
};

struct AttentionLogitsStatsArgs {
  DType dtype;
  int64_t images, heads, head_dim;  // B, H, d
  float scale;
  int64_t stats;
  bool average_heads;
  AttentionTokens q, k;
  AttentionLogitsStatsOutputs out;
  LogitsRow* rows;        // [B, H', Nq], scratch
  float* columns;         // [B, H', chunks, padded Nk], scratch: sums of each key's logits
  int64_t* counts;        // [B, kLogitDigits], scratch, zero at first
  MedianSearch* search;   // [B], scratch
  float* thread_scratch;  // of each thread, on a cache line's boundary

  int64_t matrices() const { return average_heads ? 1 : heads; }  // H'
  int64_t chunks() const { return divide_up(q.tokens, kAttentionLogitsStatsQueriesPerChunk); }
  int64_t items() const { return matrices() * chunks(); }  // per image
  int64_t padded_keys() const { return round_up(k.tokens, 16); }
  // The logits [padded Nk, queries], queries [d, queries] and a tile of keys [keys, padded d].
  int64_t thread_scratch_floats() const {
    return (padded_keys() + kAttentionLogitsStatsMaxHeadDim) *
               kAttentionLogitsStatsQueriesPerChunk +
           kAttentionLogitsStatsKeysPerTile * kAttentionLogitsStatsMaxHeadDim;
  }
};

// Each pass works on items [begin, end) of B * items(); what follows it, on images [begin, end).
// Passes for which there is nothing to do return at once.
struct AttentionLogitsStatsKernels {
  using Kernel = void (*)(const AttentionLogitsStatsArgs&, int64_t begin, int64_t end);
  Kernel first_pass;    // moments, softmax, the median's first digit
  Kernel after_first;   // all of the moments but the centred variance
  Kernel second_pass;   // centred variance, second digit
  Kernel after_second;  // centred variance
  Kernel third_pass;    // third digit
  Kernel after_third;   // median
};

FIQA_FAST_DECLARE_KERNELS(AttentionLogitsStatsKernels, attention_logits_stats_kernels)

}  // namespace fiqa_fast
