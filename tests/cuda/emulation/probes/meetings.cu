// SPDX-License-Identifier: Apache-2.0
// Kernels that meet in ways that CUDA forbids: each has to be reported.
#include "harness/call.h"
#include "kernels/cuda/launch.cuh"

namespace fiqa_fast::cuda {
namespace {

constexpr int kThreads = 64;
constexpr uint32_t kAll = 0xffffffffu;

__global__ void part_of_the_block_at_a_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers_at_once() {
  if (threadIdx.x % 2)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void lane_missing_from_a_shuffle(float* out) {
  if (threadIdx.x % 32 != 5) out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
}

__global__ void lane_at_a_barrier_instead(float* out) {
  if (threadIdx.x == 7) __syncthreads();
  out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  if (threadIdx.x != 7) __syncthreads();
}

__global__ void shuffle_meets_vote(float* out) {
  if (threadIdx.x % 32 < 16)
    out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  else
    out[threadIdx.x] = __any_sync(kAll, 1);
}

__global__ void mask_without_its_caller(float* out) {
  out[threadIdx.x] = __shfl_sync(0xffu, 1.0f, 0);
}

__global__ void reads_a_lane_outside_the_mask(float* out) {
  if (threadIdx.x % 32 < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1.0f, 9);
}

using Kernel = void (*)(float*);

template <Kernel kKernel>
cudaError_t run(const test::Call& call) {
  return launch(kKernel, 2, kThreads, 0, nullptr, call.floats("out"));
}

template <void (*kKernel)()>
cudaError_t run(const test::Call&) {
  return launch(kKernel, 2, kThreads, 0, nullptr);
}

// The last warp has 16 lanes, but the shuffle names 32.
cudaError_t run_part_of_a_warp(const test::Call& call) {
  const Kernel kernel = [](float* out) { out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0); };
  return launch(kernel, 1, 48, 0, nullptr, call.floats("out"));
}

cudaError_t run_too_many_threads(const test::Call&) {
  return launch(two_barriers_at_once, 1, 2048, 0, nullptr);
}

const test::Operation operations[] = {
    {"part_of_the_block_at_a_barrier", run<part_of_the_block_at_a_barrier>},
    {"two_barriers_at_once", run<two_barriers_at_once>},
    {"lane_missing_from_a_shuffle", run<lane_missing_from_a_shuffle>},
    {"lane_at_a_barrier_instead", run<lane_at_a_barrier_instead>},
    {"shuffle_meets_vote", run<shuffle_meets_vote>},
    {"mask_without_its_caller", run<mask_without_its_caller>},
    {"reads_a_lane_outside_the_mask", run<reads_a_lane_outside_the_mask>},
    {"part_of_a_warp", run_part_of_a_warp},
    {"too_many_threads", run_too_many_threads},
};

}  // namespace
}  // namespace fiqa_fast::cuda
