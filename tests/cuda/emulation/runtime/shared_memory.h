// SPDX-License-Identifier: Apache-2.0
// The shared memory of the block that runs: what is declared __shared__, and the dynamic part.
#pragma once

#include <stddef.h>

namespace emulation {

// A pattern that is NaN in every type, and -1 as an integer.
constexpr unsigned char kPoison = 0xff;

class SharedMemory {
 public:
  // The dynamic part is an allocation of exactly this size: AddressSanitizer guards its ends.
  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* dynamic() const { return dynamic_; }
  void poison() const;
  bool contains(const void* address, size_t bytes) const;

 private:
  unsigned char* dynamic_ = nullptr;
  size_t dynamic_bytes_;
};

// Fail unless `bytes` bytes at the address are in the right kind of memory, and aligned to as many.
void check_shared(const char* instruction, const void* address, size_t bytes);
void check_global(const char* instruction, const void* address, size_t bytes);

}  // namespace emulation
