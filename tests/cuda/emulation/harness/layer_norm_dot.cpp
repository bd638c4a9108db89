// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/layer_norm_dot.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cudaError_t run(const Call& call) {
  const LayerNormInput in = call.layer_norm();
  const Array& w = call.array("w");  // [N, D]
  const Scratch folded(in.tokens * cuda::LayerNormDotArgs::padded(in.channels));
  const Scratch folded_sum(in.tokens), constant(in.tokens), values(in.images * in.tokens);
  const cuda::LayerNormDotArgs args = {in,
                                       static_cast<const float*>(w.data),
                                       w.strides[0],
                                       w.strides[1],
                                       folded.data(),
                                       folded_sum.data(),
                                       constant.data(),
                                       values.data(),
                                       call.floats("out")};
  return cuda::launch_layer_norm_dot(args, nullptr);
}

const Operation operation("layer_norm_dot", run);

}  // namespace
}  // namespace fiqa_fast::test
