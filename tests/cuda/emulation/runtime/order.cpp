// SPDX-License-Identifier: Apache-2.0
#include "runtime/order.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace emulation {

Order::Order(int64_t seed)
    : kind_(seed == 0   ? Kind::kForward
            : seed == 1 ? Kind::kReverse
                        : Kind::kRandom),
      state_(0x9e3779b97f4a7c15u * static_cast<uint64_t>(seed + 1) | 1) {}

// A xorshift generator: the standard library's distributions differ from one to the next.
int Order::below(int limit) {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return static_cast<int>((state_ >> 20) % static_cast<uint64_t>(limit));
}

std::vector<int> Order::blocks(int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (kind_ == Kind::kReverse) std::reverse(order.begin(), order.end());
  if (kind_ == Kind::kRandom)
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[below(i + 1)]);
  return order;
}

int Order::thread_after(int last, int threads) {
  if (kind_ == Kind::kForward) return last + 1 < threads ? last + 1 : 0;
  if (kind_ == Kind::kReverse) return last > 0 ? last - 1 : threads - 1;
  return below(threads);
}

void ReadySet::insert(int i) {
  words_[i / 64] |= uint64_t{1} << i % 64;
  ++count_;
}

void ReadySet::erase(int i) {
  words_[i / 64] &= ~(uint64_t{1} << i % 64);
  --count_;
}

int ReadySet::next(int i) const {
  size_t word = i / 64;
  uint64_t bits = words_[word] & ~uint64_t{0} << i % 64;
  while (!bits) {
    word = word + 1 < words_.size() ? word + 1 : 0;
    bits = words_[word];
  }
  return static_cast<int>(64 * word) + std::countr_zero(bits);
}

int ReadySet::previous(int i) const {
  size_t word = i / 64;
  uint64_t bits = words_[word] & ~uint64_t{0} >> (63 - i % 64);
  while (!bits) {
    word = word > 0 ? word - 1 : words_.size() - 1;
    bits = words_[word];
  }
  return static_cast<int>(64 * word) + 63 - std::countl_zero(bits);
}

}  // namespace emulation
