// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "ops/layer_norm.h"

namespace fiqa_fast {

inline LayerNormInput check_mean_layer_norm(const Tensor& x,                      // [B, N, D]
                                            const std::optional<Tensor>& weight,  // [D]
                                            const std::optional<Tensor>& bias,    // [D]
                                            double eps) {
  return check_layer_norm("mean_layer_norm", x, weight, bias, eps);
}

}  // namespace fiqa_fast
