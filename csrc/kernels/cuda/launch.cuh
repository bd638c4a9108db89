// SPDX-License-Identifier: Apache-2.0
// The one place where kernels are launched. Tests put a header of the same name before this one on
// the include path and run the very same kernels on a CPU; so kernels use no <<<>>>.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

namespace fiqa_fast::cuda {

// Above this, a kernel has to ask for dynamic shared memory before it is launched.
constexpr int kDefaultSharedBytes = 48 * 1024;

// The block's dynamic shared memory, at a multiple of 128 bytes.
template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// Launches kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...) and returns its error,
// which it leaves for no later check to find.
template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes,
                   cudaStream_t stream, std::type_identity_t<Parameters>... arguments) {
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes)
    error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) {
    void* addresses[] = {&arguments...};
    error =
        cudaLaunchKernel(function, dim3(blocks), dim3(threads), addresses, shared_bytes, stream);
  }
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace fiqa_fast::cuda
