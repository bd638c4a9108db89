// SPDX-License-Identifier: Apache-2.0
// The CPU engine's Python classes. Arrays come through NumPy, so torch is not linked.
#include "runtime/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/network.h"

namespace py = pybind11;

namespace fiqa_fast {
namespace {

// Converted where need be: they are read once.
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::string shape_text(const py::array& array) {
  return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

const float* checked(const Floats& array, const char* name, const std::vector<py::ssize_t>& shape) {
  bool same = static_cast<size_t>(array.ndim()) == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  if (!same) {
    const std::string wanted = py::str(py::cast(shape)).cast<std::string>();
    throw py::value_error(std::string(name) + " should have the shape " + wanted + ", got " +
                          shape_text(array));
  }
  return array.data();
}

const float* checked_bias(const std::optional<Floats>& array, const char* name, int64_t size) {
  return array ? checked(*array, name, {size}) : nullptr;
}

const EngineKernels& kernels_of(const std::string& level) {
  for (int32_t i = 0; i < kIsaCount; ++i)
    if (level == kIsaNames[i] && isa_supported(static_cast<Isa>(i)))
      return engine_kernels(static_cast<Isa>(i));
  throw py::value_error("this processor does not support the level " + level);
}

const EngineFormat& format_of(const EngineKernels& kernels, const std::string& name) {
  if (name == "float32") return kernels.float32;
  if (name == "bfloat16") return kernels.bfloat16;
  if (name == "high") return kernels.high;
  if (name == "int8") return kernels.int8;
  throw py::value_error("format should be float32, bfloat16, high or int8, got " + name);
}

std::unique_ptr<Network> make_network(const std::string& level, const std::string& format,
                                      int64_t image_size, int64_t patch_size, int64_t prefix,
                                      int64_t dim, int64_t heads, int64_t hidden, bool relu6,
                                      int64_t depth, int64_t max_images, const Floats& embedding,
                                      const Floats& positions) {
  const EngineKernels& kernels = kernels_of(level);
  const EngineShape shape{image_size, patch_size, prefix, dim, heads, hidden, relu6};
  if (patch_size < 1 || image_size < patch_size || prefix < 0 || dim < 1 || heads < 1 ||
      dim % heads != 0 || hidden < 1 || depth < 0 || max_images < 1)
    throw py::value_error("the network's sizes are out of range, or do not fit together");
  const float* weight = checked(embedding, "embedding", {dim, shape.patch_pixels()});
  const float* begin = checked(positions, "positions", {shape.tokens(), dim});
  const py::gil_scoped_release release;
  return std::make_unique<Network>(shape, format_of(kernels, format), depth, max_images, weight,
                                   begin);
}

using Norm = std::tuple<Floats, Floats, float>;
using Linear = std::pair<Floats, std::optional<Floats>>;

void set_block(Network& network, int64_t number, float scale, const Norm& norm1, const Linear& qkv,
               const Linear& proj, const Norm& norm2, const Linear& fc1, const Linear& fc2) {
  if (number < 0 || number >= network.depth() || network.has_block(number))
    throw py::value_error("number should be that of a block to come, below " +
                          std::to_string(network.depth()) + ", got " + std::to_string(number));
  const EngineShape& shape = network.shape();
  const int64_t dim = shape.dim, hidden = shape.hidden;
  const auto norm = [&](const Norm& given) {
    const auto& [weight, bias, eps] = given;
    return NormTensors{checked(weight, "a norm's weight", {dim}),
                       checked(bias, "a norm's bias", {dim}), eps};
  };
  const auto linear = [](const Linear& given, const char* name, int64_t out, int64_t in) {
    return LinearTensors{checked(given.first, name, {out, in}),
                         checked_bias(given.second, name, out)};
  };
  const BlockTensors tensors{scale,
                             norm(norm1),
                             norm(norm2),
                             linear(qkv, "qkv", 3 * dim, dim),
                             linear(proj, "proj", dim, dim),
                             linear(fc1, "fc1", hidden, dim),
                             linear(fc2, "fc2", dim, hidden)};
  const py::gil_scoped_release release;
  network.set_block(number, tensors);
}

std::unique_ptr<Pass> make_pass(Network& network, int64_t first, int64_t last, int64_t images,
                                py::array x, const std::optional<py::array>& pixels,
                                int64_t threads) {
  const EngineShape& shape = network.shape();
  if (first < 0 || last < first || last > network.depth())
    throw py::value_error("blocks first to last should be among the network's " +
                          std::to_string(network.depth()));
  for (int64_t number = first; number < last; ++number)
    if (!network.has_block(number))
      throw py::value_error("block " + std::to_string(number) + " was not set");
  if (images < 1 || images > network.max_images())
    throw py::value_error("images should be 1 to " + std::to_string(network.max_images()) +
                          ", got " + std::to_string(images));
  const int64_t rows = (images * shape.tokens() + 15) / 16 * 16;
  if (!py::isinstance<py::array_t<float>>(x) || !(x.flags() & py::array::c_style) ||
      !x.writeable() || x.ndim() != 2 || x.shape(0) < rows || x.shape(1) != shape.stride())
    throw py::value_error("x should be writable contiguous float32 of at least (" +
                          std::to_string(rows) + ", " + std::to_string(shape.stride()) + "), got " +
                          shape_text(x));
  const void* data = nullptr;
  bool bytes = false;
  if (pixels) {
    bytes = py::isinstance<py::array_t<uint8_t>>(*pixels);
    const py::ssize_t size = shape.image_size;
    if ((!bytes && !py::isinstance<py::array_t<float>>(*pixels)) ||
        !(pixels->flags() & py::array::c_style) || pixels->ndim() != 4 ||
        pixels->shape(0) != images || pixels->shape(1) != 3 || pixels->shape(2) != size ||
        pixels->shape(3) != size)
      throw py::value_error("pixels should be contiguous uint8 or float32 (" +
                            std::to_string(images) + ", 3, " + std::to_string(size) + ", " +
                            std::to_string(size) + "), got " + shape_text(*pixels));
    data = pixels->data();
  }
  return std::make_unique<Pass>(network, first, last, images, static_cast<float*>(x.mutable_data()),
                                data, bytes, threads);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Network>(m, "Network", "A vision transformer's blocks, packed for one level.")
      .def(py::init(&make_network), py::kw_only(), py::arg("level"), py::arg("format"),
           py::arg("image_size"), py::arg("patch_size"), py::arg("prefix"), py::arg("dim"),
           py::arg("heads"), py::arg("hidden"), py::arg("relu6"), py::arg("depth"),
           py::arg("max_images"), py::arg("embedding"), py::arg("positions"))
      .def("set_block", &set_block, py::arg("number"), py::kw_only(), py::arg("scale"),
           py::arg("norm1"), py::arg("qkv"), py::arg("proj"), py::arg("norm2"), py::arg("fc1"),
           py::arg("fc2"))
      .def_property_readonly("stride", [](const Network& n) { return n.shape().stride(); })
      .def_property_readonly("depth", &Network::depth)
      .def_property_readonly("weight_bytes", &Network::weight_bytes)
      .def_property_readonly("shared_bytes", &Network::shared_bytes)
      .def_property_readonly("own_bytes", &Network::own_bytes);
  py::class_<Pass>(m, "Pass", "Some images on their way through some blocks.")
      .def(py::init(&make_pass), py::arg("network"), py::arg("first"), py::arg("last"),
           py::arg("images"), py::arg("x"), py::arg("pixels") = py::none(), py::arg("threads") = 1,
           py::keep_alive<1, 2>(), py::keep_alive<1, 6>(), py::keep_alive<1, 7>())
      .def("work", &Pass::work, py::call_guard<py::gil_scoped_release>());
}

}  // namespace fiqa_fast
