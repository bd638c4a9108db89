// SPDX-License-Identifier: Apache-2.0
// Launches a kernel on the emulator; stands for the header of this name in csrc.
#pragma once

#include <cuda_runtime.h>

#include <source_location>
#include <tuple>
#include <type_traits>

#include "runtime/grid.h"

namespace fiqa_fast::cuda {

constexpr int kDefaultSharedBytes = 48 * 1024;

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulation::dynamic_shared_memory());
}

// The stream tells nothing here, but who converts it to this is who launches.
struct Launcher {
  std::source_location where;
  Launcher(cudaStream_t, std::source_location at = std::source_location::current()) : where(at) {}
};

template <class... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, int shared_bytes,
                   Launcher launcher, std::type_identity_t<Parameters>... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  const auto body = [&] { std::apply(kernel, values); };
  return emulation::run_grid({blocks, threads, shared_bytes, launcher.where}, body);
}

}  // namespace fiqa_fast::cuda
