# SPDX-License-Identifier: Apache-2.0
"""Scorer: every option against brute force in float64, bitwise reproducibility, input handling."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fiqa_fast import (
    CheckpointError,
    FaceViT,
    ImageError,
    Scorer,
    UnsupportedModelError,
    ViTConfig,
    load_model,
    reference,
)
from fiqa_fast.quality.reductions import REDUCTIONS
from fiqa_fast.scorer import OUTPUTS

CONFIGS = {
    "patch16": ViTConfig(16, 24, 3, 3, 2, num_classes=10),
    "remainder": ViTConfig(9, 16, 2, 4, 1.5, num_classes=6),
    "qkv_bias": ViTConfig(28, 20, 4, 2, 4, num_classes=8, qkv_bias=True),
    "gelu_one_head": ViTConfig(56, 12, 2, 1, 4, num_classes=8, activation="gelu"),
}


def make_model(config: ViTConfig) -> FaceViT:
    generator = torch.Generator().manual_seed(7)
    model = FaceViT(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        values = torch.randn(tensor.shape, generator=generator)
        if "running_var" in name:
            values = values.abs() + 0.5
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 9
        tensor.copy_(values * fan_in**-0.5 + (1.0 if name.endswith("norm1.weight") else 0.0))
    return model


@pytest.fixture(params=CONFIGS, scope="module")
def model(request: pytest.FixtureRequest) -> FaceViT:
    return make_model(CONFIGS[request.param])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.5


def close(got: torch.Tensor | None, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert got is not None
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("heads", ["all", "average", 0])
def test_reductions_against_brute_force(
    model: FaceViT, images: torch.Tensor, reduction: str, heads: Any
) -> None:
    logits = reference.block_logits(model, normalise(images))
    options = {"reduction": reduction, "heads": heads, "dtype": "float32"}
    exits = Scorer(model, outputs=("exit_scores",), **options)(images).exit_scores
    want = torch.stack([reference.reduce_logits(x, reduction, heads) for x in logits], 1)
    close(exits, want, 2e-5)
    for number in range(1, model.config.depth + 1):
        close(Scorer(model, exit=number, **options)(images).score, want[:, number - 1], 2e-5)


@pytest.mark.parametrize("heads", ["all", "average", 0])
@pytest.mark.parametrize("fusion", [None, "uniform", "depth"])
def test_outputs_against_brute_force(
    model: FaceViT, images: torch.Tensor, fusion: str | None, heads: Any
) -> None:
    exit = model.config.depth - 1
    result = Scorer(model, outputs=OUTPUTS, dtype="float32", exit=exit, fusion=fusion, heads=heads)(
        images
    )
    logits = reference.block_logits(model, normalise(images))
    weights = {
        None: torch.eye(exit)[-1],
        "uniform": torch.full((exit,), 1 / exit),
        "depth": torch.arange(1, exit + 1) * 2 / (exit * (exit + 1)),
    }[fusion].double()
    fused = sum(w * block for w, block in zip(weights, logits[:exit], strict=True))
    assert isinstance(fused, torch.Tensor)
    chosen = fused if isinstance(heads, str) else fused[:, heads : heads + 1]
    side = model.config.grid_size
    close(result.score, chosen.mean((1, 2, 3)))
    close(result.patch_map, chosen.mean((1, 2)).unflatten(1, (side, side)))
    close(result.query_map, chosen.mean((1, 3)).unflatten(1, (side, side)))
    close(result.head_scores, fused.mean((2, 3)))
    close(result.embedding, model.double()(normalise(images).double()))
    model.float()


def test_only_what_was_asked_for_is_computed(model: FaceViT, images: torch.Tensor) -> None:
    """Blocks past the exit do not run: they may even be broken."""
    broken = make_model(model.config)
    with torch.no_grad():
        broken.blocks[-1].mlp.fc1.weight.fill_(torch.nan)
        broken.norm.weight.fill_(torch.nan)
    assert Scorer(broken)(images).score.isfinite().all()  # type: ignore[union-attr]
    embedding = Scorer(broken, outputs=("embedding",))(images).embedding
    assert embedding is not None
    assert embedding.isnan().any()
    result = Scorer(model, outputs=("patch_map",))(images)
    assert result.score is None
    assert result.patch_map is not None


# Tokens per image: 64, 16 and 49; the first two share groups, the last goes alone.
@pytest.mark.parametrize("name", ["starter", "qkv_bias", "patch16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bitwise_whatever_the_batch_and_the_threads(
    dtype: str, name: str, set_threads: Callable[[int], None]
) -> None:
    model = load_model("starter") if name == "starter" else make_model(CONFIGS[name])
    images = torch.randint(0, 256, (33, 3, 112, 112), dtype=torch.uint8)
    scorer = Scorer(model, outputs=("score", "exit_scores", "patch_map", "embedding"), dtype=dtype)
    set_threads(1)
    want = scorer(images)
    for threads, size in itertools.product((1, 2, 3), (1, 7, 32, 33)):
        set_threads(threads)
        parts = [scorer(part) for part in images.split(size)]
        for name in scorer.outputs:
            got = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(got, getattr(want, name)), (threads, size, name)
    order = torch.randperm(33)
    assert torch.equal(scorer(images[order]).score, want.score[order])  # type: ignore[index]


def test_score_does_not_depend_on_the_other_outputs(images: torch.Tensor) -> None:
    model = load_model("starter")
    alone = Scorer(model)(images).score
    assert torch.equal(alone, Scorer(model, outputs=OUTPUTS)(images).score)
    everything = Scorer(model, outputs=OUTPUTS)(images)
    assert torch.equal(everything.exit_scores[:, -1], alone)  # type: ignore[index, arg-type]


def test_global_settings_do_not_reach_the_scores(images: torch.Tensor) -> None:
    model = load_model("starter")
    scorer = Scorer(model, dtype="float32")
    want = scorer(images).score
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        Scorer(model, outputs=OUTPUTS, dtype="float32")(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(scorer(images).score, want)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)


def test_the_callers_model_is_left_alone(images: torch.Tensor) -> None:
    model = make_model(CONFIGS["patch16"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scorer = Scorer(model, outputs=OUTPUTS, dtype="bfloat16")
    want = scorer(images).score
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.half()
    assert torch.equal(scorer(images).score, want)


def test_several_threads_at_once(images: torch.Tensor) -> None:
    model = load_model("starter")
    scorers = [Scorer(model), Scorer(model, dtype="float32", float32_precision="high")]
    want = [scorer(images).score for scorer in scorers]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not torch.equal(scorers[number % 2](images).score, want[number % 2]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


# Runs alone in a fresh process: torch work of the other tests would have started OpenMP, whose
# threads do not survive a fork whoever started them.
FORK = """
import multiprocessing, sys
import numpy as np, torch, fiqa_fast

used, built = (word == "True" for word in sys.argv[1:])
larger = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 150, 130), np.uint8))
arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in larger]
outputs = ("score", "embedding", "patch_map", "exit_scores")
model = fiqa_fast.load_model("starter")
scorer = fiqa_fast.Scorer(model, outputs=outputs) if built else None
if used:
    scorer(larger)

def work(queue):
    mine = scorer or fiqa_fast.Scorer(fiqa_fast.load_model("starter"), outputs=outputs)
    queue.put((mine(larger).score.tolist(), mine(arrays).score.tolist()))

context = multiprocessing.get_context("fork")
queue = context.Queue()
child = context.Process(target=work, args=(queue,), daemon=True)
child.start()
tensor, listed = queue.get(timeout=60)
scorer = scorer or fiqa_fast.Scorer(model, outputs=outputs)
assert tensor == listed == scorer(larger).score.tolist()
print("equal")
"""


@pytest.mark.parametrize(("used", "built"), [(False, False), (False, True), (True, True)])
def test_survives_a_fork(tmp_path: Path, used: bool, built: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, str(used), str(built)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_batch_size(count: int) -> None:
    model = make_model(CONFIGS["patch16"])
    images = torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8)
    result = Scorer(model, outputs=OUTPUTS)(images)
    assert len(result) == count
    shapes = {
        "score": (count,),
        "embedding": (count, 10),
        "patch_map": (count, 7, 7),
        "query_map": (count, 7, 7),
        "head_scores": (count, 3),
        "exit_scores": (count, 3),
        "head_maps": (count, 3, 7, 7),
        "exit_maps": (count, 3, 7, 7),
    }
    for name, shape in shapes.items():
        assert getattr(result, name).shape == shape
        assert getattr(result, name).dtype == torch.float32
    assert len(Scorer(model)([])) == 0


def test_every_kind_of_input_gives_the_same(images: torch.Tensor, tmp_path: Path) -> None:
    scorer = Scorer(make_model(CONFIGS["patch16"]), dtype="float32")
    want = scorer(images).score
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    pictures = [Image.fromarray(array) for array in arrays]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for batch in (arrays, pictures, paths, [str(p) for p in paths], [arrays[0], *paths[1:]]):
        assert torch.equal(scorer(batch).score, want)
    assert torch.equal(scorer(normalise(images), normalized=True).score, want)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(scorer(strided).score, want)


def test_resizing(images: torch.Tensor) -> None:
    scorer = Scorer(make_model(CONFIGS["patch16"]))
    larger = images.repeat_interleave(2, 2).repeat_interleave(2, 3)  # 224 x 224
    array = larger[0].permute(1, 2, 0).numpy()
    assert torch.equal(scorer([array]).score, scorer(larger[:1]).score)


@pytest.mark.parametrize(
    ("images", "normalized", "word"),
    [
        (torch.zeros(2, 3, 112, 112), False, "normalized=True"),
        (torch.zeros(2, 3, 112, 112, dtype=torch.int32), False, "uint8"),
        (torch.full((2, 3, 112, 112), torch.nan), True, "image 0"),
        (torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 112, 112) * 255, True, "image 1 .* 255"),
        (torch.zeros(2, 3, 112, 112, dtype=torch.uint8, device="meta"), False, "holds values"),
        (torch.zeros(2, 3, 112, 112, dtype=torch.uint8), True, "float tensor"),
        (torch.zeros(3, 112, 112, dtype=torch.uint8), False, r"\[B, 3, H, W\]"),
        (torch.zeros(2, 112, 112, 3, dtype=torch.uint8), False, r"\[B, 3, H, W\]"),
        (torch.zeros(2, 3, 0, 112, dtype=torch.uint8), False, r"\[B, 3, H, W\]"),
        ("face.jpg", False, "list of paths"),
        (Path("face.jpg"), False, "list of paths"),
        (7, False, "list of paths"),
        ([np.zeros((112, 112, 3))], False, "uint8"),
        ([np.zeros((112, 112), np.uint8)], False, "3"),
        (["no/such/file.jpg"], False, "no/such/file.jpg"),
        ([np.zeros((112, 112, 3), np.uint8)], True, "float tensor"),
    ],
)
def test_wrong_images(images: Any, normalized: bool, word: str) -> None:
    with pytest.raises(ImageError, match=word) as caught:
        Scorer(make_model(CONFIGS["patch16"]))(images, normalized=normalized)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "fiqa"}, "method must be one of"),
        ({"outputs": ("scores",)}, "'scores'"),
        ({"outputs": ()}, "got none"),
        ({"outputs": "score"}, "sequence"),
        ({"reduction": "min"}, "reduction must be one of"),
        ({"heads": 3}, "from 0 to 2"),
        ({"heads": -1}, "from 0 to 2"),
        ({"heads": True}, "from 0 to 2"),
        ({"heads": "some"}, "heads must be"),
        ({"exit": 0}, "from 1 to 3"),
        ({"exit": 4}, "from 1 to 3"),
        ({"exit": 1.0}, "from 1 to 3"),
        ({"fusion": "mean"}, "fusion must be one of"),
        ({"dtype": "float64"}, "dtype must be"),
        ({"dtype": torch.int32}, "dtype must be"),
        ({"device": "tpu"}, "device must be"),
        ({"device": "meta"}, "device must be"),
        ({"float32_precision": "medium"}, "float32_precision must be"),
        ({"outputs": torch.tensor(1.0)}, "sequence"),
        ({"outputs": b"score"}, "sequence"),
        ({"gauge": 3}, "gauge must be"),
        *(
            ({name: value}, f"{name} must be")
            for name in ("method", "reduction", "tokens", "fusion", "float32_precision")
            for value in ([1], {}, b"mean", np.array([1, 2]), torch.tensor(1.0), True)
        ),
        *(
            ({name: value}, f"{name} must be")
            for name in ("heads", "exit")
            for value in ([1], {}, b"all", np.array([1, 2]), torch.tensor([1, 2]), 1.5, np.True_)
        ),
    ],
)
def test_wrong_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        Scorer(make_model(CONFIGS["patch16"]), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_of_wide_heads(images: torch.Tensor, reduction: str) -> None:
    """What needs every logit has kernels for heads of up to 128 features."""
    model = make_model(ViTConfig(56, 130, 2, 1, 1, num_classes=8))
    if reduction in ("median", "max", "inverse_std"):
        text = f"reduction='{reduction}' takes heads of at most 128 features, .* model's have 130"
        with pytest.raises(UnsupportedModelError, match=text):
            Scorer(model, reduction=reduction)
    else:
        want = reference.block_logits(model, normalise(images))[-1]
        got = Scorer(model, reduction=reduction, dtype="float32")(images).score
        close(got, reference.reduce_logits(want, reduction), 2e-5)


def test_wrong_model() -> None:
    with pytest.raises(ValueError, match="load_model"):
        Scorer(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model must hold weights"):
        Scorer(make_model(CONFIGS["patch16"]).to("meta"))


@pytest.mark.parametrize(
    "state",
    [
        lambda model: model.train(),
        lambda model: model.double(),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.requires_grad_(True),
    ],
    ids=["training", "float64", "channels last", "gradients"],
)
def test_whatever_the_model_s_state(state: Callable[[FaceViT], Any], images: torch.Tensor) -> None:
    options: dict[str, Any] = {"outputs": OUTPUTS, "dtype": "float32"}
    want = Scorer(make_model(CONFIGS["qkv_bias"]), **options)(images)
    model = make_model(CONFIGS["qkv_bias"])
    state(model)
    got = Scorer(model, **options)(images)
    for name in OUTPUTS:
        assert torch.equal(getattr(got, name), getattr(want, name))


def test_cuda_without_a_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="no CUDA device"):
        Scorer(make_model(CONFIGS["patch16"]), device="cuda")


def test_describe_names_what_decides_the_values() -> None:
    import json

    model = load_model("starter")
    facts = Scorer(model).describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["model_sha256"] == model.checkpoint_sha256
    changed: list[dict[str, Any]] = [
        {"gauge": None},
        {"exit": 4},
        {"fusion": "depth"},
        {"reduction": "max"},
        {"heads": 1},
        {"dtype": "float16"},
        {"float32_precision": "high"},
        {"outputs": ("score", "embedding")},
    ]
    for options in changed:
        assert Scorer(model, **options).describe() != facts


def test_normalised_images_of_another_size(images: torch.Tensor) -> None:
    scorer = Scorer(make_model(CONFIGS["patch16"]), dtype="float32")
    larger = normalise(images).repeat_interleave(3, 2).repeat_interleave(3, 3)
    got, want = scorer(larger, normalized=True).score, scorer(images).score
    assert torch.allclose(got, want, atol=1e-4)  # type: ignore[arg-type]


def test_whole_numbers_of_any_kind_and_outputs_of_any_kind(images: torch.Tensor) -> None:
    model = make_model(CONFIGS["patch16"])
    want = Scorer(model, exit=2, heads=1)(images).score
    names = (name for name in ("score",))
    got = Scorer(model, outputs=names, exit=np.int64(2), heads=np.int8(1))(images)  # type: ignore[arg-type]
    assert torch.equal(got.score, want)  # type: ignore[arg-type]


def test_printing_and_pickling(images: torch.Tensor) -> None:
    scorer = Scorer(load_model("starter"), exit=4)
    assert "exit=4" in repr(scorer)
    assert repr(scorer(images)) == "QualityResult(score [3])"
    with pytest.raises(TypeError, match="build a Scorer where it is used"):
        pickle.dumps(scorer)


def test_key_biases_stay_out_of_attention_and_in_the_logits(images: torch.Tensor) -> None:
    """Softmax does not see them; the score does."""
    config = CONFIGS["qkv_bias"]
    plain, biased = make_model(config), make_model(config)
    with torch.no_grad():
        for model, value in ((plain, 0.0), (biased, 300.0)):
            for block in model.blocks:
                block.attn.qkv.bias[config.embed_dim : 2 * config.embed_dim] = value
    outputs = ("score", "embedding")
    results = [Scorer(m, outputs=outputs, dtype="bfloat16")(images) for m in (plain, biased)]
    assert torch.equal(results[0].embedding, results[1].embedding)  # type: ignore[arg-type]
    assert not torch.allclose(results[0].score, results[1].score)  # type: ignore[arg-type]


def test_gauge_of_the_wrong_kind() -> None:
    for gauge in (True, 3):
        with pytest.raises(ValueError, match="gauge must be"):
            Scorer(load_model("starter"), gauge=gauge)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        Scorer(load_model("starter"), gauge="no/such/gauge.safetensors")
