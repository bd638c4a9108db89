// SPDX-License-Identifier: Apache-2.0
// Checks that the CPU and CUDA implementations share, so that both refuse the same inputs with the
// same words. fiqa_fast/_fake.py repeats those on shapes and dtypes for fake tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "kernels/dtype.h"

namespace fiqa_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// STD_TORCH_CHECK would put the name of a source file before the text, which helps no user.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) [[likely]]
    return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < t.dim(); ++i) text << (i ? ", " : "") << t.size(i);
  text << "]";
  return text.str();
}

// As Python prints them: torch::headeronly::toString says Double where users say float64.
inline std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Byte:
      return "torch.uint8";
    case ScalarType::Char:
      return "torch.int8";
    case ScalarType::Short:
      return "torch.int16";
    case ScalarType::Int:
      return "torch.int32";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Bool:
      return "torch.bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline DType check_dtype(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      check(false, op, ": ", name, " should be float32, bfloat16 or float16, got ",
            dtype_text(t.scalar_type()));
      return DType::kFloat32;
  }
}

inline std::string device_text(const Tensor& t) {
  return t.is_cuda()  ? "cuda:" + std::to_string(t.get_device_index())
         : t.is_cpu() ? "cpu"
                      : "another";
}

inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const char* like_name, const Tensor& like) {
  check(t.device() == like.device(), op, ": ", name, " should be on the device of ", like_name,
        ", ", device_text(like), ", got ", device_text(t));
}

}  // namespace fiqa_fast
