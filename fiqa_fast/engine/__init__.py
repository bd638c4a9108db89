# SPDX-License-Identifier: Apache-2.0
"""What takes images through the blocks: our own kernels on a CPU, torch's operators anywhere."""

from __future__ import annotations

from typing import Any

import torch

from ..models.vit import FaceViT
from ..quality.method import QualityMethod
from . import native
from .eager import EagerEngine
from .engine import Engine
from .native import NativeEngine

ENGINES = ("auto", "native", "eager")


def make_engine(
    name: str,
    vit: FaceViT,
    method: QualityMethod,
    *,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Engine:
    """The engine of that name; ``auto`` is the native one wherever it can be.

    Raises:
        ValueError: ``native`` was asked for, or int8, which no other engine has, and it cannot run
            this model on this device.
    """
    against = native.reason_against(vit, device, dtype)
    if dtype == torch.int8 and (against or name == "eager"):
        against = against or 'not in engine="eager"'
        raise ValueError(f"dtype int8 is the native engine's: {against}; use another dtype")
    if name == "native" and against:
        raise ValueError(f'engine="native" cannot be had: {against}; use "auto" or "eager"')
    kind = EagerEngine if name == "eager" or against else NativeEngine
    return kind(vit, method, device=device, dtype=dtype, **options)
