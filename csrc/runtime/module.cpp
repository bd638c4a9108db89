// SPDX-License-Identifier: Apache-2.0
// The Python module fiqa_fast._runtime: objects with state, and facts about the build and the
// machine. It has a library of its own because pybind11 binds to one version of Python, while the
// operators (csrc/ops) keep to Python's limited API and torch's stable ABI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"  // written by setup.py
#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/isa.h"
#include "runtime/engine.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = FIQA_FAST_BUILD_COMPILER;
  info["torch"] = FIQA_FAST_BUILD_TORCH;
  info["cuda"] = FIQA_FAST_BUILD_CUDA;
  info["cuda_archs"] = FIQA_FAST_BUILD_CUDA_ARCHS;
  py::list levels;
  for (int level = 0; level < fiqa_fast::kIsaCount; ++level)
    levels.append(fiqa_fast::kIsaNames[level]);
  info["isa_levels"] = levels;
  return info;
}

py::dict cpu_features() {
  const fiqa_fast::CpuFeatures& cpu = fiqa_fast::cpu_features();
  py::dict features;
  features["avx2"] = cpu.avx2;
  features["fma"] = cpu.fma;
  features["f16c"] = cpu.f16c;
  features["avx_vnni"] = cpu.avx_vnni;
  features["avx512"] = cpu.avx512;
  features["avx512_bf16"] = cpu.avx512_bf16;
  features["avx512_vnni"] = cpu.avx512_vnni;
  features["avx512_fp16"] = cpu.avx512_fp16;
  features["amx_tile"] = cpu.amx_tile;
  features["amx_bf16"] = cpu.amx_bf16;
  features["amx_int8"] = cpu.amx_int8;
  return features;
}

}  // namespace

PYBIND11_MODULE(_runtime, m) {
  m.doc() = "Build information, processor features and the CPU engine.";
  m.def(
      "build_info", &build_info,
      "compiler, torch (built against), cuda (toolkit version, or why there is none), cuda_archs, "
      "isa_levels");
  m.def("cpu_features", &cpu_features, "What this processor and operating system support.");
  fiqa_fast::bind_engine(m);
}
