// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/mean_layer_norm.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cudaError_t run(const Call& call) {
  cuda::MeanLayerNormArgs args = {call.layer_norm(), nullptr, call.floats("out")};
  const Scratch partial(cuda::mean_layer_norm_scratch(args));
  args.partial = partial.data();
  return cuda::launch_mean_layer_norm(args, nullptr);
}

const Operation operation("mean_layer_norm", run);

}  // namespace
}  // namespace fiqa_fast::test
