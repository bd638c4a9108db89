# SPDX-License-Identifier: Apache-2.0
"""``score_dataset``: one step of a Ray Data pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from fiqa_fast.gallery.errors import InputError
from fiqa_fast.ray.actor import Recipe, ScoreActor, check_names
from fiqa_fast.ray.columns import find_column
from fiqa_fast.ray.installed import import_ray
from fiqa_fast.reading import Reading

if TYPE_CHECKING:
    import ray.data

    from fiqa_fast.models import FaceViT

__all__ = ["make_recipe", "pool", "score_dataset"]


def score_dataset(
    dataset: ray.data.Dataset,
    model: str | Path | FaceViT = "starter",
    *,
    column: str | None = None,
    outputs: Sequence[str] = ("score",),
    batch_size: int = 32,
    concurrency: int | tuple[int, int] | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    peer_bgr: bool = False,
    resize: bool = True,
    keep_image: bool = True,
    actor_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """Score the images of a Ray dataset; nothing runs before the result is consumed.

    Args:
        dataset: with a column of encoded images (binary), structs of ``bytes`` and ``path``
            (Hugging Face's layout), paths that every machine can read, or RGB arrays uint8
            [H, W, 3] (``ray.data.read_images``).
        model: as :func:`fiqa_fast.load_model` takes it, or a model it returned. It is read here,
            once, and reaches the machines through Ray's object store.
        column: where the images are; found by name and type where it is None.
        outputs: as of :class:`fiqa_fast.Scorer`; ``score`` is added in any case.
        batch_size: images per batch; changes speed and memory, not scores.
        concurrency: how many actors, or at least and at most how many. Default: from one up to
            as many as the cluster has room for.
        num_cpus: of each actor; as many threads decode, and as many compute.
        num_gpus: of each actor; without, it computes on the CPU.
        peer_bgr: whether red and blue change places, as in the reference scripts.
        resize: whether images of another size are resized, or refused.
        keep_image: whether the column of images stays.
        actor_options: further options of ``map_batches`` for the actors, such as ``resources``.
        options: further options of :class:`fiqa_fast.Scorer`: method, gauge, exit, dtype, ...

    Returns:
        The dataset with the columns ``score`` (float32, null where there is an error), ``error``
        (string, null where there is none), and one of float32 arrays for each further output
        (NaN where there is an error). Every row stays, an image that cannot be read too. The
        order of rows is Ray's affair: see ``preserve_order`` of its execution options.

    Each value is that of a ``Scorer`` on one machine, to the bit, where the machines are alike.
    ``dtype="auto"`` may choose differently on machines that are not: name it there. An actor that
    dies is started again, and what it had not finished is done again, once.

    Raises:
        InputError: Ray Data is missing, the column is not found or of another type, or the
            dataset has a column of the name of a result already.
        CheckpointError, ValueError: the model or an option is refused.
    """
    ray = import_ray()
    if not isinstance(dataset, ray.data.Dataset):
        raise InputError(f"wanted a ray.data.Dataset, got {type(dataset).__name__}")
    if batch_size < 1:
        raise InputError(f"batch_size: wanted at least 1, got {batch_size}")
    recipe = make_recipe(model, outputs, num_cpus, num_gpus, options, bgr=peer_bgr, resize=resize)
    # Where only running the steps before would tell the columns, the actors look for them.
    schema = getattr(dataset.schema(fetch_if_missing=False), "base_schema", None)
    if isinstance(schema, pyarrow.Schema):  # pandas' become tables on their way to an actor
        check_names(schema, [name for name in recipe.options["outputs"] if name != "score"])
        column = find_column(schema, column)
    return dataset.map_batches(
        ScoreActor,
        batch_size=batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        udf_modifying_row_count=False,
        compute=pool(concurrency),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        fn_constructor_args=(recipe, column, os.getcwd(), keep_image, batch_size),
        **(actor_options or {}),
    )


def make_recipe(
    model: str | Path | FaceViT,
    outputs: Sequence[str],
    num_cpus: float,
    num_gpus: float,
    options: Mapping[str, Any],
    *,
    bgr: bool = False,
    resize: bool = True,
    decoders: int | None = None,
) -> Recipe:
    """Check everything about the scorer that can be checked here, and put the model in Ray's care.

    Raises CheckpointError and ValueError as ``load_model`` and ``Scorer`` do.
    """
    import torch

    from fiqa_fast.hardware import resolve_dtype
    from fiqa_fast.models import load_model
    from fiqa_fast.options import checked_outputs
    from fiqa_fast.scorer import OUTPUTS, Scorer

    if isinstance(model, Scorer):
        raise ValueError(
            "model: a Scorer holds weights laid out for one machine; give the model it was made "
            "of (or its path), and the scorer's options as keyword arguments"
        )
    if isinstance(model, (str, Path)):
        model = load_model(model)
    checked = {"device": "auto", "dtype": "auto", **options}
    checked["outputs"] = tuple(dict.fromkeys(("score", *checked_outputs(outputs, OUTPUTS))))
    if checked["device"] == "auto":
        checked["device"] = "cuda" if num_gpus else "cpu"
    resolve_dtype(checked["dtype"], torch.device("cpu"))
    # This machine may have no GPU, and no 16-bit arithmetic: neither changes what is refused.
    scorer = Scorer(model, **{**checked, "device": "cpu", "dtype": "float32"})
    # A gauge stands in a file beside the model, here and not on every machine.
    checked["gauge"] = scorer.gauge
    threads = max(1, int(num_cpus))
    reading = Reading(model.config.img_size, bgr=bgr, resize=resize)
    return Recipe(import_ray().put(model), checked, reading, threads, decoders or threads)


def pool(concurrency: int | tuple[int, int] | None) -> Any:
    """Return Ray's strategy of so many actors, or at least and at most so many."""
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    # Two batches at a time: one is decoded while the other is scored.
    return import_ray().data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )
