// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpu_features.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fiqa_fast {
namespace {

#if defined(__x86_64__)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  // Leaves beyond the processor's last one leave the registers at zero: nothing supported.
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(unsigned value, int position) { return (value >> position) & 1u; }

bool made_by_intel() {
  const Registers r = cpuid(0, 0);
  return r.b == signature_INTEL_ebx && r.d == signature_INTEL_edx && r.c == signature_INTEL_ecx;
}

// Which register states the operating system saves (XCR0). Without it an instruction may be there
// and still fault, or lose its registers at a context switch.
uint64_t saved_states() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives a process the tiles' registers only when it asks for them.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  // Bit positions: Intel SDM volume 2, CPUID, and volume 1, 13.3 (XCR0).
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTile = 0x60000;
  CpuFeatures f;
  const Registers leaf1 = cpuid(1, 0);
  const bool osxsave = bit(leaf1.c, 27);
  if (!osxsave) return f;
  const uint64_t states = saved_states();
  const bool ymm = (states & kYmm) == kYmm;
  const bool zmm = (states & kZmm) == kZmm;
  const bool tile = (states & kTile) == kTile;
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = cpuid(7, 1);
  f.avx2 = ymm && bit(leaf7.b, 5);
  f.fma = ymm && bit(leaf1.c, 12);
  f.f16c = ymm && bit(leaf1.c, 29);
  f.avx_vnni = ymm && bit(leaf7_1.a, 4);
  f.avx512 = zmm && bit(leaf7.b, 16) && bit(leaf7.b, 17) && bit(leaf7.b, 30) && bit(leaf7.b, 31);
  f.avx512_bf16 = f.avx512 && bit(leaf7_1.a, 5);
  f.avx512_vnni = f.avx512 && bit(leaf7.c, 11);
  f.avx512_fp16 = f.avx512 && bit(leaf7.d, 23);
  f.slow_avx512_bf16 = f.avx512_bf16 && f.avx512_fp16 && made_by_intel();
  f.amx_tile = tile && bit(leaf7.d, 24) && tiles_permitted();
  f.amx_bf16 = f.amx_tile && bit(leaf7.d, 22);
  f.amx_int8 = f.amx_tile && bit(leaf7.d, 25);
  return f;
}
#else
CpuFeatures detect() { return {}; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace fiqa_fast
