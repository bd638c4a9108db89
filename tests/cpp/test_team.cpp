// SPDX-License-Identifier: Apache-2.0
// The sharing of a pass among threads, apart from what is computed: every item once, and nothing of
// what comes after before all of what comes first. On x86-64 a weaker order of memory shows only
// with -fsanitize=thread.
#include <algorithm>
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
  std::atomic<int64_t> ended[kRows + 1] = {};  // items of the band from a row on; of nobody's, last
  std::atomic<int> early{0};                   // what began before all that comes first was done
  std::atomic<int64_t> rows[kRows] = {};       // items of each
  // Written by one item and read by those of the next share, without more ado.
  int64_t written[kRows + 1] = {};
};

// kCounts, one after the other, of a list of which `before` were done already.
void share_all(team_test::Member& member, Shared& shared, int64_t before, int64_t pause,
               const team_test::Band& band) {
  std::atomic<int64_t>& ended = shared.ended[band.begin];
  int64_t& written = shared.written[band.begin];
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
    // By whoever comes first, and the next by another.
    member.share(1, [&](int64_t) { ++written; });
  }
}

// Twice a few items of all rows, and then all of every band's.
void work(Shared& shared, int64_t bands, int64_t pause) {
  team_test::Worker worker(shared.team, bands);
  std::atomic<int64_t>& common = shared.ended[kRows];
  for (int64_t round = 0; round < 2; ++round) {
    worker.share(3, [&](int64_t item) {
      for (const std::atomic<int64_t>& row : shared.rows)
        if (row < round * total()) ++shared.early;
      if (item == 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
      ++common;
    });
    if (common < 3 * (round + 1)) ++shared.early;
    worker.share(1, [&](int64_t) {
      for (int64_t row = 0; row < kRows; ++row) shared.written[kRows] += shared.written[row];
    });
    worker.share_bands(kRows, [&](const team_test::Band& band, team_test::Member& member) {
      if (band.begin % 32 != 0 || band.begin >= band.end) ++shared.early;
      if (common < 3 * (round + 1)) ++shared.early;
      share_all(member, shared, round * total(), pause, band);
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
  int64_t used = 0;
  for (int64_t row = 0; row < kRows; ++row) used += shared.ended[row] > 0;
  expect(used == std::min<int64_t>(bands, 4), "bands used", static_cast<double>(used), bands);
  for (const std::atomic<int64_t>& row : shared.rows)
    expect(row == 2 * total(), "items of a row", static_cast<double>(row), 2 * total());
  expect(shared.ended[kRows] == 6, "items of all", static_cast<double>(shared.ended[kRows]), 6);
  const int64_t counts = sizeof(kCounts) / sizeof(kCounts[0]);
  for (int64_t row = 0; row < kRows; ++row)
    expect(shared.written[row] == (shared.ended[row] > 0 ? 2 * counts : 0), "written",
           static_cast<double>(shared.written[row]), 2 * counts);
  expect(shared.written[kRows] == used * counts, "read", static_cast<double>(shared.written[kRows]),
         static_cast<double>(used * counts));
  expect(shared.early == 0, "went on too early", shared.early, 0);
}

// A thread alone begins with its own band, and so does the next.
void test_bands_are_ones_own() {
  Team team;
  for (const int64_t first : {0, 32, 64, 0}) {
    team_test::Worker worker(team, 3);
    std::vector<int64_t> begins;
    worker.share_bands(kRows, [&](const team_test::Band& band, team_test::Member&) {
      begins.push_back(band.begin);
    });
    expect(begins.size() == 3 && begins[0] == first, "own band first",
           static_cast<double>(begins[0]), static_cast<double>(first));
  }
}

// Every row is in one band, however few there are.
void test_few_rows() {
  for (const int64_t rows : {1, 15, 20, 49, 100, 530}) {
    Team team;
    team_test::Worker worker(team, kMaxBands);
    int64_t all = 0;
    bool inside = true;
    worker.share_bands(rows, [&](const team_test::Band& band, team_test::Member&) {
      inside = inside && band.begin >= 0 && band.begin < band.end && band.end <= rows;
      all += band.rows();
    });
    expect(inside && all == rows, "rows of all bands", static_cast<double>(all), rows);
  }
}

// One band is finished while an item of another has not ended.
void test_bands_do_not_wait() {
  Team team;
  std::atomic<bool> begun{false}, done{false}, in_time{false};
  std::thread other([&] {
    team_test::Worker worker(team, 2);
    worker.share_bands(kRows, [&](const team_test::Band& band, team_test::Member& member) {
      member.share(1, [&](int64_t) {
        if (band.begin > 0) return;
        begun = true;
        for (int i = 0; i < 20000 && !done; ++i)
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        in_time = done.load();
      });
    });
  });
  while (!begun) std::this_thread::yield();
  team_test::Worker worker(team, 2);
  worker.share_bands(kRows, [&](const team_test::Band&, team_test::Member& member) {
    member.share(1, [](int64_t) {});
    done = true;
  });
  other.join();
  expect(in_time, "a band waited for another", 1, 0);
}

}  // namespace

int main() {
  for (int round = 0; round < 8; ++round)
    for (const int threads : {1, 2, 3, 5})
      for (const int64_t bands : {1, 2, 3, 16})
        for (const bool late : {false, true}) test_threads(threads, bands, 100, late);
  test_bands_are_ones_own();
  test_few_rows();
  test_bands_do_not_wait();
  printf("team: %d failures\n", failures);
  return failures ? 1 : 0;
}
