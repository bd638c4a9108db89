// SPDX-License-Identifier: Apache-2.0
#include "ops/attention_logits_mean.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/launch.h"
#include "kernels/cuda/attention_logits_mean.h"
#include "ops/outputs.h"

namespace fiqa_fast {
namespace {

cuda::AttentionSide side_of(const Tensor& tokens,  // [B, H, N, d]
                            const Tensor& mean, const Tensor& map) {
  return {tokens.const_data_ptr(), tokens.size(2),   tokens.stride(0),   tokens.stride(1),
          tokens.stride(2),        tokens.stride(3), float32_data(mean), float32_data(map)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_logits_mean_cuda(
    const Tensor& q,  // [B, H, Nq, d]
    const Tensor& k,  // [B, H, Nk, d]
    double scale) {
  const AttentionLogitsInputs in = check_attention_logits_mean(q, k);
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  const Tensor head_scores = empty_float32({in.images, in.heads}, q);
  const Tensor key_map = empty_float32({in.images, in.k_tokens}, q);
  const Tensor query_map = empty_float32({in.images, in.q_tokens}, q);
  const Tensor q_mean = empty_float32({in.images, in.heads, in.head_dim}, q);
  if (in.images == 0) return {head_scores, key_map, query_map, q_mean};

  const Tensor k_mean = empty_float32({in.images, in.heads, in.head_dim}, q);
  cuda::AttentionLogitsMeanArgs args = {};
  args.dtype = in.dtype;
  args.images = in.images;
  args.heads = in.heads;
  args.head_dim = in.head_dim;
  args.scale = static_cast<float>(scale);
  args.q = side_of(q, q_mean, query_map);
  args.k = side_of(k, k_mean, key_map);
  args.head_scores = float32_data(head_scores);
  check_launch("attention_logits_mean",
               cuda::launch_attention_logits_mean(args, current_stream(q)));
  return {head_scores, key_map, query_map, q_mean};
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("attention_logits_mean", TORCH_BOX(&fiqa_fast::attention_logits_mean_cuda));
}
