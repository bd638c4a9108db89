// SPDX-License-Identifier: Apache-2.0
// The engine's memory: zero at first, and on huge pages where the system has some. All weights of a
// network are read for every pass, and ordinary pages make that slower: products of bfloat16 with
// 80 MB of weights lost a third of their speed to them (measured with AMX, apart from the engine).
#pragma once

#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

namespace fiqa_fast {

// Some padding is never written and has to be zero: garbage there, multiplied by the zeros of
// padded weights, could still be a NaN.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  void* mapped_;
  size_t length_;
  char* data_;
};

// Pieces of memory that live as long as the whole, one after the other on cache lines' boundaries.
// Any threads may take some.
class Arena {
 public:
  char* take(int64_t bytes);

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Memory>> slabs_;
  int64_t taken_ = 0, left_ = 0;  // bytes of the last slab
};

// Memory of one size that goes round.
class MemoryPool {
 public:
  explicit MemoryPool(int64_t bytes) : bytes_(bytes) {}
  std::unique_ptr<Memory> take();
  void put_back(std::unique_ptr<Memory> memory);

 private:
  const int64_t bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Memory>> idle_;
};

}  // namespace fiqa_fast
