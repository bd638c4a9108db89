// SPDX-License-Identifier: Apache-2.0
// What the tests of the models share.
#pragma once

#include <type_traits>

#include "check.h"

namespace fiqa_fast::test {

// Bit for bit; which NaN it is does not matter.
template <class Got, class Wanted>
void same(Got got, Wanted wanted, const char* what) {
  if constexpr (std::is_floating_point_v<Got>) {
    if (std::isnan(got) && std::isnan(wanted)) return;
    expect(bits_of(got) == bits_of(wanted), what, got, wanted);
  } else {
    expect(static_cast<int64_t>(got) == static_cast<int64_t>(wanted), what,
           static_cast<double>(got), static_cast<double>(wanted));
  }
}

// Whether there are instructions to compare with.
inline bool has(bool there, const char* what) {
  if (!there) printf("skipped %s, which this processor has not\n", what);
  return there;
}

// Two numbers that bfloat16 has, and four bytes, as a word.
inline uint32_t pair(float first, float second) {
  return bits_of(first) >> 16 | (bits_of(second) & 0xffff0000u);
}
inline uint32_t bytes(int a, int b, int c, int d) {
  return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | static_cast<uint32_t>(d & 255) << 24;
}

class Numbers {
 public:
  uint32_t word() { return static_cast<uint32_t>(random_()); }

  // Any float32, many of them where something changes.
  float any() {
    constexpr uint32_t kSpecial[] = {0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000,
                                     0x00800001, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000,
                                     0x7f800001, 0x3f800000, 0x477fefff, 0x477ff000, 0x387fffff,
                                     0x33000000, 0x33000001, 0x3f808000, 0x3f818000, 0x3f808001};
    return float_of(word() % 4 == 0 ? kSpecial[word() % 20] : word());
  }

  // A magnitude of 2^low to 2^high.
  float within(int low, int high) {
    const float mantissa = 1 + static_cast<float>(word() % 0x800000) * 0x1p-23f;
    const float size = std::ldexp(mantissa, low + static_cast<int>(word() % (high - low)));
    return word() % 2 == 0 ? size : -size;
  }

  // Two bfloat16 of such magnitudes.
  uint32_t pair_within(int low, int high) { return pair(within(low, high), within(low, high)); }

 private:
  std::mt19937 random_{0};
};

}  // namespace fiqa_fast::test
