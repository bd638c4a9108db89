// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_logits_stats.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "cpu/schedule.h"
#include "kernels/cpu/attention_logits_stats.h"

namespace fiqa_fast {
namespace {

AttentionLogitsStatsTensors attention_logits_stats_cpu(const Tensor& q,  // [B, H, Nq, d]
                                                       const Tensor& k,  // [B, H, Nk, d]
                                                       double scale, int64_t stats,
                                                       bool average_heads) {
  const AttentionLogitsInputs in = check_attention_logits_stats(q, k, stats);
  const AttentionLogitsStatsTensors out = empty_attention_logits_stats(in, stats, average_heads, q);
  if (in.images == 0) return out;

  AttentionLogitsStatsArgs args = {};
  args.dtype = in.dtype;
  args.images = in.images;
  args.heads = in.heads;
  args.head_dim = in.head_dim;
  args.scale = static_cast<float>(average_heads ? scale / static_cast<double>(in.heads) : scale);
  args.stats = stats;
  args.average_heads = average_heads;
  args.q = tokens_of(q);
  args.k = tokens_of(k);
  args.out = outputs_of(out);

  std::optional<Tensor> rows, columns, counts, search;
  if (logits::asks_moments(stats)) {
    constexpr int64_t doubles = sizeof(LogitsRow) / sizeof(double);
    rows = empty_of(ScalarType::Double, {in.images, args.matrices(), in.q_tokens, doubles}, q);
    args.rows = static_cast<LogitsRow*>(rows->mutable_data_ptr());
    columns = empty_float32({in.images, args.items(), args.padded_keys()}, q);
    args.columns = float32_data(*columns);
  }
  if (logits::asks_median(stats)) {
    counts = empty_of(ScalarType::Long, {in.images, kLogitDigits}, q);
    args.counts = static_cast<int64_t*>(counts->mutable_data_ptr());
    std::fill_n(args.counts, in.images * kLogitDigits, 0);
    search = empty_of(ScalarType::Long, {in.images, 2}, q);
    args.search = static_cast<MedianSearch*>(search->mutable_data_ptr());
  }

  const AttentionLogitsStatsKernels& kernels = attention_logits_stats_kernels();
  run_phases<AttentionLogitsStatsArgs>(args, in.images,
                                       {{kernels.first_pass, args.items()},
                                        {kernels.after_first, 1},
                                        {kernels.second_pass, args.items()},
                                        {kernels.after_second, 1},
                                        {kernels.third_pass, args.items()},
                                        {kernels.after_third, 1}});
  return out;
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("attention_logits_stats", TORCH_BOX(&fiqa_fast::attention_logits_stats_cpu));
}
