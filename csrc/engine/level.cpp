// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set level.
#include "engine/block.h"
#include "engine/embed.h"
#include "engine/kernels.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

#if !defined(__AMX_BF16__)
struct TileRegisters {};
#endif

template <class Number>
int64_t packed_bytes(int64_t columns, int64_t channels) {
  return column_bytes<Number>(columns, channels);
}

template <class Number>
void pack(const float* weight, int64_t columns, int64_t channels, char* to, bool has_zero,
          float* sums, int64_t slice) {
  pack_columns<Number>(weight, columns, channels, to, has_zero, sums, slice);
}

template <class Number>
constexpr EnginePacking packing() {
  return {packed_bytes<Number>, pack<Number>};
}

template <class Number>
float shift(const EngineShape& shape) {
  return hidden_shift<Number>(shape);
}

// The patches need their memory before the blocks need theirs.
template <class Number>
int64_t shared_bytes(const EngineShape& shape, int64_t images) {
  return Layout<Number>(shape, images).shared_bytes +
         patch_bytes<typename Number::Patch>(shape, images);
}

template <class Number>
int64_t own_bytes(const EngineShape& shape, int64_t images) {
  return Layout<Number>(shape, images).own_bytes + line_bytes<typename Number::Patch>(shape);
}

// In how many bands the rows of a pass are shared.
template <class Number>
int64_t bands(const EnginePass& pass) {
  const int64_t most = pass.images * pass.shape->tokens() / kBandRows<Number>;
  const int64_t wanted = pass.threads < kMaxBands ? pass.threads : kMaxBands;
  const int64_t count = wanted < most ? wanted : most;
  return count > 1 ? count : 1;
}

template <class Number>
void work(const EnginePass& pass, char* own) {
  const EngineShape& shape = *pass.shape;
  const Layout<Number> layout(shape, pass.max_images);
  Worker worker(*pass.team, bands<Number>(pass));
  [[maybe_unused]] const TileRegisters registers;
  const auto begin = [&]<class Product, class Pixel>() {
    embed<typename Number::Patch, Product>(
        worker, shape, static_cast<const Pixel*>(pass.pixels), pass.images, pass.embedding,
        pass.shared + layout.shared_bytes, own + layout.own_bytes, pass.x);
  };
  using Patch = typename Number::Patch;
  if (pass.pixels != nullptr && pass.bytes)
    begin.template operator()<typename Patch::WholeRows, uint8_t>();
  else if (pass.pixels != nullptr)
    begin.template operator()<Patch, float>();
  if (pass.first == pass.last) return;
  const EngineBlock *block = pass.blocks + pass.first, *end = pass.blocks + pass.last;
  worker.share_bands(pass.images * shape.tokens(), [&](const Band& band, Member& member) {
    norm_rows(band, member, shape, block->norm1, block->proj.bias, pass.x, layout, pass.shared,
              own);
  });
  for (; block < end; ++block)
    run_block(worker, shape, *block, block + 1 < end ? block + 1 : nullptr, pass.x, pass.images,
              layout, pass.shared, own);
}

template <class Number>
constexpr EngineFormat format() {
  return {
      Number::kDepth,
      Number::Inner::kDepth,
      kSlice,
      packing<Number>(),
      packing<typename Number::Patch>(),
      shift<Number>,
      shared_bytes<Number>,
      own_bytes<Number>,
      work<Number>,
  };
}

}  // namespace

extern const EngineKernels engine_table;
const EngineKernels engine_table = {
    format<Float32>(),
#if defined(__AMX_BF16__)
    format<SplitFloat32>(),
#else
    format<Float32>(),
#endif
#if defined(__AVX512BF16__)
    format<Bfloat16>(),
#else
    format<Float32>(),
#endif
#if defined(__AVX2__)
    format<Int8>(),
#else
    format<Float32>(),
#endif
};

}  // namespace fiqa_fast::FIQA_FAST_ISA
