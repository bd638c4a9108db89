// SPDX-License-Identifier: Apache-2.0
// What a test may choose about a run. Results must not depend on any of it.
#pragma once

#include <stdint.h>

namespace emulation {

struct Options {
  // The order of threads and of blocks: 0 forward, 1 reverse, anything else pseudo-random.
  int64_t seed = 0;
  // Not 0: asynchronous copies land when they are waited for, instead of at once.
  int64_t late_copies = 0;
  // Blocks beyond these are not launched, so that loops over the grid have to run; 0 is no limit.
  int64_t max_blocks = 0;
};

inline Options options;

}  // namespace emulation
