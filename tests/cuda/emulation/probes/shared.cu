// SPDX-License-Identifier: Apache-2.0
// What shared memory holds before it is written, and accesses that a sanitizer has to report.
#include "harness/call.h"
#include "kernels/cuda/launch.cuh"

namespace fiqa_fast::cuda {
namespace {

constexpr int kThreads = 32, kBytes = kThreads * sizeof(float);

// Every block shows what it finds, then writes.
template <class T>
__global__ void shows_fresh_memory(T* out) {
  __shared__ T declared[kThreads];
  T* dynamic = dynamic_shared<T>();
  T* own = out + blockIdx.x * 2 * kThreads;
  own[threadIdx.x] = declared[threadIdx.x];
  own[kThreads + threadIdx.x] = dynamic[threadIdx.x];
  declared[threadIdx.x] = dynamic[threadIdx.x] = T{};
}

__global__ void writes_past_declared(float* out, int past) {
  __shared__ float first[kThreads], second[kThreads];
  float* at = first;
  at[threadIdx.x + past] = 1.0f;
  second[threadIdx.x] = 2.0f;
  __syncthreads();
  out[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

__global__ void writes_past_dynamic(int past) {
  dynamic_shared<float>()[threadIdx.x + past] = 1.0f;
}

__global__ void reads_wide_unaligned(const float* in, float* out) {
  const uint4 bits = *reinterpret_cast<const uint4*>(in + 1);
  out[threadIdx.x] = __uint_as_float(bits.x);
}

// Thread t writes what t + 1 reads: in order only if the kernel says so.
template <int kHow>
__global__ void hands_over(float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kHow == 1) __syncwarp();
  if constexpr (kHow == 2) __shfl_sync(0xffffffffu, 0, 0);
  if constexpr (kHow == 3) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % kThreads];
}

cudaError_t show(const test::Call& call) {
  return launch(shows_fresh_memory<float>, 3, kThreads, kBytes, nullptr, call.floats("out"));
}

cudaError_t write_past_declared(const test::Call& call) {
  const int past = static_cast<int>(call.number("past"));
  return launch(writes_past_declared, 1, kThreads, 0, nullptr, call.floats("out"), past);
}

cudaError_t write_past_dynamic(const test::Call& call) {
  const int past = static_cast<int>(call.number("past"));
  return launch(writes_past_dynamic, 1, kThreads, kBytes, nullptr, past);
}

cudaError_t read_wide_unaligned(const test::Call& call) {
  return launch(reads_wide_unaligned, 1, 1, 0, nullptr, call.floats("in"), call.floats("out"));
}

template <int kHow>
cudaError_t hand_over(const test::Call& call) {
  return launch(hands_over<kHow>, 1, kThreads, 0, nullptr, call.floats("out"));
}

const test::Operation operations[] = {
    {"fresh_shared_memory", show},
    {"past_declared_shared", write_past_declared},
    {"past_dynamic_shared", write_past_dynamic},
    {"wide_unaligned_read", read_wide_unaligned},
    {"hand_over_unordered", hand_over<0>},
    {"hand_over_syncwarp", hand_over<1>},
    {"hand_over_shuffle", hand_over<2>},
    {"hand_over_syncthreads", hand_over<3>},
};

}  // namespace
}  // namespace fiqa_fast::cuda
