// SPDX-License-Identifier: Apache-2.0
// A network laid out for the engine: its weights packed, and the memory of its passes, which is
// taken once and used again.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/kernels.h"
#include "engine/memory.h"

namespace fiqa_fast {

// Tensors as they come, float32 and contiguous. A linear layer's weight is [out, in]; its bias, and
// a norm's weight and bias, may be null.
struct NormTensors {
  const float* weight;
  const float* bias;
  float eps;
};
struct LinearTensors {
  const float* weight;
  const float* bias;
};
struct BlockTensors {
  float scale;  // of the logits
  NormTensors norm1, norm2;
  LinearTensors qkv, proj, fc1, fc2;
};

class Network {
 public:
  // `images`: the most that one pass may have. The stream begins at positions [tokens, dim], the
  // biases and prefix tokens included, plus the product of embedding [dim, 3 P^2] with the patches.
  Network(const EngineShape& shape, const EngineFormat& format, int64_t depth, int64_t images,
          const float* embedding, const float* positions);
  // Once for each, before the first pass that needs it; different ones from any threads.
  void set_block(int64_t number, const BlockTensors& tensors);
  bool has_block(int64_t number) const;

  const EngineShape& shape() const { return shape_; }
  int64_t max_images() const { return images_; }
  int64_t depth() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t weight_bytes() const { return weight_bytes_; }
  int64_t shared_bytes() const { return format_.shared_bytes(shape_, images_); }
  int64_t own_bytes() const { return format_.own_bytes(shape_, images_); }

 private:
  friend class Pass;
  const char* keep(int64_t bytes, const void* from);
  const float* padded(const float* values, int64_t count, int64_t width, float otherwise = 0);
  const char* packed(const EnginePacking& packing, const float* weight, int64_t columns,
                     int64_t channels, bool has_zero = true, std::vector<float>* sums = nullptr,
                     int64_t slice = 0);
  EngineNorm norm(const NormTensors& tensors);
  EngineLinear qkv(const LinearTensors& tensors);
  EngineLinear proj(const LinearTensors& tensors);

  const EngineShape shape_;
  const EngineFormat& format_;
  const int64_t images_;
  MemoryPool shared_, own_;
  Arena weights_;
  std::atomic<int64_t> weight_bytes_ = 0;
  std::vector<EngineBlock> blocks_;
  EngineLinear embedding_;
};

// Some images on their way through some blocks. Any number of threads may call work(), each as
// often as it likes; a call returns when all of the work is done.
class Pass {
 public:
  // x: [images * tokens][stride], with memory for whole tiles of sixteen rows. With pixels, as
  // bytes (which stand for -1 to 1) or as floats, the patch embedding comes first, otherwise x is
  // what it is. `threads`: how many are expected, by which the work is cut.
  Pass(Network& network, int64_t first, int64_t last, int64_t images, float* x,
       const void* pixels = nullptr, bool bytes = false, int64_t threads = 1);
  ~Pass();
  void work();

 private:
  Network& network_;
  std::unique_ptr<Memory> shared_;
  Team team_;
  EnginePass pass_;
};

}  // namespace fiqa_fast
