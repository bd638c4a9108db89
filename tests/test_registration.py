# SPDX-License-Identifier: Apache-2.0
"""How the operators are seen by torch: schemas, opcheck, compilation, gradients, loading."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fiqa_fast import _load, _runtime, ops

SCHEMAS = {
    "mean_layer_norm": (
        "fiqa_fast::mean_layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor?"
        " residual, Tensor? u) -> (Tensor mean, Tensor map)"
    ),
    "layer_norm_dot": (
        "fiqa_fast::layer_norm_dot(Tensor x, Tensor? weight, Tensor? bias, float eps, Tensor w) ->"
        " Tensor"
    ),
    "add_layer_norm": (
        "fiqa_fast::add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, float"
        " eps, ScalarType dtype, int mean_from, Tensor? w) -> (Tensor sum, Tensor normed, Tensor"
        " mean, Tensor dot)"
    ),
    "batch_invariant_linear": (
        "fiqa_fast::batch_invariant_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
    ),
    "attention_logits_mean": (
        "fiqa_fast::attention_logits_mean(Tensor q, Tensor k, float scale) -> "
        "(Tensor head_scores, Tensor key_map, Tensor query_map, Tensor q_mean)"
    ),
    "attention_logits_stats": (
        "fiqa_fast::attention_logits_stats(Tensor q, Tensor k, float scale, int stats, bool"
        " average_heads) -> (Tensor head_values, Tensor image_values, Tensor key_map, Tensor"
        " query_map, Tensor logsumexp, Tensor entropy, Tensor median)"
    ),
}

LOGITS_STATS = {"moments": 1, "centered_variance": 2, "softmax": 4, "median": 8}


def sample_inputs(op, device, dtype=torch.float32, requires_grad=False):
    def random(*shape):
        return torch.randn(*shape, device=device).to(dtype).requires_grad_(requires_grad)

    if op == "mean_layer_norm":
        u = torch.randn(2, 48, device=device).requires_grad_(requires_grad)
        x = random(2, 48, 37).transpose(1, 2)
        yield random(2, 37, 48), random(48), random(48), 1e-5, random(2, 37, 48), u
        yield x, None, None, 1e-6, None, u[1].expand(2, 48)
        yield x, random(48), None, 1e-5, random(2, 37, 48), None
        yield x, None, random(48), 1e-5, None, None
        yield random(0, 37, 48), None, random(48), 1e-5, random(0, 37, 48), u[:0]
    elif op == "layer_norm_dot":
        w = torch.randn(37, 48, device=device).requires_grad_(requires_grad)
        yield random(2, 37, 48), random(48), random(48), 1e-5, w
        yield random(2, 48, 37).transpose(1, 2), None, None, 1e-6, w.t().clone().t()
        yield random(0, 37, 48), None, random(48), 1e-5, w
    elif op == "add_layer_norm":
        x = torch.randn(2, 37, 48, device=device).requires_grad_(requires_grad)
        w = torch.randn(37, 48, device=device)
        yield x, random(2, 37, 48), random(48), random(48), 1e-5, torch.bfloat16, 0, w
        yield x, random(2, 48, 37).transpose(1, 2), None, None, 1e-6, torch.float32, 3, w[:2]
        yield x[:0], random(0, 37, 48), None, random(48), 1e-5, torch.float16, 0, w
    elif op == "batch_invariant_linear":
        x = torch.randn(5, 48, device=device).requires_grad_(requires_grad)
        yield x, random(20, 48), random(20)
        yield x[::2, ::3], random(16, 20).t(), None
        yield x[:0], random(20, 48), random(20)
    else:
        more = [(), ()]
        if op == "attention_logits_stats":
            # No NaN, which opcheck would find different from itself.
            more = [(tuple(LOGITS_STATS), "all"), (("centered_variance", "median"), "average")]
        yield random(2, 3, 37, 16), random(2, 3, 20, 16), 0.25, *more[0]
        yield *random(2, 37, 2, 3, 16).permute(2, 0, 3, 1, 4).unbind(0), 0.25, *more[1]


def operator_arguments(op, arguments):
    """The operator's own arguments, from those of its wrapper."""
    if op == "attention_logits_stats":
        *others, stats, heads = arguments
        return *others, sum(LOGITS_STATS[name] for name in stats), heads == "average"
    return arguments


def tensors(result):
    """The tensors of an operator's result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in tensors(part)]


def wrapper(op):
    """What calls an operator, by the operator's arguments."""
    if op != "mean_layer_norm":
        return getattr(ops, op)

    def mean_layer_norm(x, weight, bias, eps, residual, u):
        if u is None:
            return ops.mean_layer_norm(x, weight, bias, eps, residual)
        return ops.mean_layer_norm_map(x, weight, bias, eps, u, residual)

    return mean_layer_norm


@pytest.mark.parametrize("op", SCHEMAS)
def test_schema(op):
    assert str(getattr(torch.ops.fiqa_fast, op).default._schema) == SCHEMAS[op]
    assert op in ops.__all__


@pytest.mark.parametrize("op", SCHEMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(op, dtype, device):
    for arguments in sample_inputs(op, device, dtype):
        torch.library.opcheck(
            getattr(torch.ops.fiqa_fast, op).default, operator_arguments(op, arguments)
        )


def test_opcheck_without_mean_and_dot(device):
    x = torch.randn(2, 5, 16, device=device)
    arguments = (x, x, None, None, 1e-5, torch.float32, -1, None)
    torch.library.opcheck(torch.ops.fiqa_fast.add_layer_norm.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("op", SCHEMAS)
def test_compiles_without_graph_breaks(op, dynamic, device):
    function = wrapper(op)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for arguments in sample_inputs(op, device):
        with torch.no_grad():
            expected, got = tensors(function(*arguments)), tensors(compiled(*arguments))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("op", SCHEMAS)
def test_fake_outputs_look_like_the_real_ones(op, device):
    function = wrapper(op)
    for arguments in sample_inputs(op, device):
        real = function(*arguments)
        with FakeTensorMode() as mode:
            fake = function(
                *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
            )
        for r, f in zip(tensors(real), tensors(fake), strict=True):
            assert (r.shape, r.dtype, r.device, r.stride()) == (
                f.shape,
                f.dtype,
                f.device,
                f.stride(),
            )


@pytest.mark.parametrize("op", SCHEMAS)
def test_is_inference_only(op, device):
    function = wrapper(op)
    arguments = next(sample_inputs(op, device, requires_grad=True))
    with torch.no_grad():
        without = tensors(function(*arguments))
    with torch.inference_mode():
        function(*arguments)
    got = tensors(function(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(got, without, strict=True))
    assert not without[0].requires_grad
    with pytest.raises(RuntimeError, match=f"{op} is inference-only .*reference.{op} to train"):
        got[0].sum().backward()


@pytest.mark.parametrize("op", SCHEMAS)
def test_may_be_called_from_several_threads(op):
    arguments = next(sample_inputs(op, "cpu"))

    def call(_):
        return tensors(wrapper(op)(*arguments))

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(40)))
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_isa_can_be_forced_from_the_environment(run_python):
    code = "from fiqa_fast import _load; print(_load.isa())"
    for level in _load.supported_isas():
        assert run_python(code, FIQA_FAST_ISA=level).stdout.strip() == level
    default = run_python(code, FIQA_FAST_ISA="").stdout.strip()
    best = _load.supported_isas()[-1]
    # Where bfloat16's products are slow (tests/cpp/test_isa.cpp).
    assert default == best or (default, best) == ("avx512_vnni", "avx512_bf16")


def test_unknown_isa_is_refused(run_python):
    done = run_python("import fiqa_fast.ops", FIQA_FAST_ISA="sse9")
    assert (
        "ValueError: FIQA_FAST_ISA=sse9: the instruction set level should be one of" in done.stderr
    )
    before = _load.isa()
    with pytest.raises(ValueError, match=r"should be one of \['baseline'.*, got 'AVX'"):
        _load.set_isa("AVX")
    assert _load.isa() == before


def test_build_info_and_cpu_features():
    info = _runtime.build_info()
    assert set(_load.supported_isas()) <= set(info["isa_levels"])
    assert info["compiler"]
    assert info["torch"]
    assert info["cuda"].startswith("built without CUDA: ") or info["cuda_archs"]
    features = _runtime.cpu_features()
    assert features["avx2"] or not features["avx512"]
    assert ("avx512" in _load.supported_isas()) == features["avx512"]


def test_cuda_status_says_why():
    loaded, reason = _load.cuda_status()
    assert loaded != bool(reason)
    if torch.version.cuda is not None and _runtime.build_info()["cuda_archs"]:
        assert loaded, reason


NO_CUDA = """
import torch
torch.version.cuda = None
from fiqa_fast import _load, ops
print(_load.cuda_status())
op = torch.ops.fiqa_fast.mean_layer_norm.default
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
try:
    op.redispatch(cuda, torch.zeros(1, 2, 3), None, None, 1e-5, None, None)
except RuntimeError as error:
    print(error)
"""


def test_cuda_tensors_are_refused_with_the_reason_why_cuda_is_not_loaded(run_python):
    done = run_python(NO_CUDA)
    status, error = done.stdout.splitlines()
    assert "loaded=False" in status
    reason = f"this torch ({torch.__version__}) has no CUDA"
    assert reason in status
    text = "mean_layer_norm: got CUDA tensors, but its CUDA kernels are not loaded: "
    assert error.startswith(text + reason)


def test_broken_cuda_library_is_kept_as_the_reason(tmp_path, monkeypatch):
    (tmp_path / "_C_cuda.abi3.so").write_text("not a library")
    monkeypatch.setattr(_load, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    loaded, reason = _load._load_cuda()
    assert not loaded
    assert "_C_cuda.abi3.so does not load: " in reason


def test_missing_extension_says_what_to_do(source_tree, tmp_path, run_python):
    package = tmp_path / "fiqa_fast"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_load.py").write_text((source_tree / "fiqa_fast" / "_load.py").read_text())
    # An editable install finds the package before sys.path does.
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)];"
        f" sys.path.insert(0, {str(tmp_path)!r}); import fiqa_fast._load"
    )
    done = run_python(code)
    assert "ImportError: fiqa_fast: there is no compiled library _C in" in done.stderr
    assert "pip install -e . --no-build-isolation" in done.stderr
