// SPDX-License-Identifier: Apache-2.0
// Threads that share the work of one pass. All run the same code; where it says share(), each item
// is computed by whoever comes first, and nobody goes on before all items are done. A thread may
// join at any time, or never: so a pass needs no thread but its first, and cannot hang for want of
// one. What an item computes does not depend on who computes it.
#pragma once

#include <sched.h>
#include <stdint.h>

namespace fiqa_fast {

// What the threads of a pass have in common; zero at first.
struct alignas(64) Team {
  int64_t ticket = 0;                // number of the current share() << 32 | its next item
  alignas(64) int64_t finished = 0;  // items of all share()s so far
};

}  // namespace fiqa_fast

namespace fiqa_fast::FIQA_FAST_ISA {

class Member {
 public:
  explicit Member(Team& team) : team_(team) {}

  template <class Work>
  void share(int64_t count, Work work) {
    const int64_t mine = phase_++;
    all_ += count;
    for (int64_t waited = 0;;) {
      int64_t ticket = __atomic_load_n(&team_.ticket, __ATOMIC_ACQUIRE);
      if (ticket >> 32 != mine) return;  // the others are done with it
      const int64_t item = ticket & 0xffffffff;
      if (item < count) {
        if (!advance(ticket, ticket + 1)) continue;
        work(item);
        __atomic_fetch_add(&team_.finished, 1, __ATOMIC_RELEASE);
        waited = 0;
      } else if (__atomic_load_n(&team_.finished, __ATOMIC_ACQUIRE) == all_) {
        advance(ticket, (mine + 1) << 32);
        return;
      } else if (++waited > kSpins) {
        sched_yield();
      }
    }
  }

 private:
  static constexpr int64_t kSpins = 2000;

  bool advance(int64_t from, int64_t to) {
    return __atomic_compare_exchange_n(&team_.ticket, &from, to, false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_RELAXED);
  }

  Team& team_;
  int64_t phase_ = 0;  // share()s so far
  int64_t all_ = 0;    // their items
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
