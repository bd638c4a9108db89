// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa.h"

#include <atomic>

#include "kernels/cpu/cpu_features.h"

namespace fiqa_fast {
namespace {

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_isa(cpu_features())};
  return isa;
}

}  // namespace

bool isa_supported(Isa isa, const CpuFeatures& cpu) {
  const bool avx2 = cpu.avx2 && cpu.fma && cpu.f16c;
  const bool vnni = avx2 && cpu.avx512 && cpu.avx512_vnni;
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx2 && cpu.avx512;
    case Isa::kAvx512Vnni:
      return vnni;
    case Isa::kAvx512Bf16:
      return vnni && cpu.avx512_bf16;
    case Isa::kAmx:
      return vnni && cpu.avx512_bf16 && cpu.amx_bf16 && cpu.amx_int8;
  }
  return false;
}

bool isa_supported(Isa isa) { return isa_supported(isa, cpu_features()); }

Isa best_isa(const CpuFeatures& cpu) {
  for (int32_t level = kIsaCount - 1; level > 0; --level) {
    const Isa isa = static_cast<Isa>(level);
    // All that this level adds is bfloat16's products.
    if (isa == Isa::kAvx512Bf16 && cpu.slow_avx512_bf16) continue;
    if (isa_supported(isa, cpu)) return isa;
  }
  return Isa::kBaseline;
}

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }

void set_isa(Isa isa) { chosen().store(isa, std::memory_order_relaxed); }

}  // namespace fiqa_fast
