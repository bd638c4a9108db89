# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU, in float32, with all its optimisations and a fixed batch size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..entries import Absent, Entry, Ready
from .exports import Exports, installed, quiet

__all__ = ["entries"]


def entries(exports: Exports, dtype: str) -> list[Entry]:
    """Both graphs."""

    def entry(graph: str) -> Entry:
        return Entry(
            "onnxruntime", graph, dtype, lambda size: _prepare(exports, graph, dtype, size)
        )

    return [entry("published"), entry("factorised")]


def _prepare(exports: Exports, graph: str, dtype: str, batch_size: int) -> Ready:
    (runtime,) = installed("onnxruntime")
    if dtype != "float32":
        raise Absent(
            f"{dtype} would need another model: its CPU kernels compute what the graph says"
        )
    (onnx,) = installed("onnx")
    path = exports.onnx(graph)
    (pixels,) = onnx.load(path, load_external_data=False).graph.input
    options = runtime.SessionOptions()
    options.intra_op_num_threads = exports.subject.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(
        pixels.type.tensor_type.shape.dim[0].dim_param, batch_size
    )
    with quiet():
        session: Any = runtime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    score = session.get_outputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([score], {pixels.name: images.numpy()})[0])

    return Ready(run, "float32", {"version": runtime.__version__})
