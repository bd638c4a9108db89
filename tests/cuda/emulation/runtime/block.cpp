// SPDX-License-Identifier: Apache-2.0
#include "runtime/block.h"

#include <cstring>
#include <memory>

#include "runtime/fiber.h"
#include "runtime/ordering.h"

namespace emulation {

Thread* running_thread = nullptr;
Block* Block::running = nullptr;

namespace {

constexpr const char* kBarrier = "__syncthreads";

// Blocks count as ordered. That two of them race is for the order of blocks to show.
char begin_token, end_token;

// Made once: blocks of one launch need the same ones.
Fiber& fiber(int thread) {
  static std::vector<std::unique_ptr<Fiber>> fibers;
  while (fibers.size() <= static_cast<size_t>(thread)) fibers.push_back(std::make_unique<Fiber>());
  return *fibers[thread];
}

// Names are literals, of which every translation unit may have its own.
bool same(const char* one, const char* other) {
  return one == other || (one && other && std::strcmp(one, other) == 0);
}

std::string name_of(const Thread& thread) {
  return "thread " + std::to_string(thread.thread_index.x);
}

std::string place(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string whereabouts(const Thread& thread) {
  if (thread.ended) return "has ended";
  if (thread.waits_in)
    return std::string("waits in ") + thread.waits_in + " at " + place(thread.waits_at);
  return "runs";
}

}  // namespace

Block::Block(uint3 index, dim3 size, dim3 grid, Order& order, const std::function<void()>& body)
    : order_(order),
      body_(body),
      threads_(size.x),
      ready_(static_cast<int>(size.x)),
      meetings_((size.x + kWarpSize - 1) / kWarpSize) {
  for (unsigned i = 0; i < size.x; ++i) {
    Thread& thread = threads_[i];
    thread.thread_index.x = i;
    thread.block_index = index;
    thread.block_dim = size;
    thread.grid_dim = grid;
    ready_.insert(static_cast<int>(i));
  }
  // Threads do not allocate: to ThreadSanitizer that is an access to memory.
  leaving_.reserve(size.x);
  for (std::vector<Meeting*>& meetings : meetings_) meetings.reserve(kWarpSize);
}

void Block::entry() {
  Block& block = *running;
  observe(&begin_token);
  block.body_();
  publish(&end_token);
  current().ended = true;
  block.ready_.erase(block.number_of(current()));
  Fiber::suspend();
}

std::string Block::run() {
  running = this;
  const int count = static_cast<int>(threads_.size());
  for (int i = 0; i < count; ++i) fiber(i).start(&Block::entry);
  publish(&begin_token);
  int last = order_.is_reverse() ? 0 : count - 1;
  while (!ready_.empty() && failure_.empty()) {
    const int from = order_.thread_after(last, count);
    last = order_.is_reverse() ? ready_.previous(from) : ready_.next(from);
    running_thread = &threads_[last];
    fiber(last).resume();
  }
  observe(&end_token);
  running = nullptr;
  return failure_.empty() ? deadlock() : failure_;
}

void Block::wait(const char* in, uint32_t with, std::source_location where) {
  Thread& thread = current();
  thread.waits_in = in;
  thread.waits_with = with;
  thread.waits_at = where;
  ready_.erase(number_of(thread));
  publish(&thread.arrival);
}

// Who comes last lets the others go on. A thread has tokens of its own, because another may be on
// its way to the next meeting before this one has left the last.
void Block::release(bool orders_memory) {
  if (orders_memory)
    for (Thread* thread : leaving_) observe(&thread->arrival);
  for (Thread* thread : leaving_) {
    if (orders_memory) publish(&thread->departure);
    thread->waits_in = nullptr;
    ready_.insert(number_of(*thread));
  }
  leaving_.clear();
}

void Block::suspend_until_released() {
  Fiber::suspend();
  observe(&current().departure);
}

void Block::barrier(std::source_location where) {
  if (at_barrier_ == 0) first_at_barrier_ = &current();
  const Thread& first = *first_at_barrier_;
  if (at_barrier_ > 0 && first.waits_at.line() != where.line())
    fail("is at another barrier, " + place(where) + ", than " + name_of(first) + ", which " +
         whereabouts(first));
  wait(kBarrier, 0, where);
  if (++at_barrier_ == static_cast<int>(threads_.size())) {
    at_barrier_ = 0;
    for (Thread& thread : threads_) leaving_.push_back(&thread);
    release(true);
  }
  suspend_until_released();
}

Block::Meeting& Block::meeting_of(int warp, uint32_t mask, Meeting& fresh) {
  std::vector<Meeting*>& meetings = meetings_[warp];
  for (Meeting* meeting : meetings)
    if (meeting->mask == mask) return *meeting;
  meetings.push_back(&fresh);
  return fresh;
}

void Block::meet(const char* name, uint32_t mask, void* slot, Complete complete, bool orders_memory,
                 std::source_location where) {
  Thread& self = current();
  const uint32_t bit = 1u << self.lane();
  if (!(mask & bit)) fail(std::string("calls ") + name + " with a mask that leaves it out");
  const int warp = number_of(self) / kWarpSize;
  // Who comes first makes the meeting, on its stack: it stays until the meeting is over.
  Meeting fresh = {name, mask};
  Meeting& meeting = meeting_of(warp, mask, fresh);
  if (!same(meeting.name, name))
    fail(std::string("calls ") + name + " at " + place(where) + " where others of its mask call " +
         meeting.name);
  meeting.arrived |= bit;
  meeting.slots[self.lane()] = slot;
  wait(name, mask, where);
  if (meeting.arrived == mask) {
    if (complete) {
      const std::string problem = complete(meeting.slots, mask);
      if (!problem.empty()) fail(std::string(name) + ": " + problem);
    }
    std::erase(meetings_[warp], &meeting);
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) leaving_.push_back(&threads_[warp * kWarpSize + lane]);
    release(orders_memory);
  }
  suspend_until_released();
}

void Block::yield() {
  if (order_.is_random()) Fiber::suspend();
}

void Block::fail(const std::string& what) {
  failure_ = name_of(current()) + " " + what;
  while (true) Fiber::suspend();
}

std::string Block::deadlock() const {
  for (const Thread& thread : threads_) {
    if (thread.ended) continue;
    const std::string waits = name_of(thread) + " " + whereabouts(thread) + " for ever";
    const int first = number_of(thread) / kWarpSize * kWarpSize;
    for (const Thread& other : threads_) {
      if (thread.waits_in == kBarrier) {
        if (other.waits_in != kBarrier)
          return waits + ": " + name_of(other) + " " + whereabouts(other);
        continue;
      }
      const int lane = number_of(other) - first;
      const bool is_named = lane >= 0 && lane < kWarpSize && thread.waits_with >> lane & 1;
      const bool is_here =
          same(other.waits_in, thread.waits_in) && other.waits_with == thread.waits_with;
      if (is_named && !is_here) return waits + ": " + name_of(other) + " " + whereabouts(other);
    }
    return waits + ": its mask names lanes that the block has not";
  }
  return {};
}

void fail(const std::string& what) { Block::running->fail(what); }
void yield() { Block::running->yield(); }
void barrier(std::source_location where) { Block::running->barrier(where); }

void meet(const char* name, uint32_t mask, void* slot, Complete complete, bool orders_memory,
          std::source_location where) {
  Block::running->meet(name, mask, slot, complete, orders_memory, where);
}

}  // namespace emulation
