# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score``: a gallery in, a table out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.errors import STRICT
from fiqa_fast.cli.group import version
from fiqa_fast.cli.options import (
    OUTPUTS,
    gallery_options,
    load,
    model_options,
    parse_outputs,
    quiet_pillow,
    scorer_options,
    split,
)

if TYPE_CHECKING:
    from fiqa_fast.gallery.runner import Summary
    from fiqa_fast.gallery.sources import Source

__all__ = ["command"]


@click.command("score", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Table to write: .parquet, .csv, .jsonl or .txt. Without it, scores go to the terminal.",
)
@click.option(
    "--outputs",
    default="score",
    show_default=True,
    metavar="NAME,...",
    help=f"Columns: {', '.join(OUTPUTS)}. All but score need a .parquet or .jsonl table.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Of videos, score every N-th frame.",
)
@model_options
@scorer_options
@gallery_options
def command(
    inputs: tuple[str, ...],
    output: str | None,
    outputs: str,
    every: int,
    model: str,
    architecture: str | None,
    exit_block: int | None,
    threads: int | None,
    batch_size: int,
    workers: int | None,
    root: str | None,
    ext: str | None,
    strict: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Score aligned face crops: higher is better.

    INPUT is a folder (searched through, hidden names left out), an image file, a list file
    (.txt, one path per line), a pattern in quotes with any of * ? [a-z] {000..123} {a,b}, or a
    container:

    \b
      .tar .tar.gz .tgz      tar archives, those of WebDataset too; - is one from standard input
      .zip                   ZIP archives
      .rec                   MXNet records, as insightface's, with an .idx beside or without
      .bin                   insightface's sets of pairs
      .parquet .arrow .feather  tables with encoded images, as Hugging Face's datasets
      folders of save_to_disk  of Hugging Face's datasets, with state.json or dataset_dict.json
      .lmdb .mdb, folders    LMDB environments
      .mp4 .mkv .webm .avi   videos, and some more (pip install 'fiqa_fast[video]')

    Every image is a row of the table, in a fixed order, with a key that no other row has; one
    that is not readable has an error text instead of a score, and the run goes on. A container
    that cannot be read to its end gives what it has, a row that says so, and status 1.

    \b
    Examples:
      fiqa-fast score crops/
      fiqa-fast score crops/ -o scores.csv
      fiqa-fast score crops/ --ext jpg -o scores.parquet --outputs score,embedding
      fiqa-fast score 'shards/*.tar' -o scores.parquet
      fiqa-fast score 'shards/faces-{000000..000123}.tar' -o scores.parquet
      curl -s https://example.org/faces.tar.gz | fiqa-fast score - -o scores.csv
      fiqa-fast score list.txt --root /data/faces -o scores.txt
      fiqa-fast score crops/ --gauge none --exit 4        published score of block 4
      fiqa-fast score crops/ --model vit.safetensors --architecture num_heads=8
    """
    quiet_pillow()
    # What can be refused is refused before the model is loaded and any image is read.
    from fiqa_fast.gallery.sinks import check_sink
    from fiqa_fast.gallery.sources import damages, open_sources, total

    names = parse_outputs(outputs)
    has_errors = check_sink(output, names)
    sources = open_sources(inputs, root, split(ext), output, every)

    from fiqa_fast.cli.scorer import make_scorer, meaning

    scorer, size = make_scorer(load(model, architecture), names, exit_block, threads, options)
    from fiqa_fast.gallery.progress import choose_progress
    from fiqa_fast.gallery.runner import run
    from fiqa_fast.gallery.sinks import open_sink, text_key

    count = None if quiet else total(sources)
    progress = choose_progress(count, quiet, output is None and sys.stdout.isatty())
    sink = open_sink(output, names, {**scorer.describe(), "version": version()})
    summary = run(
        (item for source in sources for item in source),
        scorer,
        sink,
        size=size,
        outputs=names,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        on_error=None if has_errors else lambda k, e: progress.tell(f"{text_key(k)}: {e}"),
    )
    if not quiet:
        facts = scorer.describe()
        arithmetic = f"{facts['dtype']} on {facts['device']}"
        click.echo(f"{model}: {meaning(scorer)}; {arithmetic}", err=True)
        for line in _report(summary, sources, size, output, has_errors):
            click.echo(line, err=True)
    damaged = damages(sources)
    for line in damaged:
        click.echo(f"not read to its end: {line}", err=True)
    return STRICT if damaged or (strict and summary.failed) else 0


def _report(
    summary: Summary, sources: list[Source], size: int, output: str | None, has_errors: bool
) -> list[str]:
    from fiqa_fast.gallery.sources import skipped

    statistics = summary.statistics
    lines = [
        f"{summary.scored} of {summary.images} images scored in {summary.seconds:.1f} s, "
        f"{summary.rate:.1f} images/s"
    ]
    if summary.scored:
        about = "" if statistics.exact else "about "
        lines.append(
            f"score: min {statistics.minimum:.6f}, median {about}{statistics.median:.6f}, "
            f"max {statistics.maximum:.6f}"
        )
    if summary.failed:
        where = "in the column error" if has_errors else "above"
        lines.append(f"{summary.failed} without a score; the reasons stand {where}")
    if summary.resized:
        much = f" ({summary.reduced} reduced more than twofold)" if summary.reduced else ""
        lines.append(f"{summary.resized} resized to {size} x {size}{much}: are they aligned crops?")
    passed = skipped(sources)
    if passed:
        lines.append(f"{passed} passed over: links, pipes, devices, or members that are no images")
    if output is not None:
        lines.append(f"written to {output}")
    return lines
