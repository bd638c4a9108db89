# SPDX-License-Identifier: Apache-2.0
"""Seeded bugs are caught: a sample here, all by `python tests/cuda/mutations/run.py --all`."""

from __future__ import annotations

import pytest

from emulation.build import ROOT
from mutations.run import SAMPLE, control, run
from mutations.table import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.stands_for}")
def test_the_table_follows_the_sources(mutation):
    text = (ROOT / "csrc/kernels/cuda" / mutation.file).read_text()
    assert text.count(mutation.text) == 1
    assert mutation.replacement != mutation.text


def test_the_kernels_as_they_are_pass(built):
    assert control() == ""


def test_a_sample_of_bugs_is_caught(built):
    assert run(SAMPLE) == []
