// SPDX-License-Identifier: Apache-2.0
// Threads that share the work of one pass. All run the same code; where it says share(), each item
// is computed by whoever comes first, and nobody goes on before all items are done. A thread may
// join at any time, or never: so a pass needs no thread but its first, and cannot hang for want of
// one. What an item computes does not depend on who computes it.
//
// Rows are cut into bands, each with a list of work of its own: what follows from a row alone, from
// one product to the next, waits for nobody else's rows. A thread begins with its own band, whose
// rows stay in its cache, and then helps with the others.
#pragma once

#include <sched.h>
#include <stdint.h>

namespace fiqa_fast {

constexpr int64_t kMaxBands = 16;

// What the threads of a pass have in common; zero at first.
struct Team {
  struct List {
    alignas(64) int64_t ticket = 0;    // number of the current share() << 32 | its next item
    alignas(64) int64_t finished = 0;  // items of all share()s so far
  };
  List all, bands[kMaxBands];
  alignas(64) int64_t members = 0;  // threads so far
};

}  // namespace fiqa_fast

namespace fiqa_fast::FIQA_FAST_ISA {

struct Band {
  int64_t begin, end;  // rows

  int64_t rows() const { return end - begin; }
};

// A thread's way through a list of work.
class Member {
 public:
  Member() = default;
  explicit Member(Team::List& list) : list_(&list) {}

  // work(item) for all below `count`, each by one of the threads; returns when all are done.
  template <class Work>
  void share(int64_t count, Work work) {
    const int64_t mine = phase_++;
    all_ += count;
    for (int64_t waited = 0;;) {
      int64_t ticket = __atomic_load_n(&list_->ticket, __ATOMIC_ACQUIRE);
      if (ticket >> 32 != mine) return;  // the others are done with it
      const int64_t item = ticket & 0xffffffff;
      if (item < count) {
        if (!advance(ticket, ticket + 1)) continue;
        work(item);
        __atomic_fetch_add(&list_->finished, 1, __ATOMIC_RELEASE);
        waited = 0;
      } else if (__atomic_load_n(&list_->finished, __ATOMIC_ACQUIRE) == all_) {
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
    return __atomic_compare_exchange_n(&list_->ticket, &from, to, false, __ATOMIC_ACQ_REL,
                                       __ATOMIC_RELAXED);
  }

  Team::List* list_ = nullptr;
  int64_t phase_ = 0;  // share()s so far
  int64_t all_ = 0;    // their items
};

// A thread's way through all lists of a pass.
class Worker {
 public:
  Worker(Team& team, int64_t bands)
      : all_(team.all),
        count_(bands),
        home_(__atomic_fetch_add(&team.members, 1, __ATOMIC_RELAXED) % bands) {
    for (int64_t n = 0; n < bands; ++n) bands_[n] = Member(team.bands[n]);
  }

  // As Member's, for work that concerns all rows.
  template <class Work>
  void share(int64_t count, Work work) {
    all_.share(count, work);
  }

  // work(band, member) for every band of so many rows; member.share() is what is done there, by
  // whoever comes. Returns when all of it is done.
  template <class Work>
  void share_bands(int64_t rows, Work work) {
    const auto begin = [=, this](int64_t n) {
      const int64_t row = (rows * n / count_ + kBandUnit / 2) / kBandUnit * kBandUnit;
      return row < rows && n < count_ ? row : rows;
    };
    for (int64_t turn = 0; turn < count_; ++turn) {
      const int64_t n = (home_ + turn) % count_;
      const Band band{begin(n), begin(n + 1)};
      if (band.rows() > 0) work(band, bands_[n]);
    }
  }

 private:
  // Bands begin at multiples of two tiles of rows, which products take at a time.
  static constexpr int64_t kBandUnit = 32;

  Member all_, bands_[kMaxBands];
  const int64_t count_, home_;
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
