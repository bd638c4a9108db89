// SPDX-License-Identifier: Apache-2.0
// What this processor can do and its operating system lets it do. All false except on x86-64.
#pragma once

namespace fiqa_fast {

struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool f16c = false;
  bool avx_vnni = false;
  bool avx512 = false;  // F, BW, DQ, VL: what "AVX-512" means since Skylake
  bool avx512_bf16 = false;
  // Its products are half as many per cycle as float32's. So on Intel's processors that have
  // AVX512_FP16 (measured on one with AMX), which have AMX for them, unless that is not permitted.
  bool slow_avx512_bf16 = false;
  bool avx512_vnni = false;
  bool avx512_fp16 = false;
  bool amx_tile = false;
  bool amx_bf16 = false;
  bool amx_int8 = false;
};

const CpuFeatures& cpu_features();

}  // namespace fiqa_fast
