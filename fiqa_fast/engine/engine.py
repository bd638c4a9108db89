# SPDX-License-Identifier: Apache-2.0
"""What engines have in common: images go through the blocks in groups, and leave rows.

Results are bitwise independent of batching and threads by construction. What an engine computes of
an image does not depend on the group it is in; on the CPU each group is computed by threads that
run torch's operators alone (see :mod:`fiqa_fast.workers`). What is left of an image behind the
blocks is a row of its own in operators that never mix rows.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..hardware import FLOAT32_PRECISIONS, float32_arithmetic, floating
from ..models.casting import cast_linear, drop_key_biases
from ..models.rows import EmbeddingHead
from ..models.vit import FaceViT
from ..quality.method import QualityMethod, Values
from ..workers import run_all

Part = TypeVar("Part", bound=nn.Module)

# Images whose rows are kept at a time: for an embedding, all of an image's tokens.
SLICE = 256


@dataclasses.dataclass
class Observed:
    """What is left of some images behind the blocks."""

    stages: dict[int, Values]
    embedding_rows: Tensor | None

    def first(self, count: int) -> Observed:
        """The first ``count`` images."""
        rows = self.embedding_rows
        stages = {stage: first(count, values) for stage, values in self.stages.items()}
        return Observed(stages, None if rows is None else rows[:count])


class Engine(abc.ABC):
    """Runs ``vit`` for ``method``; with ``embedding`` also the whole model's embedding.

    Only the blocks that the method's stages (or the embedding) need are computed: ``last_stage``.
    What the caller does to the model later does not reach an engine.
    """

    name: str
    note = ""  # why it is not the one that "auto" would rather have

    def __init__(
        self,
        vit: FaceViT,
        method: QualityMethod,
        *,
        embedding: bool,
        device: torch.device,
        dtype: torch.dtype,
        float32_precision: str = "highest",
    ) -> None:
        self.method, self.device, self.dtype = method, device, dtype
        self.head = EmbeddingHead(vit, device, floating(dtype, device)) if embedding else None
        self.last_stage = vit.config.depth if embedding else max(method.stages)
        self.float32_precision = float32_precision
        self.build(vit)

    @abc.abstractmethod
    def build(self, vit: FaceViT) -> None:
        """Make of the caller's model what runs; the last step of construction."""

    def run(self, images: Tensor) -> Values:
        """uint8 RGB [B, 3, S, S], or normalised float32, to results by output name, on the CPU."""
        if len(images) == 0:  # shapes come from the one place that knows them
            one = self.run(images.new_zeros(1, *images.shape[1:]))
            return {name: t[:0] for name, t in one.items()}
        results: list[Values] = []
        with float32_arithmetic(FLOAT32_PRECISIONS[self.float32_precision], self.device.type):
            for part in images.split(SLICE):
                results += self._run_slice(part)
        return {name: _handed_over([part[name] for part in results]) for name in results[0]}

    @abc.abstractmethod
    def split(self, images: Tensor) -> Sequence[Tensor]:
        """The groups of images that go through the blocks together."""

    @abc.abstractmethod
    def observe(self, images: Tensor, threads: int) -> Observed:
        """One group through the blocks. Called in inference mode, from several threads at a time;
        so many of them are there for this group."""

    def _run_slice(self, images: Tensor) -> list[Values]:
        """The results of consecutive shares of the images: as many as there are threads, because
        each reads all weights behind the blocks.

        A share is finished by whoever observes the last of it. The less often work changes hands
        the better: each time it waits for the interpreter, which decoding threads want as well.
        """
        groups = self.split(images)
        threads = max(1, torch.get_num_threads() // len(groups))
        count = min(torch.get_num_threads(), len(groups))
        bounds = [len(groups) * number // count for number in range(count + 1)]
        shares = [range(*pair) for pair in itertools.pairwise(bounds)]
        share_of = [number for number, share in enumerate(shares) for _ in share]
        observed: dict[int, Observed] = {}
        results: dict[int, Values] = {}
        lock = threading.Lock()

        @torch.inference_mode()
        def work(group: int) -> None:
            seen = self.observe(groups[group], threads)
            number = share_of[group]
            share = shares[number]
            with lock:
                observed[group] = seen
                is_last = all(member in observed for member in share)
            if is_last:
                results[number] = self._finish([observed.pop(member) for member in share])

        run_all(work, len(groups))
        return [results[number] for number in range(count)]

    def _finish(self, parts: list[Observed]) -> Values:
        stages = parts[0].stages
        results = self.method.finish(
            {stage: _joined([part.stages[stage] for part in parts]) for stage in stages}
        )
        if self.head is not None:
            rows = [part.embedding_rows for part in parts if part.embedding_rows is not None]
            results["embedding"] = self.head(torch.cat(rows))
        return results


def _handed_over(parts: list[Tensor]) -> Tensor:
    """One tensor of the CPU, joined by NumPy: in torch it would have to be a worker's work."""
    arrays = [part.cpu().numpy() for part in parts]
    return torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def first(count: int, values: Values) -> Values:
    """The first ``count`` images."""
    return {name: value[:count] for name, value in values.items()}


def _joined(parts: list[Values]) -> Values:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def prepared(vit: FaceViT, blocks: int, device: torch.device, dtype: torch.dtype) -> FaceViT:
    """The parts that will run, as :func:`prepared_part` makes them.

    The memo keeps deepcopy from the rest, which can be most of the weights.
    """
    used = set(vit.blocks[:blocks])  # a caller may have put one block in two places
    idle: list[nn.Module] = [block for block in vit.blocks[blocks:] if block not in used]
    idle += [vit.norm, vit.feature]
    memo: dict[int, object] = {id(part): nn.Identity() for part in idle}
    prepared = prepared_part(vit, device, dtype, memo)
    if device.type == "cuda":  # laid out on this thread's stream, and read on others
        torch.cuda.current_stream(device).synchronize()
    return prepared


def prepared_part(
    part: Part,
    device: torch.device,
    dtype: torch.dtype,
    memo: Mapping[int, object] | None = None,
) -> Part:
    """A copy in evaluation mode on ``device``, linear layers in ``dtype`` if that is a floating
    one: neither the caller's later training nor its ``.half()`` reaches a scorer."""
    prepared = (
        copy.deepcopy(part, dict(memo or {})).to(device, torch.float32).eval().requires_grad_(False)
    )
    drop_key_biases(prepared)
    if dtype.is_floating_point:
        cast_linear(prepared, dtype)
    return prepared
