# SPDX-License-Identifier: Apache-2.0
"""Who can be raced: one small object per engine, graph, arithmetic and number of streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["PEERS_HINT", "Absent", "Entry", "Ready", "Run"]

PEERS_HINT = "pip install 'fiqa_fast[peers]'"

Run = Callable[[Tensor], Tensor]  # uint8 RGB [B, 3, S, S] -> float32 scores [B]

# A reason is a line of a report, not a traceback.
_LONGEST_REASON = 300


class Absent(Exception):  # noqa: N818 - not an error
    """An engine cannot be had here, or not like this; the text says why, in one line."""

    def __init__(self, reason: object) -> None:
        text = " ".join(str(reason).split())
        super().__init__(text[:_LONGEST_REASON])


@dataclass
class Ready:
    """An engine that is prepared for one batch size.

    Attributes:
        run: computes the scores of one batch.
        executes: the arithmetic that the engine says it computes in.
        facts: what else is to be known of it, JSON-able.
    """

    run: Run
    executes: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        engine: fiqa_fast, eager, torch.compile, onnxruntime, openvino.
        graph: what it computes: ours, published or factorised.
        dtype: the arithmetic that is asked for.
        prepare: called with a batch size; raises :class:`Absent`.
        streams: how many parts of a batch are computed side by side.
    """

    engine: str
    graph: str
    dtype: str
    prepare: Callable[[int], Ready]
    streams: int = 1

    @property
    def name(self) -> str:
        """The engine and what it computes, without the arithmetic."""
        if self.graph == "ours":
            return self.engine
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        return f"{self.engine} {self.graph}{streams}"

    @property
    def key(self) -> str:
        """Different for every entry of a race."""
        return f"{self.name}, {self.dtype}"
