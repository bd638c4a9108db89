// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>

namespace fiqa_fast {

// An uninitialised contiguous tensor.
inline torch::stable::Tensor empty_of(torch::headeronly::ScalarType dtype,
                                      std::initializer_list<int64_t> shape,
                                      const torch::stable::Tensor& like) {
  return torch::stable::empty({shape.begin(), shape.size()}, dtype,
                              torch::headeronly::Layout::Strided, like.device());
}

// What nearly every output and all scratch memory is.
inline torch::stable::Tensor empty_float32(std::initializer_list<int64_t> shape,
                                           const torch::stable::Tensor& like) {
  return empty_of(torch::headeronly::ScalarType::Float, shape, like);
}

inline float* float32_data(const torch::stable::Tensor& t) {
  return static_cast<float*>(t.mutable_data_ptr());
}

}  // namespace fiqa_fast
