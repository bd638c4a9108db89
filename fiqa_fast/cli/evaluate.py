# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate``: error-versus-discard curves of quality scores, and two studies."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.evaluation import (
    MARK,
    check_outputs,
    compared,
    evaluation_options,
    gather_scores,
    leave_out,
    refusing,
)
from fiqa_fast.cli.options import named, quiet_pillow, rates, split

if TYPE_CHECKING:
    from fiqa_fast.evaluate.readers.datasets import Dataset

__all__ = ["command"]

_STUDIES = {
    "reproduce": "From a data set, a checkpoint and a matcher to the papers' table.",
    "degrade": "Scores against synthetic damage at five levels.",
}


class _Evaluate(click.Command):
    """A command whose first argument may be a study, which then is the command."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args and args[0] in _STUDIES:
            study = importlib.import_module(f"fiqa_fast.cli.evaluate_{args[0]}").command
            assert isinstance(study, click.Command)
            return study.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Studies (each with --help)"):
            formatter.write_dl([(f"evaluate {name}", text) for name, text in _STUDIES.items()])


@click.command("evaluate", cls=_Evaluate, no_args_is_help=True)
@click.argument("data", metavar="DATA")
@evaluation_options
@click.option(
    "--columns",
    metavar="NAME,...",
    help="Score columns of DATA, if it is a table (default: its columns of fractional numbers).",
)
@click.option(
    "--embeddings",
    metavar="FILE|DIR",
    help="The matcher's embeddings: an .npz with paths and emb, a folder of one .npy per image, "
    "one .npy in DATA's order, or a Parquet table of `fiqa-fast score --outputs embedding`.",
)
@click.option(
    "--matcher",
    metavar="starter|PATH",
    help="Instead of --embeddings: compute them, with an ONNX model, a checkpoint, or the built-in "
    "model.",
)
@click.option(
    "--matcher-input",
    metavar="KEY=VALUE,...",
    help="What an ONNX matcher is fed: colour=rgb|bgr, mean and scale of (pixel - mean) / scale, "
    "and size where it takes any (default: colour=rgb,mean=127.5,scale=127.5,size=112).",
)
@click.option(
    "--protocol",
    default="fixed-fmr",
    show_default=True,
    metavar="NAME,...|all",
    help="crfiqa: as in the papers; dasec: in the manner of ISO/IEC 29794-1; fixed-fmr.",
)
@click.option(
    "--fnmr",
    callback=rates,
    metavar="RATE,...",
    help="Of dasec also: false non-match rates of the threshold, before any discard.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Of the identity bootstrap; 0: no intervals.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the bootstrap, the random score and the sample of impostors.",
)
@click.option("--baseline", metavar="NAME", help="Compare the other scores with this one.")
@click.option(
    "--random/--no-random",
    "control",
    default=True,
    help="Add a random score as a control (default: yes).",
)
@click.option(
    "--max-impostors",
    type=click.IntRange(min=1),
    metavar="N",
    help="Where all pairs are compared: a random sample of so many impostor pairs at most "
    "(default: 100 million).",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the numbers: .csv, .json (with the curves), .md or .txt.",
)
@click.option("--plot", metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
def command(
    data: str,
    score_files: tuple[str, ...],
    columns: str | None,
    embeddings: str | None,
    matcher: str | None,
    matcher_input: str | None,
    root: str | None,
    protocol: str,
    fmr: tuple[float, ...],
    fnmr: tuple[float, ...],
    limit: float,
    draws: int,
    seed: int,
    baseline: str | None,
    control: bool,
    missing: str,
    max_impostors: int | None,
    output: str | None,
    plot: str | None,
    quiet: bool,
) -> None:
    """Judge quality scores: does discarding the worst images lower the error of a face matcher?

    DATA is a table (.csv, .parquet) with the columns path and identity, and maybe scores; a folder
    with one subfolder per identity; a folder with image_path_list.txt and pair_list.txt; or an
    insightface .bin file. Tables and identity folders are compared in all pairs.

    The false non-match rate (FNMR) is measured at thresholds of given false match rates (FMR) while
    the worst pairs are discarded. A score's figure is the area under that curve up to --limit over
    that of a flat one: about 1 for a random score, lower is better, with a 95 % interval of an
    identity bootstrap.

    \b
    Examples:
      fiqa-fast score faces/ -o s.parquet --outputs score,embedding
      fiqa-fast evaluate faces/ --scores s.parquet --embeddings s.parquet
      fiqa-fast evaluate faces/ --scores s.parquet --matcher matcher.onnx --plot curves.svg
      fiqa-fast evaluate table.csv --embeddings emb.npz --protocol all --fmr 1e-3
      fiqa-fast evaluate lfw/ --scores a=a.txt --scores b=b.txt --embeddings emb/ \\
          --protocol crfiqa --baseline a -o table.csv
    """
    quiet_pillow()
    if (embeddings is None) == (matcher is None):
        raise click.UsageError(
            "wanted the matcher's --embeddings, or a --matcher to compute them with; got "
            f"{'none' if matcher is None else 'both'}"
        )
    if matcher_input is not None and matcher is None:
        raise click.UsageError("--matcher-input goes with --matcher")
    import numpy as np

    from fiqa_fast import evaluate, figures
    from fiqa_fast.evaluate import plots, report
    from fiqa_fast.evaluate.compare import check_options, check_scores
    from fiqa_fast.evaluate.readers.datasets import open_dataset
    from fiqa_fast.evaluate.readers.embeddings import read_embeddings
    from fiqa_fast.gallery.errors import InputError

    # What can be refused is refused before anything long begins.
    wanted = list(evaluate.PROTOCOLS) if protocol == "all" else split(protocol) or []
    protocols = list(dict.fromkeys(wanted))
    with refusing():
        check_options(protocols, fmr, fnmr, limit, draws)
    if output is not None:
        report.check_report(output)
    if plot is not None:
        figures.check_figure(plot)
    files = [named(text)[1] for text in score_files]
    check_outputs((output, plot), (data, embeddings, matcher, *files))
    dataset = open_dataset(data, root=root, columns=split(columns), missing=missing)
    if max_impostors is not None and dataset.pairs is not None:
        raise InputError(f"{data}: --max-impostors goes with a set of which all pairs are compared")
    scores = gather_scores(dataset, score_files, missing)
    if not scores:
        raise InputError(
            f"{data}: wanted quality scores, got none: make some with `fiqa-fast score`, and give "
            "them as --scores FILE"
        )
    if control:
        scores.setdefault("random", np.random.default_rng(seed).random(len(dataset.paths)))
    with refusing():
        check_scores(scores, baseline)
    if embeddings is not None:
        vectors = read_embeddings(embeddings, dataset.paths, missing=MARK[missing])
    else:
        vectors = _embed(dataset, str(matcher), matcher_input, MARK[missing], quiet)
    dataset, vectors, there = leave_out(dataset, vectors, str(embeddings or matcher))
    trials = dataset.trials(vectors, max_impostors, seed)
    del vectors  # of many images as large as the trials
    found = compared(
        trials,
        {name: values[there] for name, values in scores.items()},
        quiet,
        protocols=protocols,
        fmr=fmr,
        fnmr=fnmr,
        limit=limit,
        draws=draws,
        seed=seed,
        baseline=baseline,
    )
    click.echo(f"{dataset.name}: {_counts(found.facts)}\n\n{report.to_text(found)}")
    sys.stdout.flush()
    for line in found.warnings:
        click.echo(f"warning: {line}", err=True)
    if output is not None:
        report.write_report(found, output)
    if plot is not None:
        figures.save_figure(plots.plot_curves(found), plot)
    for path in (output, plot):
        if path is not None and not quiet:
            click.echo(f"written to {path}", err=True)


def _counts(facts: dict[str, Any]) -> str:
    sampled = facts["impostor_pairs_sampled_from"]
    return (
        f"{facts['images']} images, {facts['genuine_pairs']} genuine pairs of "
        f"{facts['identities']} identities, {facts['impostor_pairs']} impostor pairs"
        f"{'' if sampled is None else f' drawn from {sampled}'}"
    )


def _embed(
    dataset: Dataset, matcher: str, matcher_input: str | None, missing: str, quiet: bool
) -> Any:
    from fiqa_fast.evaluate.readers.matchers import embed_images, open_matcher, parse_matcher_input
    from fiqa_fast.gallery.errors import InputError
    from fiqa_fast.gallery.progress import choose_progress

    if dataset.items is None:
        raise InputError(
            f"{dataset.name}: wanted images for --matcher, got paths without files; give --root"
        )
    inputs = None if matcher_input is None else parse_matcher_input(matcher_input)
    opened = open_matcher(matcher, inputs=inputs)
    progress = choose_progress(len(dataset.items), quiet, False)
    return embed_images(dataset.items, opened, missing=missing, progress=progress)
