# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast bench``: images per second beside the published computation, and the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from fiqa_fast.cli.options import (
    check_outputs,
    device_options,
    load,
    model_options,
    quiet_pillow,
    split,
)

if TYPE_CHECKING:
    import torch

    from fiqa_fast.models import FaceViT

__all__ = ["command"]

# Inputs take turns, so that no run finds its own input in the cache.
_DISTINCT_BATCHES = 4


@click.command("bench")
@click.argument("inputs", nargs=-1, metavar="[INPUT...]")
@model_options
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    metavar="NAME,...",
    help="Arithmetic to measure: float32, bfloat16, float16.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Images per batch.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    metavar="N",
    help="Timed batches of each kind, after two to warm up.",
)
@device_options
@click.option("-o", "--output", metavar="FILE.json", help="Write the numbers as JSON as well.")
def command(
    inputs: tuple[str, ...],
    model: str,
    architecture: str | None,
    dtype: str,
    batch_size: int,
    repeat: int,
    threads: int | None,
    device: str,
    output: str | None,
) -> None:
    """Measure images per second against the published computation.

    Both compute the published score (mean logit, no gauge) of the last block from decoded images:
    `published` as the papers do, with every attention logit in memory; `fiqa_fast` as `fiqa-fast
    score` does. They take turns, batch by batch, on the same inputs: random pixels, or the images
    of INPUT. Beside the speed stands what it costs: the scores' largest difference from the
    published ones in float32, in units of their standard deviation, and the rank correlation.

    \b
    Examples:
      fiqa-fast bench
      fiqa-fast bench crops/ --dtype float32,bfloat16 --batch-size 64
      fiqa-fast bench --model vit.pt --repeat 30 -o bench.json
    """
    quiet_pillow()
    dtypes = split(dtype) or []
    wanted = ("float32", "bfloat16", "float16")
    if not dtypes or any(name not in wanted for name in dtypes):
        raise click.BadParameter(f"wanted some of {', '.join(wanted)}, got {dtype!r}")
    if output is not None:
        from fiqa_fast.gallery.atomic import check_target

        check_target(output)
        check_outputs([output], (model, *inputs))
    loaded = load(model, architecture)
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    size = loaded.config.img_size
    batches = _images(inputs, size, batch_size)
    report: dict[str, Any] = {
        "model": model,
        "batch_size": batch_size,
        "repeat": repeat,
        "inputs": list(inputs) or "random",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtypes": {},
    }
    for name in dtypes:
        entry = _measure(loaded, batches, name, device, repeat)
        report["dtypes"][name] = entry
        report["device"] = entry.pop("device")
        _print(name, entry, report, first=name == dtypes[0])
    if output is not None:
        _write_json(output, report)


def _images(inputs: Sequence[str], size: int, batch_size: int) -> list[torch.Tensor]:
    """Return the batches to rotate: uint8 [B, 3, size, size], random or from ``inputs``."""
    import torch

    wanted = _DISTINCT_BATCHES * batch_size
    if inputs:
        images = _decoded(inputs, size, wanted)
        # Fewer images than wanted are used again, so that all batches have one size.
        pixels = torch.stack([images[i % len(images)] for i in range(wanted)])
    else:
        pixels = _random_images(wanted, size)
    return list(torch.split(pixels, batch_size))


def _decoded(inputs: Sequence[str], size: int, wanted: int) -> list[torch.Tensor]:
    import torch

    from fiqa_fast.errors import ImageError
    from fiqa_fast.gallery.errors import InputError
    from fiqa_fast.gallery.sources import open_sources
    from fiqa_fast.images import decode, fit

    images: list[torch.Tensor] = []
    for source in open_sources(inputs):
        for item in source:
            if len(images) == wanted:
                return images
            try:
                with item.open() as file:
                    images.append(torch.from_numpy(fit(decode(file), size).planes))
            except (ImageError, OSError):
                continue  # not what is measured here
    if not images:
        raise InputError("wanted images to measure with, got none that can be decoded")
    return images


def _random_images(count: int, size: int) -> torch.Tensor:  # uint8 [count, 3, size, size]
    """Random images from smooth to noise, so that their scores differ."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images = []
    for i in range(count):
        detail = (3, 6, 12, 25, 50, size)[i % 6]
        coarse = torch.rand(1, 3, detail, detail, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        images.append((fine[0] * 255).to(torch.uint8))
    return torch.stack(images)


def _measure(
    model: FaceViT, batches: list[torch.Tensor], dtype: str, device: str, repeat: int
) -> dict[str, Any]:
    """Time both computations by turns, and compare their scores."""
    import copy

    import torch

    import fiqa_fast
    from fiqa_fast.engine.published import published_scores
    from fiqa_fast.ranks import spearman

    try:
        scorer = fiqa_fast.Scorer(model, device=device, dtype=dtype, gauge=None)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error

    def ours(pixels: torch.Tensor) -> torch.Tensor:
        score = scorer(pixels).score
        assert score is not None
        return score

    def published_in(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        kind: torch.dtype = getattr(torch, name)
        reference = copy.deepcopy(model).to(scorer.device, kind).eval()

        def published(pixels: torch.Tensor) -> torch.Tensor:
            images = pixels.to(scorer.device).float().div_(255).sub_(0.5).div_(0.5)
            return published_scores(reference, images, kind).cpu()

        return published

    published = published_in(dtype)
    exact = torch.cat(list(map(published_in("float32"), batches)))
    seconds = _race({"published": published, "fiqa_fast": ours}, batches, repeat)
    entry: dict[str, Any] = {"device": _device_name(scorer.device)}
    for name, function in (("published", published), ("fiqa_fast", ours)):
        scores = torch.cat([function(batch) for batch in batches])
        entry[name] = {
            **_rates(seconds[name], len(batches[0])),
            "max_error_over_std": float((scores - exact).abs().max() / exact.std()),
            "spearman": spearman(scores.numpy(), exact.numpy()),
        }
    entry["ratio"] = (
        entry["fiqa_fast"]["images_per_second"] / entry["published"]["images_per_second"]
    )
    return entry


def _race(
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]],
    batches: list[torch.Tensor],
    repeat: int,
) -> dict[str, list[float]]:
    """Return the seconds of each call; the functions take turns, and turns at going first."""
    import time

    seconds: dict[str, list[float]] = {name: [] for name in functions}
    warm_up = 2
    for i in range(warm_up + repeat):
        for name in list(functions) if i % 2 else list(functions)[::-1]:
            start = time.perf_counter()
            functions[name](batches[i % len(batches)])
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _rates(seconds: list[float], batch_size: int) -> dict[str, float]:
    """Return images/s: of the median time, and of its quartiles."""
    import numpy as np

    slow, median, fast = (batch_size / np.percentile(seconds, q) for q in (75, 50, 25))
    return {
        "images_per_second": float(median),
        "images_per_second_low": float(slow),
        "images_per_second_high": float(fast),
    }


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _print(dtype: str, entry: dict[str, Any], report: dict[str, Any], first: bool) -> None:
    if first:
        click.echo(
            f"{report['model']} on {report['device']}, batch size {report['batch_size']}, "
            f"{report['threads']} CPU threads, {report['repeat']} batches each, medians "
            "(quartiles)\n"
        )
        click.echo(
            f"{'dtype':<10}{'computation':<13}{'images/s':>10}{'':>22}{'ratio':>7}"
            f"{'max error/std':>15}{'rank corr.':>12}"
        )
    for name in ("published", "fiqa_fast"):
        row = entry[name]
        spread = f"({row['images_per_second_low']:.1f} to {row['images_per_second_high']:.1f})"
        ratio = entry["ratio"] if name == "fiqa_fast" else 1.0
        click.echo(
            f"{dtype:<10}{name:<13}{row['images_per_second']:>10.1f}{spread:>22}{ratio:>7.2f}"
            f"{row['max_error_over_std']:>15.1e}{row['spearman']:>12.6f}"
        )


def _write_json(path: str, report: dict[str, Any]) -> None:
    from fiqa_fast.gallery.atomic import write_atomically

    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
    click.echo(f"\nwritten to {path}", err=True)
