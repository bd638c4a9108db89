// SPDX-License-Identifier: Apache-2.0
// cp.async: copies of 16 bytes to shared memory that land at any time between their start and the
// wait that covers them. Landing at once finds who overwrites what is still read; landing late
// finds who reads too soon. In the header, so that the copies count as the kernel's own accesses.
#pragma once

#include <cstring>

#include "runtime/options.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"

namespace emulation {

inline void land(const AsyncCopy& copy) {
  if (copy.from)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

inline void begin_copy(void* to, const void* from, bool valid) {
  Thread& thread = current();
  const AsyncCopy copy = {to, valid ? from : nullptr, thread.committed_groups};
  if (!options.late_copies) return land(copy);
  std::memset(to, kPoison, 16);
  thread.copies.push_back(copy);
}

inline void commit_copies() { ++current().committed_groups; }

inline void wait_for_copies(int pending) {
  Thread& thread = current();
  size_t kept = 0;
  for (const AsyncCopy& copy : thread.copies) {
    if (copy.group < thread.committed_groups - pending)
      land(copy);
    else
      thread.copies[kept++] = copy;
  }
  thread.copies.resize(kept);
}

}  // namespace emulation
