// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace fiqa_fast {

// Adds the classes Network and Pass to the module.
void bind_engine(pybind11::module_& m);

}  // namespace fiqa_fast
