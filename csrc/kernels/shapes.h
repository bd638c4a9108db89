// SPDX-License-Identifier: Apache-2.0
// Small integer arithmetic that kernels and bindings have to agree on.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define FIQA_FAST_HOST_DEVICE __host__ __device__
#else
#define FIQA_FAST_HOST_DEVICE
#endif

namespace fiqa_fast {

FIQA_FAST_HOST_DEVICE constexpr int64_t divide_up(int64_t value, int64_t by) {
  return (value + by - 1) / by;
}

FIQA_FAST_HOST_DEVICE constexpr int64_t round_up(int64_t value, int64_t to) {
  return divide_up(value, to) * to;
}

}  // namespace fiqa_fast
