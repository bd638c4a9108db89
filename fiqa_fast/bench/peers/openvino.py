# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU: one stream, or two that share a batch, at a hinted precision.

Threads are as many as ours for both streams together. Where the processor lacks the hinted
arithmetic OpenVINO computes in another: what it says it executes in is recorded.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..entries import Absent, Entry, Ready, Run
from .exports import Exports, installed, quiet

__all__ = ["entries"]

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}
# Where the arithmetic is.
_PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention", "MHA")


def entries(exports: Exports, dtype: str) -> list[Entry]:
    """Both graphs, each with one stream and with two."""

    def entry(graph: str, streams: int) -> Entry:
        return Entry(
            "openvino",
            graph,
            dtype,
            lambda size: _prepare(exports, graph, dtype, size, streams),
            streams,
        )

    return [entry(graph, streams) for graph in ("published", "factorised") for streams in (1, 2)]


def _prepare(exports: Exports, graph: str, dtype: str, batch_size: int, streams: int) -> Ready:
    # A measurement is nobody's business; and its sender is a thread that would run beside it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    (openvino,) = installed("openvino")
    if dtype not in _HINTS:
        raise Absent(f"{dtype} would need another model: no precision hint means it")
    if batch_size % streams:
        raise Absent(f"{streams} streams do not share a batch of {batch_size} evenly")
    subject = exports.subject
    size = subject.model.config.img_size
    program = exports.program(graph)
    with quiet():
        model = openvino.convert_model(program)
    model.reshape([batch_size // streams, 3, size, size])
    compiled = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": subject.threads,
        },
    )
    run = _alone(compiled) if streams == 1 else _side_by_side(openvino, compiled, streams)
    return Ready(run, _executes(compiled), {"version": openvino.__version__})


def _alone(compiled: Any) -> Run:
    request = compiled.create_infer_request()

    def run(pixels: Tensor) -> Tensor:
        found = request.infer([pixels.numpy()], share_inputs=True)
        return torch.from_numpy(found[0].copy())

    return run


def _side_by_side(openvino: Any, compiled: Any, streams: int) -> Run:
    """Equal parts of a batch in as many requests."""
    queue = openvino.AsyncInferQueue(compiled, streams)
    scores: dict[int, Any] = {}

    def keep(request: Any, number: int) -> None:
        scores[number] = request.get_output_tensor(0).data.copy()

    queue.set_callback(keep)

    def run(pixels: Tensor) -> Tensor:
        for number, part in enumerate(pixels.chunk(streams)):
            queue.start_async([part.numpy()], number, share_inputs=True)
        queue.wait_all()
        return torch.from_numpy(np.concatenate([scores[number] for number in range(streams)]))

    return run


def _executes(compiled: Any) -> str:
    """What the layers with products run in, by the compiled model's own account."""
    found = set()
    for layer in compiled.get_runtime_model().get_ordered_ops():
        info = layer.get_rt_info()
        if "layerType" in info and str(info["layerType"].astype(str)) in _PRODUCTS:
            found.add(str(info["runtimePrecision"].astype(str)))
    return ", ".join(sorted(_NAMES.get(name, name) for name in found)) or "unknown"
