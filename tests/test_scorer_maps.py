# SPDX-License-Identifier: Apache-2.0
"""``head_maps`` and ``exit_maps``: against every logit in float64, and the other outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64_vit import AttentionQuality, Float64ViT, Shape, fused

from fiqa_fast import FaceViT, Scorer, load_model

PARITY = Path(__file__).parent / "data" / "parity"
MODELS = ("cvlface_patch8", "arcface_patch9", "vitfiqa_token", "vitfiqa_full")
MAPS = ("head_maps", "exit_maps")


class Case:
    def __init__(self, name: str) -> None:
        facts = json.loads((PARITY / "configs.json").read_text())[name]
        path = PARITY / f"{name}.pt"
        self.model: FaceViT = load_model(path, {"num_heads": facts["num_heads"]})
        config = self.model.config
        shape = Shape(
            config.patch_size,
            config.embed_dim,
            config.num_heads,
            config.depth,
            config.hidden_dim,
            config.num_classes,
            head=config.quality_head,
        )
        state = {key: value.numpy() for key, value in self.model.state_dict().items()}
        pixels = np.load(PARITY / "images_rgb_uint8.npy").transpose(0, 3, 1, 2)
        self.images = torch.from_numpy(np.ascontiguousarray(pixels))
        self.logits = Float64ViT(shape, state, pixels).logits
        self.prefix = shape.prefix

    def run(self, outputs: tuple[str, ...] = MAPS, **options: Any) -> Any:
        return Scorer(self.model, "attn-fiqa", outputs, dtype="float32", **options)(self.images)

    def blocks(self, **options: Any) -> list[AttentionQuality]:
        return [AttentionQuality(logits, self.prefix, **options) for logits in self.logits]


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def check(got: torch.Tensor, want: np.ndarray) -> None:
    assert tuple(got.shape) == want.shape
    assert np.abs(got.double().numpy() - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("fusion", [None, "uniform", "depth"])
def test_against_every_logit(case: Case, fusion: str | None) -> None:
    """Head maps follow exit and fusion; exit maps are each block's own, whatever those say."""
    for tokens in ("patch", "all") if case.prefix else ("patch",):
        blocks = case.blocks(tokens=tokens)
        for exit in (1, len(blocks) - 1, len(blocks)):
            got = case.run(exit=exit, fusion=fusion, tokens=tokens)
            check(got.head_maps, fused([block.head_maps for block in blocks[:exit]], fusion))
            check(got.exit_maps, np.stack([block.patch_map for block in blocks], 1))


def test_one_head(case: Case) -> None:
    """Exit maps are of the head that was chosen, head maps of all."""
    blocks = case.blocks(heads=1)
    got = case.run(heads=1)
    check(got.exit_maps, np.stack([block.patch_map for block in blocks], 1))
    check(got.head_maps, blocks[-1].head_maps)


def test_they_are_the_other_outputs_in_detail(case: Case) -> None:
    got = case.run((*MAPS, "patch_map", "head_scores", "exit_scores"))
    torch.testing.assert_close(got.head_maps.mean(1), got.patch_map, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.head_maps.mean((2, 3)), got.head_scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.exit_maps.mean((2, 3)), got.exit_scores, rtol=1e-5, atol=1e-6)


def test_each_exit_map_is_that_exit_s_patch_map_to_the_bit(case: Case) -> None:
    every = case.run().exit_maps
    for number in range(1, case.model.config.depth + 1):
        alone = case.run(("patch_map",), exit=number).patch_map
        assert torch.equal(every[:, number - 1], alone)


def test_a_map_s_bits_do_not_depend_on_the_other_outputs(case: Case) -> None:
    maps = ("patch_map", "query_map", *MAPS)
    together = case.run(("score", *maps))
    for name in maps:
        assert torch.equal(getattr(case.run((name,)), name), getattr(together, name))


@pytest.mark.parametrize("name", ["starter", *MODELS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bitwise_whatever_the_batch(name: str, dtype: str) -> None:
    model = load_model("starter") if name == "starter" else Case(name).model
    scorer = Scorer(model, outputs=("score", *MAPS), dtype=dtype)
    images = torch.randint(0, 256, (19, 3, 112, 112), dtype=torch.uint8)
    want = scorer(images)
    order = torch.randperm(19)
    for size in (1, 5, 19):
        parts = [scorer(part) for part in images[order].split(size)]
        for output in scorer.outputs:
            got = torch.cat([getattr(part, output) for part in parts])
            assert torch.equal(got, getattr(want, output)[order]), (size, output)


def test_with_a_gauge_exit_maps_are_calibrated_and_head_maps_published() -> None:
    model = load_model("starter")
    images = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    outputs = (*MAPS, "exit_scores")
    calibrated = Scorer(model, outputs=outputs, dtype="float32")(images)
    published = Scorer(model, outputs=outputs, dtype="float32", gauge=None)(images)
    assert torch.equal(calibrated.head_maps, published.head_maps)
    for result in (calibrated, published):
        torch.testing.assert_close(
            result.exit_maps.mean((2, 3)), result.exit_scores, rtol=1e-5, atol=2e-5
        )
    assert not torch.allclose(calibrated.exit_maps, published.exit_maps, atol=0.01)


def test_a_head_map_alone_runs_no_later_block() -> None:
    model = load_model("starter")
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    want = Scorer(model, outputs=("head_maps",), exit=3)(images).head_maps
    with torch.no_grad():
        for block in model.blocks[3:]:
            block.attn.qkv.weight.fill_(torch.nan)
    got = Scorer(model, outputs=("head_maps",), exit=3, gauge=None)(images).head_maps
    assert torch.equal(got, want)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", MAPS)
def test_a_quality_head_has_no_maps(output: str) -> None:
    model = Case("vitfiqa_token").model
    with pytest.raises(ValueError, match=f"vit-fiqa has no {output}: that is an output of attn"):
        Scorer(model, "vit-fiqa", ("score", output))
