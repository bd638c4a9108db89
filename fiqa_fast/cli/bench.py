# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast bench``: images per second beside the published computation and other engines."""

from __future__ import annotations

import json
from typing import Any

import click

from fiqa_fast.cli.options import (
    check_outputs,
    device_options,
    model_options,
    parse_architecture,
    quality_options,
    quiet_pillow,
    split,
)

__all__ = ["command"]

_ALSO = ("decode", "memory", "startup")


def _batch_sizes(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(part) for part in split(text) or []))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"wanted numbers of images such as 1,8,32, got {text!r}")
    return sizes


def _also(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(split(text) or ())
    for name in names:
        if name not in _ALSO:
            raise click.BadParameter(f"wanted some of {', '.join(_ALSO)}, got {name!r}")
    return names


@click.command("bench")
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@model_options
@quality_options
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    metavar="NAME,...",
    help="Arithmetic to measure: that of `fiqa-fast score`, and high for float32 with "
    "--float32-precision high.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    default="32",
    show_default=True,
    metavar="N,...",
    callback=_batch_sizes,
    help="Images per call. A turn is as many images as the largest has.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    metavar="N",
    help="Rounds in which everyone has a turn.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Begin no further round after so long, but the first two. Preparing is not counted.",
)
@click.option(
    "--peers",
    is_flag=True,
    help="Race torch.compile, ONNX Runtime and OpenVINO, too: pip install 'fiqa_fast[peers]'.",
)
@click.option(
    "--only",
    metavar="TEXT,...",
    help="Take engines alone whose name in the table holds one of these texts.",
)
@click.option(
    "--also",
    default="",
    metavar=f"{'|'.join(_ALSO)},...",
    callback=_also,
    help="Measure as well: decoding, the model and a whole run apart; resident memory of each "
    "engine; seconds from the start of a process to its first score.",
)
@device_options
@click.option("-o", "--output", metavar="FILE.json", help="Write the numbers as JSON as well.")
def command(
    inputs: tuple[str, ...],
    model: str,
    architecture: str | None,
    dtype: str,
    batch_sizes: tuple[int, ...],
    repeat: int,
    seconds: float,
    peers: bool,
    only: str | None,
    also: tuple[str, ...],
    threads: int | None,
    device: str,
    output: str | None,
    exit_block: int | None,
    **quality: Any,
) -> None:
    """Measure images per second beside the published computation, and beside other engines.

    Everyone computes the published score (no gauge) of the same decoded images: random ones, or
    those of INPUT. `fiqa_fast` does so as `fiqa-fast score` does; `eager published` as the papers
    do, with every attention logit in memory; peers compute that graph, or a `factorised` one that
    saves what ours saves. They take turns, so ratios hold where rates move. Beside the speed stands
    what it costs: the largest difference from the published scores in float32, over their standard
    deviation, and the rank correlation. The GEMM bound is what an engine would reach that only
    multiplied matrices, as fast as torch's libraries do.

    --model takes a name from `fiqa-fast models`, too, and then random weights.

    \b
    Examples:
      fiqa-fast bench
      fiqa-fast bench crops/ --dtype float32,bfloat16 --batch-size 1,8,64
      fiqa-fast bench --model cvlface_vit_small --peers -o bench.json
      fiqa-fast bench --model vit.pt --exit 6 --peers --only fiqa_fast,openvino
      fiqa-fast bench crops/ --also decode,memory,startup
    """
    quiet_pillow()
    dtypes = list(dict.fromkeys(split(dtype) or []))
    if not dtypes:
        raise click.BadParameter(f"wanted names such as float32,bfloat16, got {dtype!r}")
    if output is not None:
        from fiqa_fast.gallery.atomic import check_target

        check_target(output)
        check_outputs([output], (model, *inputs))
    from fiqa_fast.bench.pixels import encoded_images
    from fiqa_fast.bench.report import text
    from fiqa_fast.bench.run import Plan, measure
    from fiqa_fast.bench.subject import Subject

    try:
        subject = Subject.of(
            model,
            parse_architecture(architecture),
            {**quality, "exit": exit_block},
            device,
            threads,
        )
        scorers = subject.scorers(dtypes)
    except (TypeError, ValueError, RuntimeError) as error:
        # An option out of the model's range, or what is not to be had here.
        raise click.ClickException(str(error)) from error
    plan = Plan(batch_sizes, repeat, seconds, peers, split(only) or (), also, inputs)
    images = encoded_images(inputs, subject.model.config.img_size, plan.images)
    report = measure(subject, scorers, plan, images, lambda line: click.echo(line, err=True))
    click.echo(text(report))
    if output is not None:
        from fiqa_fast.gallery.atomic import write_atomically

        write_atomically(output, (json.dumps(report.as_json(), indent=1) + "\n").encode())
        click.echo(f"\nwritten to {output}", err=True)
