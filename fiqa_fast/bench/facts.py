# SPDX-License-Identifier: Apache-2.0
"""What a figure depends on: the machine, and the versions of what computed it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .. import _load
from .._runtime import cpu_features
from ..cores import cores, cpu_name

__all__ = ["machine", "versions"]

_PACKAGES = ("fiqa_fast", "torch", "numpy", "openvino", "onnxruntime", "onnx", "onnxscript")


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, what it can do, and the device where that is another."""
    facts: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": cores(),
        "isa": _load.isa(),
        "features": [name for name, present in cpu_features().items() if present],
        "memory_gb": _memory(),
        "platform": platform.platform(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None


def versions() -> dict[str, str]:
    """Of Python and of every package that may take part and is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
