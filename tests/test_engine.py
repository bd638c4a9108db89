# SPDX-License-Identifier: Apache-2.0
"""The engine's parts: workers, the float32 gate, weight rounding, the published computation."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fiqa_fast import FaceViT, Scorer, ViTConfig, load_model, reference
from fiqa_fast.engine.eager import CPU_GROUP_TOKENS, TILE_ROWS, EagerEngine, cpu_group
from fiqa_fast.engine.engine import SLICE
from fiqa_fast.hardware import NARROW_SUMS, float32_arithmetic, resolve_dtype
from fiqa_fast.models.casting import round_keeping_row_sums
from fiqa_fast.models.packed import PackedLinear, PackedPatchEmbed, can_pack, pack
from fiqa_fast.models.patches import PatchProducts
from fiqa_fast.models.vit import Linear, fused_attention, ieee_attention
from fiqa_fast.quality.attn_fiqa import AttnFiqa
from fiqa_fast.workers import begin_alone, run_all, run_alone, run_shared


def test_every_task_runs_once_and_alone(set_threads: Callable[[int], None]) -> None:
    for threads in (1, 2, 4):
        set_threads(threads)
        done: list[int] = []
        seen: set[int] = set()
        inside: list[str] = []

        def task(
            number: int,
            done: list[int] = done,
            seen: set[int] = seen,
            inside: list[str] = inside,
        ) -> None:
            seen.add(threading.get_ident())
            inside.append(torch.__config__.parallel_info())
            time.sleep(0.002)
            done.append(number)

        run_all(task, 40)
        assert sorted(done) == list(range(40))
        assert len(seen) <= threads
        # torch's own threading, OpenMP's and MKL's are off in a worker.
        for text in inside:
            counts = re.findall(r"(?:get_num|get_max)_threads\(\) : (\d+)", text)
            assert counts
            assert set(counts) == {"1"}
        assert torch.get_num_threads() == threads  # and as it was outside


def test_new_threads_keep_torchs_default(set_threads: Callable[[int], None]) -> None:
    set_threads(3)
    run_all(lambda _: None, 5)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [3]


def test_an_error_stops_the_rest_and_comes_out(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    done: list[int] = []

    def task(number: int) -> None:
        if number == 3:
            raise ArithmeticError("three")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(ArithmeticError, match="three"):
        run_all(task, 10_000)
    assert len(done) < 5_000
    run_all(done.append, 2)  # the pool still works
    run_all(done.append, 0)


def test_pools_may_grow_while_others_use_them(set_threads: Callable[[int], None]) -> None:
    def work(threads: int) -> None:
        torch.set_num_threads(threads)
        for _ in range(30):
            run_all(lambda _: None, threads)

    callers = [threading.Thread(target=work, args=(n,)) for n in (1, 3, 5, 6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()


def test_float32_gate_restores_and_excludes() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        inside: list[str] = []
        with float32_arithmetic("ieee"), float32_arithmetic("ieee"):
            assert matmul.fp32_precision == "ieee"

            def other() -> None:
                with float32_arithmetic("tf32"):
                    inside.append(matmul.fp32_precision)

            thread = threading.Thread(target=other)
            thread.start()
            thread.join(0.2)
            assert not inside  # it waits for its turn
            assert matmul.fp32_precision == "ieee"
        thread.join(10)
        assert inside == ["tf32"]
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_shared_work_is_done_once(three_threads: None, threads: int) -> None:
    torch.set_num_threads(threads)
    for count in (0, 1, 20):
        for _ in range(20):
            done: list[int] = []
            run_alone(lambda done=done, count=count: run_shared(done.append, count))
            assert sorted(done) == list(range(count))


def test_idle_workers_share_and_busy_ones_are_not_waited_for(three_threads: None) -> None:
    together = threading.Barrier(3)
    run_alone(lambda: run_shared(lambda _: together.wait(60), 3))
    busy = threading.Event()
    try:
        others = [begin_alone(lambda: busy.wait(60)) for _ in range(2)]
        names: set[str] = set()
        shared = run_alone(
            lambda: run_shared(lambda _: names.add(threading.current_thread().name), 100)
        )
        assert shared is None
        assert len(names) == 1
        assert not any(other.done() for other in others)
    finally:
        busy.set()


def test_the_first_error_stops_shared_work(three_threads: None) -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 3:
            raise ValueError("three")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(ValueError, match="three"):
        run_alone(lambda: run_shared(task, 10_000))
    assert len(done) < 5000


def test_float32_gate_is_fair_and_leaves_inherited_settings_inherited() -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            with float32_arithmetic("ieee"):
                time.sleep(0.005)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        start = time.monotonic()
        with float32_arithmetic("tf32"):
            pass
        assert time.monotonic() - start < 60  # not for ever
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    backends = torch.backends
    before = backends.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        with float32_arithmetic("ieee"):
            pass
        backends.fp32_precision = "ieee"
        assert backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = before


def test_float32_gate_leaves_torchs_older_settings_readable() -> None:
    for device in ("cpu", "cuda"):
        with float32_arithmetic("ieee", device):
            pass
        assert isinstance(torch.backends.cudnn.allow_tf32, bool)
        assert isinstance(torch.backends.cuda.matmul.allow_tf32, bool)


def test_float32_gate_keeps_the_sums_of_narrow_products_wide() -> None:
    """On a GPU; and what was set before comes back as it was."""
    matmul = torch.backends.cuda.matmul
    before = [getattr(matmul, name) for name in NARROW_SUMS]
    try:
        for name in NARROW_SUMS:
            setattr(matmul, name, True)
        for device, inside in (("cpu", True), ("cuda", False)):
            with float32_arithmetic("ieee", device):
                assert [getattr(matmul, name) for name in NARROW_SUMS] == [inside] * 3
            assert [getattr(matmul, name) for name in NARROW_SUMS] == [True] * 3
    finally:
        for name, value in zip(NARROW_SUMS, before, strict=True):
            setattr(matmul, name, value)


def test_float32_gate_restores_after_an_error() -> None:
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(KeyError), float32_arithmetic("ieee"):
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 1), (4, 3), (16, 64), (8, 1000)])
def test_rounding_keeps_row_sums(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape) * 0.05
    weight[0] = 0
    rounded = round_keeping_row_sums(weight, dtype)
    nearest = weight.to(dtype)
    assert rounded.dtype == dtype

    def drift(w: torch.Tensor) -> torch.Tensor:
        return (w.double() - weight.double()).sum(1).abs()

    assert (drift(rounded) <= drift(nearest) + 1e-9).all()
    if shape[1] >= 64:
        assert drift(rounded).max() < 0.2 * drift(nearest).max()
    # Every element is one of the two neighbours, and the squared error hardly grows.
    lower = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    upper = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    assert ((rounded == nearest) | (rounded == lower) | (rounded == upper)).all()
    squared = (rounded.double() - weight).square().mean()
    assert squared <= 1.3 * (nearest.double() - weight).square().mean() or shape[1] < 64


@pytest.mark.parametrize("size", [16, 17, 31])
def test_packed_patch_embedding_computes_the_same(size: int) -> None:
    if not can_pack(torch.float32):
        pytest.skip("no packed float32 on this processor")
    model = FaceViT(ViTConfig(5, 32, 1, 2, 2, img_size=size)).requires_grad_(False)
    images = torch.randn(3, 3, size, size)
    packed = PackedPatchEmbed(model.patch_embed, 3, model.config.num_patches)
    with torch.inference_mode():
        got = packed(images)
        torch.testing.assert_close(got, model.patch_embed(images))
    assert got.is_contiguous()


@pytest.mark.parametrize("size", [16, 17, 31])
def test_patch_products_are_the_convolution(size: int) -> None:
    """What a GPU computes in its place."""
    model = FaceViT(ViTConfig(5, 32, 1, 2, 2, img_size=size)).requires_grad_(False)
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        got = PatchProducts(model.patch_embed)(images)
        torch.testing.assert_close(got, model.patch_embed(images))


def test_attention_in_plain_products_is_the_fused_one() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    want = fused_attention(q, k, v, 0.3)
    torch.testing.assert_close(ieee_attention(q, k, v, 0.3), want)


@pytest.mark.parametrize(
    ("dtype", "precision", "exact"),
    [("float32", "highest", True), ("float32", "high", False), ("bfloat16", "highest", False)],
)
def test_float32_on_a_gpu_leaves_the_fused_attention_out(
    dtype: str, precision: str, exact: bool
) -> None:
    model, meta = random_model(), torch.device("meta")
    engine = EagerEngine(
        model,
        AttnFiqa(model, ("score",), device=meta),
        embedding=False,
        device=meta,
        dtype=getattr(torch, dtype),
        float32_precision=precision,
    )
    for block in engine.vit.blocks[: engine.last_stage]:
        assert (block.attn.attend is ieee_attention) == exact
    assert model.blocks[0].attn.attend is fused_attention


def random_model(**options: Any) -> FaceViT:
    model = FaceViT(ViTConfig(28, 32, 3, 2, 2, **options)).requires_grad_(False)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.4)
    return model


def normal(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.5


def test_a_block_in_two_places() -> None:
    model = random_model()
    model.blocks[2] = model.blocks[1]  # type: ignore[index]
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    want = reference.block_logits(model, normal(images))[2].mean((1, 2, 3))
    got = Scorer(model, dtype="float32")(images).score
    torch.testing.assert_close(got, want.float())


@pytest.mark.parametrize("quality_head", ["token", "crfiqa", "full"])
def test_heads_whose_linear_layers_have_biases(quality_head: str) -> None:
    model = random_model(quality_head=quality_head)
    model.head_qs[1] = nn.Linear(32, 1)
    model.feature[2] = nn.Linear(32, 512)
    model.feature[3] = nn.BatchNorm1d(512)
    if quality_head != "token":
        model.feature[2], model.feature[3] = nn.Linear(32, 32), nn.BatchNorm1d(32)
    model.requires_grad_(False).eval()
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    double = copy.deepcopy(model).double()
    x = double.embed(normal(images).double())
    for block in double.blocks:
        x = block(x)
    got = Scorer(model, "vit-fiqa", ("score", "embedding"), dtype="float32")(images)
    torch.testing.assert_close(got.score, double.quality(x).float())
    torch.testing.assert_close(got.embedding, double.head(x).float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quality_head", [None, "token"])
def test_a_sum_that_nobody_reads_is_not_missed(quality_head: str | None, dtype: str) -> None:
    """A score alone leaves the last sum unformed; a map and an embedding read it."""
    model = random_model(quality_head=quality_head)
    images = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    for more in ("patch_map", "embedding"):
        alone, read = (
            Scorer(model, outputs=outputs, dtype=dtype)(images).score
            for outputs in (("score",), ("score", more))
        )
        assert alone is not None
        assert read is not None
        assert torch.equal(alone, read)


def test_more_images_than_are_kept_at_a_time() -> None:
    scorer = Scorer(random_model(), outputs=("score", "embedding"), dtype="float32")
    images = torch.randint(0, 256, (SLICE + 5, 3, 112, 112), dtype=torch.uint8)
    whole, parts = scorer(images), [scorer(part) for part in images.split(100)]
    for name in scorer.outputs:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))


def test_automatic_dtype_is_never_int8() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 16, 32, 48, 49, 64, 112, 127, 128, 144, 196])
def test_groups_hold_whole_tiles_of_rows(tokens: int) -> None:
    group = cpu_group(tokens)
    assert group >= 1
    assert group == 1 or (tokens % TILE_ROWS == 0 and group * tokens <= CPU_GROUP_TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_blocks_compute_the_same(dtype: torch.dtype) -> None:
    if not can_pack(dtype):
        pytest.skip(f"no packed {dtype} on this processor")
    model = load_model("starter")
    plain = copy.deepcopy(model)
    for module in plain.blocks.modules():  # type: ignore[attr-defined]
        if isinstance(module, Linear):
            module.to(dtype)
    packed = copy.deepcopy(plain)
    pack(packed, 2)
    assert sum(isinstance(m, PackedLinear) for m in packed.blocks.modules()) == 4 * 8  # type: ignore[attr-defined]
    x = torch.randn(2, 64, 256)
    with torch.inference_mode():
        for before, after in zip(plain.blocks, packed.blocks, strict=True):
            want, got = before(x), after(x)
            assert got.dtype == torch.float32
            scale = torch.finfo(dtype).eps * want.abs().max()
            assert (got - want).abs().max() <= 8 * scale
            x = want
    assert isinstance(model.blocks[0].mlp.act, torch.nn.ReLU6)  # the original is untouched
