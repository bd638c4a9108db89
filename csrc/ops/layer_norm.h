// SPDX-License-Identifier: Apache-2.0
// The checks of every operator on LayerNorm(x).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/layer_norm.h"
#include "ops/checks.h"

namespace fiqa_fast {

inline Channelwise check_channelwise(const char* op, const char* name,
                                     const std::optional<Tensor>& parameter, const Tensor& x) {
  if (!parameter) return {};
  check(parameter->dim() == 1 && parameter->size(0) == x.size(2), op, ": ", name,
        " should have shape [", x.size(2), "], the last of x, got ", shape_text(*parameter));
  check_same_device(op, name, *parameter, "x", x);
  return {parameter->const_data_ptr(), check_dtype(op, name, *parameter), parameter->stride(0)};
}

inline LayerNormInput check_layer_norm(const char* op,
                                       const Tensor& x,                      // [B, N, D]
                                       const std::optional<Tensor>& weight,  // [D]
                                       const std::optional<Tensor>& bias,    // [D]
                                       double eps) {
  check(x.dim() == 3, op, ": x should be [B, N, D], got ", shape_text(x));
  check(x.size(1) > 0 && x.size(2) > 0, op, ": x should have N > 0 tokens of D > 0 channels, got ",
        shape_text(x));
  const DType dtype = check_dtype(op, "x", x);
  check(std::isfinite(eps) && eps >= 0, op, ": eps should be finite and not negative, got ", eps);
  return {x.const_data_ptr(), dtype, x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1),
          x.stride(2), check_channelwise(op, "weight", weight, x),
          check_channelwise(op, "bias", bias, x),
          // Positive stays positive: constant tokens become 0, not 0 / 0.
          eps > 0 ? std::max(static_cast<float>(eps), std::numeric_limits<float>::min()) : 0.0f};
}

}  // namespace fiqa_fast
