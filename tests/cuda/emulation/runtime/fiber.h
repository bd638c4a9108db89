// SPDX-License-Identifier: Apache-2.0
// A stack of its own, entered and left at will. Changing stacks by hand takes a few nanoseconds;
// the portable way, ucontext, makes two system calls each time and is used elsewhere than on
// x86-64.
#pragma once

#include <stddef.h>

namespace emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry, which must not return. What ran here before is forgotten.
  void start(void (*entry)());
  // Called by the scheduler: runs the fiber until it suspends.
  void resume();
  // Called in a fiber: back to the scheduler.
  static void suspend();

 private:
  struct State;
  static void begin();

  State* state_;
};

}  // namespace emulation
