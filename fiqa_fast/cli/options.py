# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fiqa_fast.models import FaceViT

__all__ = [
    "OUTPUTS",
    "check_outputs",
    "device_options",
    "dtype_option",
    "gallery_options",
    "input_options",
    "load",
    "model_options",
    "named",
    "parse_architecture",
    "parse_outputs",
    "quality_options",
    "quiet_pillow",
    "rates",
    "reading_options",
    "scorer_options",
    "split",
]

F = TypeVar("F", bound=Callable[..., Any])

# Known here so that help and a first check need no torch; a test compares it with the scorer's.
OUTPUTS = (
    "score",
    "embedding",
    "patch_map",
    "query_map",
    "head_scores",
    "exit_scores",
    "head_maps",
    "exit_maps",
)

# Keys of --architecture and how their values read.
_ARCHITECTURE_KEYS: dict[str, Callable[[str], Any]] = {
    "patch_size": int,
    "embed_dim": int,
    "depth": int,
    "num_heads": int,
    "mlp_ratio": float,
    "num_classes": int,
    "quality_head": str,
    "qkv_bias": lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
}


def model_options(function: F) -> F:
    """Add the options that choose a model."""
    for option in (
        click.option(
            "--architecture",
            metavar="NAME|KEY=VALUE,...",
            help="What the checkpoint is, where its file does not say: a name from `fiqa-fast "
            f"models`, or any of {', '.join(_ARCHITECTURE_KEYS)}.",
        ),
        click.option(
            "--model",
            default="starter",
            show_default=True,
            metavar="starter|PATH",
            help="The built-in model, or a checkpoint file.",
        ),
    ):
        function = option(function)
    return function


def device_options(function: F) -> F:
    """Add the options that say where to compute."""
    for option in reversed(
        (
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar="auto|cpu|cuda|cuda:N",
                help="Where to compute; auto takes a GPU if there is one.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                metavar="N",
                help="CPU threads for the model (default: torch's choice).",
            ),
        )
    ):
        function = option(function)
    return function


def dtype_option(default: str, *more: str) -> Callable[[F], F]:
    """Return the option that says in which arithmetic; ``more`` are choices of some commands."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16", *more]),
        default=default,
        show_default=True,
        help="Arithmetic of the model." + " int8 on a CPU, and never unless asked." * bool(more),
    )


def input_options(function: F) -> F:
    """Add the options that say how folders and list files are read."""
    for option in reversed(
        (
            click.option(
                "--root",
                metavar="DIR",
                help="Where the relative paths of list files start (default: the list's own "
                "folder).",
            ),
            click.option(
                "--ext",
                metavar="jpg,png,...",
                help="Take only these suffixes from folders and archives.",
            ),
        )
    ):
        function = option(function)
    return function


def reading_options(function: F) -> F:
    """Add the options that say how an image becomes what the model takes."""
    for option in reversed(
        (
            click.option(
                "--peer-bgr",
                is_flag=True,
                help="Give images to the model with red and blue swapped, as the reference scripts "
                "do by default.",
            ),
            click.option(
                "--no-resize",
                is_flag=True,
                help="Refuse images of another size than the model's; do not resize them.",
            ),
        )
    ):
        function = option(function)
    return function


def quality_options(function: F) -> F:
    """Add the options that say which quality is computed."""
    for option in reversed(
        (
            click.option(
                "--method",
                default="attn-fiqa",
                show_default=True,
                metavar="NAME",
                help="Which quality to compute.",
            ),
            click.option(
                "--reduction",
                type=click.Choice(
                    ["mean", "median", "max", "inverse_std", "row_variance", "centered_variance"]
                ),
                default="mean",
                show_default=True,
                help="How attn-fiqa reduces the attention logits.",
            ),
            click.option(
                "--heads",
                default="all",
                show_default=True,
                metavar="all|average|INT",
                callback=_parse_heads,
                help="Reduce over all heads, over their averaged logits, or over one head.",
            ),
            click.option(
                "--tokens",
                type=click.Choice(["patch", "all"]),
                default="patch",
                show_default=True,
                help="Whose logits attn-fiqa takes: all leaves a quality token in.",
            ),
            click.option(
                "--exit",
                "exit_block",
                type=click.IntRange(min=1),
                metavar="N",
                help="Take the score of this block, counted from 1 (default: the last).",
            ),
            click.option(
                "--fusion",
                type=click.Choice(["uniform", "depth"]),
                help="Fuse the scores of all blocks up to the exit.",
            ),
        )
    ):
        function = option(function)
    return function


def scorer_options(function: F) -> F:
    """Add the options that say what is computed, and on what."""
    for option in reversed(
        (
            quality_options,
            click.option(
                "--gauge",
                default="auto",
                show_default=True,
                metavar="auto|none|PATH",
                help="auto: calibrated scores where the model comes with a gauge; none: the "
                "published scores; or a gauge file.",
            ),
            device_options,
            click.option(
                "--float32-precision",
                type=click.Choice(["highest", "high"]),
                default="highest",
                show_default=True,
                help="high allows split-precision products in float32.",
            ),
        )
    ):
        function = option(function)
    return function


def gallery_options(function: F) -> F:
    """Add the options that say how a gallery is read and scored."""
    for option in reversed(
        (
            dtype_option("auto", "int8"),
            click.option(
                "--batch-size",
                type=click.IntRange(min=1),
                default=32,
                show_default=True,
                metavar="N",
                help="Images per batch; changes speed and memory, not scores. The built-in model "
                "computes 8 at a time, and a GPU 32 of any model: a smaller batch takes as long. "
                "Where a model on a CPU uses all cores, it may get up to eight batches at once, "
                "and images are decoded in between.",
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=1),
                metavar="N",
                help="Threads that decode images (default: one per core, at most 16).",
            ),
            input_options,
            click.option(
                "--strict", is_flag=True, help="Exit with status 1 if any image has no score."
            ),
            click.option("--quiet", is_flag=True, help="No progress and no summary; errors only."),
        )
    ):
        function = option(function)
    return function


def _parse_heads(_: click.Context, __: click.Parameter, text: str) -> str | int:
    if text in ("all", "average"):
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"wanted all, average or a head number, got {text!r}") from None


def check_outputs(outputs: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """Raise :class:`OutputError` where an output would overwrite an input or another output."""
    from fiqa_fast.gallery.errors import OutputError

    taken = {os.path.realpath(path): "an input" for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise OutputError(f"{path}: this is {taken[place]} too, and would be overwritten")
        taken[place] = "another output"


def split(text: str | None) -> list[str] | None:
    """Split a comma-separated option; None stays None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def rates(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...]:
    """Return comma-separated error rates, as a callback of their option."""
    try:
        return tuple(dict.fromkeys(float(part) for part in split(text) or []))
    except ValueError:
        raise click.BadParameter(
            f"wanted rates such as 1e-2,1e-3, got {text!r}", param=parameter
        ) from None


def named(text: str) -> tuple[str | None, str]:
    """Split ``NAME=PATH``; a path that exists as it is has no name."""
    name, equals, path = text.partition("=")
    if equals and name and path and not os.path.exists(text):
        return name, path
    return None, text


def parse_outputs(text: str) -> list[str]:
    """Return the outputs wanted, ``score`` first and in any case."""
    names = list(dict.fromkeys(["score", *(split(text) or [])]))
    for name in names:
        if name not in OUTPUTS:
            raise click.BadParameter(
                f"wanted some of {', '.join(OUTPUTS)}, got {name!r}", param_hint="--outputs"
            )
    return names


def parse_architecture(text: str | None) -> str | dict[str, Any] | None:
    """Return ``key=value,...`` as a dictionary; a registered name as it is."""
    if text is None or "=" not in text:
        return text
    architecture: dict[str, Any] = {}
    for part in split(text) or []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in _ARCHITECTURE_KEYS:
            wanted = ", ".join(_ARCHITECTURE_KEYS)
            raise click.BadParameter(
                f"wanted KEY=VALUE with KEY one of {wanted}, got {part!r}",
                param_hint="--architecture",
            )
        try:
            architecture[key] = _ARCHITECTURE_KEYS[key](value)
        except (ValueError, KeyError):
            raise click.BadParameter(
                f"{key}={value} cannot be read", param_hint="--architecture"
            ) from None
    return architecture


def load(
    model: str, architecture: str | None, threads: int | None, *, borrow: bool = False
) -> FaceViT:
    """Load the model that the options name, by as many threads as torch has from here on.

    Borrowed, where all that is wanted is a scorer, made at once.
    """
    import torch

    from fiqa_fast.models.loading import borrow_model, load_model

    if threads is not None:
        torch.set_num_threads(threads)
    how = borrow_model if borrow else load_model
    return how(model, architecture=parse_architecture(architecture))


def quiet_pillow() -> None:
    """Let a damaged file speak once, through its error row, not through Pillow's warnings."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
