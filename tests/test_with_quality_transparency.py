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
from vit_zoo import DEPTH, ArcfaceAttention, ArcfaceViT, build, few, images, library, plain, same

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
        assert [v.shape[0] for v in values] == [batch] * len(OUTPUTS)
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


def test_parts_that_cannot_be_copied_in_python():
    model, x = build("timm vit"), images()
    model.head = torch.jit.script(model.head)
    model.blocks[-1].mlp = torch.fx.symbolic_trace(model.blocks[-1].mlp)
    assert same(with_quality(model)(x)[0], model(x))


def test_wrapped_in_inference_mode_or_with_other_defaults():
    model, x = build("timm eva rope"), images()
    expected = with_quality(model, OUTPUTS)(x)
    with torch.inference_mode():
        assert same(with_quality(model, OUTPUTS)(x), expected)
    default = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            wrapped = with_quality(model, OUTPUTS)
        finally:
            torch.set_default_dtype(default)
        assert same(wrapped(x), expected)
    torch.set_float32_matmul_precision("medium")
    try:
        wrapped = with_quality(model, OUTPUTS)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert same(wrapped(x), expected)
    with torch.device("meta"):
        wrapped = with_quality(model, OUTPUTS)
    assert same(wrapped(x), expected)


def test_attention_that_keeps_its_map():
    class Keeping(ArcfaceAttention):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            self.map = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
            return self.proj((self.map @ v).transpose(1, 2).flatten(2))

    model, x = ArcfaceViT(attention=Keeping).eval(), images()
    model(x)  # the map now hangs in a graph
    kept = model.blocks[-1].attn.map
    wrapped = with_quality(model)
    assert model.blocks[-1].attn.map is kept
    assert same(wrapped(x)[0], model(x))


def test_hooks_of_others():
    """The quality is that of what the forward sees, whoever changed it, whenever."""
    model, x = build("timm vit"), images()
    norm = model.blocks[-1].norm1
    wrapped = with_quality(model, OUTPUTS)
    wrapped.blocks[-1].attn.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    got = wrapped(x)
    with torch.no_grad():
        norm.weight.mul_(2)
        norm.bias.mul_(2)
    for a, b in zip(got, with_quality(model, OUTPUTS)(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_weights_made_in_the_forward_pass():
    model, x = build("timm vit"), images()
    nn.utils.weight_norm(model.blocks[-1].attn.qkv)
    wrapped = with_quality(model)
    with torch.no_grad():
        model.blocks[-1].attn.qkv.weight_g.mul_(2)
    first = wrapped(x)[1]
    assert torch.equal(first, wrapped(x)[1])


def test_functional_call():
    model, x = build("timm eva rope"), images()
    wrapped = with_quality(model)
    larger = {name: 1.1 * p.detach() for name, p in model.named_parameters()}
    got = torch.func.functional_call(wrapped, larger, (x,))
    other = copy.deepcopy(model)
    other.load_state_dict(larger, strict=False)
    assert same(got, with_quality(other)(x))


def test_hooks_after_unpickling_in_another_process(monkeypatch):
    model, x = with_quality(build("timm vit")), images()
    expected = model(x)
    stored = pickle.dumps(model)
    numbers = torch.utils.hooks.RemovableHandle
    (own,) = model.blocks[-1].attn._forward_hooks
    monkeypatch.setattr(numbers, "next_id", own)  # where a new process might be
    loaded = pickle.loads(stored)
    calls = []
    loaded.blocks[-1].attn.register_forward_hook(lambda *given: calls.append(1))
    assert same(loaded(x), expected)
    assert calls == [1]
