# SPDX-License-Identifier: Apache-2.0
"""Tiny ViTs of real libraries, constructed offline, and float64 brute force for their quality.

The brute force shares nothing with the adapters: the model runs in float64 while softmax and
scaled_dot_product_attention are intercepted, and every logit is formed.
"""

import contextlib
import copy
import importlib.util
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fiqa_fast
from fiqa_fast.dropin import OUTPUTS

SIZE, PATCH, DEPTH = 32, 8, 2


def library(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


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


class PlainNorms(ArcfaceAttention):
    """q and k normalised by norms without weights; keys over all heads together."""

    def __init__(self, dim, num_heads):
        super().__init__(dim, num_heads)
        self.q_norm = nn.LayerNorm(dim // num_heads, elementwise_affine=False)
        self.k_norm = nn.LayerNorm(dim, elementwise_affine=False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, self.k_norm(k), v))
        x = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (self.q_norm(q), k, v)))
        return self.proj(x.transpose(1, 2).flatten(2))


class FusedGroupedKeys(nn.Module):
    """Fewer keys than queries, which the fused kernel is left to expand."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_heads // 2
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(dim, dim // parts) for parts in (1, 2, 2)
        )

    def forward(self, x):
        size = self.q_proj.out_features // self.num_heads
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part(x).unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x.transpose(1, 2).flatten(2)


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

    def __init__(self, net=None):
        super().__init__()
        self.net = ArcfaceViT() if net is None else net

    def forward(self, x):
        return self.net(x)


class OpenaiBlock(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(dim, num_heads), nn.LayerNorm(dim)

    def forward(self, x):
        y = self.ln_1(x)
        return x + self.attn(y, y, y, need_weights=False, attn_mask=None)[0]


class OpenaiCLIP(nn.Module):
    """The structure of OpenAI's CLIP vision tower: tokens come first, images second."""

    def __init__(self, dim=64, heads=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(dim))
        self.resblocks = nn.Sequential(*(OpenaiBlock(dim, heads) for _ in range(DEPTH)))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


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
    "transformers dinov3": (
        partial(huggingface, "DINOv3ViT", "DINOv3ViTModel", num_register_tokens=2),
        3,
    ),
    "transformers dinov3 eager": (
        partial(huggingface, "DINOv3ViT", "DINOv3ViTModel", "eager", key_bias=True),
        1,
    ),
    "transformers aimv2 pooling head": (
        partial(huggingface, "Aimv2Vision", "Aimv2VisionModel"),
        0,
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
    "norms without weights": (partial(ArcfaceViT, attention=PlainNorms), 0),
    "fused grouped keys": (partial(ArcfaceViT, attention=FusedGroupedKeys), 0),
    "openai clip vision": (OpenaiCLIP, 1),
    "cvlface vit": (CvlfaceWrapper, 0),
}  # fmt: skip


# One for each way to obtain q and k and each library, for the costlier tests.
FEW = (
    "timm vit registers", "timm vit qk-norm", "timm eva rope", "transformers dinov2 registers",
    "transformers siglip vision", "torchvision vit", "fiqa_fast face vit", "arcface_torch vit",
    "transformers dinov3", "openai clip vision",
)  # fmt: skip


few = pytest.mark.parametrize("name", FEW)


# Compilation takes seconds each.
fewer = pytest.mark.parametrize("name", [FEW[i] for i in (0, 2, 3, 5, 6, 8)])


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
        expanded = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        logits = factor * q.double() @ expanded.double().transpose(-1, -2)
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
        torch.stack([t.detach()[..., first:, first:].mean(dim=(1, 2, 3)) for t in seen[:DEPTH]], 1),
    ), chosen.abs().mean().item()


def check(values, expected, size, tolerance=2e-5):
    for name, value, wanted in zip(OUTPUTS, values, expected, strict=True):
        assert value.dtype == torch.float32
        assert not value.requires_grad
        assert value.shape[:1] == wanted.shape[:1]
        error = (value.flatten(1) if value.dim() == 3 else value) - wanted
        assert error.abs().max() <= tolerance * size, name


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
