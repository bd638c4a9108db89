// SPDX-License-Identifier: Apache-2.0
// What lanes exchange in shuffles and votes.
#include "runtime/intrinsics.h"

namespace emulation {
namespace {

std::string exchange(Slots slots, uint32_t mask) {
  uint64_t read[kWarpSize] = {};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int from = static_cast<ShuffleSlot*>(slots[lane])->from;
    if (!(mask >> from & 1))
      return "lane " + std::to_string(lane) + " reads lane " + std::to_string(from) +
             ", which the mask leaves out";
    read[lane] = static_cast<ShuffleSlot*>(slots[from])->value;
  }
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1) static_cast<ShuffleSlot*>(slots[lane])->value = read[lane];
  return {};
}

std::string vote(Slots slots, uint32_t mask) {
  uint32_t result = 0;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1 && *static_cast<uint32_t*>(slots[lane])) result |= 1u << lane;
  for (int lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1) *static_cast<uint32_t*>(slots[lane]) = result;
  return {};
}

}  // namespace

uint64_t shuffle(const char* name, uint32_t mask, uint64_t value, int from,
                 std::source_location where) {
  ShuffleSlot slot = {value, from};
  meet(name, mask, &slot, exchange, false, where);
  return slot.value;
}

uint32_t ballot(const char* name, uint32_t mask, bool predicate, std::source_location where) {
  uint32_t slot = predicate;
  meet(name, mask, &slot, vote, false, where);
  return slot;
}

}  // namespace emulation
