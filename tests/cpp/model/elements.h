// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "model/arithmetic.h"

namespace fiqa_fast::model {
namespace {

// A register's elements: made of a register, and made into one.
template <class Element, int kCount>
struct Elements {
  Element at[kCount];

  Elements() = default;
  template <class Register>
  explicit Elements(const Register& from) {
    static_assert(sizeof from == sizeof at);
    memcpy(at, &from, sizeof at);
  }
  template <class Register>
  operator Register() const {
    Register out;
    static_assert(sizeof out == sizeof at);
    memcpy(&out, at, sizeof out);
    return out;
  }
};

}  // namespace
}  // namespace fiqa_fast::model
