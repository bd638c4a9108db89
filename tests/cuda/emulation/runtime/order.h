// SPDX-License-Identifier: Apache-2.0
// Who runs next, chosen by a seed.
#pragma once

#include <stdint.h>

#include <vector>

namespace emulation {

class Order {
 public:
  explicit Order(int64_t seed);

  bool is_random() const { return kind_ == Kind::kRandom; }
  bool is_reverse() const { return kind_ == Kind::kReverse; }
  std::vector<int> blocks(int count);
  // Where to look for the next thread, after the last one.
  int thread_after(int last, int threads);

 private:
  enum class Kind { kForward, kReverse, kRandom };

  Kind kind_;
  uint64_t state_;

  int below(int limit);
};

// A set of thread numbers, searched round and round.
class ReadySet {
 public:
  explicit ReadySet(int size) : words_((size + 63) / 64, 0) {}

  bool empty() const { return count_ == 0; }
  void insert(int i);
  void erase(int i);
  // The first member at or after i, or at or before it; the set is not empty.
  int next(int i) const;
  int previous(int i) const;

 private:
  int count_ = 0;
  std::vector<uint64_t> words_;
};

}  // namespace emulation
