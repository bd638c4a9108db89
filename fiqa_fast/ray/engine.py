# SPDX-License-Identifier: Apache-2.0
"""A gallery scored by a Ray cluster, into the same store as by one machine.

    slices -> [read tasks] -> small tables -> [actors] -> scores -> store, on this machine

Ray starts dead tasks and actors again; the store keeps what has arrived, should this process die.
Places tell the order of rows, whoever computed them and whenever they came.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from fiqa_fast.gallery.progress import Progress
from fiqa_fast.gallery.runner import Summary
from fiqa_fast.gallery.shares import Share, numbered
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.gallery.sources import Source, damages, skipped
from fiqa_fast.gallery.store import Store, this_build
from fiqa_fast.ray.actor import RESIZED, Recipe, ScoreActor
from fiqa_fast.ray.cluster import in_one_line
from fiqa_fast.ray.dataset import pool
from fiqa_fast.ray.slices import NOTE, TABLE_BYTES, Gallery, note_of, slices_of

__all__ = ["Engine", "Outcome"]

Outcome = tuple[Summary, list[str], int]  # what was done, what is damaged, what was passed over


@dataclass(frozen=True)
class Engine:
    """Actors of one kind on a cluster.

    Attributes:
        ray: the module, connected.
        recipe: of the scorer that each actor makes.
        actors: how many; None: one per GPU, or per ``num_cpus`` of the cluster.
        num_cpus: of each actor.
        num_gpus: of each actor.
    """

    ray: Any
    recipe: Recipe
    actors: int | None
    num_cpus: float
    num_gpus: float

    def describe(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what an actor says of its scorer, and of the machine that it is on.

        Raises :class:`InputError` and the like where an actor cannot be made.
        """
        ask = self.ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus)(_describe)
        with in_one_line():
            facts, build = self.ray.get(ask.remote(self.recipe))
        return facts, build

    def score(
        self,
        store: Store,
        share: Share,
        sources: Sequence[Source],
        inputs: Sequence[str],
        root: str | None,
        progress: Progress,
        *,
        batch_size: int = 32,
        on_error: Callable[[str, str], None] | None = None,
    ) -> Outcome:
        """Score what has no row yet, put the output in its place, and say what was done.

        Raises what reading, scoring and storing raise; all finished rows are kept then. An actor
        whose scorer is not the one that ``store`` is for is refused.
        """
        start = time.perf_counter()
        summary = Summary()
        damaged: dict[str, None] = {}
        passed = 0
        try:
            actors = self.actors or self._room()
            slices = slices_of(sources, share, 2 * actors)
            damaged.update(dict.fromkeys(damages(sources)))
            passed = skipped(sources)
            done = store.done.digests() if store.kept else None
            gallery = Gallery(
                slices, list(inputs), root, os.getcwd(), done, store.layout.format.table.key
            )
            recipe = replace(self.recipe, expected=store.record.settings)
            with in_one_line():
                for table in self._tables(gallery, recipe, actors, batch_size):
                    places = table.column("place").to_numpy()
                    for key in table.filter(places == NOTE).column("key").to_pylist():
                        note = note_of(key)
                        damaged.update(dict.fromkeys(note["damaged"]))
                        passed += note["passed"]
                    table = table.filter(places != NOTE)
                    rows = _rows(table)
                    store.add(rows, table.column("place").to_pylist())
                    _count(summary, rows, table.column(RESIZED).to_numpy())
                    if on_error is not None:
                        for i in np.flatnonzero(rows.failed):
                            on_error(rows.keys[i], rows.errors[i] or "")
                    progress.update(len(rows))
            if store.kept:  # no task sees all of the gallery, so none knows what has vanished
                for _ in store.done.leave_out(numbered(sources, share)):
                    pass
            store.commit()
        except BaseException:
            store.abort()
            raise
        finally:
            progress.close()
        summary.seconds = time.perf_counter() - start
        return summary, list(damaged), passed

    def _room(self) -> int:
        """How many actors the cluster has room for now."""
        resources = self.ray.cluster_resources()
        room = resources.get("CPU", 1) / self.num_cpus
        if self.num_gpus:
            room = min(room, resources.get("GPU", 0) / self.num_gpus)
        return max(1, int(room))

    def _tables(self, gallery: Gallery, recipe: Recipe, actors: int, batch_size: int) -> Any:
        """Yield tables of results as they come."""
        data = self.ray.data
        count = len(gallery.slices)
        read = partial(_read, self.ray.put(gallery))
        tasks = data.from_items([{"slice": i} for i in range(count)], override_num_blocks=count)
        context = tasks.context
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = TABLE_BYTES
        tables = tasks.map_batches(
            read,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=0,  # actors may have them all, and readers wait for disks
            compute=data.TaskPoolStrategy(size=max(2, actors)),
        )
        scored = tables.map_batches(
            GalleryActor,
            batch_size=None,
            batch_format="pyarrow",
            compute=pool(actors),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus or None,
            fn_constructor_args=(recipe, replace(gallery, slices=(), done=None), batch_size),
        )
        return scored.iter_batches(batch_size=None, batch_format="pyarrow")


class GalleryActor(ScoreActor):
    """An actor that tells images that cannot be read from a gallery that has vanished."""

    def __init__(self, recipe: Recipe, gallery: Gallery, batch_size: int) -> None:
        self._presence = gallery.enter()
        super().__init__(
            recipe, "image", os.getcwd(), keep_image=False, batch_size=batch_size, tell_resized=True
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        result = super().__call__(table)
        if result.column("error").null_count < len(result):
            self._presence.check()
        return result


def _describe(recipe: Recipe) -> tuple[dict[str, Any], dict[str, str]]:
    scorer = recipe.scorer()
    return scorer.describe(), this_build(scorer.device.type, scorer.engine_note)


def _read(gallery: Any, numbers: pa.Table) -> Any:
    import ray

    for number in numbers.column("slice").to_pylist():
        yield from ray.get(gallery).read(number)


def _rows(table: pa.Table) -> Rows:
    score = table.column("score").to_numpy().astype(np.float32)
    known = ("place", "key", "score", "error", RESIZED)
    columns = {
        name: np.concatenate([chunk.to_numpy() for chunk in table.column(name).chunks])
        for name in table.column_names
        if name not in known and len(table)
    }
    return Rows(table.column("key").to_pylist(), table.column("error").to_pylist(), score, columns)


def _count(summary: Summary, rows: Rows, resized: Any) -> None:
    summary.images += len(rows)
    summary.failed += int(np.count_nonzero(rows.failed))
    summary.resized += int(np.count_nonzero(resized))
    summary.reduced += int(np.count_nonzero(resized == 2))
    summary.statistics.add(rows.score[~rows.failed])
