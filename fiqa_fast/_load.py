# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled libraries, once, and keeps the reason where one was not loaded.

`_C` (schemas and CPU) is required. `_C_cuda` is loaded where it was built and torch has CUDA. The
environment variable FIQA_FAST_ISA=baseline|avx2|avx512|avx512_vnni|avx512_bf16|amx forces a level
of the CPU kernels and of the CPU engine; it is read here, when the package is imported, and nowhere
else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

_FOLDER = Path(__file__).resolve().parent

try:
    import fiqa_fast._C as _C
except ImportError as error:
    if any(_FOLDER.glob("_C.*so")):
        raise ImportError(
            f"fiqa_fast: the compiled library _C in {_FOLDER} does not load: {error}. It was built"
            f" for torch >= 2.13 and this is torch {torch.__version__}; if that is not the cause,"
            " install again with `pip install --force-reinstall --no-deps`"
        ) from error
    raise ImportError(
        f"fiqa_fast: there is no compiled library _C in {_FOLDER}. If this is a source tree, run"
        " `pip install .` and start Python elsewhere, or run"
        " `pip install -e . --no-build-isolation`"
    ) from error


class CudaStatus(NamedTuple):
    """Whether the CUDA operators are loaded, and why not (or an empty string)."""

    loaded: bool
    reason: str


def _load_cuda() -> CudaStatus:
    if torch.version.cuda is None:
        return CudaStatus(False, f"this torch ({torch.__version__}) has no CUDA")
    libraries = sorted(_FOLDER.glob("_C_cuda.*so"))
    if not libraries:
        from fiqa_fast._runtime import build_info

        built = build_info()["cuda"]
        return CudaStatus(False, f"fiqa_fast was {built}")
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as error:
        # Kept, shown by `fiqa-fast info`, and raised when an operator is given a CUDA tensor.
        return CudaStatus(False, f"{libraries[0].name} does not load: {error}")
    return CudaStatus(True, "")


def cuda_status() -> CudaStatus:
    """Whether the CUDA operators are loaded, and if not, the reason."""
    return _CUDA_STATUS


def isa() -> str:
    """The active instruction set level: baseline, avx2, avx512, avx512_vnni, avx512_bf16 or amx.

    To the operators' kernels the last three are avx512; what they add is for the engine.
    """
    return _C.isa()


def supported_isas() -> list[str]:
    """The levels that this processor supports, lowest first."""
    return _C.supported_isas()


def set_isa(level: str) -> None:
    """Choose the level of the CPU kernels, for the whole process; scorers that exist keep theirs.

    Raises:
        ValueError: the level is unknown or this processor does not support it.
    """
    _C.set_isa(level)


def _set_isa_from_environment() -> None:
    level = os.environ.get("FIQA_FAST_ISA")
    if not level:
        return
    try:
        set_isa(level)
    except ValueError as error:
        raise ValueError(f"FIQA_FAST_ISA={level}: {error}") from None


_set_isa_from_environment()
_CUDA_STATUS = _load_cuda()
