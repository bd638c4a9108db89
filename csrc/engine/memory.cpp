// SPDX-License-Identifier: Apache-2.0
#include "engine/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace fiqa_fast {
namespace {

constexpr int64_t kHugePage = 2 << 20, kCacheLine = 64;
// Less than this is not worth a huge page.
constexpr int64_t kLarge = kHugePage / 2;
// What is not touched of a slab takes no memory.
constexpr int64_t kSlab = 32 << 20;

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

}  // namespace

Memory::Memory(int64_t bytes) {
  const bool large = bytes >= kLarge;
  const int64_t wanted = large ? rounded_up(bytes, kHugePage) : std::max<int64_t>(bytes, 1);
  length_ = static_cast<size_t>(large ? wanted + kHugePage : wanted);
  mapped_ = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped_ == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<char*>(mapped_);
  if (!large) return;
  data_ += -reinterpret_cast<intptr_t>(data_) & (kHugePage - 1);
  madvise(data_, static_cast<size_t>(wanted), MADV_HUGEPAGE);  // if not, then not
}

Memory::~Memory() { munmap(mapped_, length_); }

char* Arena::take(int64_t bytes) {
  bytes = rounded_up(bytes, kCacheLine);
  const std::lock_guard lock(mutex_);
  if (bytes > left_) {
    left_ = std::max(bytes, kSlab);
    taken_ = 0;
    slabs_.push_back(std::make_unique<Memory>(left_));
  }
  char* piece = slabs_.back()->data() + taken_;
  taken_ += bytes;
  left_ -= bytes;
  return piece;
}

std::unique_ptr<Memory> MemoryPool::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Memory> memory = std::move(idle_.back());
      idle_.pop_back();
      return memory;
    }
  }
  return std::make_unique<Memory>(bytes_);
}

void MemoryPool::put_back(std::unique_ptr<Memory> memory) {
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(memory));
}

}  // namespace fiqa_fast
