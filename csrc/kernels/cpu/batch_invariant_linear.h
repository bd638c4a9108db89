// SPDX-License-Identifier: Apache-2.0
// x W^T + b for few rows x, in which a row's result never depends on the rows beside it: every
// output is a dot product of its own, summed over chunks of K in one fixed order. Several rows and
// outputs are taken together, because each weight, once read, then serves them all.
#pragma once

#include <stdint.h>

#include "kernels/cpu/isa.h"
#include "kernels/linear.h"
#include "kernels/shapes.h"

namespace fiqa_fast {

// Of K: what four rows of weights and four of x need stays in the cache next to the registers'.
// Results depend on this number.
constexpr int64_t kLinearInputsPerChunk = 2048;
// Outputs of a work item: enough that handing it to a thread costs little.
constexpr int64_t kLinearOutputsPerItem = 16;

struct BatchInvariantLinearArgs : LinearInput {
  float* padded_x =
      nullptr;           // [B, padded K], scratch: x with zeros behind; null: x is read as it is
  float* out = nullptr;  // [B, O]

  bool needs_padding() const { return x_stride != 1 || inputs != padded(inputs); }
  int64_t items() const { return divide_up(outputs, kLinearOutputsPerItem); }
  static constexpr int64_t padded(int64_t inputs) { return round_up(inputs, 16); }
};

struct BatchInvariantLinearKernels {
  // Work items [begin, end) of B; where padded_x is not null.
  void (*pad)(const BatchInvariantLinearArgs&, int64_t begin, int64_t end);
  // Work items [begin, end) of items().
  void (*products)(const BatchInvariantLinearArgs&, int64_t begin, int64_t end);
};

FIQA_FAST_DECLARE_KERNELS(BatchInvariantLinearKernels, batch_invariant_linear_kernels)

}  // namespace fiqa_fast
