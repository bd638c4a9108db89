# SPDX-License-Identifier: Apache-2.0
"""Seeded bugs are caught: a sample here, all by `python tests/cuda/mutations/run.py --all`."""

from __future__ import annotations

import pytest
import torch

from emulation.build import ROOT, THREAD, Builder
from emulation.calls import EmulationError, Program
from mutations.run import SAMPLE, control, mutated, run
from mutations.table import LINEAR, MUTATIONS
from operators import batch_invariant_linear


def name_of(mutation) -> str:
    return f"{mutation.file}: {mutation.stands_for}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=name_of)
def test_the_table_follows_the_sources(mutation):
    text = (ROOT / "csrc/kernels/cuda" / mutation.file).read_text()
    assert text.count(mutation.text) == 1
    assert mutation.replacement != mutation.text


def test_the_kernels_as_they_are_pass(built):
    assert control() == ""


def test_a_sample_of_bugs_is_caught(built):
    assert run(SAMPLE) == []


BARRIERS = [m for m in MUTATIONS if m.file == LINEAR and "barrier" in m.stands_for]


@pytest.mark.parametrize("mutation", BARRIERS, ids=name_of)
def test_thread_sanitizer_reports_a_missing_barrier(mutation, built, tmp_path):
    """On its own: nobody looks at the values."""
    builder = Builder(mutated(mutation, tmp_path), scratch=tmp_path / "build")
    case = batch_invariant_linear.make((3, 130, 5), torch.float32)
    with pytest.raises(EmulationError, match="ThreadSanitizer: data race"):
        Program(builder.build(THREAD)).run(case.call)
