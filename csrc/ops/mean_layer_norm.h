// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <optional>

#include "ops/checks.h"

namespace fiqa_fast {

struct MeanLayerNormInputs {
  DType dtype;
  int64_t images, tokens, channels;  // B, N, D
  Channelwise weight, bias;          // [D]
};

inline Channelwise check_channelwise(const char* name, const std::optional<Tensor>& parameter,
                                     const Tensor& x) {
  constexpr const char* op = "mean_layer_norm";
  if (!parameter) return {};
  check(parameter->dim() == 1 && parameter->size(0) == x.size(2), op, ": ", name,
        " should have shape [", x.size(2), "], the last of x, got ", shape_text(*parameter));
  check_same_device(op, name, *parameter, "x", x);
  return {parameter->const_data_ptr(), check_dtype(op, name, *parameter), parameter->stride(0)};
}

inline MeanLayerNormInputs check_mean_layer_norm(const Tensor& x,                      // [B, N, D]
                                                 const std::optional<Tensor>& weight,  // [D]
                                                 const std::optional<Tensor>& bias,    // [D]
                                                 double eps) {
  constexpr const char* op = "mean_layer_norm";
  check(x.dim() == 3, op, ": x should be [B, N, D], got ", shape_text(x));
  check(x.size(1) > 0 && x.size(2) > 0, op, ": x should have N > 0 tokens of D > 0 channels, got ",
        shape_text(x));
  const DType dtype = check_dtype(op, "x", x);
  check(std::isfinite(eps) && eps >= 0, op, ": eps should be finite and not negative, got ", eps);
  return {dtype,
          x.size(0),
          x.size(1),
          x.size(2),
          check_channelwise("weight", weight, x),
          check_channelwise("bias", bias, x)};
}

}  // namespace fiqa_fast
