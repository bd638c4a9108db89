// SPDX-License-Identifier: Apache-2.0
// Integer atomics on shared and global memory, unordered as on a GPU. There are none on floating
// point numbers: what they add up to would depend on who comes first.
#pragma once

#include <stdint.h>

#include <concepts>

#include "runtime/thread.h"

namespace emulation {

template <class T>
concept AtomicInteger = std::integral<T> && (sizeof(T) == 4 || sizeof(T) == 8);

// Replaces *at by change(*at); returns what was there.
template <AtomicInteger T, class Change>
T atomic_update(T* at, const Change& change) {
  yield();
  T before = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &before, change(before), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

}  // namespace emulation

template <emulation::AtomicInteger T>
T atomicAdd(T* at, T value) {
  return emulation::atomic_update(at, [&](T before) { return static_cast<T>(before + value); });
}

template <emulation::AtomicInteger T>
T atomicMax(T* at, T value) {
  return emulation::atomic_update(at, [&](T before) { return before > value ? before : value; });
}

template <emulation::AtomicInteger T>
T atomicMin(T* at, T value) {
  return emulation::atomic_update(at, [&](T before) { return before < value ? before : value; });
}

template <emulation::AtomicInteger T>
T atomicOr(T* at, T value) {
  return emulation::atomic_update(at, [&](T before) { return static_cast<T>(before | value); });
}

template <emulation::AtomicInteger T>
T atomicExch(T* at, T value) {
  return emulation::atomic_update(at, [&](T) { return value; });
}

template <emulation::AtomicInteger T>
T atomicCAS(T* at, T expected, T value) {
  return emulation::atomic_update(at,
                                  [&](T before) { return before == expected ? value : before; });
}
