// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "kernels/linear.h"
#include "ops/checks.h"

namespace fiqa_fast {

inline LinearInput check_batch_invariant_linear(const Tensor& x,                      // [B, K]
                                                const Tensor& weight,                 // [O, K]
                                                const std::optional<Tensor>& bias) {  // [O]
  constexpr const char* op = "batch_invariant_linear";
  check(x.dim() == 2, op, ": x should be [B, K], got ", shape_text(x));
  check(weight.dim() == 2 && weight.size(1) == x.size(1), op, ": weight should be [O, ", x.size(1),
        "], with as many columns as x, got ", shape_text(weight));
  check(x.size(1) > 0 && weight.size(0) > 0, op, ": weight should have O > 0 and K > 0, got ",
        shape_text(weight));
  check(x.scalar_type() == ScalarType::Float, op, ": x should be float32, got ",
        dtype_text(x.scalar_type()));
  const DType dtype = check_dtype(op, "weight", weight);
  check_same_device(op, "weight", weight, "x", x);
  Channelwise channelwise;
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == weight.size(0), op, ": bias should have shape [",
          weight.size(0), "], one for each row of weight, got ", shape_text(*bias));
    check_same_device(op, "bias", *bias, "x", x);
    channelwise = {bias->const_data_ptr(), check_dtype(op, "bias", *bias), bias->stride(0)};
  }
  return {static_cast<const float*>(x.const_data_ptr()),
          x.stride(0),
          x.stride(1),
          weight.const_data_ptr(),
          dtype,
          weight.stride(0),
          weight.stride(1),
          channelwise,
          x.size(0),
          x.size(1),
          weight.size(0)};
}

}  // namespace fiqa_fast
