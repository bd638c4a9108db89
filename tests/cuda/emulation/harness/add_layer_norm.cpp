// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/add_layer_norm.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cudaError_t run(const Call& call) {
  const Array &x = call.array("x"), &residual = call.array("residual");  // [B, N, D]
  const Array& normed = call.array("normed");
  AddLayerNormArgs args = {};
  args.x = static_cast<const float*>(x.data);
  args.x_image_stride = x.strides[0];
  args.x_token_stride = x.strides[1];
  args.x_channel_stride = x.strides[2];
  args.residual = residual.data;
  args.residual_dtype = static_cast<DType>(residual.dtype);
  args.residual_image_stride = residual.strides[0];
  args.residual_token_stride = residual.strides[1];
  args.residual_channel_stride = residual.strides[2];
  args.weight = call.channelwise("weight");
  args.bias = call.channelwise("bias");
  args.images = x.shape[0];
  args.tokens = x.shape[1];
  args.channels = x.shape[2];
  args.eps = static_cast<float>(call.number("eps"));
  args.sum = call.floats("sum");
  args.normed = normed.data;
  args.normed_dtype = static_cast<DType>(normed.dtype);
  return cuda::launch_add_layer_norm(args, nullptr);
}

const Operation operation("add_layer_norm", run);

}  // namespace
}  // namespace fiqa_fast::test
