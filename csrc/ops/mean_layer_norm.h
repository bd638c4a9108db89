// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <tuple>

#include "kernels/mean_layer_norm.h"
#include "ops/layer_norm.h"

namespace fiqa_fast {

inline MeanLayerNormInput check_mean_layer_norm(const Tensor& x,                      // [B, N, D]
                                                const std::optional<Tensor>& weight,  // [D]
                                                const std::optional<Tensor>& bias,    // [D]
                                                double eps,
                                                const std::optional<Tensor>& residual,  // [B, N, D]
                                                const std::optional<Tensor>& u) {       // [B, D]
  constexpr const char* op = "mean_layer_norm";
  MeanLayerNormInput in = {check_layer_norm(op, x, weight, bias, eps)};
  if (residual) {
    check(residual->dim() == 3 && residual->size(0) == in.images &&
              residual->size(1) == in.tokens && residual->size(2) == in.channels,
          op, ": residual should have the shape of x, ", shape_text(x), ", got ",
          shape_text(*residual));
    check_same_device(op, "residual", *residual, "x", x);
    in.residual_dtype = check_dtype(op, "residual", *residual);
    // Streams are float32 or of one dtype throughout: other pairs would double the kernels for
    // nobody.
    check(in.residual_dtype == in.dtype || in.dtype == DType::kFloat32, op,
          ": residual should have the dtype of x, ", dtype_text(x.scalar_type()),
          ", where that is not float32, got ", dtype_text(residual->scalar_type()));
    in.residual = residual->const_data_ptr();
    in.residual_image_stride = residual->stride(0);
    in.residual_token_stride = residual->stride(1);
    in.residual_channel_stride = residual->stride(2);
  }
  if (u) {
    check(u->dim() == 2 && u->size(0) == in.images && u->size(1) == in.channels, op,
          ": u should have shape [", in.images, ", ", in.channels,
          "], the images and channels of x, got ", shape_text(*u));
    check_same_device(op, "u", *u, "x", x);
    check(u->scalar_type() == ScalarType::Float, op, ": u should be float32, got ",
          dtype_text(u->scalar_type()));
    in.u = static_cast<const float*>(u->const_data_ptr());
    in.u_image_stride = u->stride(0);
    in.u_channel_stride = u->stride(1);
  }
  return in;
}

// The implementations, for operators that give this mean beside their own results. The map has
// shape [B, N], or [0] without u.
std::tuple<Tensor, Tensor> mean_layer_norm_cpu(const Tensor& x, const std::optional<Tensor>& weight,
                                               const std::optional<Tensor>& bias, double eps,
                                               const std::optional<Tensor>& residual,
                                               const std::optional<Tensor>& u);
std::tuple<Tensor, Tensor> mean_layer_norm_cuda(const Tensor& x,
                                                const std::optional<Tensor>& weight,
                                                const std::optional<Tensor>& bias, double eps,
                                                const std::optional<Tensor>& residual,
                                                const std::optional<Tensor>& u);

}  // namespace fiqa_fast
