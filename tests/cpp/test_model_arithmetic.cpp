// SPDX-License-Identifier: Apache-2.0
// What single elements become in the modelled instructions: by hand, and beside those instructions
// of AVX2's level that do the same.
#include "model/arithmetic.h"

#include <immintrin.h>

#include "check_model.h"
#include "kernels/cpu/cpu_features.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

void test_bfloat16_by_hand() {
  using model::bfloat16_of;
  same(bfloat16_of(1), 0x3f80, "1 to bfloat16");
  same(bfloat16_of(1 + 0x1p-8f), 0x3f80, "a tie to the even number below");
  same(bfloat16_of(1 + 0x3p-8f), 0x3f82, "a tie to the even number above");
  same(bfloat16_of(1 + 0x1p-8f + 0x1p-23f), 0x3f81, "above a tie");
  same(bfloat16_of(-(1 + 0x1p-8f + 0x1p-23f)), 0xbf81, "the same, negative");
  same(bfloat16_of(float_of(0x7f7fffff)), 0x7f80, "the largest number to infinity");
  same(bfloat16_of(float_of(0x007fffff)), 0, "a denormal to zero");
  same(bfloat16_of(float_of(0x807fffff)), 0x8000, "a negative denormal to minus zero");
  same(bfloat16_of(-INFINITY), 0xff80, "minus infinity");
  same(bfloat16_of(float_of(0x7f800001)), 0x7fc0, "a NaN to a quiet one");
}

void test_float16_by_hand() {
  using model::float_of_half, model::half_of_float;
  same(half_of_float(1 + 0x1p-11f), 0x3c00, "a tie to the even float16 below");
  same(half_of_float(1 + 0x3p-11f), 0x3c02, "a tie to the even float16 above");
  same(half_of_float(65519), 0x7bff, "below float16's infinity");
  same(half_of_float(-65520), 0xfc00, "float16's infinity");
  same(half_of_float(0x1p-24f), 1, "the smallest float16");
  same(half_of_float(0x1p-25f), 0, "half of it");
  same(half_of_float(0x3p-26f), 1, "three quarters of it");
  same(float_of_half(0x0001), 0x1p-24f, "the smallest float16 to float32");
  same(float_of_half(0x83ff), -0x3ffp-24f, "the largest denormal, negative");
  same(float_of_half(0x3555), 0x1.554p-2f, "a third");
  same(float_of_half(0x7bff), 65504.0f, "the largest float16");
  same(float_of_half(0xfc00), -INFINITY, "minus infinity from float16");
}

void test_products_by_hand() {
  using model::add_bfloat16_pairs, model::fma_flushed;
  same(fma_flushed(3, 5, 7), 22.0f, "3 * 5 + 7");
  same(fma_flushed(1 + 0x1p-20f, 1 + 0x1p-20f, -1), 0x1p-19f + 0x1p-40f, "rounded once");
  same(fma_flushed(0x1p-127f, 0x1p100f, 0), 0.0f, "a denormal factor is zero");
  same(fma_flushed(1, 0x1p-126f, -0x1p-127f), 0x1p-126f, "a denormal addend is zero");
  same(fma_flushed(0x1p-64f, -0x1p-63f, 0), -0.0f, "a denormal result is a zero of its sign");
  same(fma_flushed(0x1p-63f, 0x1p-63f, 0), 0x1p-126f, "the smallest normal result");
  // Rounded to a denormal's digits it would be 2^-126; it has no more digits than normal numbers.
  same(fma_flushed(1 - 0x1p-24f, 0x1p-126f, 0), 0.0f, "just too small to round up to normal");

  same(add_bfloat16_pairs(1, pair(2, 3), pair(5, 7)), 32.0f, "1 + 2 * 5 + 3 * 7");
  // The second product comes first: 1 is lost in it before the first product takes it away.
  same(add_bfloat16_pairs(1, pair(-4096, 4096), pair(4096, 4096)), 0.0f, "second, then first");
  same(add_bfloat16_pairs(0x1p24f, pair(1, 1), pair(1, 1)), 0x1p24f, "rounded twice");
  same(add_bfloat16_pairs(0, pair(0x1p-64f, 0), pair(0x1p-64f, 0)), 0.0f, "a tiny product");
}

void test_bytes_by_hand() {
  using model::add_byte_products;
  same(add_byte_products<false, true>(5, bytes(1, 2, 3, 4), bytes(10, -20, 30, -40)),
       5 + 10 - 40 + 90 - 160, "bytes");
  const uint32_t x = bytes(255, 255, 255, 128), y = bytes(127, 128, 255, 1);
  same(add_byte_products<false, true>(0, x, y), 255 * 127 - 255 * 128 - 255 + 128,
       "unsigned by signed");
  same(add_byte_products<true, true>(0, x, y), -127 + 128 + 1 - 128, "signed by signed");
  same(add_byte_products<true, false>(0, x, y), -127 - 128 - 255 - 128, "signed by unsigned");
  same(add_byte_products<false, false>(0, x, y), 255 * 127 + 255 * 128 + 255 * 255 + 128,
       "unsigned by unsigned");
  same(add_byte_products<false, true>(INT32_MAX, 1, 1), INT32_MIN, "sums wrap around");
}

void test_max_and_min(Numbers& numbers) {
  for (int i = 0; i < 10000; ++i) {
    const float a = numbers.any(), b = numbers.any();
    const __m128 x = _mm_set_ss(a), y = _mm_set_ss(b);
    same(model::greater_of(a, b), _mm_cvtss_f32(_mm_max_ss(x, y)), "max");
    same(model::lesser_of(a, b), _mm_cvtss_f32(_mm_min_ss(x, y)), "min");
  }
}

__attribute__((target("fma"))) void expect_same_fma(float a, float b, float c, const char* what) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // flush to zero, denormals are zero
  const __m128 wanted = _mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c));
  _mm_setcsr(before);
  same(model::fma_flushed(a, b, c), _mm_cvtss_f32(wanted), what);
}

void test_fma(Numbers& numbers) {
  for (int i = 0; i < 200000; ++i) {
    expect_same_fma(numbers.any(), numbers.any(), numbers.any(), "fma of any numbers");
    // Products and sums around the smallest normal number, and sums that nearly cancel.
    const float a = numbers.within(-70, -50), b = numbers.within(-76, -60);
    expect_same_fma(a, b, numbers.within(-150, -120), "fma of small numbers");
    expect_same_fma(a, b, float_of(bits_of(-a * b) + numbers.word() % 8), "fma that cancels");
    // Just below the smallest normal number, where it depends on the last digits.
    const float nearly = float_of(bits_of(1.0f) - numbers.word() % 4);
    const float rest = numbers.within(-149 + 126 - 5, 1) * 0x1p-126f;
    expect_same_fma(nearly, 0x1p-126f, rest, "fma at the threshold");
    expect_same_fma(nearly, 0x1.8p-126f, -0x1p-127f + rest, "fma at the threshold");
  }
}

__attribute__((target("f16c"))) void test_float16(Numbers& numbers) {
  for (int half = 0; half < 65536; ++half)
    same(bits_of(model::float_of_half(static_cast<uint16_t>(half))),
         bits_of(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)))), "float16 to float32");
  for (int i = 0; i < 200000; ++i) {
    const float value = i % 2 == 0 ? numbers.any() : numbers.within(-26, 17);
    const __m128i half = _mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT);
    same(model::half_of_float(value), _mm_cvtsi128_si32(half) & 0xffff, "float32 to float16");
  }
}

}  // namespace

int main() {
  Numbers numbers;
  test_bfloat16_by_hand();
  test_float16_by_hand();
  test_products_by_hand();
  test_bytes_by_hand();
  test_max_and_min(numbers);
  if (has(cpu_features().fma, "FMA")) test_fma(numbers);
  if (has(cpu_features().f16c, "F16C")) test_float16(numbers);
  printf("model, arithmetic: %d failures\n", failures);
  return failures ? 1 : 0;
}
