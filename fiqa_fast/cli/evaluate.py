# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate``: error-versus-discard curves of quality scores, and two studies."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.options import named, quiet_pillow, rates, split

if TYPE_CHECKING:
    from fiqa_fast.evaluate.datasets import Dataset

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
@click.option(
    "--scores",
    "score_files",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Quality scores of DATA's images: a table that `fiqa-fast score` wrote, or lines `path "
    "score`. May be given several times.",
)
@click.option(
    "--columns",
    metavar="NAME,...",
    help="Score columns of DATA, if it is a table (default: its columns of fractional numbers).",
)
@click.option(
    "--embeddings",
    metavar="FILE|DIR",
    help="The matcher's embeddings: an .npz with paths and emb, a folder of one .npy per image, one "
    ".npy in DATA's order, or a Parquet table of `fiqa-fast score --outputs embedding`.",
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
@click.option("--root", metavar="DIR", help="Where the images' relative paths start.")
@click.option(
    "--protocol",
    default="fixed-fmr",
    show_default=True,
    metavar="NAME,...|all",
    help="crfiqa: as in the papers; dasec: in the manner of ISO/IEC 29794-1; fixed-fmr.",
)
@click.option(
    "--fmr",
    default="1e-2,1e-3,1e-4",
    show_default=True,
    callback=rates,
    metavar="RATE,...",
    help="False match rates of the threshold.",
)
@click.option(
    "--fnmr",
    callback=rates,
    metavar="RATE,...",
    help="Of dasec also: false non-match rates of the threshold, before any discard.",
)
@click.option(
    "--limit",
    default=0.3,
    show_default=True,
    metavar="SHARE",
    help="Discarded share up to which the partial area is taken.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Of the identity bootstrap; 0: no intervals.",
)
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap and the random score.")
@click.option("--baseline", metavar="NAME", help="Compare the other scores with this one.")
@click.option(
    "--random/--no-random",
    "control",
    default=True,
    help="Add a random score as a control (default: yes).",
)
@click.option(
    "--missing",
    type=click.Choice(["refuse", "worst"]),
    default="refuse",
    show_default=True,
    help="Images without a score: stop, or discard them first. Images without an embedding: stop, "
    "or leave them out.",
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
@click.option("--quiet", is_flag=True, help="No progress; warnings and errors only.")
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
    from fiqa_fast.evaluate.datasets import open_dataset
    from fiqa_fast.evaluate.embeddings import read_embeddings
    from fiqa_fast.gallery.errors import InputError

    protocols = list(evaluate.PROTOCOLS) if protocol == "all" else split(protocol) or []
    if output is not None:
        report.check_report(output)
    if plot is not None:
        figures.check_figure(plot)
    dataset = open_dataset(data, root=root, columns=split(columns))
    scores = dict(dataset.scores)
    for text in score_files:
        _add_scores(scores, text, dataset.paths, missing)
    if not scores:
        raise InputError(
            f"{data}: wanted quality scores, got none: make some with `fiqa-fast score`, and give "
            "them as --scores FILE"
        )
    if control:
        scores.setdefault("random", np.random.default_rng(seed).random(len(dataset.paths)))
    if embeddings is not None:
        vectors = read_embeddings(embeddings, dataset.paths, missing=_MARK[missing])
    else:
        vectors = _embed(dataset, str(matcher), matcher_input, _MARK[missing], quiet)
    there = np.asarray(~np.isnan(vectors).all(1))
    if not there.all():
        absent = len(there) - np.count_nonzero(there)
        click.echo(f"warning: {absent} images without an embedding are left out", err=True)
        dataset, vectors = dataset.subset(there), vectors[there]
        scores = {name: values[there] for name, values in scores.items()}
    trials = dataset.trials(vectors, max_impostors, seed)
    try:
        found = evaluate.compare(
            trials,
            scores,
            protocols=protocols,
            fmr=fmr,
            fnmr=fnmr,
            limit=limit,
            draws=draws,
            seed=seed,
            baseline=baseline,
        )
    except ValueError as error:  # an option out of range
        raise click.ClickException(str(error)) from error
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


# What to do about missing scores -> about missing embeddings.
_MARK = {"refuse": "refuse", "worst": "mark"}


def _counts(facts: dict[str, Any]) -> str:
    sampled = facts["impostor_pairs_sampled_from"]
    return (
        f"{facts['images']} images, {facts['genuine_pairs']} genuine pairs of "
        f"{facts['identities']} identities, {facts['impostor_pairs']} impostor pairs"
        f"{'' if sampled is None else f' drawn from {sampled}'}"
    )


def _add_scores(scores: dict[str, Any], text: str, paths: Sequence[str], missing: str) -> None:
    from fiqa_fast.evaluate.scores import read_scores
    from fiqa_fast.gallery.errors import InputError

    name, path = named(text)
    columns = read_scores(path, paths, missing=missing)
    for column, values in columns.items():
        own = name is not None
        label = (name or "") if own and len(columns) == 1 else f"{name}.{column}" if own else column
        if label in scores:
            raise InputError(
                f"--scores {text}: there is a score called {label!r} already; give NAME=FILE"
            )
        scores[label] = values


def _embed(
    dataset: Dataset, matcher: str, matcher_input: str | None, missing: str, quiet: bool
) -> Any:
    from fiqa_fast.evaluate.matchers import embed_images, open_matcher, parse_matcher_input
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
