# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score``: a gallery in, a table out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.engine import check_engine, engine_options, make_engine
from fiqa_fast.cli.errors import STRICT
from fiqa_fast.cli.options import (
    OUTPUTS,
    gallery_options,
    load,
    model_options,
    parse_outputs,
    quiet_pillow,
    reading_options,
    scorer_options,
    split,
)
from fiqa_fast.cli.output import Output, output_options

if TYPE_CHECKING:
    from fiqa_fast.gallery.runner import Summary

__all__ = ["command"]


@click.command("score", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@output_options
@click.option(
    "--outputs",
    default="score",
    show_default=True,
    metavar="NAME,...",
    help=f"What to write: {', '.join(OUTPUTS)}.",
)
@model_options
@scorer_options
@reading_options
@gallery_options
@engine_options
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    outputs: str,
    model: str,
    architecture: str | None,
    exit_block: int | None,
    threads: int | None,
    peer_bgr: bool,
    no_resize: bool,
    batch_size: int,
    workers: int | None,
    root: str | None,
    ext: str | None,
    strict: bool,
    quiet: bool,
    processes: int,
    engine: str,
    ray_address: str | None,
    actors: int | None,
    **options: Any,
) -> int:
    """Score aligned face crops: higher is better.

    INPUT is a folder (searched through, hidden names left out), an image file, a list file
    (.txt, one path per line), a pattern in quotes, or a container:

    \b
      .tar .tar.gz .tgz      tar archives, those of WebDataset too; - is one from standard input
      .zip                   ZIP archives
      .rec                   MXNet records, as insightface's, with an .idx beside or without
      .bin                   insightface's sets of pairs
      .parquet .arrow .feather  tables with encoded images, as Hugging Face's datasets
      .lmdb .mdb, folders    LMDB environments

    Every image is a row of the table, in a fixed order, with a key that no other row has; one
    that is not readable has an error text instead of a score, and the run goes on. A container
    that cannot be read to its end gives what it has, a row that says so, and status 1.

    A run that is stopped, by whatever, goes on with the same command and ends with the same
    table: finished rows are kept in a hidden folder beside it. A gallery that has grown is scored
    where it is new. Settings that would change a value are refused for a table that is there.

    \b
    Examples:
      fiqa-fast score crops/
      fiqa-fast score crops/ -o scores.csv
      fiqa-fast score crops/ --ext jpg -o scores.parquet --outputs score,embedding
      fiqa-fast score 'shards/*.tar' -o scores.parquet
      fiqa-fast score 'shards/*.tar' -o scores/ --shard 3/16     one of 16 machines, from 0
      torchrun --nproc-per-node 8 --no-python fiqa-fast score train.rec -o scores/
      fiqa-fast score 'shards/*.tar' -o scores.parquet --engine ray   on a cluster
      curl -s https://example.org/faces.tar.gz | fiqa-fast score - -o scores.csv
      fiqa-fast score crops/ -o - | sort -t, -k2 -g | head       the worst first
      fiqa-fast score list.txt --root /data/faces -o scores.txt
      fiqa-fast score crops/ --gauge none --exit 4        published score of block 4
      fiqa-fast score crops/ --model vit.safetensors --architecture num_heads=8
    """
    quiet_pillow()
    # What can be refused is refused before the model is loaded and any image is read.
    from fiqa_fast.gallery.sources import damages, open_sources, skipped, total

    names = parse_outputs(outputs)
    output = Output.plan(options, names)
    sources = open_sources(inputs, root, split(ext), output.paths)
    check_engine(engine, output, sources, processes, ray_address, actors)

    from fiqa_fast.cli.scorer import make_scorer, meaning
    from fiqa_fast.cli.spreading import ending, place, spread
    from fiqa_fast.gallery.processes import Worker

    worker = Worker.here()
    threads, workers = place(options, threads, workers, processes, worker)
    weights = load(model, architecture)
    # On a cluster, the scorer made here only says what the scores are.
    here = {**options, "device": "cpu"} if engine == "ray" else options
    scorer, size = make_scorer(weights, names, exit_block, threads, here)
    from fiqa_fast.gallery.progress import choose_progress
    from fiqa_fast.gallery.runner import run
    from fiqa_fast.gallery.sinks import text_key
    from fiqa_fast.reading import Reading

    reading = Reading(size, bgr=peer_bgr, resize=not no_resize)
    facts, build, remote = scorer.describe(), None, None
    if engine == "ray":
        remote = make_engine(
            context,
            ray_address,
            actors,
            weights,
            reading,
            names,
            exit_block,
            options,
            workers,
            threads,
        )
        facts, build = remote.describe()
    facts["reading"] = reading.describe()
    sink = output.open(facts, inputs, root, sources, worker, build)
    count = None if quiet or worker or output.share.count > 1 else total(sources)
    left = None if count is None else max(0, count - sink.kept)
    silent = quiet or worker is not None
    progress = choose_progress(left, silent, output.shows_scores and sys.stdout.isatty())
    if sink.kept and not quiet:
        progress.tell(f"{sink.kept} rows are there already")
    on_error = None if output.holds_errors else lambda k, e: progress.tell(f"{text_key(k)}: {e}")
    try:
        if processes > 1 and worker is None:
            summary, damaged, passed = spread(context.obj, processes, sink, sources, progress)
        elif remote is not None and sink.store is not None:
            summary, damaged, passed = remote.score(
                sink.store,
                output.share,
                sources,
                inputs,
                root,
                progress,
                batch_size=batch_size,
                on_error=on_error,
            )
        else:
            summary = run(
                sink.items(sources),
                scorer,
                sink,
                reading=reading,
                outputs=names,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
                on_error=on_error,
            )
            damaged, passed = damages(sources), skipped(sources)
    except BaseException:
        if sink.stored:
            progress.tell(f"{sink.stored} rows are kept; the same command goes on from there")
        raise
    if worker is not None:
        worker.report(**ending(summary, damaged, passed))
        return 0
    if not quiet:
        arithmetic = f"{facts['dtype']} on {facts['device']}"
        click.echo(f"{model}: {meaning(scorer)}; {arithmetic}", err=True)
        for line in [*_report(summary, passed, size, output), *sink.remarks()]:
            click.echo(line, err=True)
    for line in damaged:
        click.echo(f"not read to its end: {line}", err=True)
    return STRICT if damaged or (strict and summary.failed) else 0


def _report(summary: Summary, passed: int, size: int, output: Output) -> list[str]:
    statistics = summary.statistics
    if not summary.images:
        return ["nothing left to score"]
    lines = [
        f"{summary.scored} of {summary.images} images scored in {summary.seconds:.1f} s, "
        f"{summary.rate:.1f} images/s"
    ]
    if summary.scoring_seconds:  # a cluster does not tell its stages apart
        lines.append(_shares(summary))
    if summary.scored:
        about = "" if statistics.exact else "about "
        lines.append(
            f"score: min {statistics.minimum:.6f}, median {about}{statistics.median:.6f}, "
            f"max {statistics.maximum:.6f}"
        )
    if summary.failed:
        where = "in the column error" if output.holds_errors else "above"
        lines.append(f"{summary.failed} without a score; the reasons stand {where}")
    if summary.resized:
        much = f" ({summary.reduced} reduced more than twofold)" if summary.reduced else ""
        lines.append(f"{summary.resized} resized to {size} x {size}{much}: are they aligned crops?")
    if passed:
        lines.append(f"{passed} passed over: links, pipes, devices, or members that are no images")
    return lines


def _shares(summary: Summary) -> str:
    """Say how busy each stage was; they overlap, and the busiest is the one to make faster."""

    def share(seconds: float, workers: int = 1) -> str:
        percent = 100 * seconds / (summary.seconds * workers)
        return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1f} %"

    threads = f" of {summary.workers} threads" if summary.workers > 1 else ""
    return (
        f"busy: source {share(summary.source_seconds)}, "
        f"decode {share(summary.decode_seconds, summary.workers)}{threads}, "
        f"model {share(summary.scoring_seconds)}, write {share(summary.write_seconds)}"
    )
