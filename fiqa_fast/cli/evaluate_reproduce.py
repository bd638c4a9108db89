# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate reproduce``: from a data set and a checkpoint to the papers' table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fiqa_fast.cli.options import load, model_options, named, quiet_pillow, rates

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fiqa_fast.gallery.progress import Progress

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
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Arithmetic of the model.",
)
@click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N",
    help="Where to compute.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@click.option("--root", metavar="DIR", help="Where the images' relative paths start.")
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
    "--fmr", default="1e-2,1e-3,1e-4", show_default=True, callback=rates, metavar="RATE,...",
    help="False match rates of the threshold.",
)  # fmt: skip
@click.option(
    "--limit", default=0.3, show_default=True, metavar="SHARE",
    help="Discarded share up to which the partial area is taken.",
)  # fmt: skip
@click.option(
    "--draws", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="Of an identity bootstrap; 0: the papers give no intervals.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress; warnings and errors only.")
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
    root: str | None,
    peer_bgr: bool,
    every_block: bool,
    protocol: str,
    fmr: tuple[float, ...],
    limit: float,
    draws: int,
    quiet: bool,
) -> None:
    """Score a data set by every method, exit, fusion and reduction, and print the papers' table.

    DATA is what `fiqa-fast evaluate` takes, with its images; the papers' is a folder with
    image_path_list.txt and pair_list.txt. Scores are kept in DIR part by part: the same command
    goes on where it was interrupted, and other matchers can be added later. DIR then holds the
    table (table.md, table.csv), the curves and the scores of every method as lines `path score`.

    \b
    Examples:
      fiqa-fast evaluate reproduce quality_data/lfw --model vit_s.pt \\
          --embeddings arcface=emb/arcface/lfw -o results/lfw
      fiqa-fast evaluate reproduce crops/ --embeddings emb.npz -o results --protocol fixed-fmr
    """
    quiet_pillow()
    from fiqa_fast import evaluate, figures
    from fiqa_fast.evaluate import plots, report
    from fiqa_fast.evaluate.datasets import open_dataset
    from fiqa_fast.evaluate.embeddings import read_embeddings
    from fiqa_fast.evaluate.papers import papers_markdown, papers_text
    from fiqa_fast.evaluate.reproduce import Settings, scores_of_all_methods
    from fiqa_fast.gallery.atomic import write_atomically
    from fiqa_fast.gallery.errors import InputError, OutputError
    from fiqa_fast.gallery.progress import choose_progress

    if protocol not in evaluate.PROTOCOLS:
        raise click.BadParameter(
            f"wanted one of {', '.join(evaluate.PROTOCOLS)}, got {protocol!r}",
            param_hint="--protocol",
        )
    dataset = open_dataset(data, root=root)
    if dataset.items is None:
        raise InputError(f"{data}: wanted images to score, got paths without files; give --root")
    trials = {}
    for text in embeddings:
        name, path = named(text)
        name = Path(path).stem if name is None else name
        if name in trials:
            raise InputError(f"--embeddings: {name} is given twice; name them NAME=PATH")
        trials[name] = dataset.trials(read_embeddings(path, dataset.paths))
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror}") from error
    loaded = load(model, architecture)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    settings = Settings(
        dtype=dtype,
        device=device,
        gauge=None if gauge == "none" else gauge,
        peer_bgr=peer_bgr,
        every_block=every_block,
    )

    def progress(name: str, left: int) -> Progress:
        if left and not quiet:
            click.echo(f"{name}: {left} images to score", err=True)
        return choose_progress(left, quiet, False)

    scores = scores_of_all_methods(loaded, dataset.items, folder / "values", settings, progress)
    _write_scores(folder / "scores", dataset.paths, scores)
    scores = {**scores, **dataset.scores}  # others' scores that the set itself holds
    found = {
        name: evaluate.compare(
            each, scores, protocols=[protocol], fmr=fmr, limit=limit, draws=draws
        )
        for name, each in trials.items()
    }
    for name, comparison in found.items():
        click.echo(f"{name}, {protocol}: pAUC to {limit:g}, x 1e3\n{papers_text(comparison)}\n")
        for line in comparison.warnings:
            click.echo(f"warning: {name}: {line}", err=True)
        report.write_report(comparison, str(folder / f"{safe(name)}.csv"))
        report.write_report(comparison, str(folder / f"{safe(name)}.json"))
        figures.save_figure(plots.plot_curves(comparison), str(folder / f"{safe(name)}.svg"))
    write_atomically(folder / "table.md", papers_markdown(found, dataset.name).encode())
    if not quiet:
        click.echo(f"written to {output}", err=True)


def safe(name: str) -> str:
    """A file name for a matcher or method."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.") or "unnamed"


def _write_scores(
    folder: Path, paths: list[str], scores: dict[str, npt.NDArray[np.float64]]
) -> None:
    from fiqa_fast.gallery.atomic import write_atomically

    folder.mkdir(exist_ok=True)
    for name, values in scores.items():
        lines = (f"{path} {value:.9g}\n" for path, value in zip(paths, values, strict=True))
        write_atomically(folder / f"{safe(name)}.txt", "".join(lines).encode())
