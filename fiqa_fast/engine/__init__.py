# SPDX-License-Identifier: Apache-2.0
"""What takes images through the blocks: our own kernels on a CPU, CUDA graphs on a GPU, torch's
operators anywhere."""

from __future__ import annotations

from typing import Any

import torch

from ..models.vit import FaceViT
from ..quality.method import QualityMethod
from . import graphs, native
from .accelerator import CaptureError
from .eager import EagerEngine
from .engine import Engine
from .graphs import GraphEngine
from .native import NativeEngine

ENGINES = ("auto", "native", "graphs", "eager")


def make_engine(
    name: str,
    vit: FaceViT,
    method: QualityMethod,
    *,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Engine:
    """The engine of that name.

    ``auto`` is the native one on a CPU and graphs on a GPU, wherever they can be; elsewhere it is
    the eager one, whose ``note`` says why.

    Raises:
        ValueError: another one was asked for, or int8, which the native engine alone has, and it
            cannot run this model on this device.
    """

    def made(kind: type[Engine]) -> Engine:
        return kind(vit, method, device=device, dtype=dtype, **options)

    on_gpu = name == "graphs" or (name == "auto" and device.type != "cpu")
    against = graphs.reason_against(device) if on_gpu else native.reason_against(vit, device, dtype)
    if dtype == torch.int8 and (on_gpu or against or name == "eager"):
        against = native.reason_against(vit, device, dtype) or f'not engine="{name}"\'s'
        raise ValueError(f"dtype int8 is the native engine's: {against}; use another dtype")
    if name == "eager":
        return made(EagerEngine)
    try:
        if not against:
            return made(GraphEngine if on_gpu else NativeEngine)
    except CaptureError as error:
        against = str(error)
    if name != "auto":
        raise ValueError(f'engine="{name}" cannot be had: {against}; use "auto" or "eager"')
    engine = made(EagerEngine)
    engine.note = against
    return engine
