// SPDX-License-Identifier: Apache-2.0
// What the C++ tests share: random tensors of any layout in any dtype, and a check with a count.
#pragma once

#include <stdint.h>
#include <stdio.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/dtype.h"

namespace fiqa_fast::test {

inline int failures = 0;

inline void expect(bool condition, const char* what, double got, double allowed) {
  if (condition) return;
  if (++failures <= 20) printf("FAILED %s: %g, allowed %g\n", what, got, allowed);
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Stored elements with the float32 numbers they stand for. Narrow numbers are made by dropping
// bits, which needs no rounding to be right.
struct Elements {
  DType dtype;
  std::vector<uint8_t> bytes;
  std::vector<float> values;

  const void* data() const { return bytes.data(); }

  void set(size_t i, float value) {
    if (dtype == DType::kFloat32) {
      std::memcpy(&bytes[4 * i], &value, 4);
    } else if (dtype == DType::kBFloat16) {
      const uint16_t narrow = bits_of(value) >> 16;
      value = float_of(static_cast<uint32_t>(narrow) << 16);
      std::memcpy(&bytes[2 * i], &narrow, 2);
    } else {
      // Normal float16 numbers only: 10 bits of mantissa, exponents -14 to 15.
      if (std::fabs(value) < 0x1p-14f) value = 0.0f;
      value = float_of(bits_of(value) & 0xffffe000u);
      const uint32_t wide = bits_of(value);
      const uint32_t magnitude = value == 0.0f ? 0 : ((wide & 0x7fffffffu) >> 13) - (112u << 10);
      const uint16_t narrow = static_cast<uint16_t>(((wide >> 16) & 0x8000u) | magnitude);
      std::memcpy(&bytes[2 * i], &narrow, 2);
    }
    values[i] = value;
  }
};

inline Elements random_elements(DType dtype, size_t count, float offset, std::mt19937& random) {
  // Exactly as large as needed, so that AddressSanitizer sees a read past the end.
  Elements e{dtype, std::vector<uint8_t>(count * (dtype == DType::kFloat32 ? 4 : 2)),
             std::vector<float>(count)};
  std::normal_distribution<float> normal(offset, 1.0f);
  for (size_t i = 0; i < count; ++i) e.set(i, normal(random));
  return e;
}

// The levels that are tested: where those that this processor lacks are modelled, they alone.
#if defined(FIQA_FAST_MODELLED)
constexpr int32_t kFirstLevel = static_cast<int32_t>(Isa::kAvx512);
#else
constexpr int32_t kFirstLevel = 0;
#endif

// Calls test(level) for every level up to `last` of this processor; returns the exit status.
template <class Test>
int run_levels(const char* name, Isa last, const Test& test) {
  for (int32_t level = kFirstLevel; level < kIsaCount && level <= static_cast<int32_t>(last);
       ++level) {
    const Isa isa = static_cast<Isa>(level);
    if (isa_supported(isa))
      test(isa);
    else
      printf("%s: skipped %s, which this processor has not\n", name, kIsaNames[level]);
  }
  printf("%s: %d failures\n", name, failures);
  return failures ? 1 : 0;
}

// Calls test(dtype) for every dtype at every level that the operators' kernels have.
template <class Test>
int run_everywhere(const char* name, const Test& test) {
  return run_levels(name, Isa::kAvx512, [&](Isa isa) {
    set_isa(isa);
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) test(dtype);
  });
}

}  // namespace fiqa_fast::test
