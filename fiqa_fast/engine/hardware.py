# SPDX-License-Identifier: Apache-2.0
"""Which device and which arithmetic: the automatic choices, and keeping float32 float32."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FLOAT32_PRECISIONS = {"highest": "ieee", "high": "tf32"}


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is the current CUDA device where there is one, else the CPU."""
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from None
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device} was asked for, but torch sees no CUDA device")
        count = torch.cuda.device_count()
        if str(resolved) == "cuda":
            resolved = torch.device("cuda", torch.cuda.current_device())
        elif resolved.index >= count:
            raise ValueError(f"device {device} was asked for, but there are {count} CUDA devices")
    elif resolved.type != "cpu":
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it natively, else float32."""
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
    return DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in capabilities and bool(
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


class _PrecisionGate:
    """Lets callers of one float32 precision in together, and the others wait for them.

    torch's precision settings are process-wide, and a lower one set elsewhere would silently
    change scores. While anyone is inside, the settings are the ones that were asked for; the last
    one out puts back what it found.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._mode = ""
        self._found: list[str] = []

    @staticmethod
    def _settings() -> tuple[Any, ...]:
        backends: Any = torch.backends
        return (
            backends.mkldnn.matmul,
            backends.mkldnn.conv,
            backends.cuda.matmul,
            backends.cudnn.conv,
        )

    @contextlib.contextmanager
    def __call__(self, mode: str) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._inside == 0 or self._mode == mode)
            if self._inside == 0:
                self._mode = mode
                self._found = [s.fp32_precision for s in self._settings()]
                for setting in self._settings():
                    setting.fp32_precision = mode
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                if self._inside == 0:
                    for setting, found in zip(self._settings(), self._found, strict=True):
                        setting.fp32_precision = found
                    self._condition.notify_all()


float32_arithmetic = _PrecisionGate()
