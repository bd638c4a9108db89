// SPDX-License-Identifier: Apache-2.0
// Instructions that have no intrinsic: matrix fragments, tensor cores, asynchronous copies. Thin
// wrappers of one instruction each, from compute capability 8.0 on; the layouts are those of the
// PTX ISA ("Warp Level Matrix Instructions", "Data Movement: cp.async"). Tests put a header of the
// same name before this one, which does the same on a CPU.
//
// Fragments, with g = lane / 4 and t = lane % 4; a pair of 16-bit elements fills one register, the
// lower column (A) or row (B) in its lower half:
//
//   A [16, 16]   a[0] = (g, 2t..), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, ..)
//   B [16, 8]    b[0] = (2t.., g), b[1] = (2t + 8.., g)
//   C [16, 8]    c[0], c[1] = (g, 2t), (g, 2t + 1)    c[2], c[3] = the same of row g + 8
#pragma once

#include <stdint.h>

#include "kernels/dtype.h"

namespace fiqa_fast::cuda {

// The address that instructions on shared memory take.
__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Loads four 8 x 8 matrices of 16-bit elements, every lane of the warp. Lane 8 m + i names row i of
// matrix m: 16 bytes in shared memory, at a multiple of 16. r[m] becomes elements
// (lane / 4, 2 (lane % 4)) and the next of matrix m: the layout of A and, from the rows of a
// transposed B, of B.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* smem_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(smem_row))
               : "memory");
}

// The same for two matrices. The rows that lanes 16 to 31 name are not read, but have to be
// addresses in shared memory.
__device__ inline void ldmatrix_x2(uint32_t (&r)[2], const void* smem_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(smem_row))
               : "memory");
}

// c += a b over 16 products in float32, every lane of the warp. The tag says what a and b hold.
__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    BFloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    Float16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Begins to copy 16 bytes from global to shared memory, both at multiples of 16, past the first
// level cache; with valid = false it writes zeros and does not read, but global has to be an
// address in global memory. The bytes are there after the wait that covers the copy, for other
// threads after a barrier too.
__device__ inline void cp_async_16(void* smem, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(smem)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}

// Closes a group: the thread's copies since the last one, which may be none.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread but the kPending latest have landed.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

}  // namespace fiqa_fast::cuda
