// SPDX-License-Identifier: Apache-2.0
// Every CPU kernel file is compiled once per instruction set level, each time into a namespace
// named after the level (the macro FIQA_FAST_ISA); pick() chooses among them at run time.
#pragma once

#include <stdint.h>

namespace fiqa_fast {

enum class Isa : int32_t { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

constexpr const char* kIsaNames[] = {"baseline",    "avx2",        "avx512",
                                     "avx512_vnni", "avx512_bf16", "amx"};
// On other processors than x86-64 the baseline is all there is (on AArch64 it has NEON).
#if defined(__x86_64__)
constexpr int32_t kIsaCount = 6;
#else
constexpr int32_t kIsaCount = 1;
#endif

struct CpuFeatures;
bool isa_supported(Isa isa, const CpuFeatures& cpu);
Isa best_isa(const CpuFeatures& cpu);  // the fastest that is supported

bool isa_supported(Isa isa);  // by this processor and its operating system
Isa active_isa();             // the best level for this processor, unless set_isa chose another
void set_isa(Isa isa);        // the caller checks isa_supported first

template <class Kernels>
const Kernels& pick([[maybe_unused]] const Kernels& baseline, [[maybe_unused]] const Kernels& avx2,
                    [[maybe_unused]] const Kernels& avx512) {
  switch (active_isa()) {
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:  // from here on they are the engine's: the operators have float32 only
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return baseline;
  }
}

}  // namespace fiqa_fast

// Declares `NAME()`, which returns the table of kernels of type TYPE of the active level. Each
// level defines `const TYPE NAME_table` in its own namespace.
#if defined(__x86_64__)
#define FIQA_FAST_DECLARE_KERNELS(TYPE, NAME)                                      \
  namespace baseline {                                                             \
  extern const TYPE NAME##_table;                                                  \
  }                                                                                \
  namespace avx2 {                                                                 \
  extern const TYPE NAME##_table;                                                  \
  }                                                                                \
  namespace avx512 {                                                               \
  extern const TYPE NAME##_table;                                                  \
  }                                                                                \
  inline const TYPE& NAME() {                                                      \
    return pick(baseline::NAME##_table, avx2::NAME##_table, avx512::NAME##_table); \
  }
#else
#define FIQA_FAST_DECLARE_KERNELS(TYPE, NAME) \
  namespace baseline {                        \
  extern const TYPE NAME##_table;             \
  }                                           \
  inline const TYPE& NAME() { return baseline::NAME##_table; }
#endif
