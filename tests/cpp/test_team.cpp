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

struct Shared {
  Team team;
  std::atomic<int64_t> begun{0}, ended{0};  // items of all shares
  std::atomic<int> early{0};                // that began before the share before was done
  std::atomic<int64_t> rows[kRows] = {};    // how often each was computed
};

void work(Shared& shared, int64_t bands, int64_t pause) {
  team_test::Member member(shared.team, bands);
  int64_t before = 0;  // items of the shares before
  const auto item_done = [&](int64_t item) {
    if (shared.ended < before) ++shared.early;
    ++shared.begun;
    // The first item takes longest: whoever has none left must wait for it.
    if (item == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
    ++shared.ended;
  };
  const auto end = [&](int64_t items) {
    before += items;
    if (shared.ended < before) ++shared.early;
  };
  for (const int64_t count : kCounts) {
    member.share(count, item_done);
    end(count);
    // As many items of every row as there are of the band.
    member.share_rows(
        kRows, [=](const team_test::Band&) { return count; },
        [&](const team_test::Band& band, int64_t item) {
          if (band.begin % 16 != 0) ++shared.early;
          for (int64_t row = band.begin; row < band.end; ++row) ++shared.rows[row];
          item_done(item);
        });
    end(count * bands);
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
  int64_t all = 0;
  for (const int64_t count : kCounts) all += count;
  for (const std::atomic<int64_t>& row : shared.rows)
    expect(row == all, "items of a row", static_cast<double>(row), all);
  all *= 1 + bands;
  expect(shared.begun == all, "items computed", static_cast<double>(shared.begun), all);
  expect(shared.early == 0, "went on too early", shared.early, 0);
}

}  // namespace

int main() {
  for (int round = 0; round < 10; ++round)
    for (const int threads : {1, 2, 3, 5})
      for (const int64_t bands : {1, 2, 3})
        for (const bool late : {false, true}) test_threads(threads, bands, 200, late);
  printf("team: %d failures\n", failures);
  return failures ? 1 : 0;
}
