// SPDX-License-Identifier: Apache-2.0
#include "engine/kernels.h"

namespace fiqa_fast {

namespace baseline {
extern const EngineKernels engine_table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const EngineKernels engine_table;
}
namespace avx512 {
extern const EngineKernels engine_table;
}
namespace avx512_vnni {
extern const EngineKernels engine_table;
}
namespace avx512_bf16 {
extern const EngineKernels engine_table;
}
namespace amx {
extern const EngineKernels engine_table;
}
#endif

const EngineKernels& engine_kernels([[maybe_unused]] Isa level) {
#if defined(__x86_64__)
  switch (level) {
    case Isa::kAmx:
      return amx::engine_table;
    case Isa::kAvx512Bf16:
      return avx512_bf16::engine_table;
    case Isa::kAvx512Vnni:
      return avx512_vnni::engine_table;
    case Isa::kAvx512:
      return avx512::engine_table;
    case Isa::kAvx2:
      return avx2::engine_table;
    case Isa::kBaseline:
      break;
  }
#endif
  return baseline::engine_table;
}

}  // namespace fiqa_fast
