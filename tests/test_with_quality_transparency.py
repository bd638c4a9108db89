# SPDX-License-Identifier: Apache-2.0
"""with_quality leaves the model as it was: its output, gradients, kernels, copies and threads."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vit_zoo import DEPTH, build, few, images, library, plain, same

import fiqa_fast
from fiqa_fast import with_quality
from fiqa_fast.dropin import OUTPUTS


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


def test_recorded_outputs_stay():
    model, x = build("transformers vit eager"), images()
    for wanted in ({"output_attentions": True}, {"output_hidden_states": True}):
        output, score = with_quality(model)(x, **wanted)
        assert same(output, model(x, **wanted))
        assert list(output) == list(model(x, **wanted))
        assert len(list(output)) > 2
        assert score.shape == (3,)
