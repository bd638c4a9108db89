// SPDX-License-Identifier: Apache-2.0
#include "ops/batch_invariant_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "kernels/cpu/batch_invariant_linear.h"
#include "ops/outputs.h"

namespace fiqa_fast {
namespace {

Tensor batch_invariant_linear_cpu(const Tensor& x,                      // [B, K]
                                  const Tensor& weight,                 // [O, K]
                                  const std::optional<Tensor>& bias) {  // [O]
  BatchInvariantLinearArgs args = {check_batch_invariant_linear(x, weight, bias)};
  const Tensor out = empty_float32({args.rows, args.outputs}, x);
  if (args.rows == 0) return out;
  args.out = float32_data(out);

  const BatchInvariantLinearKernels& kernels = batch_invariant_linear_kernels();
  std::optional<Tensor> padded_x;
  if (args.needs_padding()) {
    padded_x = empty_float32({args.rows, BatchInvariantLinearArgs::padded(args.inputs)}, x);
    args.padded_x = float32_data(*padded_x);
    kernels.pad(args, 0, args.rows);
  }
  torch::stable::parallel_for(
      0, args.items(), 1, [&](int64_t begin, int64_t end) { kernels.products(args, begin, end); });
  return out;
}

}  // namespace
}  // namespace fiqa_fast

STABLE_TORCH_LIBRARY_IMPL(fiqa_fast, CPU, m) {
  m.impl("batch_invariant_linear", TORCH_BOX(&fiqa_fast::batch_invariant_linear_cpu));
}
