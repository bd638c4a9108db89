// SPDX-License-Identifier: Apache-2.0
// The engine's memory: zero, on cache lines' boundaries, and no byte of it given out twice.
#include "engine/memory.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

constexpr int64_t kMiB = 1 << 20;

// Writes all of it, so that a byte of another, or of nobody, is found out.
void check(char* data, int64_t bytes, char mark) {
  expect(reinterpret_cast<intptr_t>(data) % 64 == 0, "a cache line's boundary", 0, 0);
  int64_t other = 0;
  for (int64_t i = 0; i < bytes; ++i) other += data[i] != 0, data[i] = mark;
  expect(other == 0, "bytes that are not zero", static_cast<double>(other), 0);
}

// Pieces of a line, of several slabs, of more than one slab, and of nothing.
void test_arena() {
  constexpr int64_t kSizes[] = {1, 64, 65, 0, 3 * kMiB, 20 * kMiB, 15 * kMiB, 7, 40 * kMiB, 100};
  Arena arena;
  char* pieces[10];
  for (int i = 0; i < 10; ++i) check(pieces[i] = arena.take(kSizes[i]), kSizes[i], '\1' + i);
  for (int i = 0; i < 10; ++i)
    for (int64_t b = 0; b < kSizes[i]; b += b < kSizes[i] - 1 ? kSizes[i] - 1 : 1)
      expect(pieces[i][b] == '\1' + i, "a piece's own bytes", pieces[i][b], i + 1);
}

void test_pool() {
  for (const int64_t bytes : {int64_t{0}, int64_t{100}, kMiB, 5 * kMiB + 1}) {
    MemoryPool pool(bytes);
    std::unique_ptr<Memory> one = pool.take(), other = pool.take();
    check(one->data(), bytes, 1), check(other->data(), bytes, 2);
    if (bytes > 0) expect(one->data()[bytes - 1] == 1, "the first's", one->data()[bytes - 1], 1);
    const char* data = one->data();
    pool.put_back(std::move(one));
    expect(pool.take()->data() == data, "what was put back", 0, 0);
  }
}

}  // namespace

int main() {
  test_arena();
  test_pool();
  printf("memory: %d failures\n", failures);
  return failures ? 1 : 0;
}
