// SPDX-License-Identifier: Apache-2.0
// Layouts by the PTX ISA, "Warp Level Matrix Instructions"; with g = lane / 4, t = lane % 4.
#include "runtime/matrix.h"

#include "runtime/thread.h"

namespace emulation {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

// The matrices hold the rows of lanes 0 to 7, 8 to 15, and so on.
template <int kCount>
std::string distribute(Slots slots, uint32_t) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int m = 0; m < kCount; ++m) {
      const uint16_t* row = static_cast<MatrixRows*>(slots[8 * m + lane / 4])->row;
      static_cast<MatrixRows*>(slots[lane])->fragment[m] =
          row[2 * (lane % 4)] | static_cast<uint32_t>(row[2 * (lane % 4) + 1]) << 16;
    }
  }
  return {};
}

struct Operands {
  float* c;
  const uint32_t *a, *b;
  Narrow type;
};

// Products of 16-bit numbers are exact in double; the sum of 16 is rounded once. A GPU rounds more
// often, in an order that is not documented.
std::string multiply(Slots slots, uint32_t) {
  double a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Operands& own = *static_cast<Operands*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto element = [&](uint32_t pair) {
        return static_cast<double>(widen(static_cast<uint16_t>(pair >> 16 * half), own.type));
      };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = element(own.a[i]);
      for (int i = 0; i < 2; ++i) b[2 * t + i * 8 + half][g] = element(own.b[i]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* c = static_cast<Operands*>(slots[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      double sum = 0.0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      c[i] = static_cast<float>(c[i] + sum);
    }
  }
  return {};
}

}  // namespace

void ldmatrix(MatrixRows& rows, int count, std::source_location where) {
  if (count == 4)
    meet("ldmatrix.x4", kAllLanes, &rows, distribute<4>, false, where);
  else
    meet("ldmatrix.x2", kAllLanes, &rows, distribute<2>, false, where);
}

void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Narrow type,
         std::source_location where) {
  Operands operands = {c, a, b, type};
  const char* name = type == Narrow::kBFloat16 ? "mma.bf16" : "mma.f16";
  meet(name, kAllLanes, &operands, multiply, false, where);
}

}  // namespace emulation
