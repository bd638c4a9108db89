// SPDX-License-Identifier: Apache-2.0
// Tells ThreadSanitizer what orders memory accesses: nothing else does, however threads are run.
#pragma once

#if defined(EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {

// Accesses before publish(token) come before those after a later observe(token).
inline void publish([[maybe_unused]] void* token) {
#if defined(EMULATION_TSAN)
  __tsan_release(token);
#endif
}

inline void observe([[maybe_unused]] void* token) {
#if defined(EMULATION_TSAN)
  __tsan_acquire(token);
#endif
}

}  // namespace emulation
