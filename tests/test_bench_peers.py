# SPDX-License-Identifier: Apache-2.0
"""Peers compute the published score, from both graphs; what they say of themselves is recorded."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fiqa_fast import FaceViT, ViTConfig
from fiqa_fast.bench import pixels
from fiqa_fast.bench.agreement import agreement
from fiqa_fast.bench.entries import Absent, Entry
from fiqa_fast.bench.peers import compiled, onnxruntime, openvino
from fiqa_fast.bench.peers.exports import Exports
from fiqa_fast.bench.subject import Subject

NEEDS = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "torch.compile": (),
}


def need(engine: str) -> None:
    for name in NEEDS[engine]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if engine == "torch.compile" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")


def subject(quality_head: str | None = None, **options: Any) -> Subject:
    torch.manual_seed(0)
    model = FaceViT(ViTConfig(28, 32, 3, 2, 2, qkv_bias=True, quality_head=quality_head))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) * tensor[0].numel() ** -0.5)
    model.requires_grad_(False)
    return Subject("tiny", None, options, torch.device("cpu"), 1, model, True)


def images(count: int) -> Tensor:
    return torch.stack([pixels.random_image(number, 112) for number in range(count)])


@pytest.fixture
def exports() -> Iterator[Exports]:
    made = Exports(subject())
    yield made
    made.close()


def entries(engine: str, exports: Exports, dtype: str = "float32") -> list[Entry]:
    if engine == "torch.compile":
        return compiled.entries(exports.subject, dtype)
    of = {"onnxruntime": onnxruntime, "openvino": openvino}[engine]
    return of.entries(exports, dtype)


def check(entry: Entry, exports: Exports, batch_size: int, error: float = 1e-4) -> None:
    ready = entry.prepare(batch_size)
    given = images(2 * batch_size)
    scores = torch.cat([ready.run(part) for part in given.split(batch_size)])
    assert scores.dtype == torch.float32
    found = agreement(scores, exports.subject.exact(given))
    assert found.max_error_over_std < error
    assert found.spearman > 0.99


@pytest.mark.parametrize("engine", NEEDS)
def test_peers_compute_the_published_score(engine: str, exports: Exports) -> None:
    need(engine)
    everyone = entries(engine, exports)
    assert {entry.graph for entry in everyone} == {"published", "factorised"}
    for entry in everyone:
        check(entry, exports, batch_size=4)
        assert entry.prepare(4).executes == "float32"
    compiled.forget()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("variant", "options"),
    [
        (None, {"exit": 2}),
        (None, {"fusion": "depth"}),
        ("token", {"method": "vit-fiqa"}),
        ("crfiqa", {"method": "ex-fiqa", "exit": 2}),
    ],
)
def test_other_scores(engine: str, variant: str | None, options: dict[str, Any]) -> None:
    need(engine)
    made = Exports(subject(variant, **options))
    try:
        for entry in entries(engine, made):
            check(entry, made, batch_size=2)
    finally:
        made.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch.compile"])
def test_what_does_not_factorise_is_published_only(engine: str) -> None:
    need(engine)
    made = Exports(subject(reduction="max"))
    try:
        for entry in entries(engine, made):
            if entry.graph == "published":
                check(entry, made, batch_size=2)
            else:
                with pytest.raises(Absent, match="reduction max is not a product of two means"):
                    entry.prepare(2)
    finally:
        made.close()
        compiled.forget()


def test_openvino_says_what_it_executes_in(exports: Exports) -> None:
    need("openvino")
    import openvino as runtime

    capabilities = runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for entry in entries("openvino", exports, "bfloat16"):
        executes = entry.prepare(2).executes
        if "BF16" in capabilities:
            assert "bfloat16" in executes
        else:
            assert executes == "float32"


def test_two_streams_share_every_batch(exports: Exports) -> None:
    need("openvino")
    (two, *_) = (entry for entry in entries("openvino", exports) if entry.streams == 2)
    check(two, exports, batch_size=6)
    with pytest.raises(Absent, match="2 streams do not share a batch of 3 evenly"):
        two.prepare(3)


@pytest.mark.parametrize(
    ("engine", "dtype", "match"),
    [
        ("onnxruntime", "bfloat16", "bfloat16 would need another model"),
        ("openvino", "int8", "int8 would need another model"),
        ("torch.compile", "int8", "has no int8"),
        ("torch.compile", "high", "has no high"),
    ],
)
def test_arithmetic_that_a_peer_lacks(
    engine: str, dtype: str, match: str, exports: Exports
) -> None:
    need(engine)
    for entry in entries(engine, exports, dtype):
        with pytest.raises(Absent, match=match):
            entry.prepare(2)


def test_graphs_are_exported_once_for_all_batch_sizes(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    calls = []
    export = torch.export.export

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    for batch_size in (1, 4):
        for entry in entries("openvino", exports):
            if entry.streams == 1:
                check(entry, exports, batch_size)
    assert len(calls) == 2


def test_peers_stay_on_the_cpu() -> None:
    elsewhere = Subject("tiny", None, {}, torch.device("cuda:0"), 1, subject().model, random=True)
    made = Exports(elsewhere)
    with pytest.raises(Absent, match="runs on the CPU, not on cuda:0"):
        made.program("published")
    made.close()
