// SPDX-License-Identifier: Apache-2.0
#include "engine/network.h"

#include <algorithm>
#include <cstring>

namespace fiqa_fast {
namespace {

int64_t rounded_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

}  // namespace

Network::Network(const EngineShape& shape, const EngineFormat& format, int64_t depth,
                 int64_t images, const float* embedding, const float* positions)
    : shape_(shape),
      format_(format),
      images_(images),
      shared_(format.shared_bytes(shape, images)),
      own_(format.own_bytes(shape, images)),
      blocks_(static_cast<size_t>(depth)) {
  std::vector<float> begin(static_cast<size_t>(shape.tokens() * shape.stride()));
  for (int64_t token = 0; token < shape.tokens(); ++token)
    std::copy_n(positions + token * shape.dim, shape.dim, begin.data() + token * shape.stride());
  const int64_t count = static_cast<int64_t>(begin.size());
  std::vector<float> weight(static_cast<size_t>(shape.dim * shape.patch_pixels()));
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = embedding[i] / 255;  // see embed.h
  embedding_ = {packed(format.patch, weight.data(), shape.dim, shape.patch_pixels()),
                padded(begin.data(), count, count)};
}

bool Network::has_block(int64_t number) const {
  return blocks_[static_cast<size_t>(number)].fc2.weight != nullptr;
}

void Network::set_block(int64_t number, const BlockTensors& tensors) {
  const int64_t width = rounded_up(shape_.hidden, format_.depth);
  // Columns beyond the hidden channels are there, and give zeros: they are channels of fc2.
  const float* fc1 = tensors.fc1.weight;
  std::vector<float> wide;
  if (width > shape_.hidden) {
    wide.resize(static_cast<size_t>(width * shape_.dim));
    std::copy_n(fc1, shape_.hidden * shape_.dim, wide.data());
    fc1 = wide.data();
  }
  std::vector<float> sums(static_cast<size_t>(shape_.dim)), fc2_bias(sums.size());
  const char* fc2 = packed(format_.block, tensors.fc2.weight, shape_.dim, shape_.hidden, false,
                           &sums, format_.slice);
  const float shift = format_.hidden_shift(shape_);
  for (size_t i = 0; i < sums.size(); ++i)
    fc2_bias[i] = (tensors.fc2.bias == nullptr ? 0 : tensors.fc2.bias[i]) - shift * sums[i];
  blocks_[static_cast<size_t>(number)] = {
      tensors.scale,
      norm(tensors.norm1),
      norm(tensors.norm2),
      qkv(tensors.qkv),
      proj(tensors.proj),
      {packed(format_.block, fc1, width, shape_.dim),
       padded(tensors.fc1.bias, shape_.hidden, width)},
      {fc2, padded(fc2_bias.data(), shape_.dim, shape_.dim)},
  };
}

EngineNorm Network::norm(const NormTensors& tensors) {
  return {padded(tensors.weight, shape_.dim, shape_.dim, 1),
          padded(tensors.bias, shape_.dim, shape_.dim), tensors.eps};
}

// A head's queries, keys and values side by side, each padded to whole steps.
EngineLinear Network::qkv(const LinearTensors& tensors) {
  const int64_t dim = shape_.dim, head_dim = shape_.head_dim();
  const int64_t width = rounded_up(head_dim, format_.head_depth);
  std::vector<float> weight(static_cast<size_t>(shape_.heads * 3 * width * dim));
  std::vector<float> bias(static_cast<size_t>(shape_.heads * 3 * width));
  for (int64_t head = 0; head < shape_.heads; ++head)
    for (int64_t third = 0; third < 3; ++third) {
      const int64_t from = third * dim + head * head_dim, to = (head * 3 + third) * width;
      std::copy_n(tensors.weight + from * dim, head_dim * dim, weight.data() + to * dim);
      if (tensors.bias != nullptr) std::copy_n(tensors.bias + from, head_dim, bias.data() + to);
    }
  const int64_t columns = static_cast<int64_t>(bias.size());
  return {packed(format_.block, weight.data(), columns, dim),
          padded(bias.data(), columns, columns)};
}

// Each head's channels padded to whole vectors.
EngineLinear Network::proj(const LinearTensors& tensors) {
  const int64_t dim = shape_.dim, head_dim = shape_.head_dim(), width = rounded_up(head_dim, 16);
  if (width == head_dim)
    return {packed(format_.block, tensors.weight, dim, dim), padded(tensors.bias, dim, dim)};
  std::vector<float> weight(static_cast<size_t>(dim * shape_.heads * width));
  for (int64_t row = 0; row < dim; ++row)
    for (int64_t head = 0; head < shape_.heads; ++head)
      std::copy_n(tensors.weight + row * dim + head * head_dim, head_dim,
                  weight.data() + (row * shape_.heads + head) * width);
  return {packed(format_.block, weight.data(), dim, shape_.heads * width),
          padded(tensors.bias, dim, dim)};
}

const char* Network::keep(int64_t bytes, const void* from) {
  weight_bytes_ += bytes;
  char* to = weights_.take(bytes);
  if (from != nullptr) std::memcpy(to, from, static_cast<size_t>(bytes));
  return to;
}

// `count` values, or so many times `otherwise`, and zeros up to a multiple of sixteen of `width`.
const float* Network::padded(const float* values, int64_t count, int64_t width, float otherwise) {
  std::vector<float> all(static_cast<size_t>(rounded_up(width, 16)));
  if (values != nullptr)
    std::copy_n(values, count, all.data());
  else
    std::fill_n(all.data(), count, otherwise);
  return reinterpret_cast<const float*>(
      keep(static_cast<int64_t>(all.size() * sizeof(float)), all.data()));
}

const char* Network::packed(const EnginePacking& packing, const float* weight, int64_t columns,
                            int64_t channels, bool has_zero, std::vector<float>* sums,
                            int64_t slice) {
  const char* to = keep(packing.bytes(columns, channels), nullptr);
  packing.pack(weight, columns, channels, const_cast<char*>(to), has_zero,
               sums == nullptr ? nullptr : sums->data(), slice);
  return to;
}

Pass::Pass(Network& network, int64_t first, int64_t last, int64_t images, float* x,
           const void* pixels, bool bytes, int64_t threads)
    : network_(network),
      shared_(network.shared_.take()),
      pass_{&network.shape_,
            network.blocks_.data(),
            first,
            last,
            images,
            network.images_,
            x,
            pixels,
            bytes,
            network.embedding_,
            shared_->data(),
            threads,
            &team_} {}

Pass::~Pass() { network_.shared_.put_back(std::move(shared_)); }

void Pass::work() {
  std::unique_ptr<Memory> own = network_.own_.take();
  network_.format_.work(pass_, own->data());
  network_.own_.put_back(std::move(own));
}

}  // namespace fiqa_fast
