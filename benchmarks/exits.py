# SPDX-License-Identifier: Apache-2.0
"""What exits cost: ratios of the three methods' times on a random vit_s, in one interleaved run.

python benchmarks/exits.py [--images 32] [--repeat 7] [-o results.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import torch

from fiqa_fast import FaceViT, Scorer
from fiqa_fast.models.registry import ARCHITECTURES

CONFIG = ARCHITECTURES["arcface_vit_s"].config
VARIANTS = {"T": "token", "C": "crfiqa", "full": "full"}


def random_model(quality_head: str | None) -> FaceViT:
    torch.manual_seed(0)
    model = FaceViT(dataclasses.replace(CONFIG, quality_head=quality_head))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) * tensor[0].numel() ** -0.5)
    return model


def skipped_share() -> float:
    """Share of the multiply-adds of T's embedding and score that the score alone leaves out."""
    n, d = CONFIG.num_tokens + 1, CONFIG.embed_dim
    embed = CONFIG.num_patches * 3 * CONFIG.patch_size**2 * d
    block = 12 * n * d * d + 2 * n * n * d
    token_block = 2 * n * d * d + 10 * d * d + 2 * n * d
    head = (CONFIG.num_patches + 1) * d * d
    return (block - token_block + head) / (embed + CONFIG.depth * block + head)


def measure(images: torch.Tensor, dtype: str, repeat: int) -> dict[str, float]:
    models = {name: random_model(head) for name, head in {"ATTN": None, **VARIANTS}.items()}

    def scorer(name: str, **options: object) -> Scorer:
        method = "attn-fiqa" if name == "ATTN" else "ex-fiqa"
        return Scorer(models[name], method, dtype=dtype, **options)  # type: ignore[arg-type]

    runs: dict[str, Scorer] = {}
    for name in models:
        runs[f"{name} exit 6"] = scorer(name, exit=6)
        runs[f"{name} exit 12"] = scorer(name, exit=12)
        runs[f"{name} all exits"] = scorer(name, outputs=("exit_scores",))
    runs["T embedding"] = scorer("T", outputs=("score", "embedding"))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            runs[name](images)
            if turn > 0:  # the first warms up
                seconds[name].append(time.perf_counter() - start)

    def ratio(above: str, below: str) -> float:
        """The median over turns: what disturbs a turn disturbs both."""
        pairs = zip(seconds[above], seconds[below], strict=True)
        return statistics.median(a / b for a, b in pairs)

    ratios = {}
    for name in models:
        ratios[f"{name}: exit 6 / exit 12"] = ratio(f"{name} exit 6", f"{name} exit 12")
        ratios[f"{name}: all exits / exit 12"] = ratio(f"{name} all exits", f"{name} exit 12")
    saved = 1 - ratio("T exit 12", "T embedding")
    ratios["T: share saved by score only"] = saved
    ratios["T: saved / predicted"] = saved / skipped_share()
    ratios["T: images/s"] = len(images) / statistics.median(seconds["T exit 12"])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    images = torch.randint(0, 256, (arguments.images, 3, 112, 112), dtype=torch.uint8)
    results = {d: measure(images, d, arguments.repeat) for d in ("float32", "bfloat16")}
    for dtype, ratios in results.items():
        for name, value in ratios.items():
            print(f"{dtype:9} {name:32} {value:.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
