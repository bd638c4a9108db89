// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include <atomic>

#include "kernels/cpu/cpu_features.h"

namespace fiqa_fast {
namespace {

Isa best_isa() {
  for (int32_t level = kIsaCount - 1; level > 0; --level) {
    if (isa_supported(static_cast<Isa>(level))) return static_cast<Isa>(level);
  }
  return Isa::kBaseline;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_isa()};
  return isa;
}

}  // namespace

bool isa_supported(Isa isa) {
  const CpuFeatures& cpu = cpu_features();
  const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && cpu.avx512;
    case Isa::kAvx512Bf16:
      return avx2 && cpu.avx512 && cpu.avx512_bf16 && cpu.avx512_vnni;
    case Isa::kAmx:
      return avx2 && cpu.avx512 && cpu.avx512_bf16 && cpu.avx512_vnni && cpu.amx_bf16 &&
             cpu.amx_int8;
  }
  return false;
}

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(Isa isa) { chosen().store(isa, std::memory_order_relaxed); }

}  // namespace fiqa_fast
