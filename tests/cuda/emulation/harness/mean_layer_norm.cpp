// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/mean_layer_norm.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cudaError_t run(const Call& call) {
  using Args = cuda::MeanLayerNormArgs;
  Args args = {{call.layer_norm()}};
  const int64_t padded = Args::padded(args.channels);
  const Scratch partial(args.images * args.chunks() * padded);
  const Scratch folded(args.images * padded), folded_sum(args.images), constant(args.images);
  args.partial = partial.data();
  args.mean = call.floats("mean");
  if (const Array* residual = call.find("residual")) {  // [B, N, D]
    args.residual = residual->data;
    args.residual_dtype = static_cast<DType>(residual->dtype);
    args.residual_image_stride = residual->strides[0];
    args.residual_token_stride = residual->strides[1];
    args.residual_channel_stride = residual->strides[2];
  }
  if (const Array* u = call.find("u")) {  // [B, D]
    args.u = static_cast<const float*>(u->data);
    args.u_image_stride = u->strides[0];
    args.u_channel_stride = u->strides[1];
    args.folded = folded.data();
    args.folded_sum = folded_sum.data();
    args.constant = constant.data();
    args.map = call.floats("map");
  }
  return cuda::launch_mean_layer_norm(args, nullptr);
}

const Operation operation("mean_layer_norm", run);

}  // namespace
}  // namespace fiqa_fast::test
