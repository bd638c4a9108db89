// SPDX-License-Identifier: Apache-2.0
#include "harness/call.h"

#include <stdlib.h>

#include <algorithm>
#include <map>
#include <new>
#include <stdexcept>

#include "runtime/grid.h"
#include "runtime/options.h"
#include "runtime/shared_memory.h"

namespace fiqa_fast::test {
namespace {

std::map<std::string, Run>& operations() {
  static std::map<std::string, Run> all;
  return all;
}

template <class Item>
const Item* find_in(const Item* items, int64_t count, const std::string& name) {
  const Item* found =
      std::find_if(items, items + count, [&](const Item& i) { return i.name == name; });
  return found == items + count ? nullptr : found;
}

}  // namespace

const Array* Call::find(const char* name) const { return find_in(arrays, array_count, name); }

const Array& Call::array(const char* name) const {
  if (const Array* found = find(name)) return *found;
  throw std::invalid_argument(std::string("the call has no array ") + name);
}

double Call::number(const char* name) const {
  if (const Number* found = find_in(numbers, number_count, name)) return found->value;
  throw std::invalid_argument(std::string("the call has no number ") + name);
}

Channelwise Call::channelwise(const char* name) const {
  const Array* found = find(name);
  if (!found) return {};
  return {found->data, static_cast<DType>(found->dtype), found->strides[0]};
}

LayerNormInput Call::layer_norm() const {
  const Array& x = array("x");  // [B, N, D]
  return {x.data,
          static_cast<DType>(x.dtype),
          x.shape[0],
          x.shape[1],
          x.shape[2],
          x.strides[0],
          x.strides[1],
          x.strides[2],
          channelwise("weight"),
          channelwise("bias"),
          static_cast<float>(number("eps"))};
}

Scratch::Scratch(int64_t floats) {
  constexpr size_t kAlignment = 256;  // cudaMalloc's
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, bytes)) throw std::bad_alloc();
  data_ = static_cast<float*>(memory);
  std::fill_n(static_cast<unsigned char*>(memory), bytes, emulation::kPoison);
}

Scratch::~Scratch() { free(data_); }

Operation::Operation(const char* name, Run run) { operations()[name] = run; }

std::string perform(const char* operation, const Call& call) {
  const auto found = operations().find(operation);
  if (found == operations().end()) return std::string("no operation ") + operation;
  try {
    const cudaError_t error = found->second(call);
    if (error == cudaSuccess) return {};
    const std::string& text = emulation::error_text();
    return text.empty() ? "the launcher returned error " + std::to_string(error) : text;
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace fiqa_fast::test

// The entry for ctypes: null where all went well, else what did not, until the next call.
extern "C" const char* emulation_call(const char* operation, const fiqa_fast::test::Call* call,
                                      const emulation::Options* options) {
  static std::string problem;
  emulation::options = *options;
  problem = fiqa_fast::test::perform(operation, *call);
  return problem.empty() ? nullptr : problem.c_str();
}
