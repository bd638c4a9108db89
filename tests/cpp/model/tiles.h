// SPDX-License-Identifier: Apache-2.0
// AMX's tile registers and what its instructions do to them: Intel's Software Developer's Manual,
// volume 2, and volume 1, chapter 18. What the processor answers with a fault throws one here.
#pragma once

#include <exception>

#include "model/arithmetic.h"

namespace fiqa_fast::model {
namespace {

class TileFault : public std::exception {
 public:
  explicit TileFault(const char* why) : why_(why) {}
  const char* what() const noexcept override { return why_; }

 private:
  const char* why_;
};

class Tiles {
 public:
  static constexpr int kTiles = 8, kMaxRows = 16, kMaxBytes = 64, kColumns = 16;

  // LDTILECFG: 64 bytes. 0: palette, 1: the row to start at, 16 to 31: bytes of a row, two for each
  // tile, 48 to 55: rows of each tile. Tiles become zero.
  void configure(const void* from) {
    uint8_t bytes[64];
    memcpy(bytes, from, sizeof bytes);
    *this = {};
    if (bytes[0] == 0) return;
    require(bytes[0] == 1, "there is no such palette");
    require(bytes[1] == 0, "only instructions that begin at the first row are modelled");
    for (int i = 2; i < 64; ++i)
      require(bytes[i] == 0 || (i >= 16 && i < 32) || (i >= 48 && i < 56),
              "a reserved byte of the configuration is not zero");
    for (int t = 0; t < kTiles; ++t) {
      const int width = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
      require(width <= kMaxBytes && rows <= kMaxRows, "a tile is too large");
      require((width == 0) == (rows == 0), "a tile has rows of no bytes, or no rows");
      tiles_[t].bytes = width, tiles_[t].rows = rows;
    }
    configured_ = true;
  }

  // TILERELEASE.
  void release() { *this = {}; }

  // TILEZERO.
  void zero(int t) { clear(valid(t)); }

  // TILELOADD, TILELOADDT1.
  void load(int t, const char* from, int64_t stride) {
    Tile& tile = valid(t);
    clear(tile);
    for (int r = 0; r < tile.rows; ++r)
      memcpy(tile.data[r], from + r * stride, static_cast<size_t>(tile.bytes));
  }

  // TILESTORED.
  void store(int t, char* to, int64_t stride) {
    const Tile& tile = valid(t);
    for (int r = 0; r < tile.rows; ++r)
      memcpy(to + r * stride, tile.data[r], static_cast<size_t>(tile.bytes));
  }

  // TDPBF16PS: the products of first and of second numbers are summed apart, over all words of a
  // row, and their sums are added to the tile's.
  void add_bfloat16(int sum, int a, int b) {
    check(sum, a, b);
    const Tile &x = tiles_[a], &y = tiles_[b];
    for (int m = 0; m < tiles_[sum].rows; ++m) {
      // Of all columns, those that the tile lacks as well: zero, as rows are from their end on.
      float first[kColumns] = {}, second[kColumns] = {};
      for (int k = 0; k < y.rows; ++k)
        for (int n = 0; n < kColumns; ++n) {
          first[n] = fma_flushed(first_of(x.word(m, k)), first_of(y.word(k, n)), first[n]);
          second[n] = fma_flushed(second_of(x.word(m, k)), second_of(y.word(k, n)), second[n]);
        }
      for (int n = 0; n < tiles_[sum].bytes / 4; ++n) {
        const float before = float_of(tiles_[sum].word(m, n));
        tiles_[sum].set_word(m, n, bits_of(add_flushed(before, add_flushed(first[n], second[n]))));
      }
    }
  }

  // TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD.
  template <bool kSignedA, bool kSignedB>
  void add_bytes(int sum, int a, int b) {
    check(sum, a, b);
    const Tile &x = tiles_[a], &y = tiles_[b];
    for (int m = 0; m < tiles_[sum].rows; ++m)
      for (int n = 0; n < tiles_[sum].bytes / 4; ++n) {
        int32_t all = static_cast<int32_t>(tiles_[sum].word(m, n));
        for (int k = 0; k < y.rows; ++k)
          all = add_byte_products<kSignedA, kSignedB>(all, x.word(m, k), y.word(k, n));
        tiles_[sum].set_word(m, n, static_cast<uint32_t>(all));
      }
  }

 private:
  struct Tile {
    int rows = 0, bytes = 0;
    char data[kMaxRows][kMaxBytes] = {};

    uint32_t word(int row, int column) const {
      uint32_t value;
      memcpy(&value, data[row] + 4 * column, sizeof value);
      return value;
    }
    void set_word(int row, int column, uint32_t value) {
      memcpy(data[row] + 4 * column, &value, sizeof value);
    }
  };

  static void require(bool condition, const char* why) {
    if (!condition) throw TileFault(why);
  }

  static void clear(Tile& tile) { memset(tile.data, 0, sizeof tile.data); }

  Tile& valid(int t) {
    require(configured_, "tiles are not configured");
    require(t < kTiles && tiles_[t].rows > 0, "a tile that is not configured");
    require(tiles_[t].bytes % 4 == 0, "a tile's rows are not whole words");
    return tiles_[t];
  }

  void check(int sum, int a, int b) {
    const Tile &c = valid(sum), &x = valid(a), &y = valid(b);
    require(sum != a && sum != b && a != b, "a product's three tiles are not different ones");
    require(c.rows == x.rows && c.bytes == y.bytes && x.bytes / 4 == y.rows,
            "a product's tiles do not fit together");
  }

  bool configured_ = false;
  Tile tiles_[kTiles];
};

}  // namespace
}  // namespace fiqa_fast::model
