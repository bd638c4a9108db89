// SPDX-License-Identifier: Apache-2.0
#include "ops/batch_invariant_linear.h"

#include <torch/csrc/stable/library.h>

#include "cuda/launch.h"
#include "kernels/cuda/batch_invariant_linear.h"
#include "ops/outputs.h"

namespace fiqa_fast {
namespace {

Tensor batch_invariant_linear_cuda(const Tensor& x,                      // [B, K]
                                   const Tensor& weight,                 // [O, K]
                                   const std::optional<Tensor>& bias) {  // [O]
  cuda::BatchInvariantLinearArgs args = {check_batch_invariant_linear(x, weight, bias)};
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor out = empty_float32({args.rows, args.outputs}, x);
  if (args.rows == 0) return out;
  const Tensor partial = empty_float32({args.chunks(), args.rows, args.outputs}, x);
  args.partial = float32_data(partial);
  args.out = float32_data(out);
  check_launch("batch_invariant_linear",
               cuda::launch_batch_invariant_linear(args, current_stream(x)));
  return out;
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CUDA, m) {
  m.impl("batch_invariant_linear", TORCH_BOX(&fiqa_fast::batch_invariant_linear_cuda));
}
