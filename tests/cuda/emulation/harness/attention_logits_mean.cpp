// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attention_logits_mean.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cuda::AttentionSide side_of(const Array& tokens,  // [B, H, N, d]
                            float* mean, float* map) {
  return {tokens.data,
          tokens.shape[2],
          tokens.strides[0],
          tokens.strides[1],
          tokens.strides[2],
          tokens.strides[3],
          mean,
          map};
}

cudaError_t run(const Call& call) {
  const Array &q = call.array("q"), &k = call.array("k");
  const Scratch k_mean(q.shape[0] * q.shape[1] * q.shape[3]);
  cuda::AttentionLogitsMeanArgs args = {};
  args.dtype = static_cast<DType>(q.dtype);
  args.images = q.shape[0];
  args.heads = q.shape[1];
  args.head_dim = q.shape[3];
  args.scale = static_cast<float>(call.number("scale"));
  args.q = side_of(q, call.floats("q_mean"), call.floats("query_map"));
  args.k = side_of(k, k_mean.data(), call.floats("key_map"));
  args.head_scores = call.floats("head_scores");
  return cuda::launch_attention_logits_mean(args, nullptr);
}

const Operation operation("attention_logits_mean", run);

}  // namespace
}  // namespace fiqa_fast::test
