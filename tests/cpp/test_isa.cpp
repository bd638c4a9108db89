// SPDX-License-Identifier: Apache-2.0
// Which level is chosen for which processor.
#include "kernels/cpu/isa.h"

#include "check.h"
#include "kernels/cpu/cpu_features.h"

using namespace fiqa_fast;
using namespace fiqa_fast::test;

namespace {

void expect_best(const CpuFeatures& cpu, Isa wanted, const char* what) {
  expect(best_isa(cpu) == wanted, what, static_cast<double>(best_isa(cpu)),
         static_cast<double>(wanted));
}

void test_best() {
  CpuFeatures cpu;
  expect_best(cpu, Isa::kBaseline, "a processor without anything");
  if (kIsaCount == 1) return;
  cpu.avx2 = true;
  expect_best(cpu, Isa::kBaseline, "AVX2 without FMA");
  cpu.fma = cpu.f16c = true;
  expect_best(cpu, Isa::kAvx2, "Haswell");
  cpu.avx512 = true;
  expect_best(cpu, Isa::kAvx512, "Skylake");
  cpu.avx512_vnni = true;
  expect_best(cpu, Isa::kAvx512Vnni, "Ice Lake");
  cpu.avx512_bf16 = true;
  expect_best(cpu, Isa::kAvx512Bf16, "Cooper Lake, Zen 4");
  cpu.avx512_fp16 = cpu.slow_avx512_bf16 = true;
  expect_best(cpu, Isa::kAvx512Vnni, "Sapphire Rapids without permission for its tiles");
  expect(isa_supported(Isa::kAvx512Bf16, cpu), "it can be forced", 0, 1);
  cpu.amx_tile = cpu.amx_bf16 = true;
  expect_best(cpu, Isa::kAvx512Vnni, "AMX without integers");
  cpu.amx_int8 = true;
  expect_best(cpu, Isa::kAmx, "Sapphire Rapids");
}

}  // namespace

int main() {
  test_best();
  printf("isa: %d failures\n", failures);
  return failures ? 1 : 0;
}
