// SPDX-License-Identifier: Apache-2.0
// Shuffles, votes and atomics, one result per lane and per function.
#include "harness/call.h"
#include "kernels/cuda/launch.cuh"

namespace fiqa_fast::cuda {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

__global__ void shuffles(float* out) {  // [8, 64]
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float value = static_cast<float>(lane);
  const float results[] = {
      __shfl_sync(kAll, value, 3),      __shfl_sync(kAll, value, lane + 1, 8),
      __shfl_up_sync(kAll, value, 2),   __shfl_up_sync(kAll, value, 1, 8),
      __shfl_down_sync(kAll, value, 2), __shfl_down_sync(kAll, value, 1, 8),
      __shfl_xor_sync(kAll, value, 5),  __shfl_xor_sync(kAll, value, 16, 8),
  };
  for (int i = 0; i < 8; ++i) out[i * 64 + thread] = results[i];
}

// Two halves of a warp meet on their own, a different number of times.
__global__ void votes(float* out) {  // [3, 32]
  const uint32_t lane = threadIdx.x;
  const uint32_t half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  float sum = 1.0f;
  for (int bits = 8; bits >= (lane < 16 ? 1 : 4); bits /= 2)
    sum += __shfl_xor_sync(half, sum, bits);
  out[lane] = sum;
  out[32 + lane] = static_cast<float>(__popc(__ballot_sync(kAll, lane % 3 == 0)));
  out[64 + lane] =
      static_cast<float>(__any_sync(half, lane == 20) + 2 * __all_sync(half, lane < 16));
}

// The order in which threads come to a counter, and what it counts to.
__global__ void tickets(float* out, int* counter) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(atomicAdd(counter, 1));
}

cudaError_t run_shuffles(const test::Call& call) {
  return launch(shuffles, 1, 64, 0, nullptr, call.floats("out"));
}

cudaError_t run_votes(const test::Call& call) {
  return launch(votes, 1, 32, 0, nullptr, call.floats("out"));
}

cudaError_t run_tickets(const test::Call& call) {
  int counter = 0;
  return launch(tickets, 3, 40, 0, nullptr, call.floats("out"), &counter);
}

const test::Operation operations[] = {
    {"shuffles", run_shuffles}, {"votes", run_votes}, {"tickets", run_tickets}};

}  // namespace
}  // namespace fiqa_fast::cuda
