// SPDX-License-Identifier: Apache-2.0
// A block of threads, run one at a time until each has ended or one has failed.
#pragma once

#include <stdint.h>

#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "runtime/order.h"
#include "runtime/thread.h"

namespace emulation {

class Block {
 public:
  Block(uint3 index, dim3 size, dim3 grid, Order& order, const std::function<void()>& body);

  // What went wrong, if anything.
  std::string run();

  // Called by the thread that runs; the first three come back when it is chosen again.
  void barrier(std::source_location where);
  void meet(const char* name, uint32_t mask, void* slot, Complete complete, bool orders_memory,
            std::source_location where);
  void yield();
  [[noreturn]] void fail(const std::string& what);

  static Block* running;

 private:
  // Lanes on their way to each other. Disjoint groups of a warp may meet at the same time.
  struct Meeting {
    const char* name;
    uint32_t mask, arrived = 0;
    void* slots[kWarpSize] = {};
  };

  static void entry();
  void wait(const char* in, uint32_t with, std::source_location where);
  void release(bool orders_memory);
  void suspend_until_released();
  int number_of(const Thread& thread) const { return static_cast<int>(&thread - threads_.data()); }
  Meeting& meeting_of(int warp, uint32_t mask, Meeting& fresh);
  std::string deadlock() const;

  Order& order_;
  const std::function<void()>& body_;
  std::vector<Thread> threads_;
  ReadySet ready_;
  std::vector<std::vector<Meeting*>> meetings_;  // of each warp
  std::vector<Thread*> leaving_;
  int at_barrier_ = 0;
  const Thread* first_at_barrier_ = nullptr;
  std::string failure_;
};

}  // namespace emulation
