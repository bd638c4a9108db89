// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/batch_invariant_linear.h"

#include "harness/call.h"

namespace fiqa_fast::test {
namespace {

cudaError_t run(const Call& call) {
  const Array &x = call.array("x"), &weight = call.array("weight");  // [B, K], [O, K]
  cuda::BatchInvariantLinearArgs args = {};
  args.x = static_cast<const float*>(x.data);
  args.x_row_stride = x.strides[0];
  args.x_stride = x.strides[1];
  args.weight = weight.data;
  args.dtype = static_cast<DType>(weight.dtype);
  args.weight_row_stride = weight.strides[0];
  args.weight_stride = weight.strides[1];
  args.bias = call.channelwise("bias");
  args.rows = x.shape[0];
  args.inputs = x.shape[1];
  args.outputs = weight.shape[0];
  const Scratch partial(args.chunks() * args.rows * args.outputs);
  args.partial = partial.data();
  args.out = call.floats("out");
  return cuda::launch_batch_invariant_linear(args, nullptr);
}

const Operation operation("batch_invariant_linear", run);

}  // namespace
}  // namespace fiqa_fast::test
