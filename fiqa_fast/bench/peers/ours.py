# SPDX-License-Identifier: Apache-2.0
"""Our own engine, as :class:`fiqa_fast.Scorer` runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ... import _load
from ...engine.native import TILE_ROWS, NativeEngine
from ...scorer import Scorer
from ..entries import Entry, Ready

__all__ = ["entries"]


def entries(dtype: str, scorer_of: Callable[[str], Scorer]) -> list[Entry]:
    """The one scorer, whatever the batch size."""

    def prepare(batch_size: int) -> Ready:
        scorer = scorer_of(dtype)

        def run(pixels: Tensor) -> Tensor:
            score = scorer(pixels).score
            assert score is not None
            return score

        facts = {"engine": scorer.engine, "isa": _load.isa(), **_memory(scorer)}
        return Ready(run, _executes(scorer), facts)

    return [Entry("fiqa_fast", "ours", dtype, prepare)]


def _executes(scorer: Scorer) -> str:
    dtype = str(scorer.dtype).removeprefix("torch.")
    below = scorer.engine == "native" and _load.isa() not in ("avx512_bf16", "amx")
    return "float32" if below and dtype == "bfloat16" else dtype


def _memory(scorer: Scorer) -> dict[str, Any]:
    """Bytes of the native engine: all weights, once, and what a pass by one thread needs."""
    engine = scorer._engine
    if not isinstance(engine, NativeEngine):
        return {}
    network, images = engine.network, engine.max_images
    rows = -(-images * engine.tokens // TILE_ROWS) * TILE_ROWS
    stream = rows * network.stride * 4
    work = network.own_bytes + network.shared_bytes + stream
    return {
        "weight_bytes": network.weight_bytes,
        "images_per_pass": images,
        "bytes_per_pass": work,
        "bytes_per_image_in_flight": work // images,
    }
