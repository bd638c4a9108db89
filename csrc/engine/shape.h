// SPDX-License-Identifier: Apache-2.0
// What a network is made of, as its kernels see it.
#pragma once

#include <stdint.h>

namespace fiqa_fast {

struct EngineShape {
  int64_t image_size;  // pixels per side
  int64_t patch_size;
  int64_t prefix;  // tokens before the patches
  int64_t dim;
  int64_t heads;
  int64_t hidden;  // of the MLP
  bool relu6;      // the activation; otherwise GELU

  int64_t grid() const { return image_size / patch_size; }
  int64_t patches() const { return grid() * grid(); }
  int64_t tokens() const { return prefix + patches(); }
  int64_t head_dim() const { return dim / heads; }
  int64_t patch_pixels() const { return 3 * patch_size * patch_size; }
  // Floats from one token of the residual stream to the next: whole vectors, and not a power of
  // two, because rows of a tile would share their places in the cache.
  int64_t stride() const { return (dim + 15) / 16 * 16 + 16; }
};

// A LayerNorm; weight and bias are padded with zeros to whole vectors.
struct EngineNorm {
  const float* weight;
  const float* bias;
  float eps;
};

// A linear layer; the weight is packed (see tile.h), the bias padded with zeros.
struct EngineLinear {
  const char* weight;
  const float* bias;
};

struct EngineBlock {
  float scale;  // of the logits
  EngineNorm norm1, norm2;
  EngineLinear qkv, proj, fc1, fc2;
};

}  // namespace fiqa_fast
