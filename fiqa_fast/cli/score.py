# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score``: a gallery in, a table out."""

from __future__ import annotations

import sys
from typing import Any

import click

from fiqa_fast.cli.cluster import check_engine, engine_options, make_engine
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
@reading_options
@gallery_options
@engine_options
@click.pass_context
def command(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    outputs: str,
    every: int,
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
      fiqa-fast score 'shards/faces-{000000..000123}.tar' -o scores.parquet
      curl -s https://example.org/faces.tar.gz | fiqa-fast score - -o scores.csv
      fiqa-fast score crops/ -o - | sort -t, -k2 -g | head       the worst first
      fiqa-fast score list.txt --root /data/faces -o scores.txt
      fiqa-fast score crops/ --gauge none --exit 4        published score of block 4
      fiqa-fast score crops/ --model vit.safetensors --architecture num_heads=8
    """
    quiet_pillow()
    # What can be refused is refused before the model is loaded and any image is read.
    from fiqa_fast.gallery.sources import open_sources, total

    names = parse_outputs(outputs)
    output = Output.plan(options, names)
    sources = open_sources(inputs, root, split(ext), output.paths, every)
    check_engine(engine, output, sources, processes, ray_address, actors)

    from fiqa_fast.cli.engines import Cluster, Local, Processes
    from fiqa_fast.cli.scorer import make_scorer, meaning
    from fiqa_fast.cli.spreading import ending, place
    from fiqa_fast.cli.summary import summary_lines
    from fiqa_fast.gallery.processes import Worker

    worker = Worker.here()
    threads, workers = place(options, threads, workers, processes, worker)
    ray = engine == "ray"  # sends the model to others
    weights = load(model, architecture, threads, borrow=not ray)
    # On a cluster, the scorer made here only says what the scores are.
    here = {**options, "device": "cpu"} if ray else options
    scorer, size = make_scorer(weights, names, exit_block, here)
    from fiqa_fast.gallery.progress import choose_progress
    from fiqa_fast.gallery.sinks import text_key
    from fiqa_fast.gallery.turns import fills_the_cores
    from fiqa_fast.reading import Reading

    reading = Reading(size, bgr=peer_bgr, resize=not no_resize)
    by_turns = fills_the_cores(scorer.device, 1 if worker is None else worker.count)
    local = Local(scorer, reading, names, batch_size, workers, by_turns)
    chosen: Local | Processes | Cluster = local
    if ray:
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
        chosen = Cluster(remote, reading, inputs, root, batch_size)
    elif processes > 1 and worker is None:
        chosen = Processes(local, context.obj, processes)
    del weights
    facts = chosen.facts
    sink = output.open(facts, inputs, root, sources, worker, chosen.build)
    try:
        count = None if quiet or worker or output.share.count > 1 else total(sources)
        left = None if count is None else max(0, count - sink.kept)
        silent = quiet or worker is not None
        progress = choose_progress(left, silent, output.shows_scores and sys.stdout.isatty())
        if sink.kept and not quiet:
            failed = f", {sink.failed} of them without a score" if sink.failed else ""
            progress.tell(f"{sink.kept} rows are there already{failed}")
        tell = None if output.holds_errors else lambda k, e: progress.tell(f"{text_key(k)}: {e}")
        summary, damaged, passed = chosen.score(sink, sources, progress, tell)
    except BaseException:
        sink.abort()
        if stored := sink.stored:
            line = f"{stored} rows are kept; the same command goes on from there"
            click.echo(line, err=True)
        raise
    if worker is not None:
        worker.report(**ending(summary, damaged, passed))
        return 0
    if not quiet:
        arithmetic = f"{facts['dtype']} on {facts['device']}"
        if scorer.engine_note and engine == "local":
            arithmetic += f", {facts['engine']} engine: {scorer.engine_note}"
        click.echo(f"{model}: {meaning(scorer)}; {arithmetic}", err=True)
        for line in [*summary_lines(summary, passed, size, output), *sink.remarks()]:
            click.echo(line, err=True)
    for line in damaged:
        click.echo(f"not read to its end: {line}", err=True)
    return STRICT if damaged or (strict and summary.failed + sink.failed) else 0
