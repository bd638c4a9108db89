// SPDX-License-Identifier: Apache-2.0
// One tensor-core product, its operands by way of cp.async and ldmatrix; and copies on their own.
#include "harness/call.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace fiqa_fast::cuda {
namespace {

// c [16, 8] = a [16, 16] b [8, 16]^T
template <class T>
__global__ void product(const T* a, const T* b, float* c) {
  __shared__ __align__(16) T a_tile[16][16];
  __shared__ __align__(16) T b_tile[8][16];
  const int lane = static_cast<int>(threadIdx.x);
  cp_async_16(&a_tile[lane / 2][lane % 2 * 8], a + lane * 8, true);
  if (lane < 16) cp_async_16(&b_tile[lane / 2][lane % 2 * 8], b + lane * 8, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  uint32_t a_fragment[4], b_fragment[2];
  ldmatrix_x4(a_fragment, &a_tile[lane % 16][lane / 16 * 8]);
  ldmatrix_x2(b_fragment, &b_tile[lane % 8][lane / 8 % 2 * 8]);
  float sums[4] = {};
  mma_m16n8k16(sums, a_fragment, b_fragment, T{});
  mma_m16n8k16(sums, a_fragment, b_fragment, T{});
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// What one thread sees of its copies: before the wait, after a wait that leaves the last group, and
// after one that leaves none; in [2, 4] is copied, then [1, 4] of zeros.
__global__ void stages(const float* in, float* out) {  // [3, 3, 4]
  float* tile = dynamic_shared<float>();
  cp_async_16(tile, in, true);
  cp_async_commit();
  cp_async_16(tile + 4, in + 4, true);
  cp_async_16(tile + 8, in, false);
  cp_async_commit();
  for (int i = 0; i < 12; ++i) out[i] = tile[i];
  cp_async_wait<1>();
  for (int i = 0; i < 12; ++i) out[12 + i] = tile[i];
  cp_async_wait<0>();
  for (int i = 0; i < 12; ++i) out[24 + i] = tile[i];
}

__global__ void copy_to_global(const float* in, float* out) { cp_async_16(out, in, true); }

__global__ void copy_unaligned(const float* in) {
  cp_async_16(dynamic_shared<float>(), in + 1, true);
}

template <class T>
cudaError_t run_product(const test::Call& call) {
  const T* a = static_cast<const T*>(call.array("a").data);
  const T* b = static_cast<const T*>(call.array("b").data);
  return launch(product<T>, 1, 32, 0, nullptr, a, b, call.floats("out"));
}

cudaError_t run_any_product(const test::Call& call) {
  const bool is_bfloat16 = static_cast<DType>(call.array("a").dtype) == DType::kBFloat16;
  return is_bfloat16 ? run_product<BFloat16>(call) : run_product<Float16>(call);
}

cudaError_t run_stages(const test::Call& call) {
  return launch(stages, 1, 1, 48, nullptr, call.floats("in"), call.floats("out"));
}

cudaError_t run_copy_to_global(const test::Call& call) {
  return launch(copy_to_global, 1, 1, 0, nullptr, call.floats("in"), call.floats("out"));
}

cudaError_t run_copy_unaligned(const test::Call& call) {
  return launch(copy_unaligned, 1, 1, 16, nullptr, call.floats("in"));
}

const test::Operation operations[] = {{"product", run_any_product},
                                      {"copy_stages", run_stages},
                                      {"copy_to_global", run_copy_to_global},
                                      {"copy_unaligned", run_copy_unaligned}};

}  // namespace
}  // namespace fiqa_fast::cuda
