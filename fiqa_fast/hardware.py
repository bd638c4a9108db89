# SPDX-License-Identifier: Apache-2.0
"""Which device and which arithmetic: the automatic choices, and keeping float32 float32."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from . import _load

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
FLOAT32_PRECISIONS = {"highest": "ieee", "high": "tf32"}


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is the current CUDA device where there is one, else the CPU."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but torch sees no CUDA device")
        count = torch.cuda.device_count()
        if str(resolved) == "cuda":
            resolved = torch.device("cuda", torch.cuda.current_device())
        elif resolved.index >= count:
            raise ValueError(f"device {device} was asked for, but there are {count} CUDA devices")
    elif str(resolved) != "cpu":
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it faster, else float32; never int8.

    On a CPU that is at the levels avx512_bf16 and amx, as chosen or forced.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[name]


def floating(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of what is not computed in integers where the blocks are."""
    return dtype if dtype.is_floating_point else resolve_dtype("auto", device)


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return _load.isa() in ("avx512_bf16", "amx")


# What lets a GPU sum the products of narrow numbers in narrow ones. None of it is float32.
NARROW_SUMS = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


class _PrecisionGate:
    """Lets callers of one float32 precision in together, and the others wait for their turn.

    torch's precision settings are process-wide, and a lower one set elsewhere would silently
    change scores. While anyone is inside, the settings are the ones that were asked for, and a
    GPU's sums of narrow products are float32; the last one out puts back what it found.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()  # in order of arrival: nobody waits for ever
        self._inside = 0
        self._mode = ("", "")
        self._found: list[tuple[Any, str, Any]] = []

    @contextlib.contextmanager
    def __call__(self, precision: str, device: str = "cpu") -> Iterator[None]:
        """``precision`` is torch's name for it, ieee or tf32; ``device`` is cpu or cuda."""
        ticket, mode = object(), (precision, device)
        with self._condition:
            self._waiting.append(ticket)
            try:
                self._condition.wait_for(
                    lambda: self._waiting[0] is ticket and (not self._inside or self._mode == mode)
                )
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()
            if self._inside == 0:
                self._mode = mode
                self._set(precision, device)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                if self._inside == 0:
                    self.restore()
                    self._condition.notify_all()

    def _set(self, precision: str, device: str) -> None:
        backends: Any = torch.backends
        if device == "cpu":
            # "none" follows the setting above it: what may have been inherited stays so.
            above = backends.mkldnn.fp32_precision
            for setting in (backends.mkldnn.matmul, backends.mkldnn.conv):
                found = setting.fp32_precision
                inherited = "none" if found == above else found
                self._set_one(setting, "fp32_precision", precision, inherited)
        else:  # torch refuses to tell its older settings while the two of cuDNN differ
            matmul = backends.cuda.matmul
            for setting in (matmul, backends.cudnn.conv, backends.cudnn.rnn):
                self._set_one(setting, "fp32_precision", precision, setting.fp32_precision)
            for name in NARROW_SUMS:
                self._set_one(matmul, name, False, getattr(matmul, name))

    def _set_one(self, setting: Any, name: str, value: Any, found: Any) -> None:
        if getattr(setting, name) != value:
            self._found.append((setting, name, found))
            setattr(setting, name, value)

    def restore(self) -> None:
        """Put back the settings that were found."""
        while self._found:
            setattr(*self._found.pop())


float32_arithmetic = _PrecisionGate()


def _start_anew() -> None:
    """Threads that were inside do not survive a fork: the child begins with an empty gate."""
    float32_arithmetic.restore()
    float32_arithmetic.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
