# SPDX-License-Identifier: Apache-2.0
"""Where ``fiqa-fast score`` writes: the terminal, a pipe, a table, or one part of a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fiqa_fast.gallery.processes import Worker
    from fiqa_fast.gallery.shares import Share
    from fiqa_fast.gallery.sinks import Layout, Rows, Sink
    from fiqa_fast.gallery.sources import Item, Source
    from fiqa_fast.gallery.store import Store, WorkerStore

__all__ = ["Output", "output_options"]

F = TypeVar("F", bound=Callable[..., Any])


def output_options(function: F) -> F:
    """Add the options that say where rows go, and how a run goes on."""
    for option in reversed(
        (
            click.option(
                "-o",
                "--output",
                metavar="FILE|DIR/|-",
                help="Table to write: .parquet, .csv, .jsonl or .txt; a folder for a Parquet "
                "table in parts; - for standard output. Without it, scores go to the terminal.",
            ),
            click.option(
                "--format",
                type=click.Choice(["csv", "jsonl", "txt"]),
                default="csv",
                show_default=True,
                help="What -o - writes.",
            ),
            click.option(
                "--vectors",
                type=click.Choice(["auto", "columns", "npy"]),
                default="auto",
                show_default=True,
                help="Where embeddings and maps go: columns of the table, or arrays beside it "
                "(scores.embedding.npy, row by row); auto: columns where the table has them.",
            ),
            click.option(
                "--vectors-dtype",
                type=click.Choice(["float32", "float16"]),
                default="float32",
                show_default=True,
                help="Of embeddings and maps in the output.",
            ),
            click.option(
                "--overwrite",
                is_flag=True,
                help="Replace a table that is there, once the new one is complete.",
            ),
            click.option(
                "--retry-errors",
                is_flag=True,
                help="Score rows again that have an error, say after a disk has come back.",
            ),
            click.option(
                "--save-every",
                type=click.FloatRange(min=0),
                default=30.0,
                show_default=True,
                metavar="SECONDS",
                help="How much work a kill may cost.",
            ),
            click.option(
                "--shard",
                metavar="I/N",
                help="Score share I of N, counted from 0, into -o DIR/. Under torchrun, the "
                "rank and the world size are taken.",
            ),
            click.option(
                "--processes",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                metavar="N",
                help="Worker processes, each with a GPU of its own where there are any.",
            ),
        )
    ):
        function = option(function)
    return function


@dataclass
class Output:
    """What the options say of the output, checked before any work."""

    target: str | None  # as given
    format: str
    outputs: Sequence[str]
    layout: Layout | None  # of a table or a part of one
    folder: str | None  # of the parts
    shard: tuple[int, int]
    overwrite: bool
    retry_errors: bool
    save_seconds: float
    vectors: str
    dtype: str
    share: Share = field(init=False)

    def __post_init__(self) -> None:
        from fiqa_fast.gallery.shares import Share

        self.share = Share(*self.shard)

    @staticmethod
    def plan(options: dict[str, Any], outputs: Sequence[str]) -> Output:
        """Take the output's options from ``options``. Raises :class:`OutputError`."""
        from fiqa_fast.gallery.dataset import is_dataset, part_path
        from fiqa_fast.gallery.errors import OutputError
        from fiqa_fast.gallery.shares import from_environment, parse_share
        from fiqa_fast.gallery.sinks import open_pipe, plan_output

        target, vectors, dtype = (
            options.pop(name) for name in ("output", "vectors", "vectors_dtype")
        )
        text = options.pop("shard")
        ranks = from_environment() if text is None else None
        shard = parse_share(text) if text is not None else ranks[:2] if ranks else (0, 1)
        layout = folder = None
        if target == "-":
            open_pipe(options["format"], outputs)
        elif target is None:
            names = [name for name in outputs if name != "score"]
            if names:
                raise OutputError(
                    f"the terminal cannot hold {', '.join(names)}: use -o with a .parquet or "
                    ".jsonl file"
                )
        elif is_dataset(target):
            folder = os.path.realpath(target)
            _make(folder, target)
            layout = plan_output(part_path(folder, *shard), outputs, vectors, dtype)
        else:
            if shard[1] > 1:
                raise OutputError(
                    f"{target}: wanted a folder (-o DIR/), where every share writes a part of its "
                    "own"
                )
            layout = plan_output(target, outputs, vectors, dtype)
        return Output(
            target=target,
            format=options.pop("format"),
            outputs=outputs,
            layout=layout,
            folder=folder,
            shard=shard,
            overwrite=options.pop("overwrite"),
            retry_errors=options.pop("retry_errors"),
            save_seconds=options.pop("save_every"),
            vectors=vectors,
            dtype=dtype,
        )

    @property
    def paths(self) -> list[str]:
        """What sources must not take for images."""
        if self.folder is not None:
            return [self.folder]
        return [] if self.layout is None else self.layout.files()

    @property
    def shows_scores(self) -> bool:
        """Whether rows go to standard output."""
        return self.layout is None

    @property
    def holds_errors(self) -> bool:
        """Whether the table has a place for the texts of error rows."""
        if self.layout is not None:
            return self.layout.format.errors
        return self.target is not None and self.format != "txt"

    def open(
        self,
        settings: Mapping[str, Any],
        inputs: Sequence[str],
        root: str | None,
        sources: Sequence[Source],
        worker: Worker | None = None,
        build: Mapping[str, str] | None = None,
    ) -> Destination:
        """Open it; ``build`` is what computes, where that is not this process.

        Raises :class:`OutputError` where what is there is of other settings.
        """
        from fiqa_fast.gallery.sinks import TerminalSink, open_pipe

        if self.layout is None:
            sink = TerminalSink() if self.target is None else open_pipe(self.format, self.outputs)
            return Destination(sink, self.share)
        from fiqa_fast.gallery.sources.presence import Presence
        from fiqa_fast.gallery.store import Store, this_build

        settings = {
            **settings,
            "inputs": [os.path.abspath(path) if path != "-" else path for path in inputs],
            "root": None if root is None else os.path.abspath(root),
            "vectors_dtype": self.dtype,
            "arrays": list(self.layout.arrays),
        }
        if self.folder is not None:
            from fiqa_fast.gallery import dataset, shares

            self.share = dataset.join(
                self.folder,
                *self.shard,
                settings,
                shares.containers(sources) if self.shard[1] > 1 else [],
                self.overwrite,
            )
            settings["share"] = vars(self.share)
        if worker is not None:
            return self._open_part(worker, sources, Presence(inputs, root).check)
        store = Store(
            self.layout,
            settings,
            build=this_build(str(settings["device"])) if build is None else build,
            overwrite=self.overwrite,
            retry_errors=self.retry_errors,
            save_seconds=self.save_seconds,
            guard=Presence(inputs, root).check,
        )
        return Destination(store, self.share, store, self.target)

    def _open_part(
        self, worker: Worker, sources: Sequence[Source], guard: Callable[[], None]
    ) -> Destination:
        """Open what a worker process has of a table that its parent holds."""
        from fiqa_fast.gallery.errors import InputError
        from fiqa_fast.gallery.shares import Share, containers, fingerprint
        from fiqa_fast.gallery.store import WorkerStore

        share = self.share
        if worker.plan:
            if fingerprint(containers(sources)) != worker.plan:
                raise InputError(
                    "the inputs have other containers than when the run was started, so that "
                    "workers would not agree whose is which; run the same command again"
                )
            share = Share(by="containers")
        assert self.layout is not None
        store = WorkerStore(
            self.layout,
            worker.start,
            worker.index,
            save_seconds=self.save_seconds,
            guard=guard,
            tell=lambda rows: worker.report(
                scores=rows.score[~rows.failed].tolist(), failed=int(rows.failed.sum())
            ),
        )
        return Destination(store, share.part(worker.index, worker.count))


@dataclass
class Destination:
    """An open output: a sink, and the items that it still wants."""

    sink: Sink | WorkerStore
    share: Share
    store: Store | None = None
    name: str | None = None

    def items(self, sources: Iterable[Source]) -> Iterator[Item]:
        """Yield the items without a row."""
        from fiqa_fast.gallery.shares import numbered

        items = numbered(sources, self.share)
        pending = getattr(self.sink, "pending", None)
        return (item for _, item in items) if pending is None else pending(items)

    @property
    def kept(self) -> int:
        """Rows that were there before."""
        return 0 if self.store is None else self.store.kept

    @property
    def failed(self) -> int:
        """Those of them without a score."""
        return 0 if self.store is None else self.store.failed

    @property
    def stored(self) -> int:
        """Rows that are there now, on disk."""
        return 0 if self.store is None else self.store.stored()

    def write(self, rows: Rows) -> None:
        """Append rows."""
        self.sink.write(rows)

    def commit(self) -> None:
        """Finish the output."""
        self.sink.commit()

    def abort(self) -> None:
        """Keep what can be kept."""
        self.sink.abort()

    def remarks(self) -> list[str]:
        """Say what became of the output."""
        if self.store is None:
            return []
        from fiqa_fast.gallery.sinks import text_key

        lines = []
        done = self.store.done
        if done.vanished:
            more = ", ..." if done.vanished > len(done.examples) else ""
            lines.append(
                f"{done.vanished} rows are of images that the gallery does not have any more "
                f"({', '.join(map(text_key, done.examples))}{more}); they are kept, but for those "
                "with an error where --retry-errors is given"
            )
        builds = self.store.record.builds
        if len(builds) > 1:
            lines.append(
                f"rows come from {len(builds)} different builds or machines, which may round "
                "differently: " + "; ".join(", ".join(build.values()) for build in builds)
            )
        lines.append(f"written to {self.name}")
        return lines


def _make(folder: str, name: str) -> None:
    from fiqa_fast.gallery.errors import OutputError

    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{name}: {error.strerror}") from error
