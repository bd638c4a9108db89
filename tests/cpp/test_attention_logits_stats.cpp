// SPDX-License-Identifier: Apache-2.0
// attention_logits_stats's CPU kernels against all logits in float64, for odd shapes and layouts.
#include "kernels/cpu/attention_logits_stats.h"

#include <algorithm>

#include "check.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Shape {
  int64_t images, heads, q_tokens, k_tokens, head_dim;
  bool average;

  int64_t matrices() const { return average ? 1 : heads; }
};

struct Outputs {
  std::vector<float> head_values, image_values, key_map, query_map, logsumexp, entropy, median;
};

// NaN wherever a kernel forgets to write.
Outputs empty_outputs(const Shape& s) {
  const auto empty = [](int64_t count) { return std::vector<float>(count, NAN); };
  return {empty(s.images * s.matrices() * logits::kValues),
          empty(s.images * logits::kValues),
          empty(s.images * s.k_tokens),
          empty(s.images * s.q_tokens),
          empty(s.images * s.matrices() * s.q_tokens),
          empty(s.images * s.matrices() * s.q_tokens),
          empty(s.images)};
}

// Heads before tokens, contiguous; or channels before tokens.
AttentionTokens tokens_of(const Elements& e, const Shape& s, int64_t tokens, bool channels_first) {
  const int64_t head = tokens * s.head_dim;
  return {e.data(),
          tokens,
          s.heads * head,
          head,
          channels_first ? 1 : s.head_dim,
          channels_first ? tokens : 1};
}

Elements channels_first(const Elements& from, const Shape& s, int64_t tokens) {
  Elements to = from;
  for (int64_t m = 0; m < s.images * s.heads; ++m)
    for (int64_t n = 0; n < tokens; ++n)
      for (int64_t c = 0; c < s.head_dim; ++c)
        to.set((m * s.head_dim + c) * tokens + n, from.values[(m * tokens + n) * s.head_dim + c]);
  return to;
}

Outputs run(const AttentionTokens& q, const AttentionTokens& k, const Shape& s, DType dtype,
            double scale) {
  Outputs out = empty_outputs(s);
  AttentionLogitsStatsArgs a = {};
  a.dtype = dtype;
  a.images = s.images;
  a.heads = s.heads;
  a.head_dim = s.head_dim;
  a.scale = static_cast<float>(s.average ? scale / static_cast<double>(s.heads) : scale);
  a.stats = logits::kEveryBit;
  a.average_heads = s.average;
  a.q = q;
  a.k = k;
  a.out = {out.head_values.data(), out.image_values.data(), out.key_map.data(),
           out.query_map.data(),   out.logsumexp.data(),    out.entropy.data(),
           out.median.data()};
  std::vector<LogitsRow> rows(s.images * s.matrices() * s.q_tokens, {NAN, NAN, NAN, NAN});
  std::vector<float> columns(s.images * a.items() * a.padded_keys(), NAN);
  std::vector<int64_t> counts(s.images * kLogitDigits);
  std::vector<MedianSearch> search(s.images);
  std::vector<float> scratch(a.thread_scratch_floats(), NAN);
  a.rows = rows.data();
  a.columns = columns.data();
  a.counts = counts.data();
  a.search = search.data();
  a.thread_scratch = scratch.data();
  const AttentionLogitsStatsKernels& kernels = attention_logits_stats_kernels();
  const int64_t items = s.images * a.items();
  kernels.first_pass(a, 0, items);
  kernels.after_first(a, 0, s.images);
  kernels.second_pass(a, 0, items);
  kernels.after_second(a, 0, s.images);
  kernels.third_pass(a, 0, items);
  kernels.after_third(a, 0, s.images);
  return out;
}

using Logits = std::vector<double>;

Logits logits_of(const Elements& q, const Elements& k, const Shape& s, double scale) {
  Logits logits(s.images * s.matrices() * s.q_tokens * s.k_tokens, 0.0);
  for (int64_t m = 0; m < s.images * s.heads; ++m)
    for (int64_t i = 0; i < s.q_tokens; ++i)
      for (int64_t j = 0; j < s.k_tokens; ++j) {
        double logit = 0.0;
        for (int64_t c = 0; c < s.head_dim; ++c)
          logit += static_cast<double>(q.values[(m * s.q_tokens + i) * s.head_dim + c]) *
                   k.values[(m * s.k_tokens + j) * s.head_dim + c];
        const int64_t matrix = s.average ? m / s.heads : m;
        logits[(matrix * s.q_tokens + i) * s.k_tokens + j] +=
            scale * logit / static_cast<double>(s.average ? s.heads : 1);
      }
  return logits;
}

double mean(const double* values, int64_t count) {
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total / static_cast<double>(count);
}

double variance(const double* values, int64_t count) {
  const double centre = mean(values, count);
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) total += (values[i] - centre) * (values[i] - centre);
  return total / static_cast<double>(count);
}

double row_variance(const double* logits, int64_t rows, int64_t keys) {
  double total = 0.0;
  for (int64_t r = 0; r < rows; ++r) total += variance(logits + r * keys, keys);
  return total / static_cast<double>(rows);
}

double centered_variance(const double* logits, int64_t queries, int64_t keys) {
  const double all = mean(logits, queries * keys);
  std::vector<double> columns(keys, 0.0);
  for (int64_t i = 0; i < queries; ++i)
    for (int64_t j = 0; j < keys; ++j)
      columns[j] += logits[i * keys + j] / static_cast<double>(queries);
  double total = 0.0;
  for (int64_t i = 0; i < queries; ++i) {
    const double row = mean(logits + i * keys, keys);
    for (int64_t j = 0; j < keys; ++j) {
      const double centered = logits[i * keys + j] - row - columns[j] + all;
      total += centered * centered;
    }
  }
  return total / static_cast<double>(queries * keys);
}

void compare(const char* what, double got, double expected, double allowed) {
  const double error = std::fabs(got - expected);
  expect(error <= allowed || (std::isnan(got) && std::isnan(expected)), what, error, allowed);
}

void compare_values(const char* what, const float* got, const double* logits, int64_t matrices,
                    const Shape& s, double allowed) {
  const int64_t rows = matrices * s.q_tokens, count = rows * s.k_tokens;
  const double spread = variance(logits, count), n = static_cast<double>(count);
  double centered = 0.0;
  for (int64_t m = 0; m < matrices; ++m)
    centered += centered_variance(logits + m * s.q_tokens * s.k_tokens, s.q_tokens, s.k_tokens) /
                static_cast<double>(matrices);
  compare(what, got[logits::kMean], mean(logits, count), allowed);
  compare(what, got[logits::kMax], *std::max_element(logits, logits + count), allowed);
  compare(what, got[logits::kMin], *std::min_element(logits, logits + count), allowed);
  compare(what, got[logits::kVariance], spread, allowed);
  if (count > 1) compare(what, got[logits::kUnbiasedVariance], spread * n / (n - 1.0), allowed);
  if (count == 1) expect(std::isnan(got[logits::kUnbiasedVariance]), what, 0.0, 0.0);
  compare(what, got[logits::kRowVariance], row_variance(logits, rows, s.k_tokens), allowed);
  compare(what, got[logits::kCenteredVariance], centered, allowed);
}

void compare_image(const Outputs& got, const Logits& all, const Shape& s, int64_t image,
                   double allowed) {
  const int64_t matrices = s.matrices(), size = s.q_tokens * s.k_tokens;
  const double* logits = &all[image * matrices * size];
  std::vector<double> keys(s.k_tokens, 0.0), queries(s.q_tokens, 0.0);
  for (int64_t m = 0; m < matrices; ++m) {
    compare_values("head_values", &got.head_values[(image * matrices + m) * logits::kValues],
                   logits + m * size, 1, s, allowed);
    for (int64_t i = 0; i < s.q_tokens; ++i) {
      const double* row = logits + m * size + i * s.k_tokens;
      double sum = 0.0, entropy = 0.0;
      for (int64_t j = 0; j < s.k_tokens; ++j) {
        sum += std::exp(row[j]);
        keys[j] += row[j] / static_cast<double>(matrices * s.q_tokens);
        queries[i] += row[j] / static_cast<double>(matrices * s.k_tokens);
      }
      const double log_sum = std::log(sum);
      for (int64_t j = 0; j < s.k_tokens; ++j)
        entropy -= std::exp(row[j]) / sum * (row[j] - log_sum);
      const int64_t at = (image * matrices + m) * s.q_tokens + i;
      compare("logsumexp", got.logsumexp[at], log_sum, allowed);
      compare("entropy", got.entropy[at], entropy, allowed);
    }
  }
  compare_values("image_values", &got.image_values[image * logits::kValues], logits, matrices, s,
                 allowed);
  for (int64_t j = 0; j < s.k_tokens; ++j)
    compare("key_map", got.key_map[image * s.k_tokens + j], keys[j], allowed);
  for (int64_t i = 0; i < s.q_tokens; ++i)
    compare("query_map", got.query_map[image * s.q_tokens + i], queries[i], allowed);
  Logits sorted(logits, logits + matrices * size);
  std::sort(sorted.begin(), sorted.end());
  compare("median", got.median[image], sorted[(sorted.size() - 1) / 2], allowed);
}

void compare_bits(const std::vector<float>& got, const std::vector<float>& expected) {
  for (size_t i = 0; i < got.size(); ++i) compare("another layout", got[i], expected[i], 0.0);
}

void test_shape(DType dtype, const Shape& s, std::mt19937& random) {
  const int64_t size = s.images * s.heads * s.head_dim;
  const Elements q = random_elements(dtype, size * s.q_tokens, 0.25f, random);
  const Elements k = random_elements(dtype, size * s.k_tokens, 0, random);
  const double scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
  const Outputs got =
      run(tokens_of(q, s, s.q_tokens, false), tokens_of(k, s, s.k_tokens, false), s, dtype, scale);
  const Logits expected = logits_of(q, k, s, scale);
  // Logits are of the order of one, and d products of that order are added; variances of few may be
  // those of the largest, squared.
  const double allowed = 4e-6 * (1.0 + std::sqrt(static_cast<double>(s.head_dim)));
  for (int64_t image = 0; image < s.images; ++image)
    compare_image(got, expected, s, image, allowed);

  const Elements q_other = channels_first(q, s, s.q_tokens);
  const Elements k_other = channels_first(k, s, s.k_tokens);
  const Outputs other = run(tokens_of(q_other, s, s.q_tokens, true),
                            tokens_of(k_other, s, s.k_tokens, true), s, dtype, scale);
  compare_bits(other.head_values, got.head_values);
  compare_bits(other.image_values, got.image_values);
  compare_bits(other.key_map, got.key_map);
  compare_bits(other.query_map, got.query_map);
  compare_bits(other.logsumexp, got.logsumexp);
  compare_bits(other.entropy, got.entropy);
  compare_bits(other.median, got.median);
}

}  // namespace

int main() {
  std::mt19937 random(0);
  return run_everywhere("attention_logits_stats", [&](DType dtype) {
    for (const int64_t q_tokens : {1, 5, 16, 67, 130})
      for (const int64_t k_tokens : {1, 31, 66})
        for (const int64_t head_dim : {1, 15, 64, 72, 128})
          for (const bool average : {false, true})
            test_shape(dtype, {2, 3, q_tokens, k_tokens, head_dim, average}, random);
  });
}
