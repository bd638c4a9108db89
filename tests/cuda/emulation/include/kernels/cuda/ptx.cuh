// SPDX-License-Identifier: Apache-2.0
// What the instructions do, by the PTX ISA; stands for the header of this name in csrc, which has
// the layouts.
//
// A lane touches only memory that it names itself, here in the kernel's translation unit, so that a
// sanitizer ascribes each access to the right thread; what lanes exchange is the runtime's.
#pragma once

#include <stdint.h>

#include <cstring>

#include "kernels/dtype.h"
#include "runtime/async_copy.h"
#include "runtime/matrix.h"

namespace fiqa_fast::cuda {

inline void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row) {
  emulation::check_shared("ldmatrix", smem_row, 16);
  emulation::MatrixRows rows = {};
  std::memcpy(rows.row, smem_row, 16);
  emulation::ldmatrix(rows, 4);
  std::memcpy(r, rows.fragment, sizeof r);
}

inline void ldmatrix_x2(uint32_t (&r)[2], const void* smem_row) {
  emulation::check_shared("ldmatrix", smem_row, 16);
  emulation::MatrixRows rows = {};
  if (emulation::current().lane() < 16) std::memcpy(rows.row, smem_row, 16);
  emulation::ldmatrix(rows, 2);
  std::memcpy(r, rows.fragment, sizeof r);
}

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  emulation::mma(c, a, b, emulation::Narrow::kBFloat16);
}

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
  emulation::mma(c, a, b, emulation::Narrow::kFloat16);
}

inline void cp_async_16(void* smem, const void* global, bool valid) {
  emulation::check_shared("cp.async", smem, 16);
  emulation::check_global("cp.async", global, 16);
  emulation::begin_copy(smem, global, valid);
}

inline void cp_async_commit() { emulation::commit_copies(); }

template <int kPending>
inline void cp_async_wait() {
  emulation::wait_for_copies(kPending);
}

}  // namespace fiqa_fast::cuda
