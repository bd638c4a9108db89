// SPDX-License-Identifier: Apache-2.0
// Groups of elements that fill 16 bytes, the widest load there is. Whether a group is read by one
// load or element by element, the same thread gets the same elements, so results do not depend on
// it. For the same reason the files are compiled with -fmad=false: only fmaf() fuses.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast::cuda {

constexpr int kWarp = 32;
// The limit of gridDim.x; gridDim.y and z end at 65535, which B or B * H may exceed.
constexpr int64_t kMaxBlocks = 2147483647;

inline int blocks_for(int64_t items) {
  return static_cast<int>(items < kMaxBlocks ? items : kMaxBlocks);
}

template <class T>
constexpr int kGroup = 16 / static_cast<int>(sizeof(T));

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
__device__ inline float to_float(Float16 value) {
  return __half2float(__ushort_as_half(value.bits));
}

// To nearest, ties to even; NaN stays NaN. It is selected, for where kernels branch on data nothing
// can be proved of them.
__device__ inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t nan = bits | 0x400000u, rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>((value != value ? nan : rounded) >> 16)};
}
__device__ inline Float16 to_float16(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}

__device__ inline void unpack(const uint32_t (&words)[4], float (&out)[4], float) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = __uint_as_float(words[i]);
}

template <int kWords, int kWidth, class T>
__device__ inline void unpack(const uint32_t (&words)[kWords], float (&out)[kWidth], T) {
  static_assert(kWidth == 2 * kWords);
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    out[2 * i] = to_float(T{static_cast<uint16_t>(words[i])});
    out[2 * i + 1] = to_float(T{static_cast<uint16_t>(words[i] >> 16)});
  }
}

// The group'th group of a row of `channels` elements, `stride` apart: kGroup of its dtype, or four
// narrow ones where they meet a group of float32. kVector says that rows start at multiples of 16
// bytes, stride is 1 and groups are whole; otherwise missing elements become `fill`.
template <bool kVector, class T, int kWidth>
__device__ inline void load_group(const T* row, int64_t group, int64_t stride, int64_t channels,
                                  float fill, float (&out)[kWidth]) {
  static_assert(kWidth == kGroup<T> || kWidth == kGroup<float>);
  const int64_t first = group * kWidth;
  if constexpr (!kVector) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      out[i] = first + i < channels ? to_float(row[(first + i) * stride]) : fill;
  } else if constexpr (kWidth == kGroup<T>) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + first);
    unpack({bits.x, bits.y, bits.z, bits.w}, out, T{});
  } else {
    const uint2 bits = *reinterpret_cast<const uint2*>(row + first);
    unpack({bits.x, bits.y}, out, T{});
  }
}

// kCount float32 numbers, a multiple of four, at a multiple of 16 bytes.
template <int kCount>
__device__ inline void load_floats(const float* from, float (&out)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    out[i] = four.x;
    out[i + 1] = four.y;
    out[i + 2] = four.z;
    out[i + 3] = four.w;
  }
}

// The sum over the lanes of a warp, for all of them; the order of additions is fixed.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ inline float element(const Channelwise& parameter, int64_t index) {
  const int64_t at = index * parameter.stride;
  switch (parameter.dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(parameter.data)[at]);
    case DType::kFloat16:
      return to_float(static_cast<const Float16*>(parameter.data)[at]);
    default:
      return static_cast<const float*>(parameter.data)[at];
  }
}

// Whether rows that start at data plus any multiple of these strides allow kVector.
inline bool rows_are_aligned(const void* data, int64_t element_size, int64_t channels,
                             int64_t channel_stride, const int64_t* strides, int count) {
  const int64_t group = 16 / element_size;
  bool aligned =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && channel_stride == 1 && channels % group == 0;
  for (int i = 0; i < count; ++i) aligned = aligned && strides[i] % group == 0;
  return aligned;
}

// launch(T{}) with the element type T of a dtype.
template <class Launch>
cudaError_t for_dtype(DType dtype, const Launch& launch) {
  switch (dtype) {
    case DType::kFloat32:
      return launch(float{});
    case DType::kBFloat16:
      return launch(BFloat16{});
    case DType::kFloat16:
      return launch(Float16{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace fiqa_fast::cuda
