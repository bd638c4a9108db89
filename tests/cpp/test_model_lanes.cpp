// SPDX-License-Identifier: Apache-2.0
// The modelled intrinsics: by hand, and beside the instructions where this processor has them.
#include "check_model.h"
#include "intrinsics.h"
#include "kernels/cpu/cpu_features.h"
#include "model/arithmetic.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

const Intrinsics &m = modelled::intrinsics, &n = native::intrinsics;

void test_float32_by_hand() {
  float a[16], b[16], c[16], out[16];
  for (int i = 0; i < 16; ++i) a[i] = i + 1, b[i] = 2 * i, c[i] = 100 * i;
  m.fmadd(a, b, c, out);
  for (int i = 0; i < 16; ++i) same(out[i], 2.0f * i * (i + 1) + 100 * i, "fmadd");
  a[0] = NAN, b[1] = NAN, a[2] = 0, b[2] = -0.0f, a[3] = -5, b[3] = -4;
  m.max(0xff0f, a, b, out);
  const float greatest[] = {0, NAN, -0.0f, -4, 0, 0, 0, 0, 16, 18, 20, 22, 24, 26, 28, 30};
  for (int i = 0; i < 16; ++i) same(out[i], greatest[i], "max");
  m.min(0xff0f, a, b, out);
  const float least[] = {0, NAN, -0.0f, -5, 0, 0, 0, 0, 9, 10, 11, 12, 13, 14, 15, 16};
  for (int i = 0; i < 16; ++i) same(out[i], least[i], "min");
  // Halves are added to halves: the elements 4 and 12 meet before they meet 0 and 8.
  float sums[16] = {0x1p24f};
  sums[4] = sums[12] = 1;
  same(m.reduce_add(sums), 0x1p24f + 2, "4 and 12 first");
  sums[8] = 1, sums[12] = 0;
  same(m.reduce_add(sums), 0x1p24f, "0 and 8 first");
  sums[7] = 0x1p25f;
  same(m.reduce_max(sums), 0x1p25f, "reduce_max");
  a[1] = -1, a[15] = -0.0f, a[3] = 0;
  same(m.signs(a), 0x8002u, "signs");
  const float rests[16] = {2.5f, 3.5f, -0.75f, 1e9f, -3, INFINITY, -INFINITY, 0.25f};
  m.rest(rests, out);
  const float left[] = {0.5f, -0.5f, 0.25f, 0, 0, 0, 0, 0.25f};
  for (int i = 0; i < 8; ++i) same(out[i], left[i], "rest");
  const float bases[16] = {1.5f, 1.5f, -1.5f, 1, 1.75f, 3, 1, 0};
  const float powers[16] = {3.9f, -0.5f, -INFINITY, 200, -149, -148.5f, INFINITY, INFINITY};
  m.scale(bases, powers, out);
  // 1.75 times the least denormal becomes two of it.
  const float powered[] = {12, 0.75f, -0.0f, INFINITY, 0x1p-148f, 0x3p-149f, INFINITY, NAN};
  for (int i = 0; i < 8; ++i) same(out[i], powered[i], "scale");
}

void test_conversions_by_hand() {
  const uint16_t halves[16] = {0x3c00, 0xc000};
  float wide[16];
  uint16_t narrow[16];
  m.from_half(0x8001, halves, wide);
  same(wide[0], 1.0f, "the first float16");
  same(wide[1], 0.0f, "a masked one");
  for (int i = 0; i < 16; ++i) wide[i] = i;
  m.to_half(0x7fff, wide, narrow);
  same(narrow[14], 0x4b00, "14 in float16");
  same(narrow[15], 0, "a masked float16");
  m.to_bfloat16(wide, narrow);
  same(narrow[1], 0x3f80, "1 in bfloat16");
  same(narrow[15], 0x4170, "15 in bfloat16");
}

void test_products_by_hand() {
  int32_t words[16], sums[16];
  m.set(-7, words);
  for (const int32_t word : words) same(word, -7, "set");
  uint32_t x[16], y[16];
  for (int i = 0; i < 16; ++i) x[i] = bytes(200 + i, 0, 0, 1), y[i] = bytes(-1, 0, 0, i);
  for (const auto add : {m.add_bytes, m.add_bytes_256, m.add_bytes_avx}) {
    add(words, x, y, sums);
    for (int i = 0; i < 8; ++i) same(sums[i], -7 - (200 + i) + i, "bytes");
  }
  m.add_bytes(words, x, y, sums);
  same(sums[15], -207, "the last word of bytes");
  float a[16], out[16];
  for (int i = 0; i < 16; ++i) x[i] = pair(i, 1), y[i] = pair(2, -i), a[i] = 100 * i;
  m.add_bfloat16(a, x, y, out);
  for (int i = 0; i < 16; ++i) same(out[i], 100.0f * i + 2 * i - i, "bfloat16");
}

void test_avx512(Numbers& numbers) {
  for (int round = 0; round < 20000; ++round) {
    float a[16], b[16], c[16], got[16], wanted[16];
    uint16_t halves[16], narrow[16], wanted_narrow[16];
    for (int i = 0; i < 16; ++i) {
      a[i] = numbers.any(), b[i] = numbers.any(), c[i] = numbers.any();
      halves[i] = static_cast<uint16_t>(numbers.word());
    }
    const uint32_t mask = numbers.word() & 0xffff;
    const auto compare = [&](const char* what) {
      for (int i = 0; i < 16; ++i) same(got[i], wanted[i], what);
    };
    m.fmadd(a, b, c, got), n.fmadd(a, b, c, wanted), compare("fmadd");
    m.max(mask, a, b, got), n.max(mask, a, b, wanted), compare("max");
    m.min(mask, a, b, got), n.min(mask, a, b, wanted), compare("min");
    m.from_half(mask, halves, got), n.from_half(mask, halves, wanted), compare("from_half");
    m.to_half(mask, a, narrow), n.to_half(mask, a, wanted_narrow);
    for (int i = 0; i < 16; ++i) same(narrow[i], wanted_narrow[i], "to_half");
    same(m.signs(a), n.signs(a), "signs");
    m.rest(a, got), n.rest(a, wanted), compare("rest");
    for (int i = 0; i < 16; ++i) b[i] = round % 2 ? b[i] : numbers.within(-3, 9);
    m.scale(a, b, got), n.scale(a, b, wanted), compare("scale");
    for (float& value : a) value = numbers.within(-8, 8);
    same(m.reduce_add(a), n.reduce_add(a), "reduce_add");
    same(m.reduce_max(a), n.reduce_max(a), "reduce_max");
  }
}

void test_bfloat16(Numbers& numbers) {
  int others = 0;
  for (int round = 0; round < 20000; ++round) {
    float sums[16], got[16], wanted[16];
    uint32_t x[16], y[16];
    uint16_t narrow[16], wanted_narrow[16];
    for (float& value : sums) value = numbers.any();
    m.to_bfloat16(sums, narrow), n.to_bfloat16(sums, wanted_narrow);
    for (int i = 0; i < 16; ++i) same(narrow[i], wanted_narrow[i], "to_bfloat16");
    for (int i = 0; i < 16; ++i) {
      sums[i] = numbers.within(-8, 8);
      x[i] = numbers.pair_within(-8, 8), y[i] = numbers.pair_within(-8, 8);
    }
    m.add_bfloat16(sums, x, y, got), n.add_bfloat16(sums, x, y, wanted);
    for (int i = 0; i < 16; ++i) {
      using model::first_of, model::second_of;
      const double terms = std::fabs(sums[i]) + std::fabs(first_of(x[i]) * first_of(y[i])) +
                           std::fabs(second_of(x[i]) * second_of(y[i]));
      // Rounded twice here and, whatever the order, at most twice there.
      const double error = std::fabs(static_cast<double>(got[i]) - wanted[i]);
      expect(error <= terms * 0x1p-22, "add_bfloat16", error, terms * 0x1p-22);
      others += got[i] != wanted[i];
    }
  }
  printf("%d of 320000 sums of bfloat16 products differ in their last place\n", others);
}

void test_vnni(Numbers& numbers, bool also_avx) {
  for (int round = 0; round < 20000; ++round) {
    uint32_t x[16], y[16];
    int32_t sums[16], got[16], wanted[16];
    for (int i = 0; i < 16; ++i) {
      x[i] = numbers.word(), y[i] = numbers.word();
      sums[i] = static_cast<int32_t>(numbers.word());
    }
    m.add_bytes(sums, x, y, got), n.add_bytes(sums, x, y, wanted);
    for (int i = 0; i < 16; ++i) same(got[i], wanted[i], "add_bytes");
    if (!also_avx) continue;  // the compiler may take one encoding for the other
    m.add_bytes_256(sums, x, y, got), n.add_bytes_256(sums, x, y, wanted);
    for (int i = 0; i < 8; ++i) same(got[i], wanted[i], "add_bytes_256");
    m.add_bytes_avx(sums, x, y, got), n.add_bytes_avx(sums, x, y, wanted);
    for (int i = 0; i < 8; ++i) same(got[i], wanted[i], "add_bytes_avx");
  }
}

}  // namespace

int main() {
  Numbers numbers;
  test_float32_by_hand();
  test_conversions_by_hand();
  test_products_by_hand();
  const CpuFeatures& cpu = cpu_features();
  if (has(cpu.avx512, "AVX-512")) test_avx512(numbers);
  if (has(cpu.avx512_bf16, "AVX512_BF16")) test_bfloat16(numbers);
  if (has(cpu.avx512_vnni, "AVX512_VNNI")) test_vnni(numbers, has(cpu.avx_vnni, "AVX-VNNI"));
  printf("model, lanes: %d failures\n", failures);
  return failures ? 1 : 0;
}
