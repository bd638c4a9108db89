# SPDX-License-Identifier: Apache-2.0
"""The GPU engine: on a CPU in place of the GPU, to the bit; and on a GPU where there is one."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from accelerators import Deferred
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fiqa_fast import FaceViT, Scorer, ViTConfig, load_model
from fiqa_fast.engine import graphs, make_engine, native
from fiqa_fast.engine.accelerator import Accelerator, CaptureError, Host, direct
from fiqa_fast.engine.eager import GPU_GROUP, EagerEngine
from fiqa_fast.engine.graphs import GraphEngine
from fiqa_fast.quality.attn_fiqa import AttnFiqa
from fiqa_fast.quality.method import Values
from fiqa_fast.quality.pooled import PooledAttention
from fiqa_fast.quality.reductions import REDUCTIONS
from fiqa_fast.quality.vit_fiqa import VitFiqa
from fiqa_fast.scorer import OUTPUTS

CPU = torch.device("cpu")
DEPTH = 3
HEADS = ("token", "crfiqa", "full")


def random_model(head: str | None = None, **options: Any) -> FaceViT:
    """Sixteen patches, so that images share groups on a CPU, too."""
    config = ViTConfig(28, 48, DEPTH, 3, 2, 10, qkv_bias=True, quality_head=head, **options)
    model = FaceViT(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator)
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 4
            tensor.copy_(values.abs() + 0.5 if "running_var" in name else values * fan_in**-0.5)
    return model


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.5


# Every method and option that changes what is captured, and the model's head.
CASES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "mean": (None, {}),
    "every output": (None, {"outputs": OUTPUTS}),
    "one head": (None, {"outputs": OUTPUTS, "heads": 1}),
    "average head": (None, {"outputs": OUTPUTS, "heads": "average"}),
    "all tokens": ("token", {"outputs": ("score", "patch_map", "query_map"), "tokens": "all"}),
    "early exit": (None, {"outputs": ("score", "patch_map"), "exit": 2}),
    "no block": (None, {"exit": 1}),
    "fused": (None, {"outputs": OUTPUTS, "fusion": "depth"}),
    "fused early": (None, {"outputs": ("score", "head_maps"), "fusion": "uniform", "exit": 2}),
    **{r: (None, {"reduction": r, "outputs": ("score", "exit_scores")}) for r in REDUCTIONS},
    **{f"{r} of a head": (None, {"reduction": r, "heads": 2}) for r in REDUCTIONS},
    **{f"vit-fiqa {head}": (head, {"method": "vit-fiqa"}) for head in HEADS},
    **{
        f"vit-fiqa {head} and embedding": (
            head,
            {"method": "vit-fiqa", "outputs": ("score", "embedding")},
        )
        for head in HEADS
    },
    **{
        f"ex-fiqa {head} {fusion} {exit}": (
            head,
            {
                "method": "ex-fiqa",
                "outputs": ("score", "exit_scores"),
                "exit": exit,
                "fusion": fusion,
            },
        )
        for head, fusion, exit in itertools.product(HEADS, (None, "uniform", "depth"), (2, DEPTH))
    },
}  # fmt: skip
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def in_place_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scorer]:
    """Makes scorers whose GPU is ``accelerator``, in groups of ``group``."""

    def scorer(model: FaceViT, accelerator: Accelerator, group: int, **options: Any) -> Scorer:
        def make(name: str, vit: FaceViT, method: Any, **settings: Any) -> GraphEngine:
            return GraphEngine(vit, method, accelerator=accelerator, group=group, **settings)

        with monkeypatch.context() as patch:
            patch.setattr("fiqa_fast.scorer.make_engine", make)
            return Scorer(model, device="cpu", **options)

    return scorer


def same(got: Any, want: Any, outputs: tuple[str, ...]) -> None:
    for name in outputs:
        left, right = getattr(got, name), getattr(want, name)
        assert left.dtype == right.dtype == torch.float32
        assert torch.equal(left, right), name


@cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_bits_as_the_eager_engine(
    case: str, dtype: str, in_place_of_a_gpu: Callable[..., Scorer]
) -> None:
    """Of whole groups and of a padded one, in streams that do nothing before they have to."""
    head, options = CASES[case]
    model, images = random_model(head), pictures(9)
    eager = Scorer(model, engine="eager", device="cpu", dtype=dtype, **options)
    group = eager._engine.group  # type: ignore[attr-defined]
    assert group == (32 if model.config.num_tokens == 16 else 1)
    # 17 tokens go alone on a CPU; of 16, smaller groups are the same to the bit.
    group = min(group, 4)
    got = in_place_of_a_gpu(model, Deferred("late"), group, dtype=dtype, **options)
    assert got.engine == got.describe()["engine"] == "graphs"
    assert got._engine.group == group  # type: ignore[attr-defined]
    want = eager(images)
    same(got(images), want, eager.outputs)
    same(got(images[:2]), eager(images[:2]), eager.outputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_built_in_model_with_its_gauge(
    dtype: str, in_place_of_a_gpu: Callable[..., Scorer]
) -> None:
    model, images = load_model("starter"), pictures(19)
    options: dict[str, Any] = {"outputs": OUTPUTS, "dtype": dtype}
    eager = Scorer(model, engine="eager", device="cpu", **options)
    got = in_place_of_a_gpu(model, Host(), 8, **options)
    assert got.gauge is not None
    same(got(images), eager(images), OUTPUTS)


def test_bits_do_not_depend_on_the_batch(
    in_place_of_a_gpu: Callable[..., Scorer], set_threads: Callable[[int], None]
) -> None:
    outputs = ("score", "patch_map", "embedding", "exit_scores")
    images = pictures(23)
    scorer = in_place_of_a_gpu(random_model(), Deferred(1), 8, outputs=outputs)
    want = scorer(images)
    order = torch.randperm(23)
    shuffled = scorer(images[order])
    for name in outputs:
        assert torch.equal(getattr(shuffled, name), getattr(want, name)[order])
    for size, threads in ((1, 1), (5, 2), (8, 3), (22, 1)):
        set_threads(threads)
        parts = [scorer(part) for part in images.split(size)]
        for name in outputs:
            whole = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(whole, getattr(want, name)), (size, name)


def test_normalised_images_give_the_same(in_place_of_a_gpu: Callable[..., Scorer]) -> None:
    scorer = in_place_of_a_gpu(random_model(), Deferred("early"), 4, outputs=OUTPUTS)
    images = pictures(6)
    same(scorer(normalised(images), normalized=True), scorer(images), OUTPUTS)


def test_any_kind_of_input(in_place_of_a_gpu: Callable[..., Scorer]) -> None:
    scorer = in_place_of_a_gpu(random_model(), Host(), 4, outputs=OUTPUTS)
    images = pictures(3)
    want = scorer(images)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    same(scorer(arrays), want, OUTPUTS)
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    resized = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in larger]
    same(scorer(larger), scorer(resized), OUTPUTS)
    empty = scorer([])
    assert {name: list(getattr(empty, name).shape) for name in OUTPUTS} == {
        name: [0, *getattr(want, name).shape[1:]] for name in OUTPUTS
    }


def test_several_threads_at_once(in_place_of_a_gpu: Callable[..., Scorer]) -> None:
    model, images = random_model(), pictures(30)
    scorers = [
        in_place_of_a_gpu(model, Deferred(seed), 4, dtype=dtype)
        for seed, dtype in enumerate(("float32", "bfloat16"))
    ]
    want = [scorer(images).score for scorer in scorers]

    def call(number: int) -> bool:
        start, count = number % 7, (1, 3, 9, 20)[number % 4]
        got = scorers[number % 2](images[start : start + count]).score
        expected = want[number % 2]
        assert got is not None
        assert expected is not None
        return torch.equal(got, expected[start : start + count])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(48), timeout=120))


def test_global_settings_do_not_reach_the_scores(
    in_place_of_a_gpu: Callable[..., Scorer], set_threads: Callable[[int], None]
) -> None:
    set_threads(1)  # replays are in this thread, which has the settings
    model, images = random_model(), pictures(5)
    options: dict[str, Any] = {"outputs": OUTPUTS, "dtype": "float32"}
    want = in_place_of_a_gpu(model, Host(), 4, **options)(images)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            same(in_place_of_a_gpu(model, Host(), 4, **options)(images), want, OUTPUTS)
    finally:
        torch.set_default_dtype(torch.float32)


def engine(
    kind: Callable[..., Any], model: FaceViT, device: torch.device = CPU, **more: Any
) -> Any:
    settings: dict[str, Any] = {"embedding": True, "device": device, "dtype": torch.float32}
    return kind(model, PooledAttention(model, device), **{**settings, **more})


def test_what_a_gauge_is_fitted_on() -> None:
    model, images = random_model(), pictures(7)
    want = engine(EagerEngine, model).run(images)
    got = engine(GraphEngine, model, accelerator=Deferred("late"), group=2).run(images)
    assert set(got) == {"mean_logits", "phi", "embedding"}
    for name, value in want.items():
        assert torch.equal(got[name], value)


def test_images_of_another_size_do_not_reach_the_graph() -> None:
    graph = engine(GraphEngine, random_model(), accelerator=Host(), group=2)
    with pytest.raises(ValueError, match=r"\[B, 3, 112, 112\], got torch.uint8 \[2, 3, 111, 112\]"):
        graph.run(torch.zeros(2, 3, 111, 112, dtype=torch.uint8))


class Playing(Host):
    """Replays nothing, so that it holds on to nothing."""

    def capture(self, compute: Callable[[], Values]) -> tuple[Callable[[], object], Values]:
        _, results = direct(compute)
        return (lambda: None), {name: torch.zeros_like(value) for name, value in results.items()}


def test_the_weights_go_with_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector, which does not know how full a GPU is."""
    monkeypatch.setattr("fiqa_fast.engine.pipeline.Pipeline._check", lambda *_: None)
    graph = engine(GraphEngine, random_model(), accelerator=Playing(), group=2)
    graph.run(pictures(3))
    gc.collect()
    gc.disable()
    try:
        weights = weakref.ref(graph.vit)
        del graph
        assert weights() is None
    finally:
        gc.enable()


def test_in_a_forked_process_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = engine(GraphEngine, random_model(), accelerator=Host(), group=2)
    monkeypatch.setattr(os, "getpid", lambda: graph.process + 1)
    with pytest.raises(RuntimeError, match="CUDA does not survive a fork: make the scorer in"):
        graph.run(pictures(1))


def test_without_a_gpu_it_cannot_be_had() -> None:
    with pytest.raises(ValueError, match='engine="graphs" cannot be had: it runs on a GPU, not on'):
        Scorer(random_model(), engine="graphs", device="cpu")
    with pytest.raises(ValueError, match="engine must be one of auto, native, graphs, eager, got"):
        Scorer(random_model(), engine="graph")


class Unwilling(Host):
    def capture(self, compute: Callable[[], Values]) -> Any:
        raise CaptureError("no CUDA graph can be captured of it: it will not")


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Accelerator], None]:
    """Any device passes for a CUDA device that has this accelerator."""

    def passes(accelerator: Accelerator) -> None:
        monkeypatch.setattr(graphs, "Cuda", lambda device: accelerator)
        monkeypatch.setattr(graphs, "reason_against", lambda device: "")
        monkeypatch.setattr(native, "reason_against", lambda *_: "not this one")

    return passes


def test_auto_falls_back_and_says_why(as_if_on_a_gpu: Callable[[Accelerator], None]) -> None:
    as_if_on_a_gpu(Unwilling())
    model, reason = random_model(), "no CUDA graph can be captured of it: it will not"
    with pytest.raises(ValueError, match=f'engine="graphs" cannot be had: {reason}; use "auto"'):
        Scorer(model, engine="graphs", device="cpu")
    eager = engine(partial(make_engine, "auto"), model, torch.device("meta"))
    assert (eager.name, eager.note) == ("eager", reason)


def test_a_scorer_tells_of_its_engine(as_if_on_a_gpu: Callable[[Accelerator], None]) -> None:
    as_if_on_a_gpu(Host())
    scorer = Scorer(random_model(), engine="graphs", device="cpu")
    assert scorer.engine == scorer.describe()["engine"] == "graphs"
    assert scorer.engine_note == ""
    assert "engine_note" not in repr(scorer)
    eager = Scorer(random_model(), engine="auto", device="cpu")
    assert (eager.engine, eager.engine_note) == ("eager", "not this one")
    assert "engine_note='not this one'" in repr(eager)
    assert "engine_note" not in eager.describe()  # which decides values


class OnTheDevice(TorchDispatchMode):
    """Fails where something passes between the host and the device, or waits for a value.

    The device is torch's "meta": it has no values, so asking for one fails there, too.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                assert leaf.device.type == "meta", f"{func} has a tensor on {leaf.device}"
        return out


def method_of(model: FaceViT, device: torch.device, options: dict[str, Any]) -> Any:
    options = dict(options)
    name = options.pop("method", "attn-fiqa")
    outputs = options.pop("outputs", ("score",))
    options["dtype"] = torch.bfloat16
    if name == "attn-fiqa":
        del options["dtype"]
    return (AttnFiqa if name == "attn-fiqa" else VitFiqa)(model, outputs, device=device, **options)


@cases
def test_what_is_captured_stays_on_the_device(case: str) -> None:
    """A copy from the host, or a value that the host waits for, cannot be captured."""
    head, options = CASES[case]
    model, meta = random_model(head), torch.device("meta")
    eager = EagerEngine(
        model,
        method_of(model, meta, options),
        embedding="embedding" in options.get("outputs", ()),
        device=meta,
        dtype=torch.bfloat16,
    )
    assert eager.group == GPU_GROUP
    group = torch.empty(GPU_GROUP, 3, 112, 112, device=meta)
    with torch.inference_mode(), OnTheDevice():
        results = eager.whole(group)
    assert set(results) == set(options.get("outputs", ("score",)))
    for value in results.values():
        assert value.dtype == torch.float32
        assert len(value) == GPU_GROUP


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gauge_stays_on_the_device(dtype: torch.dtype) -> None:
    model, meta = load_model("starter"), torch.device("meta")
    gauge = Scorer(model).gauge
    method = AttnFiqa(model, OUTPUTS[2:], gauge=gauge, device=meta)
    eager = EagerEngine(model, method, embedding=True, device=meta, dtype=dtype)
    with torch.inference_mode(), OnTheDevice():
        eager.whole(torch.empty(GPU_GROUP, 3, 112, 112, device=meta))


def test_the_check_sees_what_leaves_the_device() -> None:
    with pytest.raises(AssertionError, match="has a tensor on cpu"), OnTheDevice():
        torch.zeros(3).to("meta")
    with pytest.raises(RuntimeError), OnTheDevice():
        torch.zeros(1, device="meta").item()


# ---------------------------------------------------------------- with a GPU


CUDA = torch.device("cuda", 0)


@pytest.mark.cuda
@cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_the_graph_is_the_eager_computation(case: str, dtype: str) -> None:
    head, options = CASES[case]
    model, images = random_model(head), pictures(GPU_GROUP + 5)
    graph, eager = (
        Scorer(model, engine=name, device="cuda", dtype=dtype, **options)
        for name in ("auto", "eager")
    )
    assert (graph.engine, graph.engine_note) == ("graphs", "")
    want = eager(images)
    for _ in range(2):
        same(graph(images), want, eager.outputs)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_bits_do_not_depend_on_the_batch(dtype: str) -> None:
    """Nor on an image's place in its group, which no fixed shape promises."""
    for model in (load_model("starter"), random_model()):
        scorer = Scorer(model, outputs=OUTPUTS, device="cuda", dtype=dtype)
        images = pictures(3 * GPU_GROUP + 1)
        want = scorer(images)
        order = torch.randperm(len(images))
        shuffled = scorer(images[order])
        for name in OUTPUTS:
            assert torch.equal(getattr(shuffled, name), getattr(want, name)[order])
        for size in (1, 7, GPU_GROUP, GPU_GROUP + 1):
            parts = [scorer(part) for part in images.split(size)]
            for name in OUTPUTS:
                got = torch.cat([getattr(part, name) for part in parts])
                assert torch.equal(got, getattr(want, name)), (size, name)


@pytest.mark.cuda
@cases
def test_on_a_gpu_close_to_the_cpu(case: str) -> None:
    head, options = CASES[case]
    model, images = random_model(head), pictures(6)
    want, got = (
        Scorer(model, device=name, dtype="float32", **options)(images) for name in ("cpu", "cuda")
    )
    for name in options.get("outputs", ("score",)):
        left, right = getattr(got, name), getattr(want, name)
        assert (left - right).abs().max() <= 5e-5 * right.abs().max()


@pytest.mark.cuda
def test_on_a_gpu_several_threads_at_once() -> None:
    scorer = Scorer(load_model("starter"), device="cuda")
    images = pictures(150)
    want = scorer(images).score
    assert want is not None

    def call(number: int) -> bool:
        count = (1, 3, 40, 100)[number % 4]
        got = scorer(images[number : number + count]).score
        assert got is not None
        return torch.equal(got, want[number : number + count])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(48), timeout=120))


@pytest.mark.cuda
def test_on_a_gpu_scorers_are_made_while_others_run() -> None:
    model, images = load_model("starter"), pictures(40)
    scorer = Scorer(model, device="cuda")
    want = scorer(images).score
    stop, wrong = threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            if not torch.equal(scorer(images).score, want):  # type: ignore[arg-type]
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            other = Scorer(model, device="cuda")
            assert (other.engine, other.engine_note) == ("graphs", "")
            assert torch.equal(other(images).score, want)  # type: ignore[arg-type]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.cuda
def test_on_a_gpu_a_graph_outlives_others() -> None:
    """And the libraries' work space, which torch keeps by the stream of a capture."""
    model, images = load_model("starter"), pictures(40)
    scorers = [Scorer(model, device="cuda") for _ in range(4)]
    want = scorers[0](images).score
    while scorers:
        scorers.pop()
        gc.collect()
        torch.cuda.empty_cache()
        filler = torch.full((64 << 20,), torch.nan, device=CUDA)
        for scorer in scorers:
            assert torch.equal(scorer(images).score, want)  # type: ignore[arg-type]
        del filler


@pytest.mark.cuda
def test_on_a_gpu_memory_comes_back() -> None:
    model, images = load_model("starter"), pictures(40)

    def used() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(CUDA)

    def score() -> None:
        Scorer(model, device="cuda")(images)

    score()
    before = used()
    for _ in range(3):
        score()
    assert used() <= before


@pytest.mark.cuda
def test_on_a_gpu_images_may_be_there_already() -> None:
    scorer = Scorer(load_model("starter"), device="cuda", outputs=OUTPUTS)
    images = pictures(70)
    want = scorer(images)
    same(scorer(images.to(CUDA)), want, OUTPUTS)
    same(scorer(normalised(images).to(CUDA), normalized=True), want, OUTPUTS)
    # In the making, on a stream of the caller's.
    with torch.cuda.stream(torch.cuda.Stream(CUDA)):
        late = torch.zeros_like(images, device=CUDA)
        torch.cuda._sleep(200_000_000)
        late.copy_(images.pin_memory(), non_blocking=True)
        same(scorer(late), want, OUTPUTS)


class Synchronises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.abs().max().item() > 0)


@pytest.mark.cuda
def test_on_a_gpu_what_synchronises_is_left_to_the_eager_engine() -> None:
    model = random_model()
    model.blocks[1].mlp.act = Synchronises()
    images = pictures(5)
    scorer = Scorer(model, device="cuda", dtype="float32")
    assert scorer.engine == "eager"
    assert "no CUDA graph can be captured of it" in scorer.engine_note
    with pytest.raises(ValueError, match='engine="graphs" cannot be had'):
        Scorer(model, device="cuda", engine="graphs")
    want = Scorer(model, device="cpu", dtype="float32")(images).score
    torch.testing.assert_close(scorer(images).score, want, rtol=1e-4, atol=1e-5)
    # The device, and captures, are none the worse.
    other = Scorer(random_model(), device="cuda")
    assert other.engine == "graphs"
    assert torch.equal(torch.ones(3, device=CUDA).cpu(), torch.ones(3))
    assert torch.cuda.current_stream(CUDA) == torch.cuda.default_stream(CUDA)


@pytest.mark.cuda
def test_on_a_gpu_other_pixels_than_the_first() -> None:
    """Replays read what is sent, not what was there at the capture."""
    scorer = Scorer(load_model("starter"), device="cuda", dtype="float32", gauge=None)
    exact = Scorer(load_model("starter"), device="cpu", dtype="float32", gauge=None)
    for seed in range(3):
        images = pictures(5, seed)
        torch.testing.assert_close(scorer(images).score, exact(images).score, rtol=1e-4, atol=1e-5)


FORK = """
import multiprocessing, torch, fiqa_fast

scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"), device="cuda")
images = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
scorer(images)

def work(queue):
    try:
        scorer(images)
    except RuntimeError as error:
        queue.put(str(error))

context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=work, args=(queue,), daemon=True)
child.start()
print(queue.get(timeout=60))
"""


@pytest.mark.cuda
def test_on_a_gpu_a_forked_process_is_told(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "CUDA does not survive a fork" in done.stdout, done.stderr
