# SPDX-License-Identifier: Apache-2.0
"""All engines that can be raced, ours first."""

from __future__ import annotations

from collections.abc import Callable

from ...scorer import Scorer
from ..entries import Entry
from ..subject import Subject
from . import compiled, eager, onnxruntime, openvino, ours
from .exports import Exports

__all__ = ["entries_of"]


def entries_of(
    subject: Subject,
    dtype: str,
    exports: Exports,
    scorer_of: Callable[[str], Scorer],
    peers: bool,
) -> list[Entry]:
    """Everyone who computes in this arithmetic, or is asked to."""
    found = ours.entries(dtype, scorer_of) + eager.entries(subject, dtype)
    if peers:
        found += compiled.entries(subject, dtype)
        found += onnxruntime.entries(exports, dtype)
        found += openvino.entries(exports, dtype)
    return found
