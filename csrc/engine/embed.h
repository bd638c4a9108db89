// SPDX-License-Identifier: Apache-2.0
// Images to the residual stream: the patch embedding, a product in float32, and the positions.
#pragma once

#include "engine/linear.h"
#include "engine/shape.h"

namespace fiqa_fast::FIQA_FAST_ISA {

constexpr int64_t kPatchSlice = 32;  // steps: 512 pixels

FIQA_FAST_INLINE int64_t line_bytes(const EngineShape& shape) {
  return steps<Float32>(shape.patch_pixels()) * kLineBytes;
}

FIQA_FAST_INLINE int64_t patch_bytes(const EngineShape& shape, int64_t images) {
  return tiled_bytes<Float32>(images * shape.patches() + 2 * kSide, shape.patch_pixels());
}

// One patch [3][P][P] of an image [3][S][S], given as bytes with the float of each, or as floats.
template <class Pixel>
FIQA_FAST_INLINE void gather_patch(const EngineShape& shape, const Pixel* image,
                                   const float* values, int64_t patch, float* to) {
  const int64_t size = shape.image_size, side = shape.patch_size;
  const Pixel* corner = image + patch / shape.grid() * side * size + patch % shape.grid() * side;
  for (int64_t channel = 0; channel < 3; ++channel)
    for (int64_t y = 0; y < side; ++y)
      for (int64_t x = 0; x < side; ++x) {
        const Pixel pixel = corner[(channel * size + y) * size + x];
        if constexpr (sizeof(Pixel) == 1)
          *to++ = values[pixel];
        else
          *to++ = pixel;
      }
}

// The stream begins at the embedding's bias, [tokens][stride]: positions and prefix tokens
// included. `patches` is memory of the pass for all patches, `own` of the thread for one.
FIQA_FAST_INLINE void embed(Member& member, const EngineShape& shape, const void* pixels,
                            const float* byte_values, int64_t images, const EngineLinear& embedding,
                            char* patches, char* own, float* x) {
  const int64_t step_count = steps<Float32>(shape.patch_pixels()), stride = shape.stride();
  const int64_t size = 3 * shape.image_size * shape.image_size, count = shape.patches();
  const int64_t tokens = shape.tokens();
  float* line = reinterpret_cast<float*>(own);
  member.share(images, [&](int64_t image) {
    float* to = x + image * tokens * stride;
    for (int64_t i = 0; i < tokens * stride; i += kLanes) store(to + i, load(embedding.bias + i));
    for (int64_t patch = 0; patch < count; ++patch) {
      if (byte_values != nullptr)
        gather_patch(shape, static_cast<const uint8_t*>(pixels) + image * size, byte_values, patch,
                     line);
      else
        gather_patch(shape, static_cast<const float*>(pixels) + image * size, byte_values, patch,
                     line);
      for (int64_t i = shape.patch_pixels(); i < step_count * kLanes; ++i) line[i] = 0;
      for (int64_t c = 0; c < step_count * kLanes; c += kLanes)
        Float32::put(place<Float32>(patches, step_count, image * count + patch, c), 0,
                     load(line + c));
    }
  });
  // In slices: a sum over all pixels of a large patch, one by one, would lose digits.
  for (int64_t first = 0; first < step_count; first += kPatchSlice) {
    const int64_t left = step_count - first, wide = left < kPatchSlice ? left : kPatchSlice;
    Operand rows = tiled<Float32>(patches, step_count);
    Operand columns = tiled<Float32>(embedding.weight, step_count);
    rows.data += first * rows.step, columns.data += first * columns.step;
    product<Float32>(member, rows, images * count, columns, tiles(shape.dim), wide, nullptr,
                     [&](int64_t row, int64_t column, int64_t width, const auto& value) {
                       const int64_t token = row / count * tokens + shape.prefix + row % count;
                       float* to = x + token * stride + column;
                       for (int64_t c = 0; c < width; c += kLanes)
                         store(to + c, load(to + c) + value(c));
                     });
  }
}

}  // namespace fiqa_fast::FIQA_FAST_ISA
