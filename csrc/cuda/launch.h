// SPDX-License-Identifier: Apache-2.0
// What every launch needs: the tensor's device made current, its current stream, and a check.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "ops/checks.h"

namespace fiqa_fast {

inline cudaStream_t current_stream(const Tensor& on) {
  return static_cast<cudaStream_t>(
      torch::stable::accelerator::getCurrentStream(on.get_device_index()).nativeHandle());
}

inline void check_launch(const char* op, cudaError_t error) {
  check(error == cudaSuccess, op,
        ": the launch of its CUDA kernels failed: ", cudaGetErrorName(error), ", ",
        cudaGetErrorString(error));
}

}  // namespace fiqa_fast
