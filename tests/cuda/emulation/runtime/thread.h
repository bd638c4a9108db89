// SPDX-License-Identifier: Apache-2.0
// A CUDA thread, and how threads meet. Each is a fiber: it runs until it has to wait for others,
// and then the scheduler (grid.cpp) chooses who goes on.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <source_location>
#include <string>
#include <vector>

#include "runtime/vector_types.h"

namespace emulation {

constexpr int kWarpSize = 32;

// 16 bytes on their way to shared memory (async_copy.h).
struct AsyncCopy {
  void* to;
  const void* from;  // null: zeros
  int64_t group;
};

struct Thread {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;

  // What the thread waits for; null while it can run.
  const char* waits_in = nullptr;
  std::source_location waits_at;
  uint32_t waits_with = 0;  // the lanes that have to come, where lanes meet
  bool ended = false;
  char arrival, departure;  // tokens (ordering.h)

  std::vector<AsyncCopy> copies;
  int64_t committed_groups = 0;

  int lane() const { return static_cast<int>(thread_index.x) % kWarpSize; }
};

extern Thread* running_thread;
inline Thread& current() { return *running_thread; }

// Ends the launch with an error that names the kernel, the block and the thread.
[[noreturn]] void fail(const std::string& what);

// Lets others run first, where the order is random.
void yield();

// Waits for all threads of the block.
void barrier(std::source_location where);

// What a lane brings to a meeting of lanes; results are written back into it.
using Slots = void* const (&)[kWarpSize];
// Called once, when all lanes of the mask are there; returns what is wrong, if anything.
using Complete = std::string (*)(Slots slots, uint32_t mask);

// Waits until all lanes of the mask have come to a meeting of the same name. It orders no memory
// accesses unless `orders_memory` says so.
void meet(const char* name, uint32_t mask, void* slot, Complete complete, bool orders_memory,
          std::source_location where);

}  // namespace emulation
