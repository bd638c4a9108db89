# SPDX-License-Identifier: Apache-2.0
"""Gauges in the drop-in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from vit_zoo import DEPTH, ZOO, build, few, gauge_for, images

import fiqa_fast
from fiqa_fast import with_quality
from fiqa_fast.dropin import OUTPUTS


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
        ({"architecture": {"num_heads": 8}}, "num_heads 8, and this model has 4"),
    ):
        with pytest.raises(fiqa_fast.CheckpointError, match=text):
            with_quality(model, gauge=gauge_for(model, **changes))


def test_gauge_belongs_to_the_patches():
    model = build("timm vit")
    for add in (with_quality, fiqa_fast.replace_last_attention):
        with pytest.raises(ValueError, match=r'wanted tokens="patch" with it, got "all"'):
            add(model, tokens="all", gauge=gauge_for(model))
    without_prefix = build("fiqa_fast face vit")
    with_quality(without_prefix, tokens="all", gauge=gauge_for(without_prefix))
