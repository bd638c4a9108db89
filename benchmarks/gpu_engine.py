# SPDX-License-Identifier: Apache-2.0
"""The GPU engine as benchmarks/gpu.py measures it: images on the host to scores on the host.

Beside the eager engine, which computes the same without a graph and sends images from pageable
memory. Batches of a few sizes, and, for one of them, other numbers of images per group than the
engine's own (``GPU_GROUP``), which is a guess.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fiqa_fast import FaceViT, Scorer, ViTConfig, load_model
from fiqa_fast.engine.accelerator import CaptureError, Host
from fiqa_fast.engine.eager import GPU_GROUP, EagerEngine, cpu_group
from fiqa_fast.engine.graphs import GraphEngine
from fiqa_fast.quality.attn_fiqa import AttnFiqa
from gpu_timing import as_json, host_seconds, race

# Of the largest score: what rounding to the dtype may make of it on random weights.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
DISTINCT_BATCHES = 4


@dataclass(frozen=True)
class Case:
    """``group`` None is the engine's own number of images per group."""

    model: str
    dtype: str
    batch: int
    group: int | None = None


def vit_small() -> FaceViT:
    """CVLface's and ATTN-FIQA's small one, with random weights."""
    torch.manual_seed(0)
    model = FaceViT(ViTConfig(8, 512, 12, 8, 5)).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


MODELS = {"starter": lambda: load_model("starter"), "vit_small": vit_small}


def cases(quick: bool, on_cpu: bool) -> list[Case]:
    if on_cpu:
        return [Case("starter", "bfloat16", 3), Case("starter", "bfloat16", 3, 4)]
    dtypes = ["bfloat16"] if quick else ["bfloat16", "float16", "float32"]
    batches = [32, 256] if quick else [1, 8, 32, 128, 256, 1024]
    groups = [64] if quick else [8, 16, 64, 128, 256]
    models = ["vit_small"] if quick else list(MODELS)
    own = itertools.starmap(Case, itertools.product(models, dtypes, batches))
    others = itertools.product(models, ["bfloat16"], [1024 if not quick else 256], groups)
    return [*own, *itertools.starmap(Case, others)]


def pictures(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def engine(
    kind: type[EagerEngine], model: FaceViT, case: Case, device: torch.device
) -> EagerEngine:
    options: dict[str, Any] = {}
    if kind is GraphEngine:
        on_cpu = device.type == "cpu"
        own = cpu_group(model.config.num_tokens) if on_cpu else GPU_GROUP
        options = {"group": case.group or own, "accelerator": Host() if on_cpu else None}
    method = AttnFiqa(model, ("score",), device=device)
    dtype = getattr(torch, case.dtype)
    return kind(model, method, embedding=False, device=device, dtype=dtype, **options)


def measure(case: Case, device: torch.device, rounds: int) -> dict[str, Any]:
    """One row of the table; "failed" says why there are no times."""
    model = MODELS[case.model]()
    entry: dict[str, Any] = {**asdict(case), "functions": {}}
    engines: dict[str, EagerEngine] = {}
    try:
        engines["graphs"] = engine(GraphEngine, copy.deepcopy(model), case, device)
        entry["group"] = engines["graphs"].group
    except CaptureError as error:
        entry["failed"] = str(error)
    if case.group is None:
        engines["eager"] = engine(EagerEngine, model, case, device)
    batches = [
        pictures(case.batch, model.config.img_size, seed) for seed in range(DISTINCT_BATCHES)
    ]
    scores = {name: one.run(batches[0])["score"] for name, one in engines.items()}
    if len(scores) == 2 and not torch.equal(scores["graphs"], scores["eager"]):
        entry["failed"] = "graphs and eager engine differ"
        return entry
    few = batches[0][:4]
    exact = Scorer(model, device="cpu", dtype="float32", gauge=None)(few).score
    assert exact is not None
    for name, score in scores.items():
        error = float((score[: len(few)] - exact).abs().max() / exact.abs().max())
        entry["functions"][name] = {"error": error}
        if not error <= TOLERANCE[getattr(torch, case.dtype)]:
            entry["failed"] = f"{name} is off by {error:.1e} of the largest score"
            return entry
    functions = {name: one.run for name, one in engines.items()}
    inputs = [(batch,) for batch in batches]
    for name, times in race(functions, inputs, host_seconds, rounds, 4).items():
        figures = as_json(times)
        figures["images_per_second"] = case.batch / times.median
        entry["functions"][name].update(figures)
    return entry


def table(entries: Sequence[dict[str, Any]]) -> str:
    """Images per second: medians with quartiles, and the ratio of medians."""
    lines = [
        f"{'engine':<12}{'dtype':<10}{'batch':>6}{'group':>6}{'graphs images/s':>17}"
        f"{'quartiles':>22}{'over eager':>12}{'error':>10}"
    ]
    for entry in entries:
        group = entry["group"] or "-"
        line = f"{entry['model']:<12}{entry['dtype']:<10}{entry['batch']:>6}{group:>6}"
        if "failed" in entry:
            lines.append(f"{line}  FAILED, not timed: {entry['failed']}")
            continue
        ours = entry["functions"]["graphs"]
        slow, fast = (entry["batch"] / ours[f"{name}_s"] for name in ("high", "low"))
        eager = entry["functions"].get("eager", {}).get("median_s")
        ratio = "-" if eager is None else f"{eager / ours['median_s']:.2f}x"
        lines.append(
            f"{line}{ours['images_per_second']:>17.0f}{f'({slow:.0f} to {fast:.0f})':>22}"
            f"{ratio:>12}{ours['error']:>10.1e}"
        )
    return "\n".join(lines)
