// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tuple>

#include "kernels/attention_logits_stats.h"
#include "ops/attention_logits.h"
#include "ops/outputs.h"

namespace fiqa_fast {

inline AttentionLogitsInputs check_attention_logits_stats(const Tensor& q,  // [B, H, Nq, d]
                                                          const Tensor& k,  // [B, H, Nk, d]
                                                          int64_t stats) {
  constexpr const char* op = "attention_logits_stats";
  const AttentionLogitsInputs in = check_attention_logits(op, q, k);
  check(in.head_dim <= kAttentionLogitsStatsMaxHeadDim, op, ": head_dim should be at most ",
        kAttentionLogitsStatsMaxHeadDim, ", got ", in.head_dim);
  check(stats > 0 && stats <= logits::kEveryBit, op, ": stats should be a sum of 1 (moments), ",
        "2 (centered_variance), 4 (softmax) and 8 (median), got ", stats);
  return in;
}

inline AttentionTokens tokens_of(const Tensor& tokens) {  // [B, H, N, d]
  return {tokens.const_data_ptr(), tokens.size(2),   tokens.stride(0),
          tokens.stride(1),        tokens.stride(2), tokens.stride(3)};
}

using AttentionLogitsStatsTensors =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The operator's results in the order of its schema, uninitialised.
inline AttentionLogitsStatsTensors empty_attention_logits_stats(const AttentionLogitsInputs& in,
                                                                int64_t stats, bool average_heads,
                                                                const Tensor& like) {
  const int64_t heads = average_heads ? 1 : in.heads;
  const auto empty_if = [&](bool asked, std::initializer_list<int64_t> shape) {
    return asked ? empty_float32(shape, like) : empty_float32({0}, like);
  };
  const bool moments = logits::asks_moments(stats), softmax = logits::asks_softmax(stats);
  return {empty_if(moments, {in.images, heads, logits::kValues}),
          empty_if(moments, {in.images, logits::kValues}),
          empty_if(moments, {in.images, in.k_tokens}),
          empty_if(moments, {in.images, in.q_tokens}),
          empty_if(softmax, {in.images, heads, in.q_tokens}),
          empty_if(softmax, {in.images, heads, in.q_tokens}),
          empty_if(logits::asks_median(stats), {in.images})};
}

inline AttentionLogitsStatsOutputs outputs_of(const AttentionLogitsStatsTensors& tensors) {
  return std::apply(
      [](const auto&... t) { return AttentionLogitsStatsOutputs{float32_data(t)...}; }, tensors);
}

}  // namespace fiqa_fast
