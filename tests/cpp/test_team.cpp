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

struct Shared {
  Team team;
  std::atomic<int64_t> begun{0}, ended{0};  // items of all shares
  std::atomic<int> early{0};                // that began before the share before was done
};

void work(Shared& shared, int64_t pause) {
  team_test::Member member(shared.team);
  int64_t before = 0;  // items of the shares before
  for (const int64_t count : kCounts) {
    member.share(count, [&](int64_t item) {
      if (shared.ended < before) ++shared.early;
      ++shared.begun;
      // The first item takes longest: whoever has none left must wait for it.
      if (item == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
      ++shared.ended;
    });
    before += count;
    if (shared.ended < before) ++shared.early;
  }
}

void test_threads(int threads, int64_t pause, bool late) {
  Shared shared;
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i)
    others.emplace_back([&, i] {
      if (late) std::this_thread::sleep_for(std::chrono::microseconds(i * pause * 3 / 2));
      work(shared, pause);
    });
  work(shared, pause);
  for (std::thread& other : others) other.join();
  int64_t all = 0;
  for (const int64_t count : kCounts) all += count;
  expect(shared.begun == all, "items computed", static_cast<double>(shared.begun), all);
  expect(shared.early == 0, "went on too early", shared.early, 0);
}

}  // namespace

int main() {
  for (int round = 0; round < 20; ++round)
    for (const int threads : {1, 2, 3, 5})
      for (const bool late : {false, true}) test_threads(threads, 300, late);
  printf("team: %d failures\n", failures);
  return failures ? 1 : 0;
}
