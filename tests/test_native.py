# SPDX-License-Identifier: Apache-2.0
"""The native engine: every level and number format against float64, and that nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fiqa_fast import FaceViT, Scorer, ViTConfig, _load, load_model
from fiqa_fast._runtime import Network, Pass
from fiqa_fast.engine import make_engine
from fiqa_fast.engine.engine import Engine
from fiqa_fast.engine.native import PASS_TOKENS, NativeEngine, _packed
from fiqa_fast.quality.method import Values

LEVELS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")
# Largest error over the largest value: of the stream before the blocks, and of a block's output.
EMBEDDING_TOLERANCE = 2e-5
TOLERANCES = {"float32": 2e-6, "high": 6e-5, "bfloat16": 2e-2, "int8": 5e-2}
CONFIGS = {
    "face": ViTConfig(8, 64, 2, 4, 5),
    "remainders": ViTConfig(9, 40, 2, 5, 1.5, qkv_bias=True),  # heads of 8, 144 tokens
    "odd": ViTConfig(16, 33, 2, 3, 2, qkv_bias=True),  # heads of 11
    "wide_head": ViTConfig(16, 256, 1, 2, 2.5, activation="gelu"),  # heads of 128, 640 hidden
    "head_of_one": ViTConfig(28, 12, 2, 12, 3, activation="gelu"),
    "one_token": ViTConfig(112, 48, 2, 3, 4),
    "two_tokens_more": ViTConfig(14, 32, 2, 2, 4, quality_head="token"),  # 65
    "many_tokens": ViTConfig(7, 32, 1, 2, 2, img_size=224),  # 1024
    "wide_mlp": ViTConfig(56, 24, 1, 2, 50),  # 1200 hidden: slices of 512
}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    if request.param not in _load.supported_isas():
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


def random_model(config: ViTConfig, seed: int = 0) -> FaceViT:
    generator = torch.Generator().manual_seed(seed)
    model = FaceViT(config)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 4
            values = torch.randn(tensor.shape, generator=generator) * fan_in**-0.5
            if "norm" in name and name.endswith("weight"):
                values = values.abs() + 0.5
            tensor.copy_(values.abs() + 0.5 if "running_var" in name else values)
    return model


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - 0.5) / 0.5


def stream(
    network: Network, model: FaceViT, images: Tensor, last: int, threads: int = 1
) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """The residual stream after ``last`` blocks, and the memory that it is in."""
    config, count = model.config, len(images)
    rows = -(-count * config.num_tokens // 16) * 16
    memory = np.full((rows, network.stride), np.nan, np.float32)
    work = Pass(network, 0, last, count, memory, images.numpy(), threads).work
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()
    x = torch.from_numpy(memory)[: count * config.num_tokens, : config.embed_dim]
    return x.unflatten(0, (count, -1)).clone(), memory


def network_of(model: FaceViT, level: str, format: str, max_images: int = 3) -> Network:
    before = _load.isa()
    _load.set_isa(level)
    try:
        return _packed(model, model.config.depth, format, max_images, lambda block: block)
    finally:
        _load.set_isa(before)


@pytest.mark.parametrize("format", TOLERANCES)
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_against_float64(name: str, level: str, format: str) -> None:
    model = random_model(CONFIGS[name])
    network = network_of(model, level, format)
    images = pictures(3, model.config.img_size)
    wide = random_model(CONFIGS[name]).double()
    with torch.no_grad():
        want = wide.embed(normalised(images).double())
        for last in range(model.config.depth + 1):
            got, memory = stream(network, model, images, last)
            tolerance = TOLERANCES[format]
            if last == 0:
                tolerance = min(tolerance, EMBEDDING_TOLERANCE)
            assert (got - want).abs().max() <= tolerance * want.abs().max()
            # The stream is padded with zeros, which the next norm counts on.
            used = 3 * model.config.num_tokens
            assert not memory[:used, model.config.embed_dim :].any()
            if last < model.config.depth:
                want = wide.blocks[last](want)


@pytest.mark.parametrize("format", TOLERANCES)
@pytest.mark.parametrize("name", ["face", "remainders", "two_tokens_more", "wide_mlp"])
def test_the_same_bits_in_any_group_and_by_any_threads(name: str, level: str, format: str) -> None:
    model = random_model(CONFIGS[name])
    depth = model.config.depth
    images = pictures(5, 112)
    network = network_of(model, level, format, max_images=5)
    whole, _ = stream(network, model, images, depth)
    for threads in (2, 3):
        assert torch.equal(stream(network, model, images, depth, threads)[0], whole)
    smaller = network_of(model, level, format, max_images=2)
    for part in (images[3:], images[2:4], images[4:]):
        number = int((images == part[0]).flatten(1).all(1).nonzero()[0])
        for use in (network, smaller):
            assert torch.equal(
                stream(use, model, part, depth)[0], whole[number : number + len(part)]
            )


@pytest.mark.parametrize("format", TOLERANCES)
@pytest.mark.parametrize("name", CONFIGS)
def test_an_image_that_is_not_a_number_stays_alone(name: str, level: str, format: str) -> None:
    model = random_model(CONFIGS[name])
    network = network_of(model, level, format)
    images = normalised(pictures(3, model.config.img_size))
    want, _ = stream(network, model, images, model.config.depth)
    poisoned = images.clone()
    poisoned[1] = float("nan")
    got, _ = stream(network, model, poisoned, model.config.depth)
    assert torch.equal(got[[0, 2]], want[[0, 2]])
    assert got[1].isnan().all()
    # Nothing of it is left in the memory that the next pass takes.
    assert torch.equal(stream(network, model, images, model.config.depth)[0], want)


@pytest.mark.parametrize("format", TOLERANCES)
def test_logits_far_from_zero(level: str, format: str) -> None:
    """A softmax over large logits of one sign: no overflow, no division by zero."""
    model = random_model(CONFIGS["remainders"])
    for sign in (-1, 1):
        with torch.no_grad():
            block = model.blocks[0]
            dim = model.config.embed_dim
            # Every query and every key alike, but for their direction: all logits +-200 or so.
            block.attn.qkv.weight[: 2 * dim] = 0
            block.attn.qkv.bias[:dim] = 9
            block.attn.qkv.bias[dim : 2 * dim] = 9 * sign
            wide = random_model(CONFIGS["remainders"]).double()
            wide.load_state_dict(model.state_dict())
            images = pictures(1, 112)
            want = wide.blocks[0](wide.embed(normalised(images).double()))
        got, _ = stream(network_of(model, level, format), model, images, 1)
        assert (got - want).abs().max() <= TOLERANCES[format] * want.abs().max()


@pytest.mark.parametrize("activation", ["relu6", "gelu"])
def test_a_hidden_nan_is_not_clipped_away(level: str, activation: str) -> None:
    model = random_model(ViTConfig(28, 32, 1, 2, 2, activation=activation))
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias[5] = float("nan")
    images = pictures(1, 112)
    for format in TOLERANCES:
        got, _ = stream(network_of(model, level, format), model, images, 1)
        assert got.isnan().all()


def test_gelu_everywhere(level: str) -> None:
    """One channel through the MLP with weights of one and zero: the activation itself."""
    model = random_model(ViTConfig(112, 16, 1, 1, 1, activation="gelu"))
    values = torch.cat([torch.linspace(-12, 12, 241), torch.tensor([-40.0, 40.0, 0.0])])
    block = model.blocks[0]
    with torch.no_grad():
        for tensor in (block.attn.proj.weight, block.attn.proj.bias, block.mlp.fc1.weight):
            tensor.zero_()
        block.mlp.fc2.bias.zero_()
        block.mlp.fc2.weight.copy_(torch.eye(16))
        for part in values.split(16):
            block.mlp.fc1.bias[: len(part)] = part
            network = network_of(model, level, "float32", 1)
            images = pictures(1, 112)
            before, _ = stream(network, model, images, 0)
            after, _ = stream(network, model, images, 1)
            got = (after.double() - before.double())[0, 0, : len(part)]
            want = nn.functional.gelu(part.double())
            # The stream's own last place, and the approximation's.
            assert ((got - want).abs() <= 3e-7 * want.abs() + 5e-7).all()


def as_bytes(x: Tensor, top: float, dim: int = -1) -> Tensor:
    """What of x is left where its largest number along ``dim`` is worth ``top``."""
    unit = x.abs().amax(dim, keepdim=True) / top
    return (x / unit.clamp_min(1e-30)).round() * unit


@pytest.mark.parametrize("name", ["face", "remainders", "odd", "wide_head", "wide_mlp"])
def test_int8_is_bytes_of_rows_and_columns(name: str, level: str) -> None:
    """Against the same rounding in float64: what is left are ties that fell the other way."""
    if level == "baseline":
        pytest.skip("float32 is no slower there, and taken")
    top = 64 if level in ("avx2", "avx512") else 127
    model = random_model(CONFIGS[name])
    wide = random_model(CONFIGS[name]).double()
    images = pictures(2, model.config.img_size)
    block = wide.blocks[0]
    width = 512  # hidden channels that have a unit of their own

    def product(layer: Any, rows: Tensor) -> Tensor:
        return nn.functional.linear(as_bytes(rows, 127), as_bytes(layer.weight, top), layer.bias)

    with torch.no_grad():
        x = wide.embed(normalised(images).double())
        exact = block(x)
        shape = (3, model.config.num_heads, -1)
        q, k, v = (
            product(block.attn.qkv, block.norm1(x)).unflatten(-1, shape).permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=block.attn.scale)
        x = x + product(block.attn.proj, mixed.transpose(1, 2).flatten(2))
        hidden = block.mlp.act(product(block.mlp.fc1, block.norm2(x)))
        shift = 0 if model.config.activation == "relu6" else 0.17
        hidden = torch.cat([as_bytes(h + shift, 255) - shift for h in hidden.split(width, -1)], -1)
        rounded = x + nn.functional.linear(
            hidden, as_bytes(block.mlp.fc2.weight, top), block.mlp.fc2.bias
        )
    got, _ = stream(network_of(model, level, "int8"), model, images, 1)
    if level in ("avx512_bf16", "amx"):  # attention is in bfloat16 there
        assert (got - rounded).square().mean() < (rounded - exact).square().mean() / 3
    else:
        assert (got - rounded).square().mean() < (rounded - exact).square().mean() / 50


def test_int8_sums_do_not_overflow(level: str) -> None:
    """The largest bytes that there are, all of one sign, in as many channels as a slice has."""
    model = random_model(ViTConfig(56, 512, 1, 1, 4))
    block = model.blocks[0]
    with torch.no_grad():
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        block.mlp.fc1.weight.zero_()
        block.mlp.fc1.bias.fill_(6)
        for sign in (-1, 1):
            block.mlp.fc2.weight.fill_(sign * 0.01)
            block.mlp.fc2.bias.zero_()
            network = network_of(model, level, "int8", 1)
            before, _ = stream(network, model, pictures(1, 112), 0)
            after, _ = stream(network, model, pictures(1, 112), 1)
            want = sign * 0.01 * 6 * 2048
            assert ((after - before) - want).abs().max() <= 1e-4 * abs(want)


class Stream:
    """A method that shows the whole stream."""

    stages = frozenset({1, 2})

    def tap(self, stage: int) -> None:
        return None

    def observe(self, stage: int, x: Tensor, tapped: Values) -> Values:
        return {"x": x.clone()}

    def finish(self, observed: dict[int, Values]) -> Values:
        return {f"after_{stage}": values["x"] for stage, values in observed.items()}


def engine(name: str, model: FaceViT, **options: Any) -> Engine:
    settings = {"embedding": False, "device": torch.device("cpu"), "dtype": torch.float32}
    return make_engine(name, model, Stream(), **{**settings, **options})


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.int8, 6e-2)]
)
def test_engines_agree(dtype: torch.dtype, tolerance: float) -> None:
    model = random_model(CONFIGS["two_tokens_more"])
    images = pictures(9, 112)
    native = engine("auto", model, dtype=dtype, embedding=True)
    other = dtype if dtype.is_floating_point else torch.float32
    eager = engine("eager", model, dtype=other, embedding=True)
    assert (native.name, eager.name) == ("native", "eager")
    want = eager.run(images)
    for name, got in native.run(images).items():
        assert (got - want[name]).abs().max() <= tolerance * want[name].abs().max()


def test_high_precision_is_between() -> None:
    model = random_model(ViTConfig(8, 256, 2, 4, 4))
    images = pictures(4, 112)
    wide = random_model(model.config).double()
    with torch.no_grad():
        want = wide.blocks[1](wide.blocks[0](wide.embed(normalised(images).double())))

    def error(**options: Any) -> float:
        got = engine("native", model, **options).run(images)["after_2"]
        return float((got - want).abs().max() / want.abs().max())

    highest, high, half = (
        error(),
        error(float32_precision="high"),
        error(dtype=torch.bfloat16),
    )
    assert highest <= 1e-6
    assert high <= 3e-5
    assert high >= highest
    assert half > 20 * high


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_images_for_many_threads(
    threads: int, count: int, set_threads: Callable[[int], None]
) -> None:
    model = random_model(CONFIGS["face"])
    images = pictures(7, 112)
    native = engine("native", model)
    set_threads(1)
    want = native.run(images)["after_2"]
    set_threads(threads)
    assert torch.equal(native.run(images[:count])["after_2"], want[:count])


def test_many_callers_at_a_time() -> None:
    scorer = Scorer(load_model("starter"), dtype="float32", engine="native")
    images = pictures(24, 112)
    want = scorer(images).score
    assert want is not None
    with ThreadPoolExecutor(6) as pool:
        for number, result in enumerate(
            pool.map(lambda i: scorer(images[i : i + 1]).score, range(24))
        ):
            assert torch.equal(result, want[number : number + 1])


def test_passes_hold_many_tokens() -> None:
    small = engine("native", random_model(ViTConfig(28, 12, 2, 3, 2)))
    large = engine("native", random_model(ViTConfig(4, 12, 2, 3, 2)))
    assert isinstance(small, NativeEngine)
    assert isinstance(large, NativeEngine)
    assert small.max_images * 16 == PASS_TOKENS
    assert large.max_images == 1


def test_memory_goes_round() -> None:
    native = engine("native", random_model(CONFIGS["face"]))
    assert isinstance(native, NativeEngine)
    for _ in range(3):
        native.run(pictures(8, 112))
    assert 1 <= len(native.streams) <= torch.get_num_threads()


def foreign_activation(model: FaceViT) -> None:
    model.blocks[1].mlp.act = nn.SiLU()


def another_gelu(model: FaceViT) -> None:
    model.blocks[0].mlp.act = nn.GELU(approximate="tanh")


def another_block(model: FaceViT) -> None:
    model.blocks[1].mlp = nn.Identity()  # type: ignore[assignment]


def another_layer(model: FaceViT) -> None:
    model.blocks[1].mlp.fc2 = nn.Sequential(model.blocks[1].mlp.fc2)  # type: ignore[assignment]


@pytest.mark.parametrize("change", [foreign_activation, another_gelu, another_block, another_layer])
def test_a_model_of_other_parts_is_left_to_torch(change: Callable[[FaceViT], None]) -> None:
    model = random_model(ViTConfig(16, 24, 3, 3, 2, activation="gelu"))
    change(model)
    with pytest.raises(ValueError, match=r'engine="native" cannot be had: .*block [12]'):
        engine("native", model)
    assert engine("auto", model).name == "eager"


def test_other_dtypes_are_left_to_torch() -> None:
    model = random_model(CONFIGS["face"])
    with pytest.raises(ValueError, match="float32, bfloat16 or int8, not in float16"):
        engine("native", model, dtype=torch.float16)
    assert Scorer(model, dtype="float16", gauge=None).describe()["engine"] == "eager"
    with pytest.raises(ValueError, match="dtype int8 is the native engine's"):
        engine("eager", model, dtype=torch.int8)
    another_gelu(model)
    with pytest.raises(ValueError, match="dtype int8 is the native engine's: the activation of"):
        engine("auto", model, dtype=torch.int8)
    with pytest.raises(ValueError, match="engine must be one of auto, native, graphs, eager, got"):
        Scorer(model, engine="fast")


def arguments(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "level": "baseline",
        "format": "float32",
        "image_size": 16,
        "patch_size": 8,
        "prefix": 0,
        "dim": 12,
        "heads": 3,
        "hidden": 24,
        "relu6": True,
        "depth": 1,
        "max_images": 2,
        "embedding": np.zeros((12, 192), np.float32),
        "positions": np.zeros((4, 12), np.float32),
    }
    return {**usual, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "sse9"}, "does not support the level sse9"),
        ({"format": "int3"}, "format should be"),
        ({"heads": 5}, "do not fit together"),
        ({"patch_size": 0}, "out of range"),
        ({"embedding": np.zeros((12, 191), np.float32)}, r"embedding should have the shape"),
        ({"positions": np.zeros((5, 12), np.float32)}, r"positions should have the shape"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(**arguments(**changes))


def test_passes_that_do_not_fit_are_refused() -> None:
    network = Network(**arguments())
    x = np.zeros((16, network.stride), np.float32)
    pixels = np.zeros((2, 3, 16, 16), np.uint8)
    with pytest.raises(ValueError, match="among the network's 1"):
        Pass(network, 0, 2, 2, x)
    with pytest.raises(ValueError, match="block 0 was not set"):
        Pass(network, 0, 1, 2, x)
    with pytest.raises(ValueError, match="images should be 1 to 2, got 3"):
        Pass(network, 0, 0, 3, x)
    with pytest.raises(ValueError, match="x should be writable"):
        Pass(network, 0, 0, 2, x[:, :-1])
    with pytest.raises(ValueError, match="x should be writable"):
        Pass(network, 0, 0, 2, x[:7])
    with pytest.raises(ValueError, match="pixels should be"):
        Pass(network, 0, 0, 2, x, pixels[:1])
    with pytest.raises(ValueError, match="pixels should be"):
        Pass(network, 0, 0, 2, x, pixels.astype(np.float64))
