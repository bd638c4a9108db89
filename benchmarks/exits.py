# SPDX-License-Identifier: Apache-2.0
"""What exits cost: ratios of the three methods' times on a random vit_s, in one interleaved run.

python benchmarks/exits.py [--images 32] [--turns 7] [--dtypes float32 bfloat16] [-o results.json]
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


def seconds(scorer: Scorer, images: torch.Tensor) -> float:
    start = time.perf_counter()
    scorer(images)
    return time.perf_counter() - start


def ratio(above: Scorer, below: Scorer, images: torch.Tensor, turns: int) -> float:
    """Of their times: the median over turns of above, below, below, above, one after the other, so
    that what disturbs the machine for longer than that disturbs both alike."""
    for scorer in (above, below):
        scorer(images)  # warms up
    ratios = []
    for _ in range(turns):
        first, second, third, fourth = (
            seconds(scorer, images) for scorer in (above, below, below, above)
        )
        ratios.append((first + fourth) / (second + third))
    return statistics.median(ratios)


def measure(images: torch.Tensor, dtype: str, turns: int) -> dict[str, float]:
    models = {name: random_model(head) for name, head in {"ATTN": None, **VARIANTS}.items()}

    def scorer(name: str, **options: object) -> Scorer:
        method = "attn-fiqa" if name == "ATTN" else "ex-fiqa"
        return Scorer(models[name], method, dtype=dtype, **options)  # type: ignore[arg-type]

    results = {}
    for name in models:
        last = scorer(name, exit=12)
        every = scorer(name, outputs=("exit_scores",))
        results[f"{name}: exit 6 / exit 12"] = ratio(scorer(name, exit=6), last, images, turns)
        results[f"{name}: all exits / exit 12"] = ratio(every, last, images, turns)
    alone, both = scorer("T"), scorer("T", outputs=("score", "embedding"))
    saved = 1 - ratio(alone, both, images, turns)
    results["T: share saved by score only"] = saved
    results["T: saved / predicted"] = saved / skipped_share()
    results["T: images/s"] = len(images) / statistics.median(
        seconds(alone, images) for _ in range(turns)
    )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    images = torch.randint(0, 256, (arguments.images, 3, 112, 112), dtype=torch.uint8)
    results = {d: measure(images, d, arguments.turns) for d in arguments.dtypes}
    for dtype, ratios in results.items():
        for name, value in ratios.items():
            print(f"{dtype:9} {name:32} {value:.3f}")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
