// SPDX-License-Identifier: Apache-2.0
// The sharing of a pass among threads, apart from what is computed: every item once, and nothing of
// what comes after before all of what comes first.
#include <atomic>
#include <thread>

#include "check.h"

#define FIQA_FAST_ISA team_test
#include "engine/team.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

// More items than threads, fewer, one, and none.
constexpr int64_t kCounts[] = {7, 1, 2, 0, 3, 1};
constexpr int64_t kRows = 100;

int64_t total() {
  int64_t all = 0;
  for (const int64_t count : kCounts) all += count;
  return all;
}

struct Shared {
  Team team;
  std::atomic<int64_t> ended[kMaxBands + 1] = {};  // items of the bands, and of what is nobody's
  std::atomic<int> early{0};              // what began before all that comes first was done
  std::atomic<int64_t> rows[kRows] = {};  // items of each
};

// kCounts, one after the other, of a list of which `before` were done already.
void share_all(team_test::Member& member, Shared& shared, std::atomic<int64_t>& ended,
               int64_t before, int64_t pause, const team_test::Band& band) {
  for (const int64_t count : kCounts) {
    member.share(count, [&](int64_t item) {
      if (ended < before) ++shared.early;
      for (int64_t row = band.begin; row < band.end; ++row) ++shared.rows[row];
      // The first item takes longest: whoever has none left must wait for it.
      if (item == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
      ++ended;
    });
    before += count;
    if (ended < before) ++shared.early;
  }
}

// Twice a few items of all rows, and then all of every band's.
void work(Shared& shared, int64_t bands, int64_t pause) {
  team_test::Worker worker(shared.team, bands);
  std::atomic<int64_t>& common = shared.ended[kMaxBands];
  for (int64_t round = 0; round < 2; ++round) {
    const auto expect_done = [&] {
      for (int64_t band = 0; band < bands; ++band)
        if (shared.ended[band] < round * total()) ++shared.early;
    };
    worker.share(3, [&](int64_t item) {
      expect_done();
      if (item == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
      ++common;
    });
    if (common < 3 * (round + 1)) ++shared.early;
    worker.share_bands(kRows, [&](const team_test::Band& band, team_test::Member& member) {
      if (band.begin % 16 != 0) ++shared.early;
      if (common < 3 * (round + 1)) ++shared.early;
      const int64_t number = (band.begin * bands + kRows / 2) / kRows;
      share_all(member, shared, shared.ended[number], round * total(), pause, band);
    });
  }
}

void test_threads(int threads, int64_t bands, int64_t pause, bool late) {
  Shared shared;
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i)
    others.emplace_back([&, i] {
      if (late) std::this_thread::sleep_for(std::chrono::microseconds(i * pause * 3 / 2));
      work(shared, bands, pause);
    });
  work(shared, bands, pause);
  for (std::thread& other : others) other.join();
  for (int64_t band = 0; band < bands; ++band)
    expect(shared.ended[band] == 2 * total(), "items of a band",
           static_cast<double>(shared.ended[band]), 2 * total());
  for (const std::atomic<int64_t>& row : shared.rows)
    expect(row == 2 * total(), "items of a row", static_cast<double>(row), 2 * total());
  expect(shared.ended[kMaxBands] == 6, "items of all", static_cast<double>(shared.ended[kMaxBands]),
         6);
  expect(shared.early == 0, "went on too early", shared.early, 0);
}

}  // namespace

int main() {
  for (int round = 0; round < 10; ++round)
    for (const int threads : {1, 2, 3, 5})
      for (const int64_t bands : {1, 2, 3})
        for (const bool late : {false, true}) test_threads(threads, bands, 100, late);
  printf("team: %d failures\n", failures);
  return failures ? 1 : 0;
}
