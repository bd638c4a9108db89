// SPDX-License-Identifier: Apache-2.0
// CUDA's functions: synchronisation, exchange between lanes, bits.
#pragma once

#include <stdint.h>

#include <bit>
#include <cstring>
#include <source_location>

#include "runtime/thread.h"

namespace emulation {

struct ShuffleSlot {
  uint64_t value;  // in: what others may read; out: what the lane read
  int from;
};

// `from` is a lane of the warp.
uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int from,
                 std::source_location where);
// Bit i is set where lane i's predicate holds; lanes outside the mask count as false.
uint32_t ballot(const char* name, uint32_t mask, bool predicate, std::source_location where);

template <class T>
T shuffle_as(const char* name, uint32_t mask, T value, int from, std::source_location where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(name, mask, bits, from, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulation

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulation::barrier(where);
}

inline void __syncwarp(uint32_t mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  emulation::meet("__syncwarp", mask, nullptr, nullptr, true, where);
}

// Lanes exchange within aligned groups of `width`; who would read outside reads itself.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = emulation::kWarpSize,
              std::source_location where = std::source_location::current()) {
  const int first = emulation::current().lane() & ~(width - 1);
  return emulation::shuffle_as("__shfl_sync", mask, value, first + (source & (width - 1)), where);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = emulation::kWarpSize,
                 std::source_location where = std::source_location::current()) {
  const int lane = emulation::current().lane(), first = lane & ~(width - 1);
  const int from = lane - static_cast<int>(delta);
  return emulation::shuffle_as("__shfl_up_sync", mask, value, from < first ? lane : from, where);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = emulation::kWarpSize,
                   std::source_location where = std::source_location::current()) {
  const int lane = emulation::current().lane(), last = lane | (width - 1);
  const int from = lane + static_cast<int>(delta);
  return emulation::shuffle_as("__shfl_down_sync", mask, value, from > last ? lane : from, where);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = emulation::kWarpSize,
                  std::source_location where = std::source_location::current()) {
  const int lane = emulation::current().lane(), last = lane | (width - 1);
  const int from = lane ^ bits;
  return emulation::shuffle_as("__shfl_xor_sync", mask, value, from > last ? lane : from, where);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return emulation::ballot("__ballot_sync", mask, predicate, where);
}

inline int __any_sync(uint32_t mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return emulation::ballot("__any_sync", mask, predicate, where) != 0;
}

inline int __all_sync(uint32_t mask, int predicate,
                      std::source_location where = std::source_location::current()) {
  return emulation::ballot("__all_sync", mask, predicate, where) == mask;
}

inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __int_as_float(int32_t bits) { return std::bit_cast<float>(bits); }
inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<uint32_t>(bits)); }
inline int __ffs(int bits) { return bits ? std::countr_zero(static_cast<uint32_t>(bits)) + 1 : 0; }

template <class T>
T __ldg(const T* from) {
  return *from;
}
