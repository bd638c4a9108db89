# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast score --engine ray``: from options to actors on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fiqa_fast.cli.output import Output
    from fiqa_fast.gallery.sources import Source
    from fiqa_fast.models import FaceViT
    from fiqa_fast.ray.engine import Engine
    from fiqa_fast.reading import Reading

__all__ = ["check_engine", "engine_options", "make_engine"]

F = TypeVar("F", bound=Callable[..., Any])

_MAX_CPUS = 16  # of an actor with a GPU: more do not decode faster than it scores


def engine_options(function: F) -> F:
    """Add the options that say who computes."""
    for option in reversed(
        (
            click.option(
                "--engine",
                type=click.Choice(["local", "ray"]),
                default="local",
                show_default=True,
                help="Who computes: this machine, or actors on a Ray cluster.",
            ),
            click.option(
                "--ray-address",
                metavar="ADDRESS",
                help="Of the cluster (default: RAY_ADDRESS, else one is started here and ends "
                "with the run).",
            ),
            click.option(
                "--actors",
                type=click.IntRange(min=1),
                metavar="N",
                help="How many actors hold the model (default: one per GPU of the cluster, or "
                "where there are none, per CPU or --threads of them).",
            ),
        )
    ):
        function = option(function)
    return function


def check_engine(
    engine: str,
    output: Output,
    sources: Sequence[Source],
    processes: int,
    address: str | None,
    actors: int | None,
) -> None:
    """Refuse what an engine cannot do, before anything is loaded."""
    from fiqa_fast.gallery.errors import InputError, OutputError
    from fiqa_fast.gallery.sources.tar import StandardInput

    if engine == "local":
        for name, value in (("--ray-address", address), ("--actors", actors)):
            if value is not None:
                raise InputError(f"{name} goes with --engine ray")
        return
    if output.layout is None:
        raise OutputError("--engine ray needs a table to write: -o FILE or -o DIR/")
    if any(isinstance(source, StandardInput) for source in sources):
        raise InputError("--engine ray: standard input cannot be shared out; store it in a file")
    if processes > 1:
        raise InputError("--engine ray has --actors, not --processes")


def make_engine(
    context: click.Context,
    address: str | None,
    actors: int | None,
    model: FaceViT,
    reading: Reading,
    outputs: Sequence[str],
    exit_block: int | None,
    options: Mapping[str, Any],
    decoders: int | None,
    threads: int | None,
) -> Engine:
    """Return the actors that the options describe, on a cluster connected until the command ends.

    Raises :class:`InputError` where there is no such cluster.
    """
    from fiqa_fast.gallery.errors import InputError
    from fiqa_fast.ray.cluster import connected
    from fiqa_fast.ray.dataset import make_recipe
    from fiqa_fast.ray.engine import Engine

    ray = context.with_resource(connected(address))
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    device = str(options["device"])
    on_gpu = device != "cpu" and (gpus > 0 or device != "auto")
    if on_gpu and not gpus:
        raise InputError(f"--device {device}: the cluster at hand has no GPU")
    share = min(_MAX_CPUS, cpus // gpus) if on_gpu else 1
    num_cpus = max(1, threads or share)
    if num_cpus > cpus:
        raise InputError(f"--threads {num_cpus}: the cluster at hand has {cpus} CPUs")
    gauge = None if options["gauge"] == "none" else options["gauge"]
    settings = {**options, "gauge": gauge, "exit": exit_block, "device": "auto"}
    recipe = make_recipe(
        model,
        outputs,
        num_cpus,
        int(on_gpu),
        settings,
        bgr=reading.bgr,
        resize=reading.resize,
        decoders=decoders,
    )
    return Engine(ray, recipe, actors, num_cpus, int(on_gpu))
