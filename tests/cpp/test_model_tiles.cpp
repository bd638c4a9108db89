// SPDX-License-Identifier: Apache-2.0
// The model of AMX: by hand, and beside the instructions as they stand in machine code, which this
// processor executes, or refuses and leaves to the model to decode.
#include "check_model.h"
#include "kernels/cpu/cpu_features.h"
#include "model/tile_traps.h"
#include "model/tiles.h"

// Clang's assembler wants to know.
#define TILES __attribute__((target("amx-tile,amx-bf16,amx-int8")))

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;
using model::Tiles;

struct Configuration {
  uint8_t bytes[64] = {1};

  Configuration& with(int tile, int rows, int width) {
    bytes[16 + 2 * tile] = static_cast<uint8_t>(width);
    bytes[48 + tile] = static_cast<uint8_t>(rows);
    return *this;
  }
};

template <class Row, size_t kRows>
void load(Tiles& tiles, int tile, const Row (&rows)[kRows]) {
  tiles.load(tile, reinterpret_cast<const char*>(rows), sizeof(Row));
}

template <class Row, size_t kRows>
void store(Tiles& tiles, int tile, Row (&rows)[kRows]) {
  tiles.store(tile, reinterpret_cast<char*>(rows), sizeof(Row));
}

// Two rows and three columns of sums, over two words; rows in memory are longer than tiles'.
void test_products_by_hand() {
  Tiles tiles;
  tiles.configure(Configuration().with(0, 2, 12).with(1, 2, 8).with(2, 2, 12).bytes);
  const uint32_t rows[2][3] = {{pair(1, 2), pair(3, 4), 9}, {pair(5, 6), pair(7, 8), 9}};
  const uint32_t columns[2][4] = {{pair(1, 0), pair(0, 1), pair(1, 1), 9},
                                  {pair(0, 0), pair(2, 0), pair(-1, 1), 9}};
  float sums[2][5] = {{100, 200, 300, -1, -1}, {400, 500, 600, -1, -1}};
  load(tiles, 0, sums), load(tiles, 1, rows), load(tiles, 2, columns);
  tiles.add_bfloat16(0, 1, 2);
  store(tiles, 0, sums);
  const float wanted[2][5] = {{101, 208, 304, -1, -1}, {405, 520, 612, -1, -1}};
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 5; ++c) same(sums[r][c], wanted[r][c], "a product of bfloat16 tiles");

  // First numbers and second numbers are summed apart, and then meet the tile: 2^24 + (1 + 1).
  const float large[2][3] = {{0x1p24f}};
  const uint32_t ones[2][3] = {{pair(1, 1)}};
  load(tiles, 0, large), load(tiles, 1, ones), load(tiles, 2, ones);
  tiles.add_bfloat16(0, 1, 2);
  store(tiles, 0, sums);
  same(sums[0][0], 0x1p24f + 2, "the order of a tile's sums");

  const uint32_t left[2][2] = {{bytes(1, 2, 3, 4), bytes(255, 0, 0, 0)}, {0, bytes(0, 0, 0, 1)}};
  const uint32_t right[2][3] = {{bytes(1, 1, 1, 1), 0, 0}, {bytes(-1, 0, 0, -128), 0, 1}};
  int32_t counts[2][3];
  tiles.zero(0);
  load(tiles, 1, left), load(tiles, 2, right);
  tiles.add_bytes<false, true>(0, 1, 2);
  tiles.add_bytes<true, true>(0, 1, 2);
  store(tiles, 0, counts);
  const int32_t all[2][3] = {{10 - 255 + 10 + 1, 0, 255 - 1}, {-128 - 128, 0, 0}};
  for (int r = 0; r < 2; ++r)
    for (int c = 0; c < 3; ++c) same(counts[r][c], all[r][c], "products of byte tiles");
}

template <class Act>
void expect_refused(const char* what, Act act) {
  Tiles tiles;
  try {
    act(tiles);
  } catch (const model::TileFault&) {
    return;
  }
  expect(false, what, 0, 1);
}

void test_faults() {
  const Configuration usual = Configuration().with(0, 16, 64).with(1, 16, 64).with(2, 16, 64);
  const auto expect_fault = [&](const char* what, Configuration of, const auto& act) {
    expect_refused(what, [&](Tiles& tiles) { tiles.configure(of.bytes), act(tiles); });
  };
  const auto nothing = [](Tiles&) {};
  Configuration reserved = usual, palette = usual;
  reserved.bytes[33] = 1, palette.bytes[0] = 2;
  expect_refused("not configured", [](Tiles& tiles) { tiles.zero(0); });
  expect_fault("released", usual, [](Tiles& tiles) { tiles.release(), tiles.zero(0); });
  expect_fault("a tile too many", usual, [](Tiles& tiles) { tiles.zero(8); });
  expect_fault("a tile without rows", usual, [](Tiles& tiles) { tiles.zero(3); });
  expect_fault("one tile twice", usual, [](Tiles& tiles) { tiles.add_bfloat16(0, 1, 1); });
  expect_fault("tiles that do not fit", Configuration(usual).with(1, 16, 32),
               [](Tiles& tiles) { tiles.add_bfloat16(0, 1, 2); });
  expect_fault("too many rows", Configuration(usual).with(0, 17, 64), nothing);
  expect_fault("too long rows", Configuration(usual).with(0, 16, 68), nothing);
  expect_fault("empty rows", Configuration(usual).with(0, 16, 0), nothing);
  expect_fault("a reserved byte", reserved, nothing);
  expect_fault("another palette", palette, nothing);
}

struct Memory {
  uint32_t sums[16][24], rows[16][24], columns[16][24];
};

// tmm5 gets `product` of tmm2 and tmm7. Addresses are written in several ways.
template <class Product>
TILES void run_instructions(const Configuration& of, Memory& memory, Product product) {
  const int64_t line = sizeof memory.sums[0];
  asm volatile("ldtilecfg %0" ::"m"(of) : "memory");
  asm volatile("tileloadd (%0,%1,1), %%tmm5" ::"r"(memory.sums), "r"(line) : "memory");
  asm volatile("tileloaddt1 (%0,%1,2), %%tmm2" ::"r"(memory.rows), "r"(line / 2) : "memory");
  asm volatile("tileloadd -64(%0,%1,4), %%tmm7" ::"r"(memory.columns[0] + 16), "r"(line / 4)
               : "memory");
  product();
  asm volatile("tilestored %%tmm5, 960(%0,%1,1)" ::"r"(memory.sums[0] - 240), "r"(line) : "memory");
  asm volatile("tilerelease" ::: "memory");
}

template <class Product>
void run_model(const Configuration& of, Memory& memory, Product product) {
  Tiles tiles;
  tiles.configure(of.bytes);
  load(tiles, 5, memory.sums), load(tiles, 2, memory.rows), load(tiles, 7, memory.columns);
  product(tiles);
  store(tiles, 5, memory.sums);
}

#define PRODUCT(name) []() TILES { asm volatile(name " %%tmm7, %%tmm2, %%tmm5" ::: "memory"); }

void test_bytes(Numbers& numbers, const Configuration& of) {
  Memory words;
  for (auto* part : {&words.sums, &words.rows, &words.columns})
    for (auto& row : *part)
      for (uint32_t& word : row) word = numbers.word();
  const auto compare = [&](const char* what, auto product, auto modelled) {
    Memory got = words, wanted = words;
    run_model(of, got, modelled);
    run_instructions(of, wanted, product);
    for (int r = 0; r < 16; ++r)
      for (int c = 0; c < 24; ++c) same(got.sums[r][c], wanted.sums[r][c], what);
  };
  compare("tdpbssd", PRODUCT("tdpbssd"), [](Tiles& t) { t.add_bytes<true, true>(5, 2, 7); });
  compare("tdpbsud", PRODUCT("tdpbsud"), [](Tiles& t) { t.add_bytes<true, false>(5, 2, 7); });
  compare("tdpbusd", PRODUCT("tdpbusd"), [](Tiles& t) { t.add_bytes<false, true>(5, 2, 7); });
  compare("tdpbuud", PRODUCT("tdpbuud"), [](Tiles& t) { t.add_bytes<false, false>(5, 2, 7); });
  compare(
      "tilezero",
      []() TILES {
        asm volatile("tilezero %%tmm5" ::: "memory");
      },
      [](Tiles& t) { t.zero(5); });
}

// Returns how many sums differ from the processor's.
int test_bfloat16(Numbers& numbers, const Configuration& of) {
  Memory got;
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 24; ++c) {
      got.sums[r][c] = bits_of(numbers.within(-4, 4));
      got.rows[r][c] = numbers.pair_within(-4, 4), got.columns[r][c] = numbers.pair_within(-4, 4);
    }
  Memory wanted = got;
  run_model(of, got, [](Tiles& t) { t.add_bfloat16(5, 2, 7); });
  run_instructions(of, wanted, PRODUCT("tdpbf16ps"));
  int others = 0;
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 24; ++c) {
      const double error =
          std::fabs(static_cast<double>(float_of(got.sums[r][c])) - float_of(wanted.sums[r][c]));
      // At most 33 terms below 2^8 that are rounded as often, here and there.
      const double allowed = 2 * 33 * (33 * 0x1p8) * 0x1p-24;
      expect(error <= allowed, "tdpbf16ps", error, allowed);
      others += got.sums[r][c] != wanted.sums[r][c];
    }
  return others;
}

void test_instructions() {
  Numbers numbers;
  const bool real = has(cpu_features().amx_bf16 && cpu_features().amx_int8, "AMX");
  if (!real) model::execute_tile_instructions();
  int others = 0;
  constexpr int kRounds = 200;
  for (int round = 0; round < kRounds; ++round) {
    const int m = 1 + numbers.word() % 16, n = 1 + numbers.word() % 16, k = 1 + numbers.word() % 16;
    const Configuration of = Configuration().with(5, m, 4 * n).with(2, m, 4 * k).with(7, k, 4 * n);
    test_bytes(numbers, of);
    others += test_bfloat16(numbers, of);
  }
  printf("%d of up to %d sums of bfloat16 tiles differ in their last places\n", others,
         kRounds * 256);
  // The model is itself: what differs then is how its instructions are decoded.
  if (!real) expect(others == 0, "decoded instructions", others, 0);
}

}  // namespace

int main() {
  test_products_by_hand();
  test_faults();
  test_instructions();
  printf("model, tiles: %d failures\n", failures);
  return failures ? 1 : 0;
}
