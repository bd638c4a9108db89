// SPDX-License-Identifier: Apache-2.0
// The Python module fiqa_fast._C. Importing it registers the operators (static initialisers of the
// library do that) and gives access to the instruction set level that their CPU kernels use. It
// keeps to Python's limited API and torch's stable ABI; what needs pybind11 stands in csrc/runtime.
#include <Python.h>

#include "kernels/cpu/isa.h"

namespace {

using fiqa_fast::Isa;
using fiqa_fast::kIsaCount;
using fiqa_fast::kIsaNames;

PyObject* isa(PyObject*, PyObject*) {
  return PyUnicode_FromString(kIsaNames[static_cast<int>(fiqa_fast::active_isa())]);
}

// The levels that this processor can run, lowest first.
PyObject* supported_isas(PyObject*, PyObject*) {
  PyObject* names = PyList_New(0);
  for (int level = 0; names && level < kIsaCount; ++level) {
    if (!fiqa_fast::isa_supported(static_cast<Isa>(level))) continue;
    PyObject* name = PyUnicode_FromString(kIsaNames[level]);
    if (!name || PyList_Append(names, name) < 0) Py_CLEAR(names);
    Py_XDECREF(name);
  }
  return names;
}

PyObject* set_isa(PyObject*, PyObject* wanted) {
  for (int level = 0; level < kIsaCount; ++level) {
    if (!fiqa_fast::isa_supported(static_cast<Isa>(level))) continue;
    PyObject* name = PyUnicode_FromString(kIsaNames[level]);
    if (!name) return nullptr;
    const bool found = PyUnicode_Compare(name, wanted) == 0;
    Py_DECREF(name);
    if (PyErr_Occurred()) return nullptr;
    if (found) {
      fiqa_fast::set_isa(static_cast<Isa>(level));
      Py_RETURN_NONE;
    }
  }
  PyObject* supported = supported_isas(nullptr, nullptr);
  if (supported) {
    PyErr_Format(
        PyExc_ValueError,
        "the instruction set level should be one of %R, which this processor supports, got %R",
        supported, wanted);
    Py_DECREF(supported);
  }
  return nullptr;
}

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "The active instruction set level."},
    {"supported_isas", supported_isas, METH_NOARGS, "The levels this processor supports."},
    {"set_isa", set_isa, METH_O, "Choose the instruction set level of all CPU kernels."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
