// SPDX-License-Identifier: Apache-2.0
// The CPU engine at every level and in every number format: against float64, and that neither other
// images nor other threads change a bit of a result.
#include <atomic>
#include <string>
#include <thread>

#include "check.h"
#include "engine/kernels.h"
#include "engine/network.h"
#include "vision_transformer.h"

namespace {

using namespace fiqa_fast;
using namespace fiqa_fast::test;

struct Format {
  const char* name;
  EngineFormat EngineKernels::* kernels;
  double tolerance;  // of the largest value of the stream
};

// What the blocks begin at has float32's precision, or nearly.
constexpr double kEmbeddingTolerance = 2e-5;

constexpr Format kFormats[] = {
    {"float32", &EngineKernels::float32, 2e-6},
    {"high", &EngineKernels::high, 6e-5},
    {"bfloat16", &EngineKernels::bfloat16, 2e-2},
    {"int8", &EngineKernels::int8, 5e-2},
};

struct Case {
  const char* name;
  EngineShape shape;  // image, patch, prefix, dim, heads, hidden, ReLU6
  int64_t depth;
  bool qkv_bias;
};

constexpr Case kCases[] = {
    {"heads of 8, pixels left over", {20, 3, 0, 24, 3, 60, true}, 1, true},       // 36 tokens
    {"heads of 11, an odd width", {15, 3, 0, 33, 3, 66, false}, 2, true},         // 25
    {"heads of 64, a prefix token", {24, 3, 1, 128, 2, 600, true}, 1, false},     // 65
    {"patches in slices, and the MLP", {112, 14, 0, 16, 1, 600, true}, 2, true},  // 64
    {"heads of 128", {12, 3, 1, 128, 1, 48, false}, 1, true},                     // 17
    {"heads of one, many channels", {8, 2, 0, 66, 66, 36, false}, 2, false},      // 16
    {"one token of many pixels", {16, 16, 0, 48, 3, 100, true}, 2, true},
    {"many tokens", {34, 2, 0, 20, 1, 24, false}, 1, true},  // 289
    {"a wide MLP", {9, 3, 3, 24, 2, 1100, true}, 1, false},  // 12
    {"one channel", {4, 2, 0, 1, 1, 1, false}, 1, true},     // 4
};

float byte_value(int byte) { return (static_cast<float>(byte) / 255 - 0.5f) / 0.5f; }

// Some images as bytes, and the same as floats.
struct Images {
  int64_t size;  // elements of one
  std::vector<uint8_t> bytes;
  Floats floats;

  Images(const EngineShape& shape, int64_t count, std::mt19937& random)
      : size(3 * shape.image_size * shape.image_size) {
    for (int64_t i = 0; i < count * size; ++i) {
      bytes.push_back(static_cast<uint8_t>(random() >> 24));
      floats.push_back(byte_value(bytes.back()));
    }
  }
};

// The residual stream of some images, rows of shape.stride() floats; in memory that is exactly as
// large as a pass needs, NaN wherever it forgets to write.
Floats stream_memory(const EngineShape& shape, int64_t images) {
  return Floats(static_cast<size_t>((images * shape.tokens() + 15) / 16 * 16 * shape.stride()),
                NAN);
}

struct Part {
  int64_t first, images;
};

// The streams of images [first, first + images) after `blocks` blocks, computed by some threads
// that begin together; those that return see all of it. `expected`: that the work is cut for.
Floats stream(Network& network, const Images& all, Part part, int64_t blocks, int threads = 1,
              bool as_bytes = true, int expected = 0) {
  const EngineShape& shape = network.shape();
  Floats x = stream_memory(shape, part.images);
  Pass pass(network, 0, blocks, part.images, x.data(),
            as_bytes ? static_cast<const void*>(&all.bytes[part.first * all.size])
                     : &all.floats[part.first * all.size],
            as_bytes, expected > 0 ? expected : threads);
  const size_t rows = static_cast<size_t>(part.images * shape.tokens() * shape.stride());
  std::vector<Floats> seen(static_cast<size_t>(threads));
  std::atomic<int> waiting = threads;
  const auto work = [&](int thread) {
    --waiting;
    while (waiting > 0) std::this_thread::yield();
    pass.work();
    seen[thread].assign(x.begin(), x.begin() + static_cast<int64_t>(rows));
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  for (const Floats& one : seen)
    expect(std::memcmp(one.data(), seen[0].data(), rows * sizeof(float)) == 0,
           "a thread returned too early", 1, 0);
  return seen[0];
}

// Whether the streams of `part` of the images are, bit for bit, those among the streams of all.
void expect_same(const EngineShape& shape, const Floats& got, Part part, const Floats& all,
                 const char* what) {
  const size_t image = static_cast<size_t>(shape.tokens() * shape.stride());
  for (size_t i = 0; i < image * part.images; ++i) {
    const float wanted = all[image * part.first + i];
    expect(bits_of(got[i]) == bits_of(wanted), what, got[i], wanted);
  }
}

// After none, one, ... and all blocks; the padding behind a token's channels is zero.
void test_against_float64(const Transformer& model, const std::vector<std::vector<Doubles>>& wanted,
                          const Images& images, Network& network, double tolerance,
                          bool as_bytes = true) {
  const EngineShape& shape = model.shape();
  const int64_t count = static_cast<int64_t>(wanted.size());
  for (int64_t blocks = 0; blocks <= model.depth(); ++blocks) {
    const Floats got = stream(network, images, {0, count}, blocks, 1, as_bytes);
    double largest = 0, error = 0;
    bool zero = true;
    for (int64_t row = 0; row < count * shape.tokens(); ++row) {
      const double* want = &wanted[row / shape.tokens()][blocks][row % shape.tokens() * shape.dim];
      for (int64_t d = 0; d < shape.stride(); ++d) {
        const float value = got[row * shape.stride() + d];
        if (d >= shape.dim) {
          zero = zero && value == 0;
          continue;
        }
        largest = std::fmax(largest, std::fabs(want[d]));
        // Not fmax, which takes a NaN for nothing.
        const double off = std::fabs(value - want[d]);
        if (!(off <= error)) error = off;
      }
    }
    const double allowed =
        (blocks == 0 ? std::fmin(tolerance, kEmbeddingTolerance) : tolerance) * largest;
    expect(error <= allowed, "error against float64", error, allowed);
    expect(zero, "padding that is not zero", 1, 0);
  }
}

void test_groups_and_threads(const Transformer& model, const EngineFormat& format,
                             std::mt19937& random) {
  const EngineShape& shape = model.shape();
  const Images images(shape, 3, random);
  const auto large = model.packed(format, 3), small = model.packed(format, 2);
  const Part all = {0, 3};
  const Floats alone = stream(*large, images, all, model.depth());
  const auto expect_group = [&](Network& network, Part part, int threads, bool as_bytes,
                                const char* what, int expected = 0) {
    const Floats got = stream(network, images, part, model.depth(), threads, as_bytes, expected);
    expect_same(shape, got, part, alone, what);
  };
  expect_group(*large, all, 2, true, "two threads");
  expect_group(*small, {1, 2}, 3, true, "two of the images, by three threads");
  expect_group(*large, {2, 1}, 1, false, "one of the images, as floats");
  expect_group(*large, all, 1, true, "one thread where three were expected", 3);
  expect_group(*large, {1, 2}, 2, true, "two threads where many were expected", 100);
  // Block by block.
  Floats x = stream_memory(shape, all.images);
  for (int64_t block = 0; block < model.depth(); ++block)
    Pass(*large, block, block + 1, all.images, x.data(), block == 0 ? images.bytes.data() : nullptr,
         true)
        .work();
  expect_same(shape, x, all, alone, "block by block");
}

// Pixels that were never bytes.
void test_floats_in_between(const Transformer& model, Network& network, double tolerance,
                            std::mt19937& random) {
  Images images(model.shape(), 3, random);
  std::uniform_real_distribution<float> pixel(-1, 1);
  for (float& value : images.floats) value = pixel(random);
  std::vector<std::vector<Doubles>> wanted;
  for (int64_t i = 0; i < 3; ++i) wanted.push_back(model.streams(&images.floats[i * images.size]));
  test_against_float64(model, wanted, images, network, tolerance, false);
}

void test_nan_stays_alone(const Transformer& model, const Images& images, Network& network) {
  const EngineShape& shape = model.shape();
  const Part all = {0, 3};
  const Floats wanted = stream(network, images, all, model.depth());
  Images poisoned = images;
  for (int64_t i = images.size; i < 2 * images.size; ++i) poisoned.floats[i] = NAN;
  const Floats got = stream(network, poisoned, all, model.depth(), 1, false);
  const size_t image = static_cast<size_t>(shape.tokens() * shape.stride());
  for (const int64_t other : {0, 2})
    expect_same(shape, {got.begin() + other * image, got.end()}, {other, 1}, wanted,
                "beside an image that is not a number");
  for (int64_t token = 0; token < shape.tokens(); ++token)
    for (int64_t d = 0; d < shape.dim; ++d)
      expect(std::isnan(got[image + token * shape.stride() + d]), "a NaN that got lost", 0, 0);
  // Nothing of it is left in the memory that the next pass takes.
  expect_same(shape, stream(network, images, all, model.depth()), all, wanted,
              "after an image that is not a number");
}

// A model, some images, and what is wanted of them.
struct Subject {
  Transformer model;
  Images images;
  std::vector<std::vector<Doubles>> wanted;  // of the first images

  Subject(const EngineShape& shape, int64_t depth, bool qkv_bias, int64_t count,
          std::mt19937& random)
      : model(shape, depth, qkv_bias, 1), images(shape, 3, random) {
    for (int64_t i = 0; i < count; ++i)
      wanted.push_back(model.streams(&images.floats[i * images.size]));
  }
};

// Passes of one image have the tokens' number of rows: they and three images cut rows differently.
void test_cuts(const Subject& subject, const EngineFormat& format, double tolerance) {
  const EngineShape& shape = subject.model.shape();
  const auto network = subject.model.packed(format, 3);
  test_against_float64(subject.model, subject.wanted, subject.images, *network, tolerance);
  const Floats all = stream(*network, subject.images, {0, 3}, 1);
  for (int64_t i = 0; i < 3; ++i)
    expect_same(shape, stream(*network, subject.images, {i, 1}, 1), {i, 1}, all, "one of three");
}

}  // namespace

int main() {
  std::vector<Subject> cases, cuts;
  std::mt19937 random(0);
  for (const Case& one : kCases) cases.emplace_back(one.shape, one.depth, one.qkv_bias, 3, random);
  // Every way to cut the last of two tiles of rows, in products and in attention, whose columns are
  // two tiles and one.
  for (int64_t tokens = 1; tokens <= 33; ++tokens)
    cuts.emplace_back(EngineShape{4, 4, tokens - 1, 40, 1, 40, tokens % 2 == 0}, 1, true, 1,
                      random);
  return run_levels("engine", Isa::kAmx, [&](Isa level) {
    const EngineKernels& kernels = engine_kernels(level);
    for (const Format& format : kFormats) {
      const EngineFormat& one = kernels.*format.kernels;
      if (&one != &kernels.float32 && one.work == kernels.float32.work) continue;
      const auto told = [&](const char* name, auto test) {
        const int before = failures;
        test();
        if (failures > before)
          printf("... at %s in %s: %s\n", kIsaNames[static_cast<int32_t>(level)], format.name,
                 name);
      };
      for (size_t i = 0; i < cases.size(); ++i)
        told(kCases[i].name, [&] {
          const auto& [model, images, wanted] = cases[i];
          const auto network = model.packed(one, 3);
          test_against_float64(model, wanted, images, *network, format.tolerance);
          test_floats_in_between(model, *network, format.tolerance, random);
          test_groups_and_threads(model, one, random);
          test_nan_stays_alone(model, images, *network);
        });
      for (const Subject& subject : cuts)
        told((std::to_string(subject.model.shape().tokens()) + " tokens").c_str(),
             [&] { test_cuts(subject, one, format.tolerance); });
    }
  });
}
