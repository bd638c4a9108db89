// SPDX-License-Identifier: Apache-2.0
// A vision transformer with random weights, and its residual stream in float64: what the engine's
// tests compare with. Written for reading.
#pragma once

#include <stdint.h>

#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "engine/network.h"

namespace fiqa_fast::test {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

class Transformer {
 public:
  Transformer(const EngineShape& shape, int64_t depth, bool qkv_bias, uint32_t seed)
      : shape_(shape), random_(seed) {
    const int64_t dim = shape.dim, hidden = shape.hidden;
    embedding_ = values(dim * shape.patch_pixels(), shape.patch_pixels());
    positions_ = values(shape.tokens() * dim, 4);
    for (int64_t i = 0; i < depth; ++i)
      blocks_.push_back({{scales(dim), values(dim, 4)},
                         {scales(dim), values(dim, 4)},
                         {values(3 * dim * dim, dim), qkv_bias ? values(3 * dim, 4) : Floats()},
                         {values(dim * dim, dim), values(dim, 4)},
                         {values(hidden * dim, dim), values(hidden, 4)},
                         {values(dim * hidden, hidden), values(dim, 4)}});
  }

  const EngineShape& shape() const { return shape_; }
  int64_t depth() const { return static_cast<int64_t>(blocks_.size()); }

  // Packed for passes of up to so many images.
  std::unique_ptr<Network> packed(const EngineFormat& format, int64_t images) const {
    auto network = std::make_unique<Network>(shape_, format, depth(), images, embedding_.data(),
                                             positions_.data());
    const auto norm = [](const Layer& of) {
      return NormTensors{of.weight.data(), of.bias.data(), kEps};
    };
    const auto layer = [](const Layer& of) {
      return LinearTensors{of.weight.data(), of.bias.empty() ? nullptr : of.bias.data()};
    };
    for (int64_t i = 0; i < depth(); ++i) {
      const Block& b = blocks_[static_cast<size_t>(i)];
      network->set_block(i, {scale(), norm(b.norm1), norm(b.norm2), layer(b.qkv), layer(b.proj),
                             layer(b.fc1), layer(b.fc2)});
    }
    return network;
  }

  // The residual stream [tokens, dim] of an image [3, S, S] after none, one, ... and all blocks.
  std::vector<Doubles> streams(const float* pixels) const {
    std::vector<Doubles> out = {embed(pixels)};
    for (const Block& b : blocks_) {
      Doubles x = out.back();
      add(x, linear(attention(linear(layer_norm(x, b.norm1), b.qkv)), b.proj));
      Doubles inner = linear(layer_norm(x, b.norm2), b.fc1);
      for (double& value : inner) value = activated(value);
      add(x, linear(inner, b.fc2));
      out.push_back(x);
    }
    return out;
  }

 private:
  struct Layer {
    Floats weight, bias;  // of a linear layer [out, in] and [out], or none; of a norm [dim] each
  };
  struct Block {
    Layer norm1, norm2, qkv, proj, fc1, fc2;
  };
  static constexpr float kEps = 1e-5f;

  Floats values(int64_t count, int64_t fan_in) {
    std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(fan_in)));
    Floats out(static_cast<size_t>(count));
    for (float& value : out) value = normal(random_);
    return out;
  }

  Floats scales(int64_t count) {
    Floats out = values(count, 4);
    for (float& value : out) value = std::fabs(value) + 0.5f;
    return out;
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.head_dim())); }

  static void add(Doubles& x, const Doubles& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  double activated(double x) const {
    if (shape_.relu6) return std::fmin(std::fmax(x, 0), 6);
    return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
  }

  Doubles embed(const float* pixels) const {
    const int64_t size = shape_.image_size, side = shape_.patch_size, dim = shape_.dim;
    Doubles x(positions_.begin(), positions_.end());
    for (int64_t patch = 0; patch < shape_.patches(); ++patch)
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t i = 0; i < shape_.patch_pixels(); ++i) {
          const int64_t channel = i / (side * side);
          const int64_t row = patch / shape_.grid() * side + i / side % side;
          const int64_t column = patch % shape_.grid() * side + i % side;
          x[(shape_.prefix + patch) * dim + d] +=
              static_cast<double>(embedding_[d * shape_.patch_pixels() + i]) *
              pixels[(channel * size + row) * size + column];
        }
    return x;
  }

  Doubles layer_norm(const Doubles& x, const Layer& norm) const {
    const int64_t dim = shape_.dim;
    Doubles out(x.size());
    for (int64_t row = 0; row < shape_.tokens(); ++row) {
      const double* from = &x[row * dim];
      double mean = 0, variance = 0;
      for (int64_t d = 0; d < dim; ++d) mean += from[d] / dim;
      for (int64_t d = 0; d < dim; ++d) variance += (from[d] - mean) * (from[d] - mean) / dim;
      for (int64_t d = 0; d < dim; ++d)
        out[row * dim + d] =
            (from[d] - mean) / std::sqrt(variance + kEps) * norm.weight[d] + norm.bias[d];
    }
    return out;
  }

  // x [tokens, in] to [tokens, out].
  Doubles linear(const Doubles& x, const Layer& of) const {
    const int64_t rows = shape_.tokens(), in = static_cast<int64_t>(x.size()) / rows;
    const int64_t columns = static_cast<int64_t>(of.weight.size()) / in;
    Doubles out(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        double sum = of.bias.empty() ? 0 : of.bias[c];
        for (int64_t i = 0; i < in; ++i) sum += x[r * in + i] * of.weight[c * in + i];
        out[r * columns + c] = sum;
      }
    return out;
  }

  // Queries, keys and values [tokens, 3, heads, head_dim] to [tokens, dim].
  Doubles attention(const Doubles& qkv) const {
    const int64_t dim = shape_.dim, wide = shape_.head_dim(), tokens = shape_.tokens();
    Doubles out(static_cast<size_t>(tokens * dim)), weights(static_cast<size_t>(tokens));
    for (int64_t head = 0; head < shape_.heads; ++head)
      for (int64_t i = 0; i < tokens; ++i) {
        const double* q = &qkv[i * 3 * dim + head * wide];
        double top = -INFINITY, all = 0;
        for (int64_t j = 0; j < tokens; ++j) {
          const double* k = &qkv[j * 3 * dim + dim + head * wide];
          double logit = 0;
          for (int64_t d = 0; d < wide; ++d) logit += q[d] * k[d];
          weights[j] = logit * scale();
          top = std::fmax(top, weights[j]);
        }
        for (double& weight : weights) all += weight = std::exp(weight - top);
        for (int64_t j = 0; j < tokens; ++j) {
          const double* v = &qkv[j * 3 * dim + 2 * dim + head * wide];
          for (int64_t d = 0; d < wide; ++d)
            out[i * dim + head * wide + d] += weights[j] / all * v[d];
        }
      }
    return out;
  }

  const EngineShape shape_;
  std::mt19937 random_;
  Floats embedding_, positions_;
  std::vector<Block> blocks_;
};

}  // namespace fiqa_fast::test
