// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_logits_mean.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/schedule.h"
#include "kernels/cpu/attention_logits_mean.h"
#include "ops/outputs.h"

namespace fiqa_fast {
namespace {

AttentionSide side_of(const Tensor& tokens,  // [B, H, N, d]
                      const Tensor& partial, const Tensor& mean, const Tensor& map) {
  return {tokens.const_data_ptr(), tokens.size(2),     tokens.stride(0),
          tokens.stride(1),        tokens.stride(2),   tokens.stride(3),
          float32_data(partial),   float32_data(mean), float32_data(map)};
}

int64_t chunks_of(int64_t tokens) { return divide_up(tokens, kAttentionLogitsMeanTokensPerChunk); }

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_logits_mean_cpu(
    const Tensor& q,  // [B, H, Nq, d]
    const Tensor& k,  // [B, H, Nk, d]
    double scale) {
  const AttentionLogitsInputs in = check_attention_logits_mean(q, k);
  const Tensor head_scores = empty_float32({in.images, in.heads}, q);
  const Tensor key_map = empty_float32({in.images, in.k_tokens}, q);
  const Tensor query_map = empty_float32({in.images, in.q_tokens}, q);
  const Tensor q_mean = empty_float32({in.images, in.heads, in.head_dim}, q);
  if (in.images == 0) return {head_scores, key_map, query_map, q_mean};

  const int64_t padded = AttentionLogitsMeanArgs::padded(in.head_dim);
  const Tensor q_partial = empty_float32({in.images, chunks_of(in.q_tokens), in.heads, padded}, q);
  const Tensor k_partial = empty_float32({in.images, chunks_of(in.k_tokens), in.heads, padded}, q);
  const Tensor means = empty_float32({2, in.images, in.heads, padded}, q);
  AttentionLogitsMeanArgs args = {};
  args.dtype = in.dtype;
  args.images = in.images;
  args.heads = in.heads;
  args.head_dim = in.head_dim;
  args.scale = static_cast<float>(scale);
  args.q = side_of(q, q_partial, means, query_map);
  args.k = side_of(k, k_partial, means, key_map);
  args.k.mean += in.images * in.heads * padded;
  args.head_scores = float32_data(head_scores);
  args.q_mean = float32_data(q_mean);

  const AttentionLogitsMeanKernels& kernels = attention_logits_mean_kernels();
  run_phases<AttentionLogitsMeanArgs>(
      args, in.images,
      {{kernels.partial_sums, args.chunks()}, {kernels.combine, 1}, {kernels.maps, args.chunks()}});
  return {head_scores, key_map, query_map, q_mean};
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("attention_logits_mean", TORCH_BOX(&fiqa_fast::attention_logits_mean_cpu));
}
