// SPDX-License-Identifier: Apache-2.0
// The intrinsics beyond AVX2 that the CPU kernels use, on memory. Compiled twice: for a processor
// that has them, and with their models.
#pragma once

#include <stdint.h>

namespace fiqa_fast {

struct Intrinsics {
  void (*fmadd)(const float* a, const float* b, const float* c, float* out);  // [16] each
  void (*max)(uint32_t mask, const float* a, const float* b, float* out);
  void (*min)(uint32_t mask, const float* a, const float* b, float* out);
  float (*reduce_add)(const float* from);
  float (*reduce_max)(const float* from);
  void (*rest)(const float* from, float* out);                // _mm512_reduce_ps, without places
  void (*scale)(const float* a, const float* b, float* out);  // _mm512_scalef_ps
  void (*from_half)(uint32_t mask, const uint16_t* from, float* out);
  void (*to_half)(uint32_t mask, const float* from, uint16_t* out);
  uint32_t (*signs)(const float* from);
  void (*set)(int32_t value, int32_t* out);

  void (*to_bfloat16)(const float* from, uint16_t* out);
  void (*add_bfloat16)(const float* sum, const uint32_t* a, const uint32_t* b, float* out);

  void (*add_bytes)(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out);
  // Eight words: of AVX512_VNNI, and of AVX-VNNI.
  void (*add_bytes_256)(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out);
  void (*add_bytes_avx)(const int32_t* sum, const uint32_t* a, const uint32_t* b, int32_t* out);
};

namespace native {
extern const Intrinsics intrinsics;
}
namespace modelled {
extern const Intrinsics intrinsics;
}

}  // namespace fiqa_fast
