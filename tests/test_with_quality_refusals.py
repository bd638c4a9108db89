# SPDX-License-Identifier: Apache-2.0
"""What with_quality must not accept, and the adapters that make it accept more."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fiqa_fast
from fiqa_fast import UnsupportedModelError, register_attention, with_quality
from fiqa_fast.adapters import custom

SIZE, PATCH, DIM, HEADS = 32, 8, 32, 4


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(custom, "_REGISTRY", {})


def needs(library):
    return pytest.mark.skipif(
        importlib.util.find_spec(library) is None, reason=f"{library} is not installed"
    )


class Attention(nn.Module):
    """Plain attention, with one place where a subclass may deviate."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.proj = nn.Linear(DIM, DIM)

    def logits(self, q, k):
        return self.scale * q @ k.transpose(-2, -1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj((self.logits(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attn = attention()

    def forward(self, x):
        return x + self.attn(self.norm1(x))


class ViT(nn.Module):
    def __init__(self, attention=Attention, tokens=0):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, tokens, DIM)) if tokens else None
        self.blocks = nn.ModuleList(Block(attention) for _ in range(2))

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class ZeroBias(Attention):
    """A bias on the logits that has not been trained yet."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Parameter(torch.zeros(HEADS, 1, 1))

    def logits(self, q, k):
        return super().logits(q, k) + self.extra


class ShiftedKeys(Attention):
    """Softmax, and so the model's output, cannot tell; the mean logit is another."""

    def logits(self, q, k):
        return super().logits(q, k - k.mean(dim=2, keepdim=True))


class Temperature(Attention):
    def logits(self, q, k):
        return 2 * super().logits(q, k)


class Cosine(Attention):
    def logits(self, q, k):
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)


class Causal(Attention):
    def logits(self, q, k):
        logits = super().logits(q, k)
        return logits.masked_fill(torch.ones_like(logits).triu(1).bool(), float("-inf"))


class FusedCausal(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(out.transpose(1, 2).flatten(2))


class FusedBias(Attention):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(HEADS, 1, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table.expand(HEADS, x.shape[1], x.shape[1])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).flatten(2))


class OtherLayout(Attention):
    """Heads before q, k, v in the packed projection."""

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (HEADS, 3, -1)).permute(3, 0, 2, 1, 4)
        return self.proj((self.logits(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Keypoints(Attention):
    """KP-RPE's structure: a bias on the logits from relative keypoints, its table at zero."""

    def __init__(self):
        super().__init__()
        self.rpe_k = nn.Linear(10, HEADS)
        nn.init.zeros_(self.rpe_k.weight)
        nn.init.zeros_(self.rpe_k.bias)

    def forward(self, x, keypoints=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        logits = self.logits(q, k)
        if keypoints is not None:
            logits = logits + self.rpe_k(keypoints)[:, :, None, None]
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class ClassRow(Attention):
    """A term on the class token's row and column alone that cancels over all tokens."""

    def logits(self, q, k):
        logits = super().logits(q, k)
        first = torch.zeros_like(logits)
        first[..., 0, :] = first[..., :, 0] = 1.0
        return logits + first - first.mean(dim=(-2, -1), keepdim=True)


class Sigmoid(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj((self.logits(q, k).sigmoid() @ v).transpose(1, 2).flatten(2))


class Twice(Attention):
    def logits(self, q, k):
        return super().logits(q, k).softmax(-1) - super().logits(k, q)


@pytest.mark.parametrize(
    ("attention", "text"),
    [
        (ZeroBias, "computes other logits"),
        (ShiftedKeys, "computes other logits"),
        (Temperature, "computes other logits"),
        (Cosine, "computes other logits"),
        (Causal, "got a mask"),
        (FusedCausal, "got a mask"),
        (FusedBias, "computes other logits"),
        (OtherLayout, "computes other logits"),
        (Keypoints, "got blocks.0.attn.rpe_k"),
        (ClassRow, "computes other logits"),
        (Sigmoid, "one softmax over the logits, got 0"),
        (Twice, "one softmax over the logits, got 2"),
    ],
)
def test_deviating_copies_are_refused(attention, text):
    with pytest.raises(UnsupportedModelError, match=text) as error:
        with_quality(ViT(attention))
    assert "\n" not in str(error.value)
    assert "register_attention" in str(error.value)
    with pytest.raises(UnsupportedModelError):
        fiqa_fast.replace_last_attention(ViT(attention))


def test_plain_copy_is_accepted():
    model = ViT()
    output, score = with_quality(model)(torch.randn(2, 3, SIZE, SIZE))
    assert score.shape == (2,)
    assert output.shape == (2, 16, DIM)


def tiny(name, **options):
    import timm

    return timm.create_model(name, **options)


@needs("timm")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swin_tiny_patch4_window7_224", "got 4: layers.0.blocks"),
        ("beit_base_patch16_224", "relative_position_bias_table"),
        ("vit_relpos_small_patch16_224", "rel_pos"),
        ("cait_xxs24_224", "wanted one list of attention blocks, got 2|other logits|one softmax"),
        ("resnet18", "got no attention at all"),
        ("convnext_atto", "got no attention at all"),
        ("mobilevit_xxs", "wanted one list of attention blocks"),
        ("coatnet_nano_rw_224", "without readable q and k|one list|rel_pos"),
        ("xcit_nano_12_p16_224", "logits|softmax|lists?"),
        ("pvt_v2_b0", "without readable q and k|wanted one list"),
        ("samvit_base_patch16", "rel_pos"),
    ],
)
def test_other_architectures_are_refused(name, text):
    with torch.device("cpu"):
        model = tiny(name, num_classes=2)
    with pytest.raises(UnsupportedModelError, match=text) as error:
        with_quality(model)
    assert "\n" not in str(error.value)


@needs("timm")
@pytest.mark.parametrize("options", [{"attn_layer": "diff"}, {"block_fn": "ParallelScalingBlock"}])
def test_timm_variants_are_refused(options):
    from timm.models import vision_transformer as home

    if "block_fn" in options:
        options = {"block_fn": getattr(home, options["block_fn"])}
    model = home.VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=4, **options
    )
    with pytest.raises(UnsupportedModelError):
        with_quality(model)


@needs("timm")
def test_masks_at_run_time_are_refused():
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=2, num_heads=4)
    wrapped = with_quality(model)
    x = torch.randn(1, 3, SIZE, SIZE)
    with pytest.raises(UnsupportedModelError, match="got the argument attn_mask"):
        wrapped(x, attn_mask=torch.zeros(17, 17))
    with pytest.raises(UnsupportedModelError, match="got the argument is_causal"):
        wrapped(x, is_causal=True)
    assert len(wrapped(x)) == 2  # and the next pass is a pass like any other


@needs("transformers")
def test_several_towers_and_text_are_refused():
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 32}  # fmt: skip
    text = {**sizes, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": SIZE, "patch_size": PATCH}
    )
    model = transformers.CLIPModel(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"got 2: .*pass the one image tower"):
        with_quality(model)
    with pytest.raises(UnsupportedModelError, match=r"Linear before encoder\.layers that embeds"):
        with_quality(model.text_model)
    _, score = with_quality(model.vision_model)(torch.randn(1, 3, SIZE, SIZE))
    assert score.shape == (1,)


@needs("transformers")
@pytest.mark.parametrize(
    ("prefix", "cls", "text"),
    [
        ("ViTMAE", "ViTMAEModel", "wanted all patches in order, got random_masking in embeddings"),
        ("PixtralVision", "PixtralVisionModel", "wanted q, k and a forward from tokens"),
        ("MLCDVision", "MLCDVisionModel", "wanted q, k and a forward from tokens"),
        ("Data2VecVision", "Data2VecVisionModel", "relative_position_bias"),
    ],
)
def test_vision_models_of_transformers_are_refused(prefix, cls, text):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 32, "image_size": SIZE, "patch_size": PATCH}  # fmt: skip
    model = getattr(transformers, cls)(getattr(transformers, f"{prefix}Config")(**sizes))
    with pytest.raises(UnsupportedModelError, match=text) as error:
        with_quality(model)
    assert "\n" not in str(error.value)


def test_a_mask_without_a_name_is_refused():
    class Rest(Attention):
        def forward(self, x, *rest):
            self.bias = rest[0] if rest else 0.0
            return super().forward(x)

        def logits(self, q, k):
            return super().logits(q, k) + self.bias

    class Masking(Block):
        def forward(self, x):
            return x + self.attn(self.norm1(x), torch.ones(x.shape[1], x.shape[1]))

    model = ViT(Rest)
    model.blocks[-1].__class__ = Masking
    with pytest.raises(UnsupportedModelError, match="got the argument number 2"):
        with_quality(model)(torch.randn(1, 3, SIZE, SIZE))


def test_a_block_without_attention_is_refused():
    model = ViT()
    model.blocks[-1] = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="got Attention, not in every element of one"):
        with_quality(model)


def test_a_block_that_comes_back_is_refused():
    model = ViT()
    first, second = model.blocks
    model.blocks = nn.ModuleList([first, second, first])
    with pytest.raises(UnsupportedModelError, match="it ran twice"):
        with_quality(model)(torch.randn(1, 3, SIZE, SIZE))


def test_a_projection_replaced_afterwards_is_refused():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.more = base, nn.Linear(DIM, 3 * DIM)
            self.weight, self.bias = base.weight, base.bias

        def forward(self, x):
            return self.base(x) + self.more(x)

    wrapped = with_quality(ViT())
    wrapped.blocks[-1].attn.qkv = Adapted(wrapped.blocks[-1].attn.qkv)
    with pytest.raises(UnsupportedModelError, match=r"wanted qkv to be the Linear.*got Adapted"):
        wrapped(torch.randn(1, 3, SIZE, SIZE))


class LinearPatches(ViT):
    """Patches cut by a reshape and embedded by a Linear, tokens of any name before them."""

    def __init__(self, attention=Attention, tokens=0):
        super().__init__(attention)
        self.patch_embed = nn.Linear(3 * PATCH * PATCH, DIM)
        self.others = nn.Parameter(torch.randn(1, tokens, DIM))

    def forward(self, x):
        x = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        return self.run(torch.cat([self.others.expand(len(x), -1, -1), self.patch_embed(x)], dim=1))

    def run(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_patches_are_counted_without_a_convolution():
    x = torch.randn(1, 3, SIZE, SIZE)
    assert with_quality(LinearPatches(), ("patch_map",))(x)[1].shape == (1, 16)
    with pytest.raises(UnsupportedModelError, match=r"0 prefix \+ 16 patch\) tokens, got 1 x 18"):
        with_quality(LinearPatches(tokens=2))(x)

    class Foreign(LinearPatches):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Bilinear(1, 1, 1)  # nothing that we know

    with pytest.raises(UnsupportedModelError, match="Linear before blocks that embeds the patches"):
        with_quality(Foreign())

    class Skipping(LinearPatches):
        def forward(self, x):
            return self.run(torch.zeros(1, 16, DIM))

    with pytest.raises(UnsupportedModelError, match="wanted patch_embed to run before the"):
        with_quality(Skipping())(x)
    register_attention(Attention, prefix_tokens=2)(
        lambda a, y: (*a.qkv(y).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)[:2], a.scale)
    )
    assert with_quality(LinearPatches(tokens=2), ("patch_map",))(x)[1].shape == (1, 16)


def test_tokens_that_are_no_patches_are_refused():
    class Appended(ViT):
        def forward(self, x):
            x = self.patch_embed(x).flatten(2).transpose(1, 2)
            x = torch.cat([x, x.mean(dim=1, keepdim=True)], dim=1)
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(
        UnsupportedModelError, match=r"0 prefix \+ 4 x 4 patch\) tokens, got 1 x 17"
    ):
        with_quality(Appended())(torch.randn(1, 3, SIZE, SIZE))


def test_windows_are_refused():
    class Windowed(Block):
        def forward(self, x):
            y = self.norm1(x)
            return x + self.attn(y.reshape(-1, 4, DIM)).reshape(y.shape)

    model = ViT()
    model.blocks[-1].__class__ = Windowed
    with pytest.raises(UnsupportedModelError, match="tokens, got 4 x 4"):
        with_quality(model)(torch.randn(1, 3, SIZE, SIZE))


def test_attention_that_does_not_run_or_runs_twice():
    class Bypassed(Block):
        def forward(self, x):
            return x + self.attn.forward(self.norm1(x))

    class Recurrent(Block):
        def forward(self, x):
            return super().forward(super().forward(x))

    x = torch.randn(1, 3, SIZE, SIZE)
    for block, text in ((Bypassed, "it did not"), (Recurrent, "it ran twice")):
        model = ViT()
        model.blocks[-1].__class__ = block
        with pytest.raises(UnsupportedModelError, match=text):
            with_quality(model)(x)


def test_wrappers_go_around_quality_not_inside():
    model = ViT()
    with pytest.raises(UnsupportedModelError, match="add quality first"):
        with_quality(torch.compile(model))
    with pytest.raises(UnsupportedModelError, match="that with_quality returned"):
        with_quality(with_quality(model))
    with pytest.raises(UnsupportedModelError, match=r"wanted a torch\.nn\.Module, got str"):
        with_quality("vit")
    with pytest.raises(UnsupportedModelError, match="or one around it"):
        with_quality(nn.Sequential(with_quality(model)))
    hook = model.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(UnsupportedModelError, match="wanted no forward hooks on the model itself"):
        with_quality(model)
    hook.remove()
    model.forward = model.forward
    with pytest.raises(UnsupportedModelError, match="replaced on the instance"):
        with_quality(model)


def test_compiled_models_are_refused():
    whole, part, replaced = ViT(), ViT(), ViT()
    whole.compile(backend="eager")
    part.blocks[-1].compile(backend="eager")
    replaced.blocks[-1] = torch.compile(replaced.blocks[-1], backend="eager")
    for add in (with_quality, fiqa_fast.replace_last_attention):
        for model, name in ((whole, "model"), (part, "blocks.1"), (replaced, "blocks.1")):
            with pytest.raises(UnsupportedModelError, match=f"got a compiled {name}: add quality"):
                add(model)


def test_options_are_checked():
    model = ViT()
    for outputs, text in (("score", "must be a sequence"), ((), "got none"), (("x",), "got 'x'")):
        with pytest.raises(ValueError, match=text):
            with_quality(model, outputs)
    with pytest.raises(ValueError, match="one of patch, all, got 'cls'"):
        with_quality(model, tokens="cls")


# --- adapters ---


class Own(nn.Module):
    """Attention with names of its own and a bias on its logits."""

    def __init__(self, bias=False):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1)) if bias else None

    def heads(self, t):
        return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, y):
        q, k, v = (self.heads(part(y)) for part in (self.to_q, self.to_k, self.to_v))
        logits = 0.3 * q @ k.transpose(-2, -1)
        if self.bias is not None:
            logits = logits + self.bias
        self.seen = logits.detach()
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


class OwnWithBias(Own):
    def __init__(self):
        super().__init__(bias=True)


def check_against_seen(model, wrapped, prefix):
    x = torch.randn(2, 3, SIZE, SIZE)
    output, score, patch_map, query_map, head_scores = wrapped(x)
    assert torch.equal(output, model(x))
    logits = model.blocks[-1].attn.seen[..., prefix:, prefix:]
    torch.testing.assert_close(score, logits.mean((1, 2, 3)))
    torch.testing.assert_close(patch_map.flatten(1), logits.mean((1, 2)))
    torch.testing.assert_close(query_map.flatten(1), logits.mean((1, 3)))
    torch.testing.assert_close(head_scores, logits.mean((2, 3)))


OUTPUTS = ("score", "patch_map", "query_map", "head_scores")


def test_two_line_adapter():
    model = ViT(Own, tokens=1)
    with pytest.raises(UnsupportedModelError, match="got Own without readable"):
        with_quality(model)

    @register_attention(Own)
    def adapter(attention, y):
        return attention.heads(attention.to_q(y)), attention.heads(attention.to_k(y)), 0.3

    check_against_seen(model, with_quality(model, OUTPUTS), prefix=1)
    copied = copy.deepcopy(with_quality(model))
    assert copied(torch.randn(1, 3, SIZE, SIZE))[1].shape == (1,)
    # An adapter that forgets the bias is found out, one that gives it is exact.
    biased = ViT(OwnWithBias)
    with pytest.raises(UnsupportedModelError, match="computes other logits"):
        with_quality(biased)

    @register_attention(OwnWithBias)
    def with_bias(attention, y):
        return *adapter(attention, y), attention.bias

    check_against_seen(biased, with_quality(biased, OUTPUTS), prefix=0)
    fiqa_fast.replace_last_attention(biased)
    biased(torch.randn(1, 3, SIZE, SIZE))
    assert fiqa_fast.last_quality(biased)[1].shape == (1, 4, 4)


def test_adapters_are_checked():
    with pytest.raises(ValueError, match=r"subclass of torch.nn.Module, got 3"):
        register_attention(3)
    model = ViT(Own)
    for returned, text in (((1, 2), "wanted \\(q, k, scale\\)"), ((1, 2, 3), "wanted q \\[B")):
        register_attention(Own)(lambda attention, y, returned=returned: returned)
        with pytest.raises(UnsupportedModelError, match=text):
            with_quality(model)
    register_attention(Own, prefix_tokens=3, verify=False)(
        lambda attention, y: (attention.heads(attention.to_q(y)),) * 2 + (1.0,)
    )
    with pytest.raises(UnsupportedModelError, match="3 prefix"):
        with_quality(model)(torch.randn(1, 3, SIZE, SIZE))
