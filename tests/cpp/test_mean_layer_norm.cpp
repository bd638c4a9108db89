// SPDX-License-Identifier: Apache-2.0
// mean_layer_norm's CPU kernels against float64, for odd shapes and layouts.
#include "kernels/cpu/mean_layer_norm.h"

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Layout {
  int64_t image, token, channel;
};

struct Results {
  std::vector<float> mean, map;  // [B, D], [B, N]
};

Results run(const Elements& x, const Elements* residual, const int64_t (&shape)[3],
            const Layout& layout, const std::vector<float>& weight, const float* u,
            bool item_by_item) {
  const auto [images, tokens, channels] = shape;
  MeanLayerNormArgs a = {};
  a.x = x.data();
  a.dtype = x.dtype;
  a.images = images;
  a.tokens = tokens;
  a.channels = channels;
  a.image_stride = layout.image;
  a.token_stride = layout.token;
  a.channel_stride = layout.channel;
  a.weight = {weight.data(), DType::kFloat32, 1};
  a.eps = 1e-5f;
  // NaN wherever a kernel forgets to write.
  const int64_t padded = MeanLayerNormArgs::padded(channels);
  std::vector<float> partial(images * a.chunks() * padded, NAN);
  std::vector<float> sums(images * a.chunks() * kMeanLayerNormTokensAdded * padded, NAN);
  std::vector<float> folded(images * padded, NAN), folded_sum(images, NAN), constant(images, NAN);
  Results out = {std::vector<float>(images * channels, NAN),
                 std::vector<float>(u ? images * tokens : 0, NAN)};
  a.partial = partial.data();
  a.mean = out.mean.data();
  if (residual) {
    a.residual = residual->data();
    a.residual_dtype = residual->dtype;
    a.residual_image_stride = layout.image;
    a.residual_token_stride = layout.token;
    a.residual_channel_stride = layout.channel;
    a.sums = sums.data();
  }
  if (u) {
    a.u = u;
    a.u_image_stride = channels;
    a.u_channel_stride = 1;
    a.folded = folded.data();
    a.folded_sum = folded_sum.data();
    a.constant = constant.data();
    a.map = out.map.data();
  }
  const MeanLayerNormKernels& kernels = mean_layer_norm_kernels();
  const int64_t items = images * a.chunks();
  kernels.fold(a, 0, images);
  if (item_by_item)
    for (int64_t i = items; i-- > 0;) kernels.partial_sums(a, i, i + 1);
  else
    kernels.partial_sums(a, 0, items);
  kernels.combine(a, 0, images);
  return out;
}

void expect_same(const std::vector<float>& got, const std::vector<float>& wanted,
                 const char* what) {
  for (size_t i = 0; i < wanted.size(); ++i) expect(got[i] == wanted[i], what, got[i], wanted[i]);
}

Elements transposed_of(const Elements& x, const int64_t (&shape)[3]) {
  const auto [images, tokens, channels] = shape;
  Elements y = x;
  for (int64_t b = 0; b < images; ++b)
    for (int64_t n = 0; n < tokens; ++n)
      for (int64_t c = 0; c < channels; ++c)
        y.set((b * channels + c) * tokens + n, x.values[(b * tokens + n) * channels + c]);
  return y;
}

void test_shape(DType dtype, const int64_t (&shape)[3], float offset, bool has_residual,
                std::mt19937& random) {
  const auto [images, tokens, channels] = shape;
  const Layout contiguous = {tokens * channels, channels, 1};
  const Layout transposed = {tokens * channels, 1, tokens};
  const Elements x = random_elements(has_residual ? DType::kFloat32 : dtype,
                                     images * tokens * channels, offset, random);
  const Elements residual = random_elements(dtype, images * tokens * channels, 0.0f, random);
  std::vector<float> weight(channels), u(images * channels);
  for (float& w : weight) w = std::uniform_real_distribution<float>(0.5f, 1.5f)(random);
  for (float& d : u) d = std::uniform_real_distribution<float>(0.0f, 1.0f)(random);

  // What is normalised: the sum, in float32.
  Elements z = x;
  if (has_residual)
    for (size_t i = 0; i < z.values.size(); ++i) z.set(i, x.values[i] + residual.values[i]);
  const Elements* more = has_residual ? &residual : nullptr;
  const Results got = run(x, more, shape, contiguous, weight, u.data(), false);
  for (int64_t b = 0; b < images; ++b) {
    std::vector<double> expected(channels, 0.0);
    for (int64_t n = 0; n < tokens; ++n) {
      const float* row = &z.values[(b * tokens + n) * channels];
      double mean = 0.0, variance = 0.0, dot = 0.0, terms = 0.0;
      for (int64_t c = 0; c < channels; ++c) mean += row[c];
      mean /= channels;
      for (int64_t c = 0; c < channels; ++c) variance += (row[c] - mean) * (row[c] - mean);
      const double deviation = std::sqrt(variance / channels + static_cast<double>(1e-5f));
      for (int64_t c = 0; c < channels; ++c) {
        const double value = (row[c] - mean) / deviation;
        const double product = value * weight[c] * u[b * channels + c];
        expected[c] += value / tokens;
        dot += product;
        terms += std::fabs(product);
      }
      const double error = std::fabs(got.map[b * tokens + n] - dot);
      expect(error <= 1e-6 * (1.0 + terms), "map against float64", error, 1e-6 * (1.0 + terms));
    }
    for (int64_t c = 0; c < channels; ++c) {
      // Normalised values are of the order of one and at most sqrt(D).
      const double error = std::fabs(got.mean[b * channels + c] - expected[c] * weight[c]);
      const double allowed = 1e-6 * (1.0 + std::fabs(expected[c]));
      expect(error <= allowed, "mean against float64", error, allowed);
    }
  }
  const auto same = [&](const Results& other, const char* what) {
    expect_same(other.mean, got.mean, what);
    if (!other.map.empty()) expect_same(other.map, got.map, what);
  };
  same(run(x, more, shape, contiguous, weight, u.data(), true), "work items in another order");
  same(run(z, nullptr, shape, contiguous, weight, u.data(), false), "the sum in memory");
  same(run(x, more, shape, contiguous, weight, nullptr, false), "without a map");
  const Elements residual_transposed = transposed_of(residual, shape);
  same(run(transposed_of(x, shape), has_residual ? &residual_transposed : nullptr, shape,
           transposed, weight, u.data(), false),
       "another layout");
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("mean_layer_norm", [&](DType dtype) {
    for (const int64_t tokens : {1, 3, 31, 32, 33, 70})
      for (const int64_t channels : {1, 7, 15, 16, 17, 48, 130})
        for (const float offset : {0.0f, 100.0f})
          for (const bool has_residual : {false, true})
            test_shape(dtype, {2, tokens, channels}, offset, has_residual, random);
  });
}
