# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate``: error-versus-discard curves of quality scores, and two studies."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.options import quiet_pillow, split

if TYPE_CHECKING:
    pass

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


def _rates(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in split(text) or [])
    except ValueError:
        raise click.BadParameter(
            f"wanted rates such as 1e-2,1e-3, got {text!r}", param=parameter
        ) from None


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
    callback=_rates,
    metavar="RATE,...",
    help="False match rates of the threshold.",
)
@click.option(
    "--fnmr",
    callback=_rates,
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
    help="Images without a score: stop, or discard them first.",
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
        raise click.UsageError("wanted either --embeddings or --matcher")
    from fiqa_fast import evaluate, figures
    from fiqa_fast.evaluate import plots, report
    from fiqa_fast.evaluate.datasets import open_dataset
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
        import numpy as np

        scores.setdefault("random", np.random.default_rng(seed).random(len(dataset.paths)))
    try:
        trials = _trials(dataset, embeddings, matcher, max_impostors, seed, quiet)
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
    except ValueError as error:
        raise click.ClickException(f"{data}: {error}") from error
    click.echo(
        f"{dataset.name}: {found.facts['images']} images, {found.facts['genuine_pairs']} genuine "
        f"pairs of {found.facts['identities']} identities, {found.facts['impostor_pairs']} impostor "
        "pairs\n"
    )
    click.echo(report.to_text(found))
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
