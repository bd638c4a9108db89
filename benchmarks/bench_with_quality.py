# SPDX-License-Identifier: Apache-2.0
"""What score and map cost on top of a ViT's own output: interleaved medians, and memory.

``python benchmarks/bench_with_quality.py`` prints the figures for timm's vit_small_patch16_224 at
batch 32 as JSON; ``--model``, ``--batch``, ``--dtype``, ``--threads`` and ``--rounds`` change them.
``--model`` takes any timm ViT or Eva, with options of its own after commas, and several of them:
``--model vit_small_patch16_224,qk_norm=True eva02_small_patch14_224``. Those two read q and k
themselves, and so compute the last block's projections of them once more.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fiqa_fast


class Allocations(TorchDispatchMode):
    """Bytes that operators write into storages of their own."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))

        def storage(t):
            return t.untyped_storage().data_ptr()

        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        given = {storage(t) for t in tensors}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and storage(t) not in given:
                self.total += t.nbytes
                self.largest = max(self.largest, t.nbytes)
        return out


def allocated(function, x):
    with Allocations() as seen:
        function(x)
    return seen.total


def seconds(function, x):
    start = time.perf_counter()
    function(x)
    return time.perf_counter() - start


def created(spec):
    """The timm model of ``name,option=value,...``."""
    import timm

    name, *options = spec.split(",")
    options = (option.split("=", 1) for option in options)
    return timm.create_model(name, **{key: ast.literal_eval(value) for key, value in options})


@torch.no_grad()
def measure(name, batch, dtype, rounds):
    model = created(name).eval().to(dtype)
    wrapped = fiqa_fast.with_quality(model, ("score", "patch_map"))
    x = torch.randn(batch, 3, *model.patch_embed.img_size).to(dtype)
    output, score, patch_map = wrapped(x)
    assert torch.equal(output, model(x))
    torch.testing.assert_close(patch_map.mean(dim=(1, 2)), score, rtol=1e-3, atol=1e-5)
    times = {"model": [], "wrapped": []}
    functions = {"model": model, "wrapped": wrapped}
    for i in range(rounds):
        order = list(functions) if i % 2 else list(functions)[::-1]
        for key in order:
            times[key].append(seconds(functions[key], x))
    ratios = [w / m for w, m in zip(times["wrapped"], times["model"], strict=True)]
    tokens = patch_map[0].numel()
    return {
        "model": name,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "model_s": statistics.median(times["model"]),
        "wrapped_s": statistics.median(times["wrapped"]),
        "overhead_of_medians": statistics.median(times["wrapped"])
        / statistics.median(times["model"])
        - 1,
        "overhead_of_minima": min(times["wrapped"]) / min(times["model"]) - 1,
        "median_overhead_of_pairs": statistics.median(ratios) - 1,
        "extra_bytes": allocated(wrapped, x) - allocated(model, x),
        "logits_bytes": batch * model.blocks[-1].attn.num_heads * tokens**2 * output.element_size(),
    }


def test_overhead_and_memory():
    pytest.importorskip("timm")
    result = measure("vit_small_patch16_224", batch=32, dtype=torch.float32, rounds=7)
    print(json.dumps(result))
    assert result["extra_bytes"] < result["logits_bytes"] / 10
    assert result["median_overhead_of_pairs"] <= 0.03


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["vit_small_patch16_224"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    for name in options.model:
        print(json.dumps(measure(name, options.batch, dtype, options.rounds), indent=2), flush=True)


if __name__ == "__main__":
    main()
