# SPDX-License-Identifier: Apache-2.0
"""A quick suite for kernels that may be wrong: the checks of test_kernels.py, on fewer calls, each
in a process of its own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch

from emulation.calls import Call, Options, Program
from operators import ALL, LAYER_NORMS, SMALL, constant_rows
from operators.case import DTYPES, Case

RUNS = [
    *(Options(seed) for seed in range(1, 4)),
    Options(1, late_copies=True),
    *(Options(seed, max_blocks=limit) for seed, limit in ((0, 1), (1, 2), (2, 3))),
]


@dataclass
class Step:
    """A call whose result is finite, and exact or equal to that of an earlier step to the bit."""

    call: Call
    options: Options = field(default_factory=Options)
    case: Case | None = None
    strictly: bool = False
    same_as: int | None = None
    images: slice = field(default_factory=lambda: slice(None))


def steps_of(name: str, most: int) -> list[Step]:
    """Shapes of at most so many elements in every dtype and in three layouts; then one shape in
    other orders, grids and batches; then values far from zero.
    """
    operator, steps = ALL[name], []
    shapes = [shape for shape in operator.SHAPES if np.prod(shape) <= most]
    for i, (shape, dtype) in enumerate(itertools.product(shapes, DTYPES)):
        case = operator.make(shape, dtype, seed=i)
        steps.append(Step(case.call, case=case))
        first = len(steps) - 1
        for layout in ("fused", "odd rows", "unaligned"):
            other = operator.make(shape, dtype, layout, seed=i)
            steps.append(Step(other.call, Options(i % 4), same_as=first))
    for dtype, layout in (
        *(
            (torch.float32, "contiguous"),
            (torch.bfloat16, "odd rows"),
            (torch.float16, "contiguous"),
        ),
    ):
        case = operator.make(SMALL[name], dtype, layout, seed=6)
        steps.append(Step(case.call, case=case))
        first = len(steps) - 1
        steps += [Step(case.call, options, same_as=first) for options in RUNS]
        for images in (slice(0, 1), slice(1, 3), slice(2, None)):
            steps.append(Step(case.part(images), same_as=first, images=images))
    for offset in (1e4, -1e6):
        case = operator.make(SMALL[name], torch.float32, seed=6, offset=offset)
        steps.append(Step(case.call, case=case, strictly=name in LAYER_NORMS))
    if name in LAYER_NORMS:
        steps.append(Step(constant_rows(name)))
    if name == "attention_logits_stats":
        case = operator.equal_logits()
        steps.append(Step(case.call, case=case))
    return steps


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.nan_to_num(nan=-12345.0)


def check(program: Program, name: str, most: int) -> None:
    """Raises AssertionError or EmulationError where the kernels of an operator are wrong."""
    steps = steps_of(name, most)
    results = program.run_all([(step.call, step.options) for step in steps])
    for step, got in zip(steps, results, strict=True):
        assert all(values.isfinite().all() for values in got.values()), "not finite"
        if step.case is not None:
            step.case.check(got)
            if step.strictly:
                step.case.check_strictly(got)
        if step.same_as is not None:
            for output, values in results[step.same_as].items():
                assert torch.equal(_bits(got[output]), _bits(values[step.images])), (
                    f"{output}: other bits with {step.options}, images {step.images}"
                )
