# SPDX-License-Identifier: Apache-2.0
"""with_quality on real libraries' ViTs: the quality equals float64 brute force, the output its own.

The brute force shares nothing with the adapters: the model runs in float64 while softmax and
scaled_dot_product_attention are intercepted, and every logit is formed.
"""

import contextlib
import copy
import importlib.util
import io
import pickle
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fiqa_fast
from fiqa_fast import with_quality
from fiqa_fast.dropin import OUTPUTS
from fiqa_fast.models.adapters import custom

SIZE, PATCH, DEPTH = 32, 8, 2


def library(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


# --- the zoo: tiny models of real architectures, constructed offline ---


def timm_vit(cls="vision_transformer.VisionTransformer", fused=True, **options):
    library("timm")
    home, name = cls.split(".")
    module = importlib.import_module(f"timm.models.{home}")
    options = {
        "img_size": SIZE, "patch_size": PATCH, "embed_dim": 64, "depth": DEPTH, "num_heads": 4,
        "num_classes": 5, **options,
    }  # fmt: skip
    model = getattr(module, name)(**options)
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = fused
    return model


def eva(**options):
    options = {"qkv_bias": True, "use_rot_pos_emb": True, "init_values": 0.1, **options}
    return timm_vit("eva.Eva", **options)


def huggingface(prefix, cls, implementation="sdpa", **options):
    transformers = library("transformers")
    options = {
        "hidden_size": 64, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
        "intermediate_size": 96, "image_size": SIZE, "patch_size": PATCH, **options,
    }  # fmt: skip
    config = getattr(transformers, f"{prefix}Config")(**options)
    model = getattr(transformers, cls)._from_config(config, attn_implementation=implementation)
    return model


def torchvision_vit(**options):
    library("torchvision")
    from torchvision.models.vision_transformer import VisionTransformer

    options = {
        "image_size": SIZE, "patch_size": PATCH, "num_layers": DEPTH, "num_heads": 4,
        "hidden_dim": 64, "mlp_dim": 96, "num_classes": 5, **options,
    }  # fmt: skip
    return VisionTransformer(**options)


def face_vit():
    return fiqa_fast.FaceViT(
        fiqa_fast.ViTConfig(
            img_size=SIZE,
            patch_size=PATCH,
            embed_dim=64,
            depth=DEPTH,
            num_heads=4,
            num_classes=8,
            mlp_ratio=2.0,
            qkv_bias=True,
        )
    )


class ArcfaceAttention(nn.Module):
    """The structure of arcface_torch's and CVLface's attention: no fused kernel."""

    def __init__(self, dim, num_heads, qkv_bias=False):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = (self.attn_drop(attn) @ v).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj_drop(self.proj(x))


class ArcfaceCasting(ArcfaceAttention):
    """arcface_torch's attention in mixed precision of its own."""

    def forward(self, x):
        batch, tokens, dim = x.shape
        with torch.autocast("cpu", torch.bfloat16):
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        with torch.autocast("cpu", enabled=False):
            q, k, v = (t.float() for t in qkv.permute(2, 0, 3, 1, 4))
            x = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1) @ v
        with torch.autocast("cpu", torch.bfloat16):
            return self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))


class ArcfaceBlock(nn.Module):
    def __init__(self, dim, num_heads, attention=ArcfaceAttention):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU6(), nn.Linear(dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ArcfaceViT(nn.Module):
    """The structure of arcface_torch's and CVLface's ViT: patch tokens alone, a head over all."""

    def __init__(self, dim=64, heads=4, attention=ArcfaceAttention):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, PATCH, PATCH)
        self.num_patches = (SIZE // PATCH) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(ArcfaceBlock(dim, heads, attention) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(dim)
        self.feature = nn.Sequential(nn.Linear(dim * self.num_patches, 8), nn.BatchNorm1d(8))

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.feature(self.norm(x).flatten(1))


class CvlfaceWrapper(nn.Module):
    """CVLface keeps the ViT as ``net`` inside a model of its own."""

    def __init__(self):
        super().__init__()
        self.net = ArcfaceViT()

    def forward(self, x):
        return self.net(x)


# name: (constructor, tokens before the patches)
ZOO = {
    "timm vit": (timm_vit, 1),
    "timm vit unfused": (partial(timm_vit, fused=False), 1),
    "timm vit registers": (partial(timm_vit, reg_tokens=4, no_embed_class=True), 5),
    "timm vit no class token": (partial(timm_vit, class_token=False, global_pool="avg"), 0),
    "timm vit qk-norm": (partial(timm_vit, qk_norm=True), 1),
    "timm vit qk-norm unfused": (partial(timm_vit, qk_norm=True, fused=False), 1),
    "timm vit layer scale, pre-norm": (partial(timm_vit, init_values=0.1, pre_norm=True), 1),
    "timm vit scale norms, no bias": (
        partial(timm_vit, scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False),
        1,
    ),
    "timm vit map pooling": (partial(timm_vit, global_pool="map", class_token=False), 0),
    "timm deit distilled": (partial(timm_vit, "deit.VisionTransformerDistilled"), 2),
    "timm eva rope": (eva, 1),
    "timm eva unfused": (partial(eva, fused=False), 1),
    "timm eva separate qkv": (partial(eva, qkv_fused=False), 1),
    "timm eva no rope, inner norm": (partial(eva, use_rot_pos_emb=False, scale_attn_inner=True), 1),
    "timm eva rope attention, qk-norm": (
        partial(eva, attn_type="rope", qk_norm=True, rope_rotate_half=True, num_reg_tokens=3),
        4,
    ),
    "timm eva grouped keys": (
        partial(eva, attn_type="rope", qkv_fused=False, num_kv_heads=2),
        1,
    ),
    "timm eva mixed rope": (
        partial(eva, attn_type="rope", rope_type="mixed", use_abs_pos_emb=True),
        1,
    ),
    "transformers vit": (partial(huggingface, "ViT", "ViTModel"), 1),
    "transformers vit eager": (partial(huggingface, "ViT", "ViTModel", "eager"), 1),
    "transformers vit classifier": (partial(huggingface, "ViT", "ViTForImageClassification"), 1),
    "transformers deit": (partial(huggingface, "DeiT", "DeiTModel"), 2),
    "transformers dinov2": (partial(huggingface, "Dinov2", "Dinov2Model", mlp_ratio=2), 1),
    "transformers dinov2 registers": (
        partial(huggingface, "Dinov2WithRegisters", "Dinov2WithRegistersModel", mlp_ratio=2),
        5,
    ),
    "transformers clip vision": (partial(huggingface, "CLIPVision", "CLIPVisionModel"), 1),
    "transformers siglip vision": (partial(huggingface, "SiglipVision", "SiglipVisionModel"), 0),
    "transformers siglip head_dim 72": (
        partial(huggingface, "SiglipVision", "SiglipVisionModel", hidden_size=144,
                num_attention_heads=2),
        0,
    ),
    "torchvision vit": (torchvision_vit, 1),
    "fiqa_fast face vit": (face_vit, 0),
    "arcface_torch vit": (ArcfaceViT, 0),
    "cvlface vit": (CvlfaceWrapper, 0),
}  # fmt: skip
# One for each way to obtain q and k and each library, for the costlier tests.
FEW = (
    "timm vit registers", "timm vit qk-norm", "timm eva rope", "transformers dinov2 registers",
    "transformers siglip vision", "torchvision vit", "fiqa_fast face vit", "arcface_torch vit",
)  # fmt: skip
few = pytest.mark.parametrize("name", FEW)
# Compilation takes seconds each.
fewer = pytest.mark.parametrize("name", [FEW[i] for i in (0, 2, 3, 5, 6)])


def build(name, seed=0):
    """The model in eval mode with weights, biases, norms and scales that all matter."""
    torch.manual_seed(seed)
    model = ZOO[name][0]().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            elif key.endswith(("bias", "embedding")):
                tensor.copy_(0.4 * noise)
            else:
                tensor.copy_(1 + 0.3 * noise)  # norms, layer scales
        for key, tensor in model.named_buffers():
            if key.endswith("running_mean"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            elif key.endswith("k_bias"):
                tensor.zero_()
    return model


def images(batch=3, height=SIZE, width=SIZE, seed=3):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def plain(output):
    """The tensors of an output, whatever object holds them."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    return [t for value in output if value is not None for t in plain(value)]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(plain(a), plain(b), strict=True))


@contextlib.contextmanager
def every_logit(monkeypatch):
    """Logits of every attention that runs, in order, from what torch itself is handed."""
    seen = []
    fused = F.scaled_dot_product_attention
    softmax, method = torch.softmax, torch.Tensor.softmax  # F.softmax calls the method

    def from_fused(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **rest):
        assert not is_causal
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        logits = factor * q.double() @ k.double().transpose(-1, -2)
        seen.append(logits if attn_mask is None else logits + attn_mask)
        return fused(q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **rest)

    def listening(original):
        def call(logits, *args, **kwargs):
            seen.append(logits.double())
            return original(logits, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", from_fused)
        patch.setattr(torch, "softmax", listening(softmax))
        patch.setattr(torch.Tensor, "softmax", listening(method))
        yield seen


def brute_force(monkeypatch, model, x, prefix, tokens="patch"):
    """Outputs in the order of OUTPUTS, maps flat, and the size of a typical logit."""
    double = copy.deepcopy(model).double()
    with every_logit(monkeypatch) as seen:
        double(x.double())
    logits = seen[DEPTH - 1].detach()
    first = prefix if tokens == "patch" else 0
    chosen = logits[..., first:, first:]
    skip = prefix - first
    return (
        chosen.mean(dim=(1, 2, 3)),
        chosen.mean(dim=(1, 2))[:, skip:],
        chosen.mean(dim=(1, 3))[:, skip:],
        chosen.mean(dim=(2, 3)),
    ), chosen.abs().mean().item()


def check(values, expected, size, tolerance=2e-5):
    for name, value, wanted in zip(OUTPUTS, values, expected, strict=True):
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value.shape[:1] == wanted.shape[:1]
        error = (value.flatten(1) if value.dim() == 3 else value) - wanted
        assert error.abs().max() <= tolerance * size, name


@pytest.mark.parametrize("tokens", ["patch", "all"])
@pytest.mark.parametrize("name", ZOO)
def test_equals_brute_force(name, tokens, monkeypatch):
    model, x = build(name), images()
    wrapped = with_quality(model, OUTPUTS, tokens=tokens)
    output, *values = wrapped(x)
    assert values[1].shape == values[2].shape == (3, SIZE // PATCH, SIZE // PATCH)
    expected, size = brute_force(monkeypatch, model, x, ZOO[name][1], tokens)
    assert size > 0.1  # weights that would not tell right from wrong prove nothing
    check(values, expected, size)
    assert same(output, model(x))
    assert type(output) is type(model(x))
    if tokens == "patch":
        torch.testing.assert_close(values[1].mean(dim=(1, 2)), values[0], rtol=1e-4, atol=1e-5)


@few
def test_original_is_left_alone_and_keys_are_its_own(name):
    model = build(name)
    before = {n: (type(m), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    wrapped = with_quality(model)
    assert list(wrapped.state_dict()) == list(model.state_dict())
    assert isinstance(wrapped, type(model))
    after = {n: (type(m), dict(m._forward_pre_hooks)) for n, m in model.named_modules()}
    assert before == after
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in model.parameters()}
    wrapped.train()
    assert not any(m.training for m in model.modules())
    fiqa_fast.replace_last_attention(model)
    assert list(wrapped.state_dict()) == list(model.state_dict())
    wrapped.load_state_dict(model.state_dict())


@few
def test_replace_and_last_quality(name):
    model, x = build(name), images()
    output = model(x)
    _, score, patch_map = with_quality(model, ("score", "patch_map"))(x)
    with pytest.raises(RuntimeError, match="wants a model changed by"):
        fiqa_fast.last_quality(model)
    assert fiqa_fast.replace_last_attention(model) is model
    with pytest.raises(RuntimeError, match="wants a forward pass first"):
        fiqa_fast.last_quality(model)
    for _ in range(2):  # doing it again changes nothing
        assert same(model(x), output)
        last = fiqa_fast.last_quality(model)
        assert torch.equal(last[0], score)
        assert torch.equal(last[1], patch_map)
        fiqa_fast.replace_last_attention(model)
    model(x.flip(0))
    torch.testing.assert_close(fiqa_fast.last_quality(model)[0], score.flip(0))


@few
def test_gradients_are_the_models_own(name):
    model, x = build(name), images()
    wrapped = with_quality(model)
    for parameter in model.parameters():
        parameter.grad = None
    sum(t.square().sum() for t in plain(model(x))).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    output, score = wrapped(x)
    sum(t.square().sum() for t in plain(output)).backward()
    assert not score.requires_grad
    for key, parameter in model.named_parameters():
        if key in expected:
            assert torch.equal(parameter.grad, expected[key])


@few
def test_copies_and_pickles(name):
    x = images()
    wrapped = with_quality(build(name), OUTPUTS)
    expected = wrapped(x)
    buffer = io.BytesIO()
    torch.save(wrapped, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(wrapped),
        pickle.loads(pickle.dumps(wrapped)),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(copy.deepcopy(wrapped)),
    ):
        assert type(other) is type(wrapped)
        assert same(other(x), expected)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in wrapped.parameters()}
    model = fiqa_fast.replace_last_attention(build(name))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError, match="forward pass first"):
            fiqa_fast.last_quality(other)
        other(x)
        assert torch.equal(fiqa_fast.last_quality(other)[0], expected[1])


@few
def test_autocast_and_low_precision(name):
    model, x = build(name), images()
    exact = with_quality(model, OUTPUTS)(x)[1:]
    size = exact[1].abs().max().item() + 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output, *values = with_quality(model, OUTPUTS)(x)
        assert same(output, model(x))
        check(values, [e.flatten(1) if e.dim() == 3 else e for e in exact], size, 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        wrapped = with_quality(build(name), OUTPUTS).to(dtype)
        output, *values = wrapped(x.to(dtype))
        assert all(t.dtype == dtype for t in plain(output) if t.is_floating_point())
        check(values, [e.flatten(1) if e.dim() == 3 else e for e in exact], size, 0.2)
    # Converting the wrapper converts the model whose parameters it shares, buffers included.
    model = build(name)
    with_quality(model).to(torch.bfloat16)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {
        torch.bfloat16
    }
    model(x.to(torch.bfloat16))


@few
def test_train_mode_and_batch_sizes(name):
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    for batch in (0, 1, 5):
        try:
            expected = model(images(batch))
        except RuntimeError:  # some libraries' reshapes refuse an empty batch
            assert batch == 0
            continue
        output, *values = wrapped(images(batch))
        assert same(output, expected)
        assert [v.shape[0] for v in values] == [batch] * 4
    model.train()
    wrapped.train()
    torch.manual_seed(0)
    output, *values = wrapped(images())
    torch.manual_seed(0)
    assert same(output, model(images()))
    assert all(v.isfinite().all() for v in values)
    assert not any(m.training for m in wrapped.eval().modules())


@fewer
def test_compile(name):
    x = images()
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    with torch.no_grad():
        expected = wrapped(x)
        torch._dynamo.reset()
        compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
        for shift in (0, 1):
            got = compiled(x + shift)
            wanted = wrapped(x + shift)
            for a, b in zip(plain(got), plain(wanted), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        fiqa_fast.replace_last_attention(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for shift in (0, 1):
            compiled(x + shift)
            score, patch_map = fiqa_fast.last_quality(compiled)
            wanted = wrapped(x + shift)
            torch.testing.assert_close(score, wanted[1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(patch_map, wanted[2], rtol=1e-4, atol=1e-4)
    assert len(expected) == 5


@fewer
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
def test_export(name, strict):
    x = images()
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    with torch.no_grad():
        exported = torch.export.export(wrapped, (x,), strict=strict).module()
        for a, b in zip(plain(exported(x + 1)), plain(wrapped(x + 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        # A model that was changed in place exports as it was; the quality stays behind.
        output = model(x)
        fiqa_fast.replace_last_attention(model)
        exported = torch.export.export(model, (x,), strict=strict).module()
        for a, b in zip(plain(exported(x)), plain(output), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# --- what surrounds a model in practice ---


@few
def test_ddp(name, tmp_path):
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model, x = build(name), images()
        wrapped = with_quality(model, OUTPUTS)
        expected = wrapped(x)
        # Heads of outputs that the loss below does not use.
        parallel = nn.parallel.DistributedDataParallel(wrapped, find_unused_parameters=True)
        got = parallel(x)
        assert same(got, expected)
        sum(t.sum() for t in plain(got[0])).backward()
        changed = nn.parallel.DistributedDataParallel(fiqa_fast.replace_last_attention(model))
        changed(x)
        assert torch.equal(fiqa_fast.last_quality(changed)[0], expected[1])
    finally:
        dist.destroy_process_group()


@few
def test_threads_do_not_mix(name):
    wrapped = with_quality(build(name), ("score", "patch_map"))
    batches = [images(1 + i, seed=i) for i in range(4)]
    with torch.no_grad():
        expected = [wrapped(x) for x in batches]
    failures = []

    def work(i):
        with torch.no_grad():
            for _ in range(4):
                got = wrapped(batches[i])
                for a, b in zip(got[1:], expected[i][1:], strict=True):
                    if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                        failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("name", ["timm vit registers", "timm eva rope", "transformers vit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(name, reentrant):
    library("timm")
    model, x = build(name).train(), images().requires_grad_()
    score, patch_map = with_quality(model, ("score", "patch_map"))(x)[1:]
    if name.startswith("timm"):
        model.set_grad_checkpointing()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    wrapped = with_quality(model, ("score", "patch_map"))
    output, *values = wrapped(x)
    assert torch.equal(values[0], score)
    sum(t.sum() for t in plain(output)).backward()
    grad, x.grad = x.grad, None
    sum(t.sum() for t in plain(model(x))).backward()
    assert torch.equal(grad, x.grad)
    fiqa_fast.replace_last_attention(model)
    output = model(x)
    before = fiqa_fast.last_quality(model)
    sum(t.sum() for t in plain(output)).backward()
    assert fiqa_fast.last_quality(model)[0] is before[0]  # the recomputation is no forward pass
    assert torch.equal(before[1], patch_map)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm vit", {"dynamic_img_size": True}),
        ("timm vit dynamic pad", {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("timm eva", {"dynamic_img_size": True, "use_rot_pos_emb": True}),
    ],
)
def test_dynamic_and_oblong_images(name, options, monkeypatch):
    cls = "eva.Eva" if "eva" in name else "vision_transformer.VisionTransformer"
    monkeypatch.setitem(ZOO, name, (partial(timm_vit, cls, **options), 1))
    model = build(name)
    wrapped = with_quality(model, OUTPUTS)
    for height, width in ((24, 40), (40, 16), (32, 32)):
        x = images(2, height - 3 * ("pad" in name), width)
        output, *values = wrapped(x)
        assert same(output, model(x))
        assert values[1].shape == (2, height // PATCH, width // PATCH)
        expected, size = brute_force(monkeypatch, model, x, 1)
        check(values, expected, size)
    fiqa_fast.replace_last_attention(model)
    model(images(1, 24, 40))
    assert fiqa_fast.last_quality(model)[1].shape == (1, 3, 5)


def test_interpolated_positions():
    model, x = build("transformers vit"), images(2, 24, 40)
    output, patch_map = with_quality(model, ("patch_map",))(x, interpolate_pos_encoding=True)
    assert same(output, model(x, interpolate_pos_encoding=True))
    assert patch_map.shape == (2, 3, 5)


@pytest.mark.parametrize("verified_in", [torch.float32, torch.bfloat16])
def test_attention_with_casts_of_its_own(verified_in):
    plain_model = build("arcface_torch vit")
    model = ArcfaceViT(attention=ArcfaceCasting).eval()
    model.load_state_dict(plain_model.state_dict())
    wrapped = with_quality(model.to(verified_in), OUTPUTS)
    with torch.no_grad():
        output, *values = wrapped.float()(images())
        assert same(output, model(images()))
        exact = with_quality(plain_model, OUTPUTS)(images())[1:]
    for value, wanted in zip(values, exact, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0.05, atol=0.05)


def test_export_with_any_batch():
    wrapped, batch = with_quality(build("timm vit registers"), OUTPUTS), torch.export.Dim("batch")
    shapes = {"x": {0: batch}}  # the model's own argument names
    exported = torch.export.export(wrapped, (images(2),), dynamic_shapes=shapes).module()
    for a, b in zip(exported(images(5)), wrapped(images(5)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_documented_examples(monkeypatch):
    library("timm")
    text = Path(__file__).parents[1].joinpath("docs", "dropin.md").read_text(encoding="utf-8")
    first, second, adapter = (part.split("```")[0] for part in text.split("```python\n")[1:])
    scope = {"MyAttention": type("MyAttention", (ArcfaceAttention,), {})}
    monkeypatch.setattr(custom, "_REGISTRY", {})
    exec(first + second, scope)
    assert scope["patch_map"].shape == (2, 14, 14)
    exec("import fiqa_fast\n" + adapter, scope)
    assert custom.registered(scope["MyAttention"](64, 4)).adapter is scope["adapter"]


def test_recorded_outputs_stay():
    model, x = build("transformers vit eager"), images()
    for wanted in ({"output_attentions": True}, {"output_hidden_states": True}):
        output, score = with_quality(model)(x, **wanted)
        assert same(output, model(x, **wanted))
        assert list(output) == list(model(x, **wanted))
        assert len(list(output)) > 2
        assert score.shape == (3,)


def test_patch_dropout_gives_a_flat_map():
    model = timm_vit(patch_drop_rate=0.5)
    output, patch_map = with_quality(model, ("patch_map",))(images())
    assert patch_map.shape == (3, 8)
    assert with_quality(model.eval(), ("patch_map",))(images())[1].shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["timm vit", "transformers vit", "torchvision vit"])
def test_fused_attention_stays_on(name, monkeypatch):
    model, x = build(name), images()
    calls = []

    def run(function):
        calls.clear()
        fused = F.scaled_dot_product_attention
        with monkeypatch.context() as patch, torch.enable_grad():
            patch.setattr(
                F,
                "scaled_dot_product_attention",
                lambda *a, **k: (calls.append(1), fused(*a, **k))[1],
            )
            function(x)
        return len(calls)

    assert run(model) == run(with_quality(model, OUTPUTS)) == DEPTH
    fiqa_fast.replace_last_attention(model)
    assert run(model) == DEPTH


def test_inductor():
    x, model = images(), build("timm vit registers")
    wrapped = with_quality(model, OUTPUTS)
    torch._dynamo.reset()
    with torch.no_grad():
        got = torch.compile(wrapped, fullgraph=True)(x)
        for a, b in zip(plain(got), plain(wrapped(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# --- gauges ---


def gauge_for(model, width=64, depth=DEPTH, **changes):
    generator = torch.Generator().manual_seed(5)
    values = {
        "scale": torch.randn(depth, generator=generator),
        "query_weight": torch.randn(depth, width, generator=generator),
        "offset": torch.randn(depth, generator=generator),
        "model_sha256": fiqa_fast.models.state_dict_sha256(model),
        "hash": "state_dict",
        **changes,
    }
    return fiqa_fast.Gauge(**values)


@few
def test_gauge(name, monkeypatch):
    model, x = build(name), images()
    width = {"transformers siglip head_dim 72": 144}.get(name, 64)
    gauge = gauge_for(model, width)
    published = with_quality(model, OUTPUTS)(x)[1:]
    calibrated = with_quality(model, OUTPUTS, gauge=gauge)(x)[1:]
    double = copy.deepcopy(model).double()
    q = []
    with monkeypatch.context() as patch:
        # phi from the explicit queries of the same float64 forward pass, where fused attention runs
        fused = F.scaled_dot_product_attention

        def listen(query, *args, **kwargs):
            q.append(query)
            return fused(query, *args, **kwargs)

        patch.setattr(F, "scaled_dot_product_attention", listen)
        double(x.double())
    if q:
        q = q[DEPTH - 1][:, :, ZOO[name][1] :].detach()
        phi = q.mean(dim=2).flatten(1) * q.shape[-1] ** -0.5 / q.shape[1]
        score = gauge.calibrate(DEPTH, published[0].double(), phi)
        torch.testing.assert_close(calibrated[0].double(), score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(calibrated[1].mean(dim=(1, 2)), calibrated[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(calibrated[2], published[2])
    assert torch.equal(calibrated[3], published[3])
    fiqa_fast.replace_last_attention(model, gauge=gauge)
    model(x)
    assert torch.equal(fiqa_fast.last_quality(model)[0], calibrated[0])


def test_gauge_of_another_model_is_refused():
    model = build("fiqa_fast face vit")
    for changes, text in (
        ({"width": 32}, "wanted query_weight"),
        ({"depth": 3}, "wanted query_weight"),
        ({"model_sha256": "0" * 64}, "belongs to another model"),
        ({"hash": "file"}, "this one has no file"),
    ):
        with pytest.raises(fiqa_fast.CheckpointError, match=text):
            with_quality(model, gauge=gauge_for(model, **changes))


def test_starter_agrees_with_the_scorer():
    model = fiqa_fast.load_model("starter")
    pixels = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    scorer = fiqa_fast.Scorer(
        model, outputs=("score", "patch_map", "embedding"), device="cpu", dtype="float32"
    )
    wanted = scorer(pixels)
    x = (pixels / 255 - 0.5) / 0.5
    with torch.no_grad():
        embedding, score, patch_map = with_quality(
            model, ("score", "patch_map"), gauge=scorer.gauge
        )(x)
    torch.testing.assert_close(score, wanted.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patch_map, wanted.patch_map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embedding, wanted.embedding, rtol=1e-4, atol=1e-4)
