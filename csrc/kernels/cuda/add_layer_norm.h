// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/add_layer_norm.h"

namespace fiqa_fast::cuda {

// B, N and D are at least 1. Returns the error of the launch.
cudaError_t launch_add_layer_norm(const AddLayerNormArgs& args, cudaStream_t stream);

}  // namespace fiqa_fast::cuda
