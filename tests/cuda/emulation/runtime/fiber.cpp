// SPDX-License-Identifier: Apache-2.0
#include "runtime/fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__x86_64__)
// Saves the registers that calls preserve on the old stack and takes them from the new one.
extern "C" void emulation_switch_stack(void** save, void* load);
asm(R"(
.text
.hidden emulation_switch_stack
.globl emulation_switch_stack
.type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch_stack, .-emulation_switch_stack
)");
#endif

namespace emulation {
namespace {

// Sanitizers make frames several times larger. Pages that are never touched cost nothing.
constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 4096;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;

  void prepare(unsigned char* stack, void (*entry)()) {
    // As if `entry` had been called: its return address, at 8 below a multiple of 16, and under
    // that what emulation_switch_stack pops.
    void** top = reinterpret_cast<void**>(stack + kStackBytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;
    stack_pointer = top - 8;
  }
  void switch_to(Context& other) { emulation_switch_stack(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void prepare(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// What a sanitizer has to be told about a stack.
struct Tracking {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
#endif
#if defined(EMULATION_TSAN)
  void* thread = nullptr;
#endif
};

void announce_switch([[maybe_unused]] Tracking& from, [[maybe_unused]] const Tracking& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(EMULATION_TSAN)
  // Whoever runs next has not synchronised with who ran before: races between them are reported.
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
#endif
}

void arrive([[maybe_unused]] const Tracking& here, [[maybe_unused]] Tracking& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(here.fake_stack, &from.bottom, &from.bytes);
#endif
}

}  // namespace

struct Fiber::State {
  Context context;
  Tracking tracking;
  unsigned char* memory;  // a page that traps overflow, then the stack
  void (*entry)() = nullptr;

  unsigned char* stack() const { return memory + kGuardBytes; }

  static State scheduler;
  static State* running;
};

Fiber::State Fiber::State::scheduler;
Fiber::State* Fiber::State::running = nullptr;

Fiber::Fiber() : state_(new State) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE)) throw std::bad_alloc();
  state_->memory = static_cast<unsigned char*>(memory);
#if defined(EMULATION_TSAN)
  state_->tracking.thread = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(EMULATION_TSAN)
  __tsan_destroy_fiber(state_->tracking.thread);
#endif
  munmap(state_->memory, kGuardBytes + kStackBytes);
  delete state_;
}

void Fiber::begin() {
  arrive(State::running->tracking, State::scheduler.tracking);
  State::running->entry();
}

void Fiber::start(void (*entry)()) {
  state_->entry = entry;
  state_->context.prepare(state_->stack(), &Fiber::begin);
#if defined(__SANITIZE_ADDRESS__)
  // A thread that was given up left its variables' guards behind.
  ASAN_UNPOISON_MEMORY_REGION(state_->stack(), kStackBytes);
  state_->tracking = {nullptr, state_->stack(), kStackBytes};
#endif
}

void Fiber::resume() {
  State& scheduler = State::scheduler;
#if defined(EMULATION_TSAN)
  scheduler.tracking.thread = __tsan_get_current_fiber();
#endif
  State::running = state_;
  announce_switch(scheduler.tracking, state_->tracking);
  scheduler.context.switch_to(state_->context);
  arrive(scheduler.tracking, state_->tracking);
}

void Fiber::suspend() {
  State& fiber = *State::running;
  announce_switch(fiber.tracking, State::scheduler.tracking);
  fiber.context.switch_to(State::scheduler.context);
  arrive(fiber.tracking, State::scheduler.tracking);
}

}  // namespace emulation
