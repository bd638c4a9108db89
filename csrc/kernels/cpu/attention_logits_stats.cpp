// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/attention_logits_stats.h"

#include "kernels/cpu/attention_logits.h"
#include "kernels/cpu/exp.h"
#include "kernels/cpu/vec.h"

namespace fiqa_fast::FIQA_FAST_ISA {
namespace {

using Args = AttentionLogitsStatsArgs;

bool is_nan(double value) { return value != value; }
bool is_finite(double value) { return value - value == 0; }

const float* form_logits(const Args& a, const Chunk& chunk) {
  switch (a.dtype) {
    case DType::kBFloat16:
      return form_logits_of<BFloat16>(a, chunk);
    case DType::kFloat16:
      return form_logits_of<Float16>(a, chunk);
    default:
      return form_logits_of<float>(a, chunk);
  }
}

// Adds up kSums terms of every logit over the keys, for each query: step(sums, logits, j, v) adds
// those of key j and the vector of queries v. Sums of a tile are float32, those of tiles double.
template <int kSums, class Step>
FIQA_FAST_INLINE void sum_over_keys(const float* logits, int64_t keys, int64_t vecs,
                                    double (&totals)[kSums][kQueries], const Step& step) {
  for (auto& total : totals)
    for (double& t : total) t = 0.0;
  for (int64_t tile = 0; tile < keys; tile += kTile) {
    const int64_t end = tile + kTile < keys ? tile + kTile : keys;
    visit_vecs(vecs, [&]<int kCount>(Vecs<kCount>, int64_t first) {
      Vec sums[kCount][kSums] = {};
      for (int64_t j = tile; j < end; ++j)
        for (int v = 0; v < kCount; ++v)
          step(sums[v], load(logits + j * kQueries + (first + v) * kLanes), j, first + v);
      for (int v = 0; v < kCount; ++v) {
        for (int s = 0; s < kSums; ++s) {
          float lanes[kLanes];
          store(lanes, sums[v][s]);
          for (int64_t l = 0; l < kLanes; ++l) totals[s][(first + v) * kLanes + l] += lanes[l];
        }
      }
    });
  }
}

// Each query's largest and smallest logit, but for NaN, which has no place in an order.
void extremes(const float* logits, int64_t keys, int64_t vecs, float* largest, float* smallest) {
  visit_vecs(vecs, [&]<int kCount>(Vecs<kCount>, int64_t first) {
    const float* from = logits + first * kLanes;
    Vec high[kCount], low[kCount];
    for (int v = 0; v < kCount; ++v) high[v] = low[v] = load(from + v * kLanes);
    for (int64_t j = 1; j < keys; ++j) {
      for (int v = 0; v < kCount; ++v) {
        const Vec x = load(from + j * kQueries + v * kLanes);
        high[v] = max(x, high[v]);
        low[v] = min(x, low[v]);
      }
    }
    for (int v = 0; v < kCount; ++v) {
      store(largest + (first + v) * kLanes, high[v]);
      store(smallest + (first + v) * kLanes, low[v]);
    }
  });
}

bool has_nan(const float* logits, int64_t keys, int64_t query) {
  for (int64_t j = 0; j < keys; ++j)
    if (is_nan(logits[j * kQueries + query])) return true;
  return false;
}

void moments_of_rows(const Args& a, const Chunk& chunk, const float* logits, const float* largest,
                     const float* smallest) {
  const double keys = static_cast<double>(a.k.tokens);
  double sums[1][kQueries], moments[2][kQueries];
  sum_over_keys(logits, a.k.tokens, chunk.vecs, sums,
                [](Vec(&sum)[1], Vec x, int64_t, int64_t) { sum[0] = sum[0] + x; });
  float centres[kQueries];
  for (int64_t i = 0; i < kQueries; ++i) centres[i] = static_cast<float>(sums[0][i] / keys);
  // The mean is rounded: what is left of it is found by the second reading.
  sum_over_keys(logits, a.k.tokens, chunk.vecs, moments,
                [&](Vec(&sum)[2], Vec x, int64_t, int64_t v) {
                  const Vec deviation = x - load(centres + v * kLanes);
                  sum[0] = sum[0] + deviation;
                  sum[1] = fma(deviation, deviation, sum[1]);
                });
  LogitsRow* rows = a.rows + (chunk.image * a.matrices() + chunk.matrix) * a.q.tokens + chunk.first;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const double rest = moments[0][i] / keys;
    const double mean = is_finite(rest) ? centres[i] + rest : sums[0][i] / keys;
    const double squares = moments[1][i] - keys * rest * rest;
    rows[i] = {mean, squares < 0 ? 0.0 : squares, largest[i], smallest[i]};
    // The sum of infinities of both signs is NaN, too.
    if (is_nan(rows[i].mean) && has_nan(logits, a.k.tokens, i))
      rows[i].max = rows[i].min = sums[0][i];
  }
}

void sum_columns(const Args& a, const Chunk& chunk, const float* logits) {
  const int64_t matrix = chunk.image * a.matrices() + chunk.matrix;
  float* columns = a.columns + (matrix * a.chunks() + chunk.index) * a.padded_keys();
  const int64_t in_last = chunk.count - (chunk.vecs - 1) * kLanes;
  for (int64_t j = 0; j < a.k.tokens; ++j) {
    const float* from = logits + j * kQueries;
    Vec total = load(from + (chunk.vecs - 1) * kLanes);
    if (in_last < kLanes) total = fill_from(total, in_last, 0.0f);
    for (int64_t v = 0; v < chunk.vecs - 1; ++v) total = total + load(from + v * kLanes);
    columns[j] = sum(total);
  }
  for (int64_t j = a.k.tokens; j < a.padded_keys(); ++j) columns[j] = 0.0f;
}

// With m the largest of x: logsumexp = m + log S, entropy = log S - sum p (x - m) / S, where
// p = exp(x - m) and S = sum p; both terms of the entropy are positive.
void softmax_of_rows(const Args& a, const Chunk& chunk, const float* logits, const float* largest) {
  double sums[2][kQueries];
  sum_over_keys(logits, a.k.tokens, chunk.vecs, sums, [&](Vec(&sum)[2], Vec x, int64_t, int64_t v) {
    const Vec below = x - load(largest + v * kLanes);
    const Vec p = exp_of_negative(below);
    sum[0] = sum[0] + p;
    sum[1] = fma(p, below, sum[1]);
  });
  const int64_t row = (chunk.image * a.matrices() + chunk.matrix) * a.q.tokens + chunk.first;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const double log_sum = __builtin_log(sums[0][i]);
    double logsumexp = largest[i] + log_sum;
    if (!is_finite(largest[i]) && !has_nan(logits, a.k.tokens, i)) logsumexp = largest[i];
    a.out.logsumexp[row + i] = static_cast<float>(logsumexp);
    a.out.entropy[row + i] = static_cast<float>(log_sum - sums[1][i] / sums[0][i]);
  }
}

// The variance about the means of rows and columns, which a.columns holds by now, less the mean.
void centered_squares_of_rows(const Args& a, const Chunk& chunk, const float* logits) {
  const int64_t matrix = chunk.image * a.matrices() + chunk.matrix;
  LogitsRow* rows = a.rows + matrix * a.q.tokens + chunk.first;
  const float* columns = a.columns + matrix * a.chunks() * a.padded_keys();
  float centres[kQueries] = {};
  for (int64_t i = 0; i < chunk.count; ++i) centres[i] = static_cast<float>(rows[i].mean);
  double squares[1][kQueries];
  sum_over_keys(logits, a.k.tokens, chunk.vecs, squares,
                [&](Vec(&sum)[1], Vec x, int64_t j, int64_t v) {
                  const Vec deviation = x - load(centres + v * kLanes) - broadcast(columns[j]);
                  sum[0] = fma(deviation, deviation, sum[0]);
                });
  for (int64_t i = 0; i < chunk.count; ++i) rows[i].squares = squares[0][i];
}

// The median's digits, from the top: of 11, 11 and 10 bits.
template <int kDigit>
constexpr int kShift = kDigit == 0   ? 21
                       : kDigit == 1 ? 10
                                     : 0;
template <int kDigit>
constexpr uint32_t kDigitMask = kDigit == 2 ? 1023 : 2047;

// Unsigned numbers in the order of the logits; NaN is the largest whatever its sign.
FIQA_FAST_INLINE Words order_of(Floats x) {
  const Words bits = (Words)x;
  const Words negative = (Words)(bits >> 31 == 1u);
  return (bits ^ (negative | 0x80000000u)) | (Words)(x != x);
}

float logit_of(uint32_t order) {
  const uint32_t bits = order & 0x80000000u ? order ^ 0x80000000u : ~order;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Counts the kDigit-th digits of the logits that begin with the digits found so far.
template <int kDigit>
void count_digits(const Args& a, const Chunk& chunk, const float* logits) {
  // Two of each, by turns, because the same digit often comes again at once.
  uint32_t counts[2][kLogitDigits] = {};
  const uint32_t found = kDigit ? static_cast<uint32_t>(a.search[chunk.image].digits) : 0u;
  for (int64_t v = 0; v < chunk.vecs; ++v) {
    const int64_t left = chunk.count - v * kLanes;
    const uint32_t queries = left < kLanes ? (1u << left) - 1u : 0xffffu;
    for (int64_t j = 0; j < a.k.tokens; ++j) {
      const Vec x = load(logits + j * kQueries + v * kLanes);
      uint32_t digits[kLanes], counted = kDigit ? 0u : 0xffffu;
      for (int p = 0; p < kParts; ++p) {
        const Words order = order_of(x.part[p]);
        const Words digit = (order >> kShift<kDigit>)&kDigitMask<kDigit>;
        __builtin_memcpy(digits + p * kWidth, &digit, sizeof digit);
        if constexpr (kDigit > 0)
          counted |= bits_of((Words)((order >> kShift<kDigit - 1>) == found)) << p * kWidth;
      }
      counted &= queries;
      if (counted == 0xffffu) {
        for (int64_t l = 0; l < kLanes; ++l) ++counts[l % 2][digits[l]];
      } else {
        for (; counted; counted &= counted - 1u) ++counts[0][digits[__builtin_ctz(counted)]];
      }
    }
  }
  // Sums of integers: the order of the threads does not matter.
  int64_t* totals = a.counts + chunk.image * kLogitDigits;
  for (int64_t d = 0; d < kLogitDigits; ++d) {
    const int64_t count = static_cast<int64_t>(counts[0][d]) + counts[1][d];
    if (count > 0) __atomic_fetch_add(totals + d, count, __ATOMIC_RELAXED);
  }
}

template <int kDigit>
void find_digit(const Args& a, int64_t image) {
  int64_t* counts = a.counts + image * kLogitDigits;
  MedianSearch& search = a.search[image];
  int64_t digit = 0;
  if (kDigit == 0) {
    search = {0, (a.matrices() * a.q.tokens * a.k.tokens - 1) / 2};
    // Where there is a NaN, the median is the first of them.
    if (counts[kLogitDigits - 1] > 0) {
      digit = kLogitDigits - 1;
      search.rank = 0;
    }
  }
  for (; search.rank >= counts[digit]; ++digit) search.rank -= counts[digit];
  search.digits = (search.digits << (kDigit == 2 ? 10 : 11)) | digit;
  for (int64_t d = 0; d < kLogitDigits; ++d) counts[d] = 0;
  if (kDigit == 2) a.out.median[image] = logit_of(static_cast<uint32_t>(search.digits));
}

void first_pass(const Args& a, int64_t begin, int64_t end) {
  const bool moments = logits::asks_moments(a.stats), softmax = logits::asks_softmax(a.stats);
  for (int64_t item = begin; item < end; ++item) {
    const Chunk chunk = find_chunk(a, item);
    const float* logits = form_logits(a, chunk);
    float largest[kQueries], smallest[kQueries];
    if (moments || softmax) extremes(logits, a.k.tokens, chunk.vecs, largest, smallest);
    if (moments) {
      moments_of_rows(a, chunk, logits, largest, smallest);
      sum_columns(a, chunk, logits);
    }
    if (softmax) softmax_of_rows(a, chunk, logits, largest);
    if (logits::asks_median(a.stats)) count_digits<0>(a, chunk, logits);
  }
}

double sum_of_squares(const LogitsRow* rows, int64_t count) {
  double total = 0.0;
  for (int64_t r = 0; r < count; ++r) total += rows[r].squares;
  return total;
}

// The values of all logits of `count` rows of `keys` each, of a head or of an image.
void write_values(const LogitsRow* rows, int64_t count, int64_t keys, float* values) {
  const double size = static_cast<double>(count) * static_cast<double>(keys);
  double mean = 0.0, max = rows[0].max, min = rows[0].min;
  for (int64_t r = 0; r < count; ++r) {
    mean += rows[r].mean;
    if (rows[r].max > max || is_nan(rows[r].max)) max = rows[r].max;
    if (rows[r].min < min || is_nan(rows[r].min)) min = rows[r].min;
  }
  mean /= static_cast<double>(count);
  double between = 0.0;
  for (int64_t r = 0; r < count; ++r) between += (rows[r].mean - mean) * (rows[r].mean - mean);
  const double within = sum_of_squares(rows, count);
  const double squares = within + static_cast<double>(keys) * between;
  values[logits::kMean] = static_cast<float>(mean);
  values[logits::kMax] = static_cast<float>(max);
  values[logits::kMin] = static_cast<float>(min);
  values[logits::kVariance] = static_cast<float>(squares / size);
  values[logits::kUnbiasedVariance] = static_cast<float>(squares / (size - 1.0));
  values[logits::kRowVariance] = static_cast<float>(within / size);
  values[logits::kCenteredVariance] = __builtin_nanf("");
}

void write_query_map(const Args& a, const LogitsRow* rows, float* map) {
  for (int64_t i = 0; i < a.q.tokens; ++i) {
    double total = 0.0;
    for (int64_t m = 0; m < a.matrices(); ++m) total += rows[m * a.q.tokens + i].mean;
    map[i] = static_cast<float>(total / static_cast<double>(a.matrices()));
  }
}

// Also leaves, in the place of the first chunk's sums, each head's means of columns less its mean.
void write_key_map(const Args& a, int64_t image, float* map) {
  const int64_t padded = a.padded_keys();
  float* columns = a.columns + image * a.items() * padded;
  const Vec queries = broadcast(static_cast<float>(a.q.tokens));
  const Vec rows = broadcast(static_cast<float>(a.q.tokens * a.matrices()));
  for (int64_t j = 0; j < padded; j += kLanes) {
    Vec total = {};
    for (int64_t m = 0; m < a.matrices(); ++m) {
      float* chunks = columns + m * a.chunks() * padded + j;
      Vec of_head = load(chunks);
      for (int64_t c = 1; c < a.chunks(); ++c) of_head = of_head + load(chunks + c * padded);
      total = total + of_head;
      const float* values = a.out.head_values + (image * a.matrices() + m) * logits::kValues;
      store(chunks, of_head / queries - broadcast(values[logits::kMean]));
    }
    const int64_t left = a.k.tokens - j;
    store_some(map + j, total / rows, left < kLanes ? left : kLanes);
  }
}

void after_first(const Args& a, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    if (logits::asks_moments(a.stats)) {
      const LogitsRow* rows = a.rows + image * a.matrices() * a.q.tokens;
      for (int64_t m = 0; m < a.matrices(); ++m)
        write_values(rows + m * a.q.tokens, a.q.tokens, a.k.tokens,
                     a.out.head_values + (image * a.matrices() + m) * logits::kValues);
      write_values(rows, a.matrices() * a.q.tokens, a.k.tokens,
                   a.out.image_values + image * logits::kValues);
      write_query_map(a, rows, a.out.query_map + image * a.q.tokens);
      write_key_map(a, image, a.out.key_map + image * a.k.tokens);
    }
    if (logits::asks_median(a.stats)) find_digit<0>(a, image);
  }
}

void second_pass(const Args& a, int64_t begin, int64_t end) {
  const bool centered = logits::asks_centered_variance(a.stats);
  const bool median = logits::asks_median(a.stats);
  if (!centered && !median) return;
  for (int64_t item = begin; item < end; ++item) {
    const Chunk chunk = find_chunk(a, item);
    const float* logits = form_logits(a, chunk);
    if (centered) centered_squares_of_rows(a, chunk, logits);
    if (median) count_digits<1>(a, chunk, logits);
  }
}

void after_second(const Args& a, int64_t begin, int64_t end) {
  const int64_t heads = a.matrices(), queries = a.q.tokens;
  const double size = static_cast<double>(queries) * static_cast<double>(a.k.tokens);
  for (int64_t image = begin; image < end; ++image) {
    if (logits::asks_centered_variance(a.stats)) {
      double total = 0.0;
      for (int64_t m = image * heads; m < (image + 1) * heads; ++m) {
        const double variance = sum_of_squares(a.rows + m * queries, queries) / size;
        a.out.head_values[m * logits::kValues + logits::kCenteredVariance] =
            static_cast<float>(variance);
        total += variance;
      }
      a.out.image_values[image * logits::kValues + logits::kCenteredVariance] =
          static_cast<float>(total / static_cast<double>(heads));
    }
    if (logits::asks_median(a.stats)) find_digit<1>(a, image);
  }
}

void third_pass(const Args& a, int64_t begin, int64_t end) {
  if (!logits::asks_median(a.stats)) return;
  for (int64_t item = begin; item < end; ++item) {
    const Chunk chunk = find_chunk(a, item);
    count_digits<2>(a, chunk, form_logits(a, chunk));
  }
}

void after_third(const Args& a, int64_t begin, int64_t end) {
  if (!logits::asks_median(a.stats)) return;
  for (int64_t image = begin; image < end; ++image) find_digit<2>(a, image);
}

}  // namespace

const AttentionLogitsStatsKernels attention_logits_stats_kernels_table = {
    first_pass, after_first, second_pass, after_second, third_pass, after_third};

}  // namespace fiqa_fast::FIQA_FAST_ISA
