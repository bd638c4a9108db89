// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attention_logits_stats.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

AttentionTokens tokens_of(const Array& tokens) {  // [B, H, N, d]
  return {tokens.data,       tokens.shape[2],   tokens.strides[0],
          tokens.strides[1], tokens.strides[2], tokens.strides[3]};
}

float* floats_if_there(const Call& call, const char* name) {
  return call.find(name) ? call.floats(name) : nullptr;
}

template <class T>
Scratch scratch_of(int64_t elements) {
  static_assert(sizeof(T) % sizeof(float) == 0);
  return Scratch(elements * static_cast<int64_t>(sizeof(T) / sizeof(float)));
}

cudaError_t run(const Call& call) {
  const Array &q = call.array("q"), &k = call.array("k");
  const auto matrices = static_cast<int64_t>(call.number("matrices"));
  cuda::AttentionLogitsStatsArgs args = {};
  args.dtype = static_cast<DType>(q.dtype);
  args.images = q.shape[0];
  args.heads = q.shape[1];
  args.head_dim = q.shape[3];
  args.matrices = matrices;
  args.scale = static_cast<float>(call.number("scale") * static_cast<double>(matrices) /
                                  static_cast<double>(args.heads));
  args.q = tokens_of(q);
  args.k = tokens_of(k);
  args.stats = static_cast<int64_t>(call.number("stats"));
  args.out = {floats_if_there(call, "head_values"), floats_if_there(call, "image_values"),
              floats_if_there(call, "key_map"),     floats_if_there(call, "query_map"),
              floats_if_there(call, "logsumexp"),   floats_if_there(call, "entropy"),
              floats_if_there(call, "median")};

  const cuda::AttentionLogitsStatsScratch sizes = cuda::attention_logits_stats_scratch(args);
  const Scratch row_moments(sizes.row_moments), column_sums(sizes.column_sums);
  const Scratch column_means(sizes.column_means), centred_squares(sizes.centred_squares);
  const Scratch counts = scratch_of<uint32_t>(sizes.counts);
  const Scratch searches = scratch_of<cuda::MedianSearch>(sizes.searches);
  args.row_moments = row_moments.data();
  args.column_sums = column_sums.data();
  args.column_means = column_means.data();
  args.centred_squares = centred_squares.data();
  args.counts = reinterpret_cast<uint32_t*>(counts.data());
  args.searches = reinterpret_cast<cuda::MedianSearch*>(searches.data());
  return cuda::launch_attention_logits_stats(args, nullptr);
}

const Operation operation("attention_logits_stats", run);

}  // namespace
}  // namespace fiqa_fast::test
