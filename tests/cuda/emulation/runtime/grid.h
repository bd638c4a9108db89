// SPDX-License-Identifier: Apache-2.0
// Runs a grid, block after block.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <source_location>
#include <string>

namespace emulation {

struct Launch {
  int blocks, threads, shared_bytes;
  std::source_location where;
};

// Runs body() once for every thread. After an error, error_text() says what happened.
cudaError_t run_grid(const Launch& launch, const std::function<void()>& body);
const std::string& error_text();

void* dynamic_shared_memory();

}  // namespace emulation
