# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast calibrate``: unlabelled crops in, a gauge out."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.options import (
    check_outputs,
    device_options,
    dtype_option,
    input_options,
    load,
    model_options,
    quiet_pillow,
    split,
)

if TYPE_CHECKING:
    from fiqa_fast.calibrate.state import StateFile
    from fiqa_fast.gallery.sources import Item
    from fiqa_fast.models import Gauge

__all__ = ["command"]


@click.command("calibrate", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Gauge to write (default: beside the checkpoint, as <its stem>.gauge.safetensors, where "
    "`score` finds it by itself).",
)
@model_options
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    metavar="N",
    help="Degraded copies per image (default: 4 to 24, for about 30 rows per feature).",
)
@click.option(
    "--clean-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.4,
    show_default=True,
    metavar="SHARE",
    help="Share of the copies that are left as they are.",
)
@click.option(
    "--types",
    metavar="NAME,...",
    help="Degradations: gblur, mblur, down, jpeg, noise, dark, occl (default: all).",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the degradations.")
@dtype_option("float32")
@device_options
@input_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N images.")
@click.option("--report", metavar="FILE.json", help="Write how it was fitted, and how well.")
@click.option(
    "--within",
    type=click.FloatRange(min=0),
    default=0.02,
    show_default=True,
    metavar="DISTANCE",
    help="Name the cheapest exit whose rank correlation is so close to the best one's.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace a gauge, or an unfinished fit, of other settings."
)
@click.option("--quiet", is_flag=True, help="No progress and no table; errors only.")
def command(
    inputs: tuple[str, ...],
    output: str | None,
    model: str,
    architecture: str | None,
    types: str | None,
    dtype: str,
    device: str,
    threads: int | None,
    root: str | None,
    ext: str | None,
    limit: int | None,
    report: str | None,
    within: float,
    overwrite: bool,
    quiet: bool,
    **drawing: Any,
) -> None:
    """Fit a gauge on unlabelled face crops, so that scores read as an expected cosine.

    INPUT is as for `fiqa-fast score`: aligned crops of many people, mostly good. Each is degraded
    at random, and a ridge regression per block predicts from the block's attention how far the
    model's embedding moves. This is fiqa_fast's own, not the papers'. An interrupted fit goes on
    where it stopped when the same command is given again.

    \b
    Examples:
      fiqa-fast calibrate crops/ --model vit.safetensors
      fiqa-fast calibrate list.txt --root /data/faces -o starter.gauge.safetensors
      fiqa-fast calibrate crops/ -o gauge.safetensors --report report.json --within 0.01
      fiqa-fast score crops/ --model vit.safetensors --gauge gauge.safetensors
    """
    quiet_pillow()
    from fiqa_fast.gallery.atomic import check_target, write_atomically
    from fiqa_fast.gallery.sinks import text_key
    from fiqa_fast.gallery.sources import open_sources

    if math.isnan(within):
        raise click.BadParameter("wanted a number from 0, got nan", param_hint="--within")
    target = _target(output, model)
    check_outputs((target, report), (model, *inputs))
    for path in (target, report):
        if path is not None:
            check_target(path)
    sources = open_sources(inputs, root, split(ext), target)

    def items() -> Iterable[Item]:
        from itertools import islice

        return islice((item for source in sources for item in source), limit)

    loaded = load(model, architecture, threads)

    from fiqa_fast.calibrate.crops import crop_of
    from fiqa_fast.calibrate.fitting import fit, make_drawing, plan
    from fiqa_fast.calibrate.report import table
    from fiqa_fast.calibrate.state import StateFile
    from fiqa_fast.calibrate.subject import FaceViTSubject
    from fiqa_fast.gallery.progress import choose_progress
    from fiqa_fast.models import save_gauge

    subject = _refusals(lambda: FaceViTSubject(loaded, device, dtype))
    count, named = _listing(items())
    kinds = split(types)
    settings = drawing if kinds is None else {**drawing, "types": kinds}
    drawn = _refusals(lambda: make_drawing(subject, count, **settings))
    state = StateFile(target, plan(subject, drawn, named))
    _check_output(target, state, overwrite)
    progress = choose_progress(count, quiet, rows_on_terminal=False)
    gauge: Gauge = fit(
        subject,
        map(crop_of, items()),
        drawn,
        progress=progress,
        on_error=lambda key, error: progress.tell(f"{text_key(key)}: {error}; left out"),
        state=state,
    )
    gauge.notes["plan"] = state.plan  # type: ignore[index]
    save_gauge(gauge, target)
    state.remove()
    if report is not None:
        facts = {"gauge_sha256": gauge.sha256(), "model_sha256": gauge.model_sha256, **gauge.notes}
        write_atomically(report, (json.dumps(facts, indent=2) + "\n").encode())
    if not quiet:
        for line in table(gauge.notes, within):
            click.echo(line)
        unread = gauge.notes["images_unread"]
        left_out = f", {unread} left out (named above)" if unread else ""
        click.echo(f"{gauge.notes['images']} images{left_out}; written to {target}", err=True)


def _target(output: str | None, model: str) -> str:
    from fiqa_fast.models.gauge import SUFFIX

    if output is not None:
        return output
    if model == "starter":
        raise click.UsageError("the built-in model brings its gauge: say where yours goes, with -o")
    checkpoint = Path(model)
    return str(checkpoint.with_name(checkpoint.stem + SUFFIX))


def _refusals(make: Callable[[], Any]) -> Any:
    """Options out of the model's range, and devices that are not there, as one line."""
    from fiqa_fast.errors import CheckpointError, UnsupportedModelError
    from fiqa_fast.gallery.errors import InputError

    try:
        return make()
    except (CheckpointError, UnsupportedModelError, InputError):
        raise
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error


def _listing(items: Iterable[Item]) -> tuple[int, str]:
    """How many images there are, and a digest of their names, sizes and times."""
    from fiqa_fast.errors import ImageError

    digest, count = hashlib.sha256(), 0
    for item in items:
        try:
            with item.open() as file:
                status = os.fstat(file.fileno())
            facts = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ImageError):
            facts = "unreadable"
        digest.update(f"{item.key}\0{facts}\n".encode("utf-8", "surrogateescape"))
        count += 1
    return count, digest.hexdigest()


def _check_output(target: str, state: StateFile, overwrite: bool) -> None:
    """Refuse to replace a gauge of another fit; forget an unfinished one if asked to."""
    from fiqa_fast.calibrate.state import differences
    from fiqa_fast.errors import CheckpointError
    from fiqa_fast.gallery.errors import OutputError
    from fiqa_fast.models import load_gauge

    if overwrite:
        try:
            state.load()
        except OutputError:
            state.remove()
        return
    state.load()
    if not os.path.lexists(target):
        return
    try:
        other = differences(state.plan, load_gauge(target).notes.get("plan"))
    except CheckpointError as error:
        raise OutputError(
            f"{target}: exists and is no gauge ({error}); --overwrite replaces it"
        ) from None
    if other:
        raise OutputError(
            f"{target}: a gauge of another fit (it differs in {other}); --overwrite replaces it"
        )
