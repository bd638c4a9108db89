// SPDX-License-Identifier: Apache-2.0
// The element types that kernels read. They always accumulate in and write float32.
#pragma once

#include <stdint.h>

namespace fiqa_fast {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

// Storage only: kernels convert to float32 as they load.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A per-channel parameter, absent where data is null. It is read once per image, so its dtype is
// looked up at run time instead of multiplying the number of kernels.
struct Channelwise {
  const void* data = nullptr;  // [D]
  DType dtype = DType::kFloat32;
  int64_t stride = 1;
};

}  // namespace fiqa_fast
