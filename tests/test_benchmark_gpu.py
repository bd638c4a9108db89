# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py, as far as it goes without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import gpu
import gpu_engine
import gpu_roofline
import gpu_timing
from gpu_operators import OPERATORS
from gpu_roofline import H100_SXM, NOMINAL, Cost, Peak

SMALL = {
    "mean_layer_norm": (2, 5, 24),
    "mean_layer_norm.residual": (2, 5, 24),
    "mean_layer_norm.map": (2, 5, 24),
    "layer_norm_dot": (2, 5, 24),
    "add_layer_norm": (2, 5, 24),
    "batch_invariant_linear": (3, 70, 9),
    "attention_logits_mean": (2, 8, 5, 64),
    "attention_logits_stats": (2, 8, 5, 64),
    "attention_logits_stats.softmax": (2, 8, 5, 64),
    "attention_logits_stats.median": (2, 8, 5, 64),
    "attention_with_quality": (2, 8, 5, 64),
    "attention_with_quality.tiles": (2, 8, 5, 64),
}
KERNELS = Path(gpu.ROOT, "csrc/kernels/cuda")
operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    set_threads(1)


def measured(operator, **changes):
    peaks = {"measured": Peak("measured", 1e9, 1e9, 1e9), "nominal": None}
    operator = dataclasses.replace(operator, **changes)
    size = SMALL[operator.name]
    return gpu.measure(operator, size, torch.bfloat16, gpu.cpu(), peaks, 3, with_compile=False)


@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(operator, dtype):
    size = SMALL[operator.name]
    inputs = operator.make(size, dtype, torch.device("cpu"))
    with torch.no_grad():
        leaves = tree_leaves((inputs, operator.function(*inputs)))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    expected = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    assert operator.cost(size, dtype.itemsize).bytes == expected


def test_roofline_is_the_slower_of_memory_and_arithmetic():
    peak = Peak("p", bandwidth=100.0, float32=1000.0, bfloat16=4000.0)
    assert gpu_roofline.bound(Cost(200, 1000), peak) == gpu_roofline.Bound(2.0, "memory")
    assert gpu_roofline.bound(Cost(200, 8000), peak) == gpu_roofline.Bound(8.0, "arithmetic")
    assert gpu_roofline.bound(Cost(100, 8000, "bfloat16"), peak).seconds == 2.0


def test_a_linear_layer_turns_from_memory_to_arithmetic_at_22_rows():
    cost = next(o for o in OPERATORS if o.name == "batch_invariant_linear").cost
    limits = [gpu_roofline.bound(cost((B, 73728, 512), 2), H100_SXM).limit for B in (21, 22)]
    assert limits == ["memory", "arithmetic"]


def test_a_name_that_contains_a_known_one_is_not_known():
    assert "NVIDIA L40S" not in NOMINAL
    assert NOMINAL["NVIDIA L4"].name == "L4"


@pytest.mark.parametrize("name", [o.name for o in OPERATORS if (KERNELS / f"{o.name}.cu").exists()])
def test_header_comments_say_what_the_formulas_say(name, source_tree):
    operator = next(o for o in OPERATORS if o.name == name)
    header = (KERNELS / f"{name}.cu").read_text().split("#include")[0]
    text = re.sub(r"\s*\n// ?", " ", header)
    notes = [gpu_roofline.note(operator.cost(size, 2), H100_SXM) for size in operator.sizes]
    sizes = [f"{list(size)} bfloat16" for size in operator.sizes]
    assert any(n in text and s in text for n, s in zip(notes, sizes, strict=True)), notes


@pytest.mark.parametrize(("one", "cache"), [(100, 50), (100, 1000), (7, 1000), (10**9, 1)])
def test_between_two_readings_of_an_input_others_fill_the_cache_twice(one, cache):
    copies = gpu_timing.copies_needed(one, cache)
    assert copies >= 2
    assert (copies - 1) * one >= 2 * cache


def test_functions_take_turns_on_one_rotation():
    seen = []

    def function(name):
        return lambda x: seen.append((name, x))

    functions = {name: function(name) for name in "abc"}
    gpu_timing.race(functions, [(i,) for i in range(5)], gpu_timing.host_seconds, 4, 2)
    assert [x for _, x in seen] == [i % 5 for i in range(len(seen))]
    turns = "".join(name for name, _ in seen[::2])
    assert turns == "abc" + "abc" + "bca" + "cab" + "abc"


def test_times_are_per_call_and_sorted_out():
    ticks = iter([1.0, 5.0, 2.0, 4.0, 3.0])

    def timer(burst):
        burst()
        return 10 * next(ticks)

    times = gpu_timing.race({"f": lambda: None}, [(), ()], timer, 5, 10)["f"]
    assert times == gpu_timing.Statistics(median=3.0, low=2.0, high=4.0, fastest=1.0)


def test_what_the_cuda_timer_uses_exists():
    assert callable(torch.cuda._sleep)
    assert all(hasattr(torch.cuda.Event, n) for n in ("record", "query", "elapsed_time"))


@operators
def test_right_operators_are_timed(operator):
    entry = measured(operator)
    assert "failed" not in entry
    assert set(entry["functions"]) == {"fiqa_fast", "eager"}
    for figures in entry["functions"].values():
        assert 0 < figures["fastest_s"] <= figures["low_s"] <= figures["median_s"]
        assert figures["error"] < 0.1
    assert entry["roofline"]["measured"]["seconds"] == max(entry["bytes"], entry["flops"]) / 1e9


@pytest.mark.parametrize("wrong", [lambda out: out * 1.001, lambda out: out * float("nan")])
def test_wrong_operators_are_not_timed(wrong):
    operator = OPERATORS[0]
    entry = measured(operator, function=lambda *args: wrong(operator.function(*args)))
    assert entry["failed"].startswith("fiqa_fast is off by")
    assert "median_s" not in entry["functions"]["fiqa_fast"]
    assert "FAILED" in gpu.table([entry])


def test_a_formula_that_does_not_compile_leaves_the_others(monkeypatch):
    def no_compiler(function):
        def raises(*args):
            raise RuntimeError("no compiler\nhere")

        return raises

    monkeypatch.setattr(gpu, "compiled", no_compiler)
    peaks = {"measured": Peak("measured", 1e9, 1e9, 1e9)}
    entry = gpu.measure(OPERATORS[0], (1, 3, 8), torch.float32, gpu.cpu(), peaks, 2)
    assert entry["functions"]["compiled"] == {"failed": "no compiler here"}
    assert entry["functions"]["eager"]["median_s"] > 0
    assert "failed" not in entry


def test_the_whole_command_on_a_cpu(tmp_path, capsys):
    target = tmp_path / "result.json"
    options = ["--device", "cpu", "--quick", "--no-compile", "--batch", "1", "--rounds", "2"]
    assert gpu.main([*options, "-o", str(target)]) == 0
    result = json.loads(target.read_text())
    assert [entry["operator"] for entry in result["operators"]] == [o.name for o in OPERATORS]
    assert {entry["dtype"] for entry in result["operators"]} == {"bfloat16"}
    assert result["tests"] is None
    assert result["peaks"]["nominal"] is None
    assert {"device", "driver", "torch", "toolkit", "commit"} <= set(result)
    printed = capsys.readouterr().out.splitlines()
    operators, engines = printed[2 : 2 + len(OPERATORS)], printed[3 + len(OPERATORS) :]
    assert [line.split()[0] for line in operators] == [o.name for o in OPERATORS]
    assert [line.split()[:3] for line in engines] == [["starter", "bfloat16", "3"]] * 2
    assert [entry["group"] for entry in result["engine"]] == [8, 4]
    for entry in result["engine"]:
        assert "failed" not in entry
        for figures in entry["functions"].values():
            assert 0 < figures["low_s"] <= figures["median_s"] <= figures["high_s"]
            assert figures["images_per_second"] == pytest.approx(3 / figures["median_s"])
    assert [set(e["functions"]) for e in result["engine"]] == [{"graphs", "eager"}, {"graphs"}]


def test_parts_may_be_left_out(tmp_path, capsys, monkeypatch):
    target = tmp_path / "result.json"
    options = ["--device", "cpu", "--quick", "-o", str(target), "--rounds", "1"]
    assert gpu.main([*options, "--operators", "none", "--no-engine"]) == 0
    result = json.loads(target.read_text())
    assert result["operators"] == result["engine"] == []
    assert len(capsys.readouterr().out.splitlines()) == 1


ENGINE = gpu_engine.Case("starter", "bfloat16", 2)


def test_engines_that_differ_are_not_timed(monkeypatch):
    run = gpu_engine.GraphEngine.run

    def off(self, images):
        return {name: value * 1.0001 for name, value in run(self, images).items()}

    monkeypatch.setattr(gpu_engine.GraphEngine, "run", off)
    entry = gpu_engine.measure(ENGINE, torch.device("cpu"), 1)
    assert entry["failed"] == "graphs and eager engine differ"
    assert "FAILED, not timed: graphs and eager" in gpu_engine.table([entry])


def test_a_wrong_engine_is_not_timed(monkeypatch):
    for kind in (gpu_engine.GraphEngine, gpu_engine.EagerEngine):
        monkeypatch.setattr(kind, "run", lambda self, images: {"score": torch.zeros(len(images))})
    entry = gpu_engine.measure(ENGINE, torch.device("cpu"), 1)
    assert entry["failed"] == "graphs is off by 1.0e+00 of the largest score"


def test_a_capture_that_fails_leaves_the_eager_engine(monkeypatch):
    class Unwilling(gpu_engine.Host):
        def capture(self, compute):
            raise gpu_engine.CaptureError("it will not")

    monkeypatch.setattr(gpu_engine, "Host", Unwilling)
    entry = gpu_engine.measure(ENGINE, torch.device("cpu"), 1)
    assert entry["failed"] == "it will not"
    assert entry["functions"]["eager"]["median_s"] > 0
    assert "FAILED, not timed: it will not" in gpu_engine.table([entry])


def test_what_is_timed_on_a_gpu():
    for quick in (False, True):
        cases = gpu_engine.cases(quick, on_cpu=False)
        assert len(set(cases)) == len(cases)
        assert {case.model for case in cases} <= set(gpu_engine.MODELS)
        assert gpu_engine.GPU_GROUP not in {case.group for case in cases}
    assert gpu_engine.vit_small().config.num_tokens == 196


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--operators", "nothing"], "--operators wanted some of mean_layer_norm, "),
        (["--batch", "0"], "--batch wanted a positive number, got 0"),
        (["-o", "/no/such/folder/x.json"], "the folder /no/such/folder does not exist"),
    ],
)
def test_refusals_are_one_line(options, text, capsys):
    assert gpu.main(["--device", "cpu", *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu.main(["-o", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu.py: wanted a CUDA device")
    assert error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tests_fail_rather_than_skip_without_a_gpu(source_tree):
    tests = gpu.run_tests([source_tree / "tests/test_mean_layer_norm.py"])
    assert tests["tests"] > 0
    assert tests["skipped"] == 0
    assert tests["failures"] + tests["errors"] == tests["tests"]
    assert tests["status"] == 1


def test_help_has_examples(tmp_path):
    command = [sys.executable, str(Path(gpu.__file__)), "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.stdout.count("python benchmarks/gpu.py") >= 4
