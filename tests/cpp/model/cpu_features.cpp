// SPDX-License-Identifier: Apache-2.0
// The processor that the tests of modelled levels run on: this one, with all that it lacks.
#include "kernels/cpu/cpu_features.h"

#include "model/tile_traps.h"

namespace fiqa_fast {

const CpuFeatures& processor_features();  // kernels/cpu/cpu_features.cpp, renamed

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = [] {
    CpuFeatures f = processor_features();
    // What the models are compiled for.
    if (!f.avx2 || !f.fma || !f.f16c) return f;
    if (!f.amx_tile || !f.amx_bf16 || !f.amx_int8) model::execute_tile_instructions();
    f.avx_vnni = f.avx512 = f.avx512_bf16 = f.avx512_vnni = true;
    f.amx_tile = f.amx_bf16 = f.amx_int8 = true;
    return f;
  }();
  return features;
}

}  // namespace fiqa_fast
