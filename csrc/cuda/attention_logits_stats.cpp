// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_logits_stats.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/attention_logits_stats.h"

namespace fiqa_fast {
namespace {

AttentionLogitsStatsTensors attention_logits_stats_cuda(const Tensor& q,  // [B, H, Nq, d]
                                                        const Tensor& k,  // [B, H, Nk, d]
                                                        double scale, int64_t stats,
                                                        bool average_heads) {
  const AttentionLogitsInputs in = check_attention_logits_stats(q, k, stats);
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const AttentionLogitsStatsTensors out = empty_attention_logits_stats(in, stats, average_heads, q);
  if (in.images == 0) return out;

  cuda::AttentionLogitsStatsArgs args = {};
  args.dtype = in.dtype;
  args.images = in.images;
  args.heads = in.heads;
  args.head_dim = in.head_dim;
  args.matrices = average_heads ? 1 : in.heads;
  args.scale = static_cast<float>(average_heads ? scale / static_cast<double>(in.heads) : scale);
  args.q = tokens_of(q);
  args.k = tokens_of(k);
  args.stats = stats;
  args.out = outputs_of(out);

  const cuda::AttentionLogitsStatsScratch sizes = cuda::attention_logits_stats_scratch(args);
  const Tensor row_moments = empty_float32({sizes.row_moments}, q);
  const Tensor column_sums = empty_float32({sizes.column_sums}, q);
  const Tensor column_means = empty_float32({sizes.column_means}, q);
  const Tensor centred_squares = empty_float32({sizes.centred_squares}, q);
  const Tensor counts = empty_of(ScalarType::Int, {sizes.counts}, q);
  static_assert(sizeof(cuda::MedianSearch) == 2 * sizeof(int64_t));
  const Tensor searches = empty_of(ScalarType::Long, {2 * sizes.searches}, q);
  args.row_moments = float32_data(row_moments);
  args.column_sums = float32_data(column_sums);
  args.column_means = float32_data(column_means);
  args.centred_squares = float32_data(centred_squares);
  args.counts = static_cast<uint32_t*>(counts.mutable_data_ptr());
  args.searches = static_cast<cuda::MedianSearch*>(searches.mutable_data_ptr());
  check_launch("attention_logits_stats",
               cuda::launch_attention_logits_stats(args, current_stream(q)));
  return out;
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("attention_logits_stats", TORCH_BOX(&fiqa_fast::attention_logits_stats_cuda));
}
