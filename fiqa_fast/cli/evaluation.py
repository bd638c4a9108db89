# SPDX-License-Identifier: Apache-2.0
"""What `fiqa-fast evaluate` and its study `reproduce` share: options, and what is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.options import F, check_outputs, named, rates

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fiqa_fast.evaluate import Comparison, Trials
    from fiqa_fast.evaluate.readers.datasets import Dataset

    Scores = dict[str, npt.NDArray[np.float64]]

__all__ = [
    "MARK",
    "check_outputs",
    "compared",
    "evaluation_options",
    "gather_scores",
    "leave_out",
    "refusing",
    "tell_unscored",
]

# --missing, of scores -> of embeddings
MARK = {"refuse": "refuse", "worst": "mark"}


def evaluation_options(function: F) -> F:
    """Add the options that both commands have."""
    for option in reversed(
        (
            click.option(
                "--scores",
                "score_files",
                multiple=True,
                metavar="[NAME=]FILE",
                help="Quality scores of DATA's images: a table that `fiqa-fast score` wrote, or "
                "lines `path score`. May be given several times.",
            ),
            click.option("--root", metavar="DIR", help="Where the images' relative paths start."),
            click.option(
                "--missing",
                type=click.Choice(list(MARK)),
                default="refuse",
                show_default=True,
                help="Images without a score: stop, or discard them first. Images without an "
                "embedding: stop, or leave them out.",
            ),
            click.option(
                "--fmr",
                default="1e-2,1e-3,1e-4",
                show_default=True,
                callback=rates,
                metavar="RATE,...",
                help="False match rates of the threshold.",
            ),
            click.option(
                "--limit",
                default=0.3,
                show_default=True,
                metavar="SHARE",
                help="Discarded share up to which the partial area is taken.",
            ),
            click.option("--quiet", is_flag=True, help="No progress; warnings and errors only."),
        )
    ):
        function = option(function)
    return function


@contextmanager
def refusing() -> Iterator[None]:
    """Make one line of the ``ValueError`` about an option out of range."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def gather_scores(dataset: Dataset, texts: Iterable[str], missing: str) -> Scores:
    """The scores that the set holds and those of --scores, by name; gaps are told."""
    from fiqa_fast.evaluate.readers.scores import read_scores
    from fiqa_fast.gallery.errors import InputError

    scores = dict(dataset.scores)
    for text in texts:
        name, path = named(text)
        columns = read_scores(path, dataset.paths, missing=missing)
        for column, values in columns.items():
            label = column
            if name is not None:
                label = name if len(columns) == 1 else f"{name}.{column}"
            if label in scores:
                raise InputError(
                    f"--scores {text}: there is a score called {label!r} already; give NAME=FILE"
                )
            scores[label] = values
    for label, values in scores.items():
        tell_unscored(label, dataset, values)
    return scores


def tell_unscored(label: str, dataset: Dataset, values: npt.NDArray[np.float64]) -> str | None:
    """Say, and return, which images have no score, if any."""
    import numpy as np

    gaps = np.flatnonzero(np.isneginf(values))
    if not len(gaps):
        return None
    line = (
        f"{label}: {len(gaps)} of {len(values)} images have no score and are discarded first, "
        f"{dataset.paths[gaps[0]]!r} for one"
    )
    click.echo(f"warning: {line}", err=True)
    return line


def leave_out(
    dataset: Dataset, vectors: npt.NDArray[Any], where: str
) -> tuple[Dataset, npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the images [n] with an embedding, these, and which they are; the others are told."""
    import numpy as np

    there = np.asarray(~np.isnan(vectors).all(1))
    if there.all():
        return dataset, vectors, there
    absent = len(there) - int(np.count_nonzero(there))
    click.echo(f"warning: {where}: {absent} images without an embedding are left out", err=True)
    return dataset.subset(there), vectors[there], there


def compared(trials: Trials, scores: Scores, quiet: bool, **options: Any) -> Comparison:
    """:func:`fiqa_fast.evaluate.compare` with progress, by curves."""
    from fiqa_fast.evaluate import compare
    from fiqa_fast.gallery.progress import choose_progress

    points = sum(
        len(options["fmr"]) + (len(options.get("fnmr", ())) if protocol == "dasec" else 0)
        for protocol in options["protocols"]
    )
    shown = choose_progress(points * len(scores), quiet, False, "curves")
    try:
        with refusing():
            return compare(trials, scores, progress=lambda: shown.update(1), **options)
    finally:
        shown.close()
