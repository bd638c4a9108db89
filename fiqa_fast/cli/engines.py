# SPDX-License-Identifier: Apache-2.0
"""Who computes the rows of ``fiqa-fast score``: this process, workers of its own, or a cluster.

Each says what decides its values (``facts``) and, where that is not this process, what computes
them (``build``), and scores what an open output still wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fiqa_fast.cli.spreading import spread

if TYPE_CHECKING:
    from fiqa_fast.cli.output import Destination
    from fiqa_fast.gallery.progress import Progress
    from fiqa_fast.gallery.runner import Summary
    from fiqa_fast.gallery.sources import Source
    from fiqa_fast.ray.engine import Engine
    from fiqa_fast.reading import Reading
    from fiqa_fast.scorer import Scorer

__all__ = ["Cluster", "Local", "Outcome", "Processes"]

# While a GPU computes one batch, the next is brought there.
_CALLS_ON_A_GPU = 2

Tell = Callable[[str, str], None] | None  # hears of rows with an error
Outcome = tuple["Summary", list[str], int]  # what was done, what is damaged, what was passed over


@dataclass
class Local:
    """This process."""

    scorer: Scorer
    reading: Reading
    outputs: Sequence[str]
    batch_size: int
    workers: int | None
    by_turns: bool  # decode and score
    build: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.scorer.engine_note:
            from fiqa_fast.gallery.store import this_build

            self.build = this_build(self.scorer.device.type, self.scorer.engine_note)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the values."""
        return {**self.scorer.describe(), "reading": self.reading.describe()}

    def score(
        self, sink: Destination, sources: Sequence[Source], progress: Progress, tell: Tell
    ) -> Outcome:
        """Score what has no row and finish the output."""
        from fiqa_fast.gallery.runner import run
        from fiqa_fast.gallery.sources import damages, skipped

        summary = run(
            sink.items(sources),
            self.scorer,
            sink,
            reading=self.reading,
            outputs=self.outputs,
            batch_size=self.batch_size,
            workers=self.workers,
            by_turns=self.by_turns,
            calls=1 if self.scorer.device.type == "cpu" else _CALLS_ON_A_GPU,
            progress=progress,
            on_error=tell,
        )
        return summary, damages(sources), skipped(sources)


@dataclass
class Processes:
    """Worker processes, each of which is the command with these arguments once more."""

    local: Local
    args: Sequence[str]
    count: int

    @property
    def build(self) -> dict[str, str] | None:
        """What computes them."""
        return self.local.build

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the values."""
        return self.local.facts

    def score(
        self, sink: Destination, sources: Sequence[Source], progress: Progress, tell: Tell
    ) -> Outcome:
        """Score what has no row and finish the output; workers tell of errors themselves."""
        return spread(self.args, self.count, sink, sources, progress)


@dataclass
class Cluster:
    """Actors on a Ray cluster; the first of them says what it computes."""

    remote: Engine
    reading: Reading
    inputs: Sequence[str]
    root: str | None
    batch_size: int
    facts: dict[str, Any] = field(init=False)
    build: dict[str, str] | None = field(init=False)

    def __post_init__(self) -> None:
        facts, self.build = self.remote.describe()
        self.facts = {**facts, "reading": self.reading.describe()}

    def score(
        self, sink: Destination, sources: Sequence[Source], progress: Progress, tell: Tell
    ) -> Outcome:
        """Score what has no row and finish the output."""
        assert sink.store is not None  # checked before: there is a table to write
        return self.remote.score(
            sink.store,
            sink.share,
            sources,
            self.inputs,
            self.root,
            progress,
            batch_size=self.batch_size,
            on_error=tell,
        )
