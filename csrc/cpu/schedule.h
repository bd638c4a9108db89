// SPDX-License-Identifier: Apache-2.0
// How the phases of an operator are spread over torch's threads. Work items are fixed by the shape
// of one image, so the choices made here change when an item is computed, never what it computes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <initializer_list>
#include <memory>
#include <new>

namespace fiqa_fast {

// The arguments of one thread: those of all, and scratch memory of its own where kernels ask for
// it with `thread_scratch` and `thread_scratch_floats()`.
template <class Args>
class ThreadArgs {
 public:
  explicit ThreadArgs(const Args& args) : args_(args) {
    if constexpr (requires { args_.thread_scratch; }) {
      scratch_.reset(new (kCacheLine) float[args_.thread_scratch_floats()]);
      args_.thread_scratch = scratch_.get();
    }
  }
  const Args& operator*() const { return args_; }

 private:
  static constexpr std::align_val_t kCacheLine{64};
  struct Free {
    void operator()(float* memory) const { operator delete[](memory, kCacheLine); }
  };
  Args args_;
  std::unique_ptr<float[], Free> scratch_;
};

template <class Args>
struct Phase {
  void (*kernel)(const Args&, int64_t begin, int64_t end);
  int64_t items_per_image;
};

// Every phase needs the one before of the same image. With images enough for all threads, each
// thread takes images whole: the second reading of an image then finds it in the cache (196 tokens
// of q and k of 512 float32 channels are 0.8 MB), and there are no barriers between phases. With
// few images, threads share the chunks of each.
template <class Args>
void run_phases(const Args& args, int64_t images, std::initializer_list<Phase<Args>> phases) {
  using torch::stable::parallel_for;
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1 || images >= 2 * threads) {
    parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      const ThreadArgs<Args> own(args);
      for (int64_t image = begin; image < end; ++image)
        for (const Phase<Args>& phase : phases)
          phase.kernel(*own, image * phase.items_per_image, (image + 1) * phase.items_per_image);
    });
    return;
  }
  for (const Phase<Args>& phase : phases)
    parallel_for(0, images * phase.items_per_image, 1, [&](int64_t begin, int64_t end) {
      const ThreadArgs<Args> own(args);
      phase.kernel(*own, begin, end);
    });
}

}  // namespace fiqa_fast
