# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate reproduce``: from a data set and a checkpoint to the papers' table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.evaluation import (
    MARK,
    compared,
    evaluation_options,
    gather_scores,
    leave_out,
    refusing,
    tell_unscored,
)
from fiqa_fast.cli.options import (
    device_options,
    dtype_option,
    load,
    model_options,
    named,
    quiet_pillow,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fiqa_fast.evaluate import Comparison, Trials
    from fiqa_fast.evaluate.readers.datasets import Dataset
    from fiqa_fast.evaluate.studies.reproduce import Settings

    Scores = dict[str, npt.NDArray[np.float64]]

__all__ = ["command"]


@click.command("reproduce", no_args_is_help=True)
@click.argument("data", metavar="DATA")
@click.option(
    "--embeddings",
    multiple=True,
    required=True,
    metavar="[MATCHER=]FILE|DIR",
    help="A matcher's embeddings, as for `fiqa-fast evaluate`. May be given several times.",
)
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for all results.")
@model_options
@click.option(
    "--gauge",
    default="auto",
    show_default=True,
    metavar="auto|none|PATH",
    help="auto: our calibrated scores as well where the model comes with a gauge.",
)
@dtype_option("float32")
@device_options
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
    help="Images per batch; scores do not depend on it.",
)  # fmt: skip
@click.option(
    "--peer-bgr",
    is_flag=True,
    help="Swap red and blue, as the reference scripts do by default: right for files that their "
    "own extraction wrote channel-swapped, wrong for ordinary images.",
)
@click.option(
    "--every-block",
    is_flag=True,
    help="Median, maximum and the other reductions at every block, not at the last alone.",
)
@click.option(
    "--protocol", default="crfiqa", show_default=True, metavar="NAME", help="As for evaluate."
)
@click.option(
    "--draws", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="Of an identity bootstrap; 0: the papers give no intervals.",
)  # fmt: skip
@evaluation_options
def command(
    data: str,
    embeddings: tuple[str, ...],
    output: str,
    model: str,
    architecture: str | None,
    gauge: str,
    dtype: str,
    device: str,
    threads: int | None,
    batch_size: int,
    peer_bgr: bool,
    every_block: bool,
    protocol: str,
    draws: int,
    score_files: tuple[str, ...],
    root: str | None,
    missing: str,
    fmr: tuple[float, ...],
    limit: float,
    quiet: bool,
) -> None:
    """Score a data set by every method, exit, fusion and reduction, and print the papers' table.

    DATA is what `fiqa-fast evaluate` takes, with its images; the papers' is a folder with
    image_path_list.txt and pair_list.txt. Images that cannot be scored are discarded first. Scores
    are kept in DIR part by part: the same command goes on where it was interrupted, and other
    matchers can be added later. DIR then holds the table (table.md), each matcher's numbers and
    curves (MATCHER.csv, .json, .svg), and each method's scores as lines `path score` (scores/).

    \b
    Examples:
      fiqa-fast evaluate reproduce quality_data/lfw --model vit_s.pt \\
          --embeddings arcface=emb/arcface/lfw -o results/lfw
      fiqa-fast evaluate reproduce crops/ --embeddings emb.npz -o results --protocol fixed-fmr
    """
    quiet_pillow()
    # What can be refused is refused before anything long begins.
    from fiqa_fast.evaluate.compare import check_options
    from fiqa_fast.figures import need_matplotlib

    with refusing():
        check_options([protocol], fmr, (), limit, draws)
    need_matplotlib()
    matchers = _matchers(embeddings)
    folder = _make(Path(output))

    from fiqa_fast.cli.scorer import make_scorer
    from fiqa_fast.evaluate.readers.datasets import open_dataset
    from fiqa_fast.evaluate.studies.reproduce import Settings
    from fiqa_fast.gallery.errors import InputError

    dataset = open_dataset(data, root=root, missing=missing)
    if dataset.items is None:
        raise InputError(f"{data}: wanted images to score, got paths without files; give --root")
    others = gather_scores(dataset, score_files, missing)
    trials = _trials(dataset, matchers, missing)
    loaded = load(model, architecture, threads)
    options = {"gauge": gauge, "dtype": dtype, "device": device}
    scorer, _ = make_scorer(loaded, ["score"], None, options)
    settings = Settings(dtype, device, scorer.gauge, peer_bgr, every_block, batch_size)
    scores = _score(loaded, dataset, folder / "values", settings, quiet)
    notes = _unscored(dataset, scores)
    _write_scores(_make(folder / "scores"), dataset.paths, scores)
    for name in others:
        if name in scores:
            raise InputError(
                f"--scores: {name!r} is a score of this table already; call it NAME=FILE"
            )
    scores.update(others)
    found = {
        name: compared(
            each,
            {label: values[there] for label, values in scores.items()},
            quiet,
            protocols=[protocol],
            fmr=fmr,
            limit=limit,
            draws=draws,
        )
        for name, (each, there) in trials.items()
    }
    _write(folder, dataset.name, found, notes)
    if not quiet:
        click.echo(f"written to {output}", err=True)


def _matchers(texts: Sequence[str]) -> dict[str, str]:
    """Paths of embeddings by the matchers' names, whose files must not be one."""
    matchers: dict[str, str] = {}
    for text in texts:
        name, path = named(text)
        matchers.setdefault(Path(path).stem if name is None else name, path)
    if len(matchers) < len(texts):
        raise click.UsageError("--embeddings: two have one name; give them as NAME=PATH")
    _file_names(matchers)
    return matchers


def _make(folder: Path) -> Path:
    from fiqa_fast.gallery.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot make this folder: {error.strerror}") from error
    return folder


def _trials(
    dataset: Dataset, matchers: Mapping[str, str], missing: str
) -> dict[str, tuple[Trials, npt.NDArray[np.bool_]]]:
    """Each matcher's trials, and of which images [n] they are."""
    from fiqa_fast.evaluate.readers.embeddings import read_embeddings

    trials = {}
    for name, path in matchers.items():
        vectors = read_embeddings(path, dataset.paths, missing=MARK[missing])
        part, vectors, there = leave_out(dataset, vectors, path)
        trials[name] = part.trials(vectors), there
    return trials


def _score(model: Any, dataset: Dataset, folder: Path, settings: Settings, quiet: bool) -> Scores:
    from fiqa_fast.evaluate.studies.reproduce import scores_of_all_methods
    from fiqa_fast.gallery.progress import choose_progress

    assert dataset.items is not None
    with refusing():
        return scores_of_all_methods(
            model,
            dataset.items,
            folder,
            settings,
            lambda left: choose_progress(left, quiet, False),
            lambda shown, line: None if quiet else shown.tell(line),
        )


def _unscored(dataset: Dataset, scores: Scores) -> list[str]:
    """Say which images lack a score: once for those that lack all of them."""
    import numpy as np

    nowhere = np.logical_and.reduce([np.isneginf(values) for values in scores.values()])
    lines = [tell_unscored("all scores", dataset, np.where(nowhere, -np.inf, 0))]
    for name, values in scores.items():
        lines.append(tell_unscored(name, dataset, np.where(nowhere, 0, values)))
    return [line for line in lines if line is not None]


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name without suffix for each matcher or method, no two alike."""
    files: dict[str, str] = {}
    for name in names:
        file = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "unnamed"
        if file in files:
            raise click.UsageError(
                f"{files[file]!r} and {name!r} would both be called {file}: give them other names"
            )
        files[file] = name
    return {name: file for file, name in files.items()}


def _write_scores(folder: Path, paths: Sequence[str], scores: Scores) -> None:
    """As `fiqa-fast score` writes lines `path score`: nan is no score."""
    import numpy as np

    from fiqa_fast.gallery.atomic import write_atomically
    from fiqa_fast.gallery.sinks import text_key

    keys = [text_key(path) for path in paths]
    for name, file in _file_names(scores).items():
        values = np.where(np.isneginf(scores[name]), np.nan, scores[name]).tolist()
        lines = (f"{key} {value!r}\n" for key, value in zip(keys, values, strict=True))
        write_atomically(folder / f"{file}.txt", "".join(lines).encode())


def _write(folder: Path, title: str, found: Mapping[str, Comparison], notes: Sequence[str]) -> None:
    """Print and write the table, numbers and curves."""
    from fiqa_fast import figures
    from fiqa_fast.evaluate import plots, report
    from fiqa_fast.evaluate.studies.papers import papers_markdown, papers_text
    from fiqa_fast.gallery.atomic import write_atomically

    files = _file_names(found)
    for name, comparison in found.items():
        click.echo(f"{name}: {papers_text(comparison)}\n")
        for line in comparison.warnings:
            click.echo(f"warning: {name}: {line}", err=True)
        for suffix in (".csv", ".json"):
            report.write_report(comparison, str(folder / f"{files[name]}{suffix}"))
        figures.save_figure(plots.plot_curves(comparison), str(folder / f"{files[name]}.svg"))
    write_atomically(folder / "table.md", papers_markdown(found, title, notes).encode())
