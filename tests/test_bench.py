# SPDX-License-Identifier: Apache-2.0
"""fiqa_fast.bench: who takes turns when, what is made of the times, whose scores are compared."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fiqa_fast import CheckpointError, FaceViT, Scorer, ViTConfig, reference
from fiqa_fast.bench import gemm, memory, pixels, report, run, stages, startup
from fiqa_fast.bench.agreement import agreement
from fiqa_fast.bench.entries import PEERS_HINT, Absent, Entry, Ready
from fiqa_fast.bench.factorised import Factorised
from fiqa_fast.bench.peers import eager
from fiqa_fast.bench.published import Published
from fiqa_fast.bench.race import calls_lasting, order, race
from fiqa_fast.bench.result import Contender, Missing, Report, result_of
from fiqa_fast.bench.run import Plan, measure
from fiqa_fast.bench.spread import latency, ratio, spread
from fiqa_fast.bench.subject import Subject

CONFIG = {"patch_size": 28, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def tiny(**options: Any) -> FaceViT:
    """A model of three blocks whose scores differ from image to image."""
    torch.manual_seed(0)
    model = FaceViT(ViTConfig(**{**CONFIG, **options})).requires_grad_(False)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) * tensor[0].numel() ** -0.5)
    return model


def subject(model: FaceViT | None = None, **options: Any) -> Subject:
    model = tiny() if model is None else model
    return Subject("tiny", None, options, torch.device("cpu"), 1, model, True)


def images(count: int = 6) -> Tensor:
    return torch.stack([pixels.random_image(number, 112) for number in range(count)])


# Turns


def test_everyone_is_first_in_turn_and_has_other_neighbours() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(6)]
    assert all(sorted(each) == names for each in rounds)
    assert sorted(each[0] for each in rounds) == ["a", "a", "b", "b", "c", "c"]
    followed = {pair for each in rounds for pair in itertools.pairwise(each)}
    assert followed == set(itertools.permutations(names, 2))


class Clock:
    """Seconds that pass when something is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, calls: list[Any], name: str) -> Callable[[int], None]:
        def function(batch: int) -> None:
            calls.append((name, batch))
            self.now += seconds

        return function


def test_a_race_interleaves_on_the_same_inputs() -> None:
    clock, calls = Clock(), []
    functions = {name: clock.takes(s, calls, name) for name, s in (("slow", 2.0), ("fast", 1.0))}
    heard: list[int] = []
    times = race(functions, range(5), repeat=4, calls=2, told=heard.append, clock=clock, pause=0)
    assert times == {"slow": [[2.0, 2.0]] * 4, "fast": [[1.0, 1.0]] * 4}
    assert heard == [1, 2, 3, 4]
    # Both on the same inputs in every round, and on others in the next.
    by_round = [calls[4 * number : 4 * number + 4] for number in range(4)]
    wanted = [[0, 1], [2, 3], [4, 0], [1, 2]]
    for each, inputs in zip(by_round, wanted, strict=True):
        assert [batch for name, batch in each if name == "slow"] == inputs
        assert [batch for name, batch in each if name == "fast"] == inputs
    assert [each[0][0] for each in by_round] == ["slow", "fast", "fast", "slow"]


def test_a_race_ends_in_time_but_not_before_the_second_round() -> None:
    clock = Clock()
    function = clock.takes(10.0, [], "a")
    found = race({"a": function}, [0], repeat=9, seconds=25, clock=clock, pause=0)
    assert len(found["a"]) == 3
    found = race({"a": function}, [0], repeat=9, seconds=0, clock=clock, pause=0)
    assert len(found["a"]) == 2


def test_a_turn_is_long_enough_for_the_fastest() -> None:
    clock, calls = Clock(), []
    functions = {name: clock.takes(s, calls, name) for name, s in (("slow", 2.0), ("fast", 0.3))}
    assert calls_lasting(1.0, functions, 7, clock) == 4
    assert calls == [("slow", 7), ("fast", 7)]
    assert calls_lasting(0.1, functions, 7, clock) == 1
    assert calls_lasting(1.0, {}, 7, clock) == 1


# Statistics


def test_spreads() -> None:
    assert vars(spread([4.0, 1.0, 2.0, 3.0, 5.0])) == {"median": 3.0, "low": 2.0, "high": 4.0}
    # Round by round: the machine slows both down, and the ratio stays.
    assert vars(ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])) == {
        "median": 2.0,
        "low": 2.0,
        "high": 2.0,
    }
    found = latency([0.001] * 99 + [0.101])
    assert found["median"] == pytest.approx(1.0)
    assert found["calls"] == 100
    assert latency([0.001] * 90 + [0.1] * 10)["p95"] == pytest.approx(100.0)


def test_agreement_is_that_of_the_scores() -> None:
    exact = torch.tensor([1.0, 2.0, 3.0, 4.0])
    same = agreement(exact.clone(), exact)
    assert (same.max_error_over_std, same.spearman, same.images) == (0.0, pytest.approx(1.0), 4)
    off = agreement(torch.tensor([1.0, 2.0, 3.0, 4.5]), exact)
    assert off.max_error_over_std == pytest.approx(0.5 / float(exact.std()))
    assert not off.wrong
    reversed_ = agreement(exact.flip(0), exact)
    assert reversed_.spearman == pytest.approx(-1)
    assert reversed_.wrong
    assert agreement(torch.full((4,), float("nan")), exact).wrong
    one = agreement(exact[:1], exact[:1])
    assert math.isnan(one.max_error_over_std)
    assert not one.wrong
    with pytest.raises(ValueError, match=r"wanted scores \[4\], got \[3\]"):
        agreement(exact[:3], exact)


# Graphs

ATTENTION = [
    {},
    {"exit": 1},
    {"exit": 2},
    {"fusion": "uniform"},
    {"exit": 2, "fusion": "depth"},
    {"heads": "average"},
    {"heads": 1},
]
NOT_FACTORISED = [
    {"reduction": reduction, **heads}
    for reduction in ("median", "max", "inverse_std", "row_variance", "centered_variance")
    for heads in ({}, {"heads": "average"}, {"heads": 1})
]
QUALITY_TOKEN = [{"tokens": "patch"}, {"tokens": "all"}]
WITH_HEAD = [
    {"method": "vit-fiqa"},
    {"method": "ex-fiqa", "exit": 2},
    {"method": "ex-fiqa", "fusion": "depth"},
]


def check_graph(kind: type[torch.nn.Module], model: FaceViT, options: dict[str, Any]) -> None:
    expected = Scorer(model, dtype="float32", device="cpu", gauge=None, **options)(images()).score
    assert expected is not None
    (score, *_) = kind(model, **options)(images())
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("options", [*ATTENTION, *NOT_FACTORISED], ids=str)
def test_published_graph(options: dict[str, Any]) -> None:
    check_graph(Published, tiny(qkv_bias=True), options)


@pytest.mark.parametrize("options", ATTENTION, ids=str)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_factorised_graph(options: dict[str, Any], qkv_bias: bool) -> None:
    check_graph(Factorised, tiny(qkv_bias=qkv_bias), options)


@pytest.mark.parametrize("kind", [Published, Factorised])
@pytest.mark.parametrize("variant", ["token", "crfiqa", "full"])
@pytest.mark.parametrize("options", [*WITH_HEAD, *QUALITY_TOKEN], ids=str)
def test_graphs_of_a_quality_head(
    kind: type[torch.nn.Module], variant: str, options: dict[str, Any]
) -> None:
    check_graph(kind, tiny(quality_head=variant, qkv_bias=True), options)


def test_published_graph_has_every_logit_and_the_embedding() -> None:
    model = tiny()
    normalised = (images().float() / 255 - 0.5) / 0.5
    score, embedding = Published(model)(images())
    want = reference.block_logits(model, normalised)[2].mean((1, 2, 3))
    torch.testing.assert_close(score, want.float())
    torch.testing.assert_close(embedding, model(normalised))
    assert len(Published(model, exit=2)(images())) == 1
    exact, _ = Published(model, torch.float64)(images())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact, want)


def test_what_does_not_factorise_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction median is not a product of two means"):
        Factorised(tiny(), reduction="median")


def test_graphs_leave_the_model_as_it_is() -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in (Published, Factorised):
        (score, *_) = kind(model, torch.bfloat16)(images())
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, kind(model)(images())[0], rtol=0.1, atol=0.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# The bound


def test_operations_are_those_of_the_blocks() -> None:
    config = ViTConfig(8, 512, 12, 8, 5)
    (found, *_) = gemm.products(config, 11, 1, "float32", torch.device("cpu"))
    assert found.needed == pytest.approx(16.69e9, rel=1e-3)
    # Of one block, attention's products are 0.0787 GFLOP.
    assert found.needed / 11 - found.done == 4 * 196 * 196 * 512


def test_products_that_are_not_to_be_had() -> None:
    cpu = torch.device("cpu")
    assert gemm.products(ViTConfig(**CONFIG), 0, 1, "float32", cpu) == []
    assert gemm.products(ViTConfig(**CONFIG), 2, 1, "high", cpu) == []
    for dtype in ("float32", "bfloat16", "int8"):
        for found in gemm.products(ViTConfig(**CONFIG), 2, 3, dtype, cpu):
            found.function(None)


# Figures


def contender(entry: Entry, scores: Tensor, exact: Tensor, executes: str = "float32") -> Contender:
    return Contender(entry, Ready(lambda x: scores, executes), 1.5, agreement(scores, exact))


def entry(engine: str, graph: str, streams: int = 1) -> Entry:
    return Entry(engine, graph, "float32", lambda size: Ready(lambda x: x, "float32"), streams)


def test_figures_of_a_race() -> None:
    exact = torch.tensor([1.0, 2.0, 3.0])
    everyone = [
        contender(entry("fiqa_fast", "ours"), exact, exact),
        contender(entry("eager", "published"), exact, exact),
        contender(entry("openvino", "published"), exact, exact),
        contender(entry("openvino", "published", 2), exact.flip(0), exact, "bfloat16"),
    ]
    times = {
        "fiqa_fast, float32": [[0.5, 0.5], [5.0, 5.0]],  # the second round is ten times slower
        "eager published, float32": [[2.0, 2.0], [20.0, 20.0]],
        "openvino published, float32": [[1.0, 1.0], [10.0, 10.0]],
        "openvino published, 2 streams, float32": [[0.25, 0.25], [2.5, 2.5]],
        "GEMM torch, float32": [[0.25, 0.25], [2.5, 2.5]],
    }
    bound = gemm.Products("torch", "float32", lambda x: None, done=10**9, needed=10**9)
    found = result_of(4, everyone, [bound], [Missing("x", "float32", "why")], times)
    assert (found.images, found.rounds) == (8, 2)
    ours, eager_, one, two = found.lines
    assert ours.seconds == [1.0, 10.0]
    assert ours.images_per_second.median == pytest.approx((8 + 0.8) / 2)
    assert eager_.over_published is not None
    assert eager_.over_published.median == 1
    assert ours.over_published is not None
    assert vars(ours.over_published) == {"median": 4.0, "low": 4.0, "high": 4.0}
    assert one.ours_over_it is not None
    assert one.ours_over_it.median == 2
    assert ours.latency_ms is None
    assert found.ratios["fiqa_fast, float32"]["openvino published, float32"] == 2
    assert [line.streams for line in found.best()] == [1, 1, 2]
    bounded = found.bound("float32")
    assert bounded is not None
    assert bounded.ours_of_it is not None
    assert bounded.ours_of_it.median == 0.5
    assert bounded.gflops.high == pytest.approx(np.percentile([16, 1.6], 75))
    assert found.bound("bfloat16") is None
    # A wrong score is told, however fast it was.
    shown = report.text(a_report(found))
    assert "NOT THE SAME SCORE: openvino published, 2 streams, float32" in shown
    assert "without x in float32: why" in shown
    assert "float32 (runs bfloat16)" in shown
    assert two.agreement.spearman == pytest.approx(-1)


def a_report(*batches: Any) -> Report:
    return Report(
        subject().describe(),
        {"cpu": "abacus", "isa": "beads"},
        {},
        "random",
        2,
        1.0,
        list(batches),
    )


def test_latencies_are_those_of_single_images() -> None:
    exact = torch.tensor([1.0])
    times = {"fiqa_fast, float32": [[0.001, 0.003], [0.002, 0.002]]}
    found = result_of(1, [contender(entry("fiqa_fast", "ours"), exact, exact)], [], [], times)
    latencies = found.lines[0].latency_ms
    assert latencies is not None
    assert latencies["median"] == pytest.approx(2.0)
    assert latencies["calls"] == 4
    content = a_report(found).as_json()
    assert content["batches"][0]["lines"][0]["agreement"]["max_error_over_std"] is None
    json.dumps(content, allow_nan=False)


# The whole


def plan(**changes: Any) -> Plan:
    return Plan(**{"batch_sizes": (2,), "repeat": 2, "seconds": 60.0, **changes})


def some_images(count: int = 8) -> list[bytes]:
    return pixels.encoded_images((), 112, count)


def test_a_measurement_is_complete_and_json() -> None:
    of = subject()
    heard: list[str] = []
    found = measure(
        of, of.scorers(["float32"]), plan(batch_sizes=(1, 4)), some_images(), heard.append
    )
    content = found.as_json()
    json.dumps(content, allow_nan=False)
    assert list(content) == [
        "schema", "subject", "machine", "versions", "inputs", "repeat", "seconds", "batches",
        "stages", "memory", "startup",
    ]  # fmt: skip
    assert content["schema"] == 1
    assert [batch["batch_size"] for batch in content["batches"]] == [1, 4]
    for batch in content["batches"]:
        # A turn is as many images as the largest batch size, or more: this model is fast.
        assert batch["images"] % batch["batch_size"] == 0
        assert batch["images"] >= 4
        assert [line["name"] for line in batch["lines"]] == ["fiqa_fast", "eager published"]
        assert {bound["dtype"] for bound in batch["bounds"]} == {"float32"}
        for line in batch["lines"]:
            assert len(line["seconds"]) == batch["rounds"] == 2
            assert line["agreement"]["max_error_over_std"] < 1e-3
            assert line["agreement"]["images"] == 64
        assert (batch["lines"][0]["latency_ms"] is None) == (batch["batch_size"] > 1)
    assert any("round 2 of 2" in line for line in heard)
    assert content["subject"]["options"]["exit"] == 3
    assert "images/s" in report.text(found)


def test_turns_are_as_long_as_the_fastest_engine_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def five(seconds: float, functions: dict[str, Any], batch: Tensor) -> int:
        asked.append(list(functions))
        return 5

    monkeypatch.setattr("fiqa_fast.bench.run.calls_lasting", five)
    of = subject()
    found = measure(of, of.scorers(["float32"]), plan(batch_sizes=(1, 8)), some_images())
    assert [batch.images for batch in found.batches] == [8, 40]
    # Not the products alone, which are a part of the work.
    assert asked == [["fiqa_fast, float32", "eager published, float32"]] * 2


def test_only_some_are_raced() -> None:
    of = subject()
    found = measure(of, of.scorers(["float32"]), plan(only=["fiqa_fast"]), some_images())
    (batch,) = found.batches
    assert [line.name for line in batch.lines] == ["fiqa_fast"]
    assert batch.bounds == []
    assert batch.lines[0].over_published is None


def test_a_wrong_peer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Published, logits: Tensor) -> Tensor:
        return logits.float().amax((1, 2, 3)).flip(0)

    of = subject()
    exact = of.exact(pixels.pixels_of(some_images(64), 112, 64))
    monkeypatch.setattr(Subject, "exact", lambda self, pixels: exact)
    monkeypatch.setattr(Published, "_reduced", wrong)
    found = measure(of, of.scorers(["float32"]), plan(), some_images(64))
    ours, published = found.batches[0].lines
    assert not ours.agreement.wrong
    assert published.agreement.wrong
    assert "NOT THE SAME SCORE: eager published, float32" in report.text(found)


def test_a_peer_that_fails_is_absent_and_ours_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> list[Entry]:
        def prepare(batch_size: int) -> Ready:
            def run(x: Tensor) -> Tensor:
                raise RuntimeError("it\nbroke")

            return Ready(run, "float32")

        return [Entry("eager", "published", "float32", prepare)]

    monkeypatch.setattr(eager, "entries", fails)
    of = subject()
    found = measure(of, of.scorers(["float32"]), plan(), some_images())
    (batch,) = found.batches
    assert [line.name for line in batch.lines] == ["fiqa_fast"]
    assert batch.missing == [Missing("eager published", "float32", "RuntimeError: it broke")]
    monkeypatch.setattr(Scorer, "__call__", lambda self, x: 1 / 0)
    scorers = of.scorers(["float32"])
    with pytest.raises(ZeroDivisionError):
        measure(of, scorers, plan(), some_images())


def test_peers_that_are_not_installed_say_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec

    def find(name: str, *args: Any) -> Any:
        gone = ("openvino", "onnxruntime", "onnx", "onnxscript")
        return None if name in gone else installed(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    of = subject()
    found = measure(
        of,
        of.scorers(["float32"]),
        plan(peers=True, only=["fiqa_fast", "onnxruntime", "openvino"]),
        some_images(),
    )
    lines = report.text(found).splitlines()
    assert [line for line in lines if PEERS_HINT in line] == [
        f"without onnxruntime: onnxruntime not installed: {PEERS_HINT}",
        f"without openvino: openvino not installed: {PEERS_HINT}",
    ]
    assert len(found.batches[0].missing) == 6


def test_arithmetic_that_is_ours_alone() -> None:
    of = subject()
    found = measure(of, of.scorers(["high"]), plan(), some_images())
    (batch,) = found.batches
    assert [line.name for line in batch.lines] == ["fiqa_fast"]
    assert batch.missing == [Missing("eager published", "high", "has no high")]


def test_reasons_are_one_short_line() -> None:
    assert str(Absent("a\n  b")) == "a b"
    assert len(str(Absent("x" * 1000))) == 300


# What is beside the race


def test_stages() -> None:
    scorer = subject().scorer("float32")
    found = stages.measured(scorer, some_images(), 4, repeat=2, seconds=60, turn=0.01)
    rates = found["images_per_second"]
    assert list(rates) == ["decode", "model", "total"]
    assert all(rate["median"] > 0 for rate in rates.values())
    assert found["images"] % 4 == 0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_memory_of_a_child_process() -> None:
    of = Subject.of("starter", threads=1)
    for each in eager.entries(of, "float32"):
        found = memory.measured(of, each, 8)
        assert found["batch_size"] == 8
        # Its logits: 4 heads of 64 x 64, float32, and the softmax of them beside.
        logits = 4 * 64 * 64 * 4 / 1e6
        assert 2 * logits < found["mb_per_further_image"] < 20
        assert found["peak_mb"] > found["prepared_mb"] > -5
    two = Entry("openvino", "published", "float32", lambda size: Ready(lambda x: x, ""), 2)
    with pytest.raises(Absent, match="2 streams do not share a batch of 5 evenly"):
        memory.measured(of, two, 5)


def test_memory_of_a_child_that_fails_is_a_reason(tmp_path: Path) -> None:
    gone = Subject(
        str(tmp_path / "gone.pt"), None, {}, torch.device("cpu"), 1, tiny(), random=False
    )
    (each,) = eager.entries(gone, "float32")
    with pytest.raises(Absent, match=r"a child process ended with status 1: .*gone\.pt"):
        memory.measured(gone, each, 1)


@pytest.mark.parametrize("random", [False, True])
def test_startup(random: bool) -> None:
    of = subject() if random else Subject.of("starter", threads=1)
    found = startup.measured(of, some_images()[0], repeat=2, seconds=0)
    assert found["rounds"] == 2
    assert found["seconds"]["import torch"]["median"] > 0
    assert found["score_over_import_torch"]["low"] > 0.5


# Subjects


def test_a_registered_architecture_has_random_weights_always_the_same() -> None:
    first, second = (Subject.of("arcface_vit_t", threads=1) for _ in range(2))
    assert first.random
    assert first.describe()["random_weights"]
    assert first.model.config == second.model.config
    for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    headed = Subject.of("arcface_vit_t", {"depth": 2, "quality_head": "token"})
    assert (headed.model.config.depth, headed.model.config.quality_head) == (2, "token")
    assert not Subject.of("starter").random


@pytest.mark.parametrize(
    ("name", "architecture", "match"),
    [
        ("arcface_vit_t", "starter", "arcface_vit_t is an architecture already"),
        ("arcface_vit_t", {"num_heads": 7}, "num_heads must divide embed_dim 256, got 7"),
        ("nowhere", None, "nowhere"),
    ],
)
def test_subjects_that_are_refused(name: str, architecture: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Subject.of(name, architecture)


def test_a_file_comes_before_an_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("arcface_vit_t").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        Subject.of("arcface_vit_t")


def test_the_names_of_the_command_line() -> None:
    from fiqa_fast.cli import bench

    assert bench._ALSO == run.ALSO
