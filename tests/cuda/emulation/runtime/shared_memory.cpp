// SPDX-License-Identifier: Apache-2.0
#include "runtime/shared_memory.h"

#include <stdint.h>
#include <stdlib.h>

#include <cstring>
#include <new>
#include <string>

#include "runtime/static_shared.h"
#include "runtime/thread.h"

namespace emulation {
namespace {

// The guards between variables lie in this range too, and are written: unseen by the sanitizer,
// whose marks stand elsewhere. volatile keeps the loop from becoming a call of memset.
__attribute__((no_sanitize("address"))) void fill(unsigned char* begin, const unsigned char* end) {
  volatile unsigned char* at = begin;
  for (; at < end && reinterpret_cast<uintptr_t>(at) % 8; ++at) *at = kPoison;
  for (; end - at >= 8; at += 8) *reinterpret_cast<volatile uint64_t*>(at) = ~uint64_t{0};
  for (; at < end; ++at) *at = kPoison;
}

bool within(const void* address, size_t bytes, const unsigned char* begin,
            const unsigned char* end) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(address);
  return first >= reinterpret_cast<uintptr_t>(begin) &&
         first + bytes <= reinterpret_cast<uintptr_t>(end);
}

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes) : dynamic_bytes_(dynamic_bytes) {
  constexpr size_t kAlignment = 128;  // as launch.cuh promises
  void* memory = nullptr;
  if (dynamic_bytes && posix_memalign(&memory, kAlignment, dynamic_bytes)) throw std::bad_alloc();
  dynamic_ = static_cast<unsigned char*>(memory);
}

SharedMemory::~SharedMemory() { free(dynamic_); }

void SharedMemory::poison() const {
  const StaticShared variables = static_shared();
  fill(variables.begin, variables.end);
  fill(dynamic_, dynamic_ + dynamic_bytes_);
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const StaticShared variables = static_shared();
  return within(address, bytes, variables.begin, variables.end) ||
         within(address, bytes, dynamic_, dynamic_ + dynamic_bytes_);
}

}  // namespace emulation
