// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace emulation {

// The memory of all variables of the library of kernels that have no initial value: its __shared__
// ones, because kernels have no others.
struct StaticShared {
  unsigned char *begin, *end;
};
StaticShared static_shared();

}  // namespace emulation
