# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast evaluate degrade``: does the score fall as images get worse?"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.errors import STRICT
from fiqa_fast.cli.group import version
from fiqa_fast.cli.options import (
    dtype_option,
    input_options,
    load,
    model_options,
    quiet_pillow,
    scorer_options,
    split,
)

if TYPE_CHECKING:
    from fiqa_fast.degradations import Pixels
    from fiqa_fast.evaluate.studies.degrade import Scoring, Study
    from fiqa_fast.gallery.progress import Progress
    from fiqa_fast.gallery.sources import Item, Source
    from fiqa_fast.scorer import Scorer

__all__ = ["command"]

# Known here so that help and a first check need no numpy; a test compares it.
TYPES = ("gblur", "mblur", "down", "jpeg", "noise", "dark", "occl")


@click.command("degrade", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGES...")
@click.option(
    "-o", "--output", metavar="FILE", help="Report to write: .json (everything), .csv or .md."
)
@click.option("--plot", metavar="FILE", help="Plot to write: .png, .svg or .pdf.")
@click.option(
    "--types",
    default=",".join(TYPES),
    show_default=True,
    metavar="NAME,...",
    help="Gaussian blur, motion blur, low resolution, JPEG, noise, darkness, occlusion.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Take only so many images, evenly spread over the input.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of what is random in the damage, and of the intervals.",
)
@model_options
@scorer_options
@dtype_option("auto", "int8")
@input_options
@click.option("--strict", is_flag=True, help="Exit with status 1 if any image was left out.")
@click.option("--quiet", is_flag=True, help="No progress and no summary; errors only.")
def command(
    inputs: tuple[str, ...],
    output: str | None,
    plot: str | None,
    types: str,
    limit: int | None,
    seed: int,
    model: str,
    architecture: str | None,
    exit_block: int | None,
    threads: int | None,
    root: str | None,
    ext: str | None,
    strict: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Damage aligned face crops in known steps, and see whether the score falls.

    Each image is scored clean and at five levels of every type of damage. The rank correlation of
    level and score is near -1 for a score that follows quality, near 0 for one that does not, and
    positive for one that prefers the damage.

    \b
    Examples:
      fiqa-fast evaluate degrade crops/
      fiqa-fast evaluate degrade crops/ --plot degrade.png -o degrade.json
      fiqa-fast evaluate degrade crops/ --limit 100 --types gblur,occl
      fiqa-fast evaluate degrade crops/ --gauge none --exit 4     published score of block 4
    """
    quiet_pillow()
    # What can be refused is refused before the model is loaded and any image is read.
    kinds = _parse_types(types)
    from fiqa_fast.gallery.sources import exact_total, open_sources

    _check_outputs(output, plot)
    outputs = [path for path in (output, plot) if path is not None]
    sources = open_sources(inputs, root, split(ext), outputs)

    from fiqa_fast.cli.scorer import make_scorer

    scorer, size = make_scorer(
        load(model, architecture, threads, borrow=True), ["score"], exit_block, options
    )
    from fiqa_fast.evaluate.studies.degrade import degrade_study
    from fiqa_fast.evaluate.studies.degrade_report import write_plot, write_report
    from fiqa_fast.gallery.progress import choose_progress

    found = exact_total(sources)
    total = found if limit is None else min(limit, found)
    images = _Images(sources, size, (total, found), choose_progress(total, quiet, False))
    try:
        study = degrade_study(
            images, _scoring(scorer), kinds, seed=seed, on_unscored=images.unscored
        )
    finally:
        images.progress.close()
    _print(study, model, scorer)
    facts = {
        "model": model,
        "scorer": scorer.describe(),
        "version": version(),
        "inputs": list(inputs),
        "images_left_out": images.failed,
    }
    if output is not None:
        write_report(output, study, facts)
    if plot is not None:
        write_plot(plot, study)
    if not quiet:
        for line in images.report():
            click.echo(line, err=True)
        for path in outputs:
            click.echo(f"written to {path}", err=True)
    return STRICT if strict and images.failed else 0


def _parse_types(text: str) -> list[str]:
    kinds = split(text) or []
    for kind in kinds:
        if kind not in TYPES:
            raise click.BadParameter(
                f"wanted some of {', '.join(TYPES)}, got {kind!r}", param_hint="--types"
            )
    if not kinds:
        raise click.BadParameter(
            f"wanted some of {', '.join(TYPES)}, got none", param_hint="--types"
        )
    return kinds


def _check_outputs(output: str | None, plot: str | None) -> None:
    from fiqa_fast.evaluate.studies.degrade_report import check_report
    from fiqa_fast.figures import check_figure

    if output is not None:
        check_report(output)
    if plot is not None:
        check_figure(plot)


def _scoring(scorer: Scorer) -> Scoring:
    from fiqa_fast.gallery.errors import ScoringError

    def score(crops: list[Pixels]) -> Any:
        try:
            return scorer(crops).score
        except Exception as error:
            text = " ".join(str(error).split())
            raise ScoringError(f"the scorer failed: {type(error).__name__}: {text}") from error

    return score


class _Images:
    """The images of the sources, decoded one by one; those that cannot be are named and counted."""

    def __init__(
        self, sources: list[Source], size: int, take: tuple[int, int], progress: Progress
    ) -> None:
        self.count = 0
        self.failed = 0
        self.progress = progress
        self._sources = sources
        self._size = size
        self._take = take  # so many of so many
        self._resized = 0
        self._key = ""

    def __iter__(self) -> Iterator[Pixels]:
        for item in self._picked():
            self.count += 1
            self._key = item.key
            pixels = self._decode(item)
            if pixels is not None:
                yield pixels
            self.progress.update(1)

    def _picked(self) -> Iterator[Item]:
        wanted, found = self._take
        for i, item in enumerate(item for source in self._sources for item in source):
            if wanted == found or i * wanted // found != (i - 1) * wanted // found:
                yield item

    def _decode(self, item: Item) -> Pixels | None:
        import numpy as np

        from fiqa_fast.images import decode, describe, fit

        try:
            with item.open() as file:
                pixels = decode(file)
        except Exception as error:  # what a storage raises concerns this item alone
            self._leave_out(describe(error))
            return None
        self._resized += pixels.shape[:2] != (self._size, self._size)
        planes = fit(pixels, self._size).planes
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def unscored(self, _: int) -> None:
        """Hear that the image last yielded has a score that is not finite."""
        self._leave_out("wanted finite scores; try --dtype float32")

    def _leave_out(self, reason: str) -> None:
        from fiqa_fast.gallery.sinks import text_key

        self.failed += 1
        self.progress.tell(f"{text_key(self._key)}: {reason}")

    def report(self) -> Iterator[str]:
        """Yield what the reader of the table should know about the images."""
        yield f"{self.count - self.failed} of {self.count} images studied"
        if self.failed:
            yield f"{self.failed} left out; the reasons stand above"
        if self._resized:
            yield f"{self._resized} resized to {self._size} x {self._size}: are they aligned crops?"


def _print(study: Study, model: str, scorer: Scorer) -> None:
    from fiqa_fast.evaluate.studies.degrade_report import LEGEND, table
    from fiqa_fast.tables import aligned

    header, *rows = table(study)
    facts = scorer.describe()
    gauge = ", calibrated by its gauge" if scorer.gauge is not None else ""
    click.echo(
        f"{model}: {facts['method']}, exit {facts['exit']}{gauge}; {len(study.scores)} images"
    )
    click.echo(aligned(header, rows))
    click.echo("\n" + textwrap.fill(LEGEND + " Last columns: mean score at each level.", 98))
