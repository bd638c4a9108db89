// SPDX-License-Identifier: Apache-2.0
// A call as tests make it: arrays and numbers by name. The structs are what Python's ctypes fills.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/layer_norm.h"

namespace fiqa_fast::test {

struct Array {
  const char* name;
  void* data;
  int32_t dtype;  // DType
  int32_t dims;
  int64_t shape[4], strides[4];  // strides in elements
};

struct Number {
  const char* name;
  double value;
};

struct Call {
  const Array* arrays;
  const Number* numbers;
  int64_t array_count, number_count;

  const Array* find(const char* name) const;
  // These throw std::invalid_argument where there is none of the name.
  const Array& array(const char* name) const;
  double number(const char* name) const;

  float* floats(const char* name) const { return static_cast<float*>(array(name).data); }
  // Absent where the call has no such array.
  Channelwise channelwise(const char* name) const;
  // x, weight, bias and eps.
  LayerNormInput layer_norm() const;
};

// Scratch memory as a caller of the launchers allocates it: of exactly the size, poisoned.
class Scratch {
 public:
  explicit Scratch(int64_t floats);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
};

using Run = cudaError_t (*)(const Call&);

// Makes an operation known by its name, at the bottom of the file that implements it.
struct Operation {
  Operation(const char* name, Run run);
};

// What went wrong, or nothing.
std::string perform(const char* operation, const Call& call);

}  // namespace fiqa_fast::test
