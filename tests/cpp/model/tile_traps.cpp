// SPDX-License-Identifier: Apache-2.0
#include "model/tile_traps.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

#include "model/tiles.h"

namespace fiqa_fast::model {
namespace {

thread_local Tiles tiles;

uint64_t register_of(const ucontext_t& at, int number) {
  // In the order of their numbers in machine code.
  constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                             REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                             REG_R12, REG_R13, REG_R14, REG_R15};
  return static_cast<uint64_t>(at.uc_mcontext.gregs[kPlaces[number]]);
}

// An instruction with three bytes of VEX prefix, as Intel's Software Developer's Manual, volume 2,
// chapter 2 puts them together.
struct Instruction {
  int prefix;          // none, 66, F3, F2
  int opcode;          // in the map 0F38
  int reg, rm, third;  // registers: of ModRM, and VEX.vvvv
  bool memory;         // rm is an address instead
  uint64_t base;       // displacement included
  uint64_t index;      // scaled; a row's distance to the next one for tiles
  uint64_t next;       // where the next instruction is
};

int32_t number_at(const uint8_t* code) {
  int32_t value;
  memcpy(&value, code, sizeof value);
  return value;
}

bool decode(const ucontext_t& at, Instruction& out) {
  const uint64_t start = static_cast<uint64_t>(at.uc_mcontext.gregs[REG_RIP]);
  const uint8_t* code = reinterpret_cast<const uint8_t*>(start);
  // C4; not R, not X, not B, map 0F38; W = 0, not vvvv, L = 0, prefix.
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84) != 0) return false;
  const int r = code[1] & 0x80 ? 0 : 8, x = code[1] & 0x40 ? 0 : 8, b = code[1] & 0x20 ? 0 : 8;
  const int mod = code[4] >> 6, low = code[4] & 7;
  out = {};
  out.prefix = code[2] & 3, out.opcode = code[3];
  out.reg = r | (code[4] >> 3 & 7), out.rm = b | low, out.third = 15 - (code[2] >> 3 & 15);
  out.memory = mod != 3;
  const uint8_t* end = code + 5;
  if (out.memory) {
    bool has_base = true, next_as_base = false;
    if (low == 4) {
      const int sib = *end++, index = x | (sib >> 3 & 7), base = b | (sib & 7);
      if (index != 4) out.index = register_of(at, index) << (sib >> 6);
      has_base = mod != 0 || (sib & 7) != 5;
      if (has_base) out.base = register_of(at, base);
    } else if (mod == 0 && low == 5) {
      has_base = false, next_as_base = true;
    } else {
      out.base = register_of(at, out.rm);
    }
    if (mod == 1) {
      out.base += static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(*end)));
      end += 1;
    } else if (mod == 2 || !has_base) {
      out.base += static_cast<uint64_t>(static_cast<int64_t>(number_at(end)));
      end += 4;
    }
    if (next_as_base) out.base += reinterpret_cast<uint64_t>(end);
  }
  out.next = reinterpret_cast<uint64_t>(end);
  return true;
}

// False if it is none of AMX's.
bool execute(const Instruction& i) {
  enum { kNone, k66, kF3, kF2 };
  char* at = reinterpret_cast<char*>(i.base);
  const int64_t stride = static_cast<int64_t>(i.index);
  switch (i.opcode) {
    case 0x49:
      if (i.memory && i.prefix == kNone) return tiles.configure(at + stride), true;
      if (!i.memory && i.prefix == kNone) return tiles.release(), true;
      if (!i.memory && i.prefix == kF2) return tiles.zero(i.reg), true;
      return false;
    case 0x4b:
      if (!i.memory) return false;
      if (i.prefix == kF2 || i.prefix == k66) return tiles.load(i.reg, at, stride), true;
      if (i.prefix == kF3) return tiles.store(i.reg, at, stride), true;
      return false;
    case 0x5c:
      if (i.memory || i.prefix != kF3) return false;
      return tiles.add_bfloat16(i.reg, i.rm, i.third), true;
    case 0x5e:
      if (i.memory) return false;
      if (i.prefix == kF2) return tiles.add_bytes<true, true>(i.reg, i.rm, i.third), true;
      if (i.prefix == kF3) return tiles.add_bytes<true, false>(i.reg, i.rm, i.third), true;
      if (i.prefix == k66) return tiles.add_bytes<false, true>(i.reg, i.rm, i.third), true;
      return tiles.add_bytes<false, false>(i.reg, i.rm, i.third), true;
    default:
      return false;
  }
}

void on_refused(int signal, siginfo_t*, void* context) {
  ucontext_t& at = *static_cast<ucontext_t*>(context);
  Instruction instruction;
  try {
    if (decode(at, instruction) && execute(instruction)) {
      at.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(instruction.next);
      return;
    }
    fprintf(stderr, "an instruction that is not modelled\n");
  } catch (const TileFault& fault) {
    fprintf(stderr, "AMX: %s\n", fault.what());
  }
  // Refused again when it is tried again, and then for good.
  struct sigaction usual = {};
  usual.sa_handler = SIG_DFL;
  sigaction(signal, &usual, nullptr);
}

}  // namespace

void execute_tile_instructions() {
  struct sigaction action = {};
  action.sa_sigaction = on_refused;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace fiqa_fast::model
