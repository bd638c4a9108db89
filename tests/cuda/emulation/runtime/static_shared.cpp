// SPDX-License-Identifier: Apache-2.0
// Linked into the library of kernels. (A section of its own would say it more plainly, but g++ 12
// ignores section attributes on variables of templates.)
#include "runtime/static_shared.h"

// The linker's names for the ends of the section that is zero at the start.
extern "C" __attribute__((visibility("hidden"))) unsigned char __bss_start[], _end[];

emulation::StaticShared emulation::static_shared() { return {__bss_start, _end}; }
