# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast heatmap``: patch maps over the crops they are of."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.errors import STRICT
from fiqa_fast.cli.group import version
from fiqa_fast.cli.options import (
    gallery_options,
    load,
    model_options,
    quiet_pillow,
    reading_options,
    scorer_options,
    split,
)

if TYPE_CHECKING:
    from fiqa_fast.gallery.sources import Item
    from fiqa_fast.models import ViTConfig

__all__ = ["command"]

# Near the end of float32, in which maps are.
_TOO_LARGE = 1e38
# The maps that each --per draws, and the score of each map where there are several.
_PER = {
    "image": ("patch_map", None),
    "head": ("head_maps", "head_scores"),
    "block": ("exit_maps", "exit_scores"),
}


@click.command("heatmap", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    required=True,
    metavar="OUT",
    help="A folder (new or empty) for one overlay per image; a contact sheet: .png, .pdf, .svg or "
    ".jpg; raw maps: .npz or .npy. May be given several times.",
)
@click.option(
    "--per",
    type=click.Choice(list(_PER)),
    default="image",
    show_default=True,
    help="One map per image, or a row of them: one per head (published logits) or per block.",
)
@click.option(
    "--best", type=click.IntRange(min=1), metavar="N", help="Draw the N best images, best first."
)
@click.option(
    "--worst",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw the N worst images, worst first; after the best, where both are given.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Read only the first N images."
)
@click.option(
    "--scale",
    type=click.Choice(["set", "image"]),
    default="set",
    show_default=True,
    help="One colour scale for all maps of the run, or each map's own.",
)
@click.option(
    "--percentiles",
    default="1,99",
    show_default=True,
    metavar="LOW,HIGH",
    callback=lambda _, __, text: _parse_percentiles(text),
    help="Where the common scale ends, among all values of the run; 0,100: lowest and highest.",
)
@click.option("--vmin", type=float, metavar="X", help="Lower end of the common scale.")
@click.option("--vmax", type=float, metavar="X", help="Upper end of the common scale.")
@click.option(
    "--cmap",
    default="viridis",
    show_default=True,
    metavar="NAME",
    help="A matplotlib colormap; the default is perceptually uniform.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="X",
    help="How much of the colours covers the crop, 0 to 1.",
)
@click.option("--blocky", is_flag=True, help="Show patches as squares; do not interpolate.")
@click.option("--no-names", is_flag=True, help="Leave the names of the images off sheets.")
@model_options
@scorer_options
@reading_options
@gallery_options
def command(
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    per: str,
    best: int | None,
    worst: int | None,
    limit: int | None,
    scale: str,
    percentiles: tuple[float, float],
    vmin: float | None,
    vmax: float | None,
    cmap: str,
    alpha: float,
    blocky: bool,
    no_names: bool,
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
    **options: Any,
) -> int:
    """Draw where in each image the quality comes from.

    A map has what each patch receives: its mean attention logit as a key, averaged over heads,
    calibrated as the score is. Unless --reduction or --tokens say otherwise, its mean is the score.
    INPUT is as in `fiqa-fast score`. An image that cannot be read is named and left out.

    A folder gets KEY.png for the image KEY, an index heatmap.csv and the colour bar; with --per
    head or block, a strip of the crop and its maps. With --best or --worst, whatever is written has
    those images only; colours are those of the whole run, so that two sheets compare.

    \b
    Examples:
      fiqa-fast heatmap crops/ -o overlays/
      fiqa-fast heatmap crops/ -o sheet.png --best 20 --worst 20
      fiqa-fast heatmap crops/ -o heads.pdf --per head --limit 5
      fiqa-fast heatmap crops/ -o blocks.png --per block --limit 5
      fiqa-fast heatmap crops/ -o maps.npz -o sheet.png --limit 60
      fiqa-fast heatmap crops/ -o published/ --gauge none --vmin -2 --vmax 2 --blocky
    """
    quiet_pillow()
    # What can be refused is refused before the model is loaded and any image is read.
    from fiqa_fast.gallery.errors import InputError
    from fiqa_fast.gallery.sources import exact_total, open_sources
    from fiqa_fast.heatmap.colours import colormap, find_limits
    from fiqa_fast.heatmap.contact import check_sheet
    from fiqa_fast.heatmap.grid import PatchGrid
    from fiqa_fast.heatmap.targets import check_targets

    if math.isnan(alpha):
        raise click.BadParameter("wanted a number from 0 to 1, got nan", param_hint="--alpha")
    _check_scale(scale, vmin, vmax)
    targets = check_targets(outputs, inputs)
    pictures = any(target.kind != "arrays" for target in targets)
    colours = colormap(cmap) if pictures else None
    sources = open_sources(inputs, root, split(ext))

    from fiqa_fast.cli.scorer import make_scorer, meaning

    output, tile_scores = _PER[per]
    wanted = [name for name in ("score", output, tile_scores) if name is not None]
    scorer, size = make_scorer(
        load(model, architecture, threads, borrow=True), wanted, exit_block, options
    )
    tiles = _tile_names(per, scorer.config)
    count = exact_total(sources)
    count = count if limit is None else min(count, limit)
    if any(target.kind == "sheet" for target in targets):
        chosen = [min(n, count) for n in (best, worst) if n is not None]
        check_sheet(sum(chosen) if chosen else count, tiles, size)

    from fiqa_fast.gallery.progress import choose_progress
    from fiqa_fast.gallery.runner import default_workers, run
    from fiqa_fast.gallery.sinks import text_key
    from fiqa_fast.gallery.turns import fills_the_cores
    from fiqa_fast.heatmap.choice import choose
    from fiqa_fast.heatmap.draw import Look, draw
    from fiqa_fast.heatmap.maps import MapTable
    from fiqa_fast.heatmap.overlay import Painter
    from fiqa_fast.reading import Reading

    def items() -> Iterable[Item]:
        return islice(chain.from_iterable(sources), limit)

    start = time.perf_counter()
    progress = choose_progress(count, quiet, False)
    reading = Reading(size, bgr=peer_bgr, resize=not no_resize)
    maps = MapTable(output, tile_scores, lambda key, e: progress.tell(f"{text_key(key)}: {e}"))
    run(
        items(),
        scorer,
        maps,
        reading=reading,
        outputs=wanted,
        batch_size=batch_size,
        workers=workers,
        by_turns=fills_the_cores(scorer.device),
        progress=progress,
    )
    if not len(maps.good):
        raise InputError(f"none of {len(maps.keys)} images could be scored: nothing to draw")
    choices = choose(maps, best, worst)
    limits = find_limits(maps.maps, percentiles, vmin, vmax) if scale == "set" else None
    painter = None
    if colours is not None:
        grid = PatchGrid(size, scorer.config.patch_size, smooth=not blocky)
        painter = Painter(grid, colours, alpha, limits)
    # Head maps are the published logits in any case.
    calibrated = scorer.gauge is not None and per != "head"
    unit = "expected cosine similarity (calibrated logit)" if calibrated else "mean attention logit"
    title = f"{os.path.basename(model)}: {meaning(scorer)}"
    if per != "image":
        title += f"; maps per {per}" + ("" if calibrated else ", published logits")
    facts = {**scorer.describe(), "reading": reading.describe(), "version": version(), "unit": unit}
    drawn = sum(len(choice.numbers) for choice in choices)
    progress = choose_progress(drawn * sum(t.kind != "arrays" for t in targets), quiet, False)
    try:
        draw(
            targets,
            items,
            maps,
            choices,
            size,
            painter,
            Look(title, unit, tiles, not no_names),
            facts,
            workers or default_workers(),
            progress.update,
        )
    finally:
        progress.close()
    if not quiet:
        seconds = time.perf_counter() - start
        rate = f"{60 * len(maps.keys) / seconds:.0f} images/min"
        click.echo(title, err=True)
        good = len(maps.keys) - maps.failed
        click.echo(f"{good} of {len(maps.keys)} images in {seconds:.1f} s, {rate}", err=True)
        if limits is not None:
            click.echo(f"scale: {limits[0]:.4g} to {limits[1]:.4g}, {unit}", err=True)
        if maps.failed:
            click.echo(f"{maps.failed} left out; the reasons stand above", err=True)
        click.echo(f"written to {', '.join(target.path for target in targets)}", err=True)
    return STRICT if strict and maps.failed else 0


def _tile_names(per: str, config: ViTConfig) -> list[str]:
    """Names of an image's maps, numbered as --heads and --exit number them; none for one map."""
    if per == "head":
        return [f"head {number}" for number in range(config.num_heads)]
    return [f"block {number + 1}" for number in range(config.depth)] if per == "block" else []


def _parse_percentiles(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 100:
        raise click.BadParameter(f"wanted LOW,HIGH with 0 <= LOW < HIGH <= 100, got {text!r}")
    return low, high


def _check_scale(scale: str, vmin: float | None, vmax: float | None) -> None:
    for name, value in (("--vmin", vmin), ("--vmax", vmax)):
        if value is not None and scale == "image":
            raise click.UsageError(
                f"{name} belongs to --scale set: with image each map has its own"
            )
        if value is not None and not abs(value) < _TOO_LARGE:
            raise click.BadParameter(
                f"wanted a finite number, below {_TOO_LARGE:g} in size, got {value}",
                param_hint=name,
            )
    if vmin is not None and vmax is not None and vmin >= vmax:
        raise click.UsageError(f"--vmin must be below --vmax, got {vmin:g} and {vmax:g}")
