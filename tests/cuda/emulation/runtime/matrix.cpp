// SPDX-License-Identifier: Apache-2.0
// Layouts by the PTX ISA, "Warp Level Matrix Instructions"; with g = lane / 4, t = lane % 4.
#include "runtime/matrix.h"

#include <cmath>

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

// c plus eight products, as tensor cores add them: every term is cut off, towards zero, one bit
// below the last of float32 beside the largest, and so is the sum (Fasi et al., Numerical behavior
// of NVIDIA tensor cores, PeerJ CS 2021). Later devices take sixteen products and two bits more,
// which cuts less.
float add_products(float c, const double* a, const double* b) {
  constexpr int kProducts = 8, kBits = 24 + 1;
  double terms[kProducts + 1] = {c}, largest = std::fabs(c);
  for (int i = 0; i < kProducts; ++i) {
    terms[i + 1] = a[i] * b[i];
    largest = std::fmax(largest, std::fabs(terms[i + 1]));
  }
  double sum = 0.0;
  for (const double term : terms) sum += term;
  if (!std::isfinite(sum) || largest == 0.0) return static_cast<float>(sum);
  const double unit = std::ldexp(1.0, std::ilogb(largest) + 1 - kBits);
  sum = 0.0;
  for (const double term : terms) sum += std::trunc(term / unit) * unit;
  const float rounded = static_cast<float>(sum);
  return std::fabs(rounded) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}

std::string multiply(Slots slots, uint32_t) {
  double a[16][16], b[8][16];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Operands& own = *static_cast<Operands*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto element = [&](uint32_t pair) {
        return static_cast<double>(widen(static_cast<uint16_t>(pair >> 16 * half), own.type));
      };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + i / 2 * 8 + half] = element(own.a[i]);
      for (int i = 0; i < 2; ++i) b[g][2 * t + i * 8 + half] = element(own.b[i]);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* c = static_cast<Operands*>(slots[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
      c[i] = add_products(c[i], a[row], b[column]);
      c[i] = add_products(c[i], a[row] + 8, b[column] + 8);
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
