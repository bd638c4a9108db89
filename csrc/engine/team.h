// SPDX-License-Identifier: Apache-2.0
// Threads that share the work of one pass. All run the same code; where it says share(), each item
// is computed by whoever comes first, and nobody goes on before all items are done. A thread may
// join at any time, or never: so a pass needs no thread but its first, and cannot hang for want of
// one. What an item computes does not depend on who computes it.
//
// Rows are shared in bands: a thread takes items of its own band first, so that from product to
// product its rows stay in its cache, and then helps with others'.
#pragma once

#include <sched.h>
#include <stdint.h>

namespace fiqa_fast {

constexpr int64_t kMaxBands = 16;

// What the threads of a pass have in common; zero at first.
struct Team {
  struct alignas(64) Ticket {
    int64_t value = 0;  // number of the share() that took from this list last << 32 | its next item
  };
  Ticket tickets[kMaxBands];
  alignas(64) int64_t finished = 0;  // items of all share()s so far
  alignas(64) int64_t members = 0;   // threads so far
};

}  // namespace fiqa_fast

namespace fiqa_fast::FIQA_FAST_ISA {

struct Band {
  int64_t begin, end;  // rows

  int64_t rows() const { return end - begin; }
};

class Member {
 public:
  explicit Member(Team& team, int64_t bands = 1)
      : team_(team),
        bands_(bands),
        home_(__atomic_fetch_add(&team.members, 1, __ATOMIC_RELAXED) % bands) {}

  // work(item) for all below `count`.
  template <class Work>
  void share(int64_t count, Work work) {
    share_lists(1, [=](int64_t) { return count; }, [&](int64_t, int64_t item) { work(item); });
  }

  // work(band, item) for all items below count(band) of every band of so many rows. A band begins
  // at a multiple of sixteen.
  template <class Count, class Work>
  void share_rows(int64_t rows, Count count, Work work) {
    const auto band = [=, this](int64_t number) {
      const auto begin = [=, this](int64_t n) { return (rows * n / bands_ + 8) / 16 * 16; };
      return Band{begin(number), number + 1 < bands_ ? begin(number + 1) : rows};
    };
    share_lists(
        bands_, [&](int64_t number) { return count(band(number)); },
        [&](int64_t number, int64_t item) { work(band(number), item); });
  }

 private:
  static constexpr int64_t kSpins = 2000;

  template <class Count, class Work>
  void share_lists(int64_t lists, Count count, Work work) {
    const int64_t mine = phase_++;
    for (int64_t list = 0; list < lists; ++list) all_ += count(list);
    for (int64_t turn = 0; turn < lists; ++turn) {
      const int64_t list = (home_ + turn) % lists, items = count(list);
      for (int64_t item; (item = take(team_.tickets[list].value, mine, items)) < items;) {
        work(list, item);
        __atomic_fetch_add(&team_.finished, 1, __ATOMIC_RELEASE);
      }
    }
    for (int64_t waited = 0; __atomic_load_n(&team_.finished, __ATOMIC_ACQUIRE) < all_;)
      if (++waited > kSpins) sched_yield();
  }

  // An item of a list, or its end where none is left, or where the others are done with the share.
  static int64_t take(int64_t& list, int64_t mine, int64_t end) {
    for (int64_t ticket = __atomic_load_n(&list, __ATOMIC_ACQUIRE); ticket >> 32 <= mine;) {
      const int64_t item = ticket >> 32 == mine ? ticket & 0xffffffff : 0;
      if (item >= end) break;
      if (__atomic_compare_exchange_n(&list, &ticket, (mine << 32) + item + 1, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return item;
    }
    return end;
  }

  Team& team_;
  const int64_t bands_, home_;
  int64_t phase_ = 0;  // share()s so far
  int64_t all_ = 0;    // their items
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
