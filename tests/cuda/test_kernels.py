# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, on the emulator: exact, and the same to the bit however they are run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulation.calls import Call, Options
from operators import ALL, LAYER_NORMS, SMALL, constant_rows, mean_layer_norm
from operators.case import DTYPES, LAYOUTS

EVERY_SHAPE = [(name, shape) for name, operator in ALL.items() for shape in operator.SHAPES]
RUNS = [
    *(Options(seed) for seed in range(6)),
    *(Options(seed, max_blocks=limit) for seed in range(3) for limit in (1, 2)),
    *(Options(seed, late_copies=True) for seed in range(3)),
]


def same(one, other):
    """To the bit; any NaN equals any other."""
    return all(
        torch.equal(one[name].nan_to_num(nan=-12345.0), other[name].nan_to_num(nan=-12345.0))
        for name in one
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "shape"), EVERY_SHAPE)
def test_exact_in_every_layout(name, shape, dtype, emulator):
    case = ALL[name].make(shape, dtype)
    contiguous = emulator.run(case.call)
    case.check(contiguous)
    for layout in LAYOUTS[1:]:
        assert same(emulator.run(ALL[name].make(shape, dtype, layout).call), contiguous), layout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", SMALL)
def test_parameters_of_every_kind(name, seed, dtype, emulator):
    """Present or absent, strided, of either dtype."""
    case = ALL[name].make(SMALL[name], dtype, LAYOUTS[seed % len(LAYOUTS)], seed)
    case.check(emulator.run(case.call))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "odd rows"])
@pytest.mark.parametrize("name", SMALL)
def test_order_and_grid_do_not_change_a_bit(name, layout, dtype, emulator):
    case = ALL[name].make(SMALL[name], dtype, layout, seed=3)
    expected = emulator.run(case.call)
    case.check(expected)
    for options in RUNS:
        assert same(emulator.run(case.call, options), expected), options


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "odd rows"])
@pytest.mark.parametrize("name", SMALL)
def test_batch_does_not_change_a_bit(name, layout, dtype, emulator):
    case = ALL[name].make(SMALL[name], dtype, layout, seed=6)
    whole = emulator.run(case.call)
    images = len(whole[case.call.outputs[0]])
    for size in (1, 2, images - 1):
        for first in range(0, images, size):
            part = slice(first, first + size)
            got = emulator.run(case.part(part))
            assert same(got, {output: values[part] for output, values in whole.items()}), part


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", mean_layer_norm.SHAPES)
def test_mean_and_map_are_those_of_the_sum_in_memory(shape, dtype, seed, emulator):
    call = mean_layer_norm.make(shape, dtype, seed=seed).call
    expected = emulator.run(call)
    tensors = dict(call.tensors)
    tensors["x"] = tensors["x"].float() + tensors.pop("residual").float()
    in_memory = Call(call.operation, tensors, call.outputs, call.numbers)
    assert same(emulator.run(in_memory), expected)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("u", "map")}
    mean_alone = Call(call.operation, tensors, ("mean",), call.numbers)
    assert torch.equal(emulator.run(mean_alone)["mean"], expected["mean"])


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("name", SMALL)
def test_large_magnitudes(name, offset, emulator):
    """The sums of squares of LayerNorm would cancel here, and its mean alone is not exact."""
    case = ALL[name].make(SMALL[name], torch.float32, seed=6, offset=offset)
    got = emulator.run(case.call)
    case.check(got)
    if name in LAYER_NORMS:
        case.check_strictly(got)


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_constant_rows_stay_finite(name, emulator):
    """Their variance may come out below zero."""
    assert all(values.isfinite().all() for values in emulator.run(constant_rows(name)).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_nan_and_infinity_stay_in_their_image(name, dtype, value, emulator):
    """And come out as IEEE 754 has it: compared with float64, finite where that is."""
    case = ALL[name].make(SMALL[name], dtype, seed=6)
    clean = emulator.run(case.call)
    for tensor in case.batched:
        x = case.call.tensors[tensor]
        # The last element of the second image.
        last = (1, *[-1] * (x.dim() - 1))
        before = x[last].clone()
        x[last] = value
        got = emulator.run(case.call)
        x[last] = before
        for output, values in got.items():
            assert torch.equal(values[0], clean[output][0]), output
            assert torch.equal(values[2:], clean[output][2:]), output
        assert any(not values[1].isfinite().all() for values in got.values())


@pytest.mark.parametrize("name", LAYER_NORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_without_statistics_spoils_its_image(name, value, emulator):
    case = ALL[name].make(SMALL[name], torch.float32, seed=6)
    case.call.tensors["x"][1, 9, 11] = value
    assert emulator.run(case.call)[case.call.outputs[0]][1].isnan().all()


def test_infinity_through_a_linear_layer(emulator):
    case = ALL["batch_invariant_linear"].make(SMALL["batch_invariant_linear"], torch.float32)
    x, weight = (case.call.tensors[name] for name in ("x", "weight"))
    x[1, 2100] = float("inf")
    assert torch.equal(emulator.run(case.call)["out"][1], float("inf") * weight[:, 2100].sign())


def test_infinity_through_the_means(emulator):
    case = ALL["attention_logits_mean"].make(SMALL["attention_logits_mean"], torch.float32)
    case.call.tensors["q"][1, 2, 16, 23] = float("inf")
    got = emulator.run(case.call)
    finite = np.ones((3, 3, 24), dtype=bool)
    finite[1, 2, 23] = False
    assert np.array_equal(got["q_mean"].isfinite().numpy(), finite)
    assert np.array_equal(got["head_scores"].isfinite().numpy(), finite.all(2))
    assert got["query_map"][1, :16].isfinite().all()
    assert not got["query_map"][1, 16].isfinite()
    assert not got["key_map"][1].isfinite().any()


@pytest.mark.parametrize("name", ALL)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_shapes(name, data, emulator):
    operator = ALL[name]
    shape = tuple(data.draw(st.integers(*limits)) for limits in operator.LIMITS)
    layout = data.draw(st.sampled_from(LAYOUTS))
    seed = data.draw(st.integers(0, 2**31))
    offset = data.draw(st.sampled_from([0.0, 3.0, -300.0]))
    case = operator.make(shape, data.draw(st.sampled_from(DTYPES)), layout, seed, offset)
    options = Options(
        data.draw(st.integers(0, 100)), data.draw(st.booleans()), data.draw(st.integers(0, 3))
    )
    case.check(emulator.run(case.call, options))


@pytest.mark.parametrize("name", ALL)
def test_address_sanitizer_is_content(name, emulator, address_sanitizer):
    """Every dtype, layout and shape in allocations without a byte to spare."""
    # One large shape is enough: what is at stake is the tails.
    shapes = [shape for shape in ALL[name].SHAPES if np.prod(shape) < 20000]
    cases = [
        ALL[name].make(shape, dtype, layout, seed=i)
        for i, (shape, dtype, layout) in enumerate(itertools.product(shapes, DTYPES, LAYOUTS))
    ]
    runs = [(case.call, Options(seed=i % 4)) for i, case in enumerate(cases)]
    for (call, _), case, got in zip(runs, cases, address_sanitizer.run_all(runs), strict=True):
        case.check(got)
        assert same(emulator.run(call), got)


@pytest.mark.parametrize("name", ALL)
def test_thread_sanitizer_is_content(name, thread_sanitizer):
    shapes = (SMALL[name], ALL[name].SHAPES[1])
    cases = [
        ALL[name].make(shape, dtype, layout)
        for shape, dtype, layout in itertools.product(
            shapes, DTYPES[:2], ["contiguous", "odd rows"]
        )
    ]
    # In every other run one block takes all items, one after the other.
    runs = [(case.call, Options(seed, max_blocks=seed % 2)) for seed, case in enumerate(cases)]
    for case, got in zip(cases, thread_sanitizer.run_all(runs), strict=True):
        case.check(got)
