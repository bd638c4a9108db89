// SPDX-License-Identifier: Apache-2.0
// Images to the residual stream: the patch embedding, a product, and the positions.
//
// The product's rows are pixels times 255, and its weights a 255th of the embedding's: so bytes,
// which stand for -1, -253/255, .. 1, are odd whole numbers up to 255, and bfloat16 has those
// exactly. Floats that are such numbers but for their rounding are taken for them: the same images
// have the same results either way.
#pragma once

#include "engine/linear.h"
#include "engine/shape.h"

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kPatchSlice = 512;  // pixels

template <class Number>
FIQA_FAST_INLINE int64_t patch_bytes(const EngineShape& shape, int64_t images) {
  return tiled_bytes<Number>(images * shape.patches() + 2 * kSide, shape.patch_pixels());
}

// Of one patch, and a vector behind it.
template <class Number>
FIQA_FAST_INLINE int64_t line_bytes(const EngineShape& shape) {
  return (steps<Number>(shape.patch_pixels()) * Number::kDepth + kLanes) * 4;
}

FIQA_FAST_INLINE Vec times_255(const uint8_t* pixels) {
  typedef uint8_t BytesAnywhere __attribute__((vector_size(kWidth), aligned(1), may_alias));
  Vec out;
  for (int p = 0; p < kParts; ++p) {
    const Ints byte =
        __builtin_convertvector(*reinterpret_cast<const BytesAnywhere*>(pixels + p * kWidth), Ints);
    out.part[p] = __builtin_convertvector(2 * byte - 255, Floats);
  }
  return out;
}

FIQA_FAST_INLINE Vec times_255(const float* pixels) {
  Vec out = load(pixels) * broadcast(255);
  for (int p = 0; p < kParts; ++p) {
    const Floats value = out.part[p], round = 12582912.0f - Floats{};
    const Floats whole = (value + round) - round, off = value - whole;
    const Ints near = (off < 0x1p-14f) & (off > -0x1p-14f);
    out.part[p] = (Floats)((near & (Ints)whole) | (~near & (Ints)value));
  }
  return out;
}

// One patch [3][P][P] of an image [3][S][S], and up to a vector behind it. `end`: of the image.
template <class Pixel>
FIQA_FAST_INLINE void gather_patch(const EngineShape& shape, const Pixel* image, const Pixel* end,
                                   int64_t patch, Pixel* to) {
  const int64_t size = shape.image_size, side = shape.patch_size;
  const Pixel* corner = image + patch / shape.grid() * side * size + patch % shape.grid() * side;
  for (int64_t channel = 0; channel < 3; ++channel)
    for (int64_t y = 0; y < side; ++y, to += side) {
      const Pixel* from = corner + (channel * size + y) * size;
      if (end - from >= tiles(side) * kLanes)
        for (int64_t x = 0; x < side; x += kLanes) memcpy(to + x, from + x, kLanes * sizeof(Pixel));
      else
        for (int64_t x = 0; x < side; ++x) to[x] = from[x];
    }
}

// The patches of one image as rows of a left operand, from row `first` on.
template <class Rows, class Pixel>
FIQA_FAST_INLINE void put_patches(const EngineShape& shape, const Pixel* image, int64_t first,
                                  char* patches, char* own) {
  const int64_t step_count = steps<Rows>(shape.patch_pixels()), width = step_count * Rows::kDepth;
  const Pixel* end = image + 3 * shape.image_size * shape.image_size;
  Pixel* line = reinterpret_cast<Pixel*>(own);
  for (int64_t patch = 0; patch < shape.patches(); ++patch) {
    gather_patch(shape, image, end, patch, line);
    // Behind the patch the weights are zero, but nothing may be a NaN.
    for (int64_t i = shape.patch_pixels(); i < width; ++i) line[i] = 0;
    for (int64_t c = 0; c < width; c += kLanes)
      Rows::put(place<Rows>(patches, step_count, first + patch, c), kTileBytes,
                times_255(line + c));
  }
}

// The stream begins at the embedding's bias, [tokens][stride]: positions and prefix tokens
// included. `patches` is memory of the pass for all patches, `own` of the thread for one. Number is
// what the weights are packed for, Product what the rows are of.
template <class Number, class Product, class Pixel>
FIQA_FAST_INLINE void embed(Worker& worker, const EngineShape& shape, const Pixel* pixels,
                            int64_t images, const EngineLinear& embedding, char* patches, char* own,
                            float* x) {
  using Rows = typename Product::Rows;
  const int64_t stride = shape.stride(), tokens = shape.tokens(), count = shape.patches();
  worker.share(images, [&](int64_t image) {
    float* to = x + image * tokens * stride;
    for (int64_t i = 0; i < tokens * stride; i += kLanes) store(to + i, load(embedding.bias + i));
    put_patches<Rows>(shape, pixels + image * 3 * shape.image_size * shape.image_size,
                      image * count, patches, own);
  });
  // In slices: a sum over all pixels of a large patch, one by one, would lose digits.
  constexpr int64_t kSteps = kPatchSlice / Number::kDepth;
  const int64_t step_count = steps<Number>(shape.patch_pixels());
  worker.share_bands(images * count, [&](const Band& band, Member& member) {
    for (int64_t first = 0; first < step_count; first += kSteps) {
      const int64_t left = step_count - first, wide = left < kSteps ? left : kSteps;
      Operand rows = tiled<Rows>(patches, step_count);
      Operand columns = tiled<Number>(embedding.weight, step_count);
      rows.data += first * rows.step, columns.data += first * columns.step;
      product<Product>(member, band, rows, columns, tiles(shape.dim), wide, nullptr,
                       [&](int64_t row, int64_t column, int64_t width, const auto& value) {
                         const int64_t token = row / count * tokens + shape.prefix + row % count;
                         float* to = x + token * stride + column;
                         for (int64_t c = 0; c < width; c += kLanes)
                           store(to + c, load(to + c) + value(c));
                       });
    }
  });
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
