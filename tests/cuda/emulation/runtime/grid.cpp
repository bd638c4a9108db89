// SPDX-License-Identifier: Apache-2.0
#include "runtime/grid.h"

#include <algorithm>

#include "runtime/block.h"
#include "runtime/options.h"
#include "runtime/shared_memory.h"

namespace emulation {
namespace {

// The limits of every GPU since compute capability 8.0: 99 KiB are the least of them.
constexpr int kMaxThreads = 1024, kMaxSharedBytes = 99 * 1024;

std::string failure;
const SharedMemory* shared_memory = nullptr;

std::string name_of(const Launch& launch) {
  const std::string file = launch.where.file_name();
  return std::string(launch.where.function_name()) + " launched at " +
         file.substr(file.rfind('/') + 1) + ":" + std::to_string(launch.where.line());
}

bool is_valid(const Launch& launch) {
  return launch.blocks >= 1 && launch.threads >= 1 && launch.threads <= kMaxThreads &&
         launch.shared_bytes >= 0 && launch.shared_bytes <= kMaxSharedBytes;
}

}  // namespace

cudaError_t run_grid(const Launch& launch, const std::function<void()>& body) {
  failure.clear();
  if (!is_valid(launch)) {
    failure = "the kernel of " + name_of(launch) + " cannot have " + std::to_string(launch.blocks) +
              " blocks of " + std::to_string(launch.threads) + " threads with " +
              std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory";
    return cudaErrorInvalidValue;
  }
  const int64_t limit = options.max_blocks > 0 ? options.max_blocks : launch.blocks;
  const int blocks = static_cast<int>(std::min<int64_t>(launch.blocks, limit));
  const SharedMemory memory(static_cast<size_t>(launch.shared_bytes));
  shared_memory = &memory;
  Order order(options.seed);
  for (const int block : order.blocks(blocks)) {
    memory.poison();
    const std::string problem =
        Block({static_cast<unsigned>(block), 0, 0}, {static_cast<unsigned>(launch.threads), 1, 1},
              {static_cast<unsigned>(blocks), 1, 1}, order, body)
            .run();
    if (!problem.empty()) {
      failure =
          "the kernel of " + name_of(launch) + ", block " + std::to_string(block) + ", " + problem;
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

const std::string& error_text() { return failure; }

void* dynamic_shared_memory() { return shared_memory->dynamic(); }

void check_shared(const char* instruction, const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail(std::string(instruction) + ": the address in shared memory is not aligned");
  if (!shared_memory->contains(address, bytes))
    fail(std::string(instruction) + ": the address is not in shared memory");
}

void check_global(const char* instruction, const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail(std::string(instruction) + ": the address in global memory is not aligned");
  if (shared_memory->contains(address, 1))
    fail(std::string(instruction) + ": the address is in shared, not in global memory");
}

}  // namespace emulation
