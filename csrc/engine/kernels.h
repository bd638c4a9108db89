// SPDX-License-Identifier: Apache-2.0
// The engine's kernels of one instruction set level, and the table of those of all levels.
#pragma once

#include <stdint.h>

#include "engine/shape.h"
#include "engine/team.h"
#include "kernels/cpu/isa.h"

namespace fiqa_fast {

// What a thread does its part of: blocks [first, last) over the images' tokens, with the patch
// embedding before them where pixels are given.
struct EnginePass {
  const EngineShape* shape;
  const EngineBlock* blocks;
  int64_t first, last;
  int64_t images, max_images;
  float* x;                // the residual stream [images * tokens][stride], whole tiles of rows
  const void* pixels;      // [images][3][S][S], or null
  bool bytes;              // whether the pixels are bytes, of -1 to 1; otherwise floats
  EngineLinear embedding;  // its bias is what the stream begins at: [tokens][stride]
  char* shared;            // of this pass
  int64_t threads;         // that may come; results do not depend on it
  Team* team;
};

// How a right operand is packed.
struct EnginePacking {
  int64_t (*bytes)(int64_t columns, int64_t channels);
  // `has_zero`: the rows of the product have both signs. `sums`, of each column as it is packed.
  // `slice`: channels at a time, 0 for all.
  void (*pack)(const float* weight, int64_t columns, int64_t channels, char* to, bool has_zero,
               float* sums, int64_t slice);
};

// A number format: how weights are packed for it, how much memory it needs, and the work itself.
struct EngineFormat {
  int64_t depth;               // channels are padded to a multiple of it
  int64_t head_depth;          // and those of a head to one of this
  int64_t slice;               // of hidden channels, how many are computed at a time
  EnginePacking block, patch;  // the blocks' linear layers, the patch embedding
  // What is added to the hidden channels, and has to be taken back behind the second layer.
  float (*hidden_shift)(const EngineShape& shape);
  int64_t (*shared_bytes)(const EngineShape& shape, int64_t images);
  int64_t (*own_bytes)(const EngineShape& shape, int64_t images);
  void (*work)(const EnginePass& pass, char* own);
};

struct EngineKernels {
  EngineFormat float32;
  // The next are float32 where the processor is no faster in them: by split-precision products, in
  // bfloat16, and in bytes.
  EngineFormat high, bfloat16, int8;
};

const EngineKernels& engine_kernels(Isa level);

}  // namespace fiqa_fast
