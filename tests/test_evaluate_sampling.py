# SPDX-License-Identifier: Apache-2.0
"""Samples of impostor pairs, and what keeps memory bounded: exact, uniform, and never stuck."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from fiqa_fast import evaluate
from fiqa_fast.evaluate import sampling
from fiqa_fast.evaluate.protocols import curves


@pytest.mark.parametrize("wanted", [0, 1, 40, 49, 50, 51, 98, 99, 100])
def test_distinct_numbers_are_distinct(wanted: int) -> None:
    found = sampling.distinct_numbers(100, wanted, np.random.default_rng(0))
    assert len(found) == wanted
    assert (np.diff(found) > 0).all()
    assert not wanted or (found[0] >= 0 and found[-1] < 100)


@pytest.mark.parametrize("wanted", [3, 6])
def test_every_choice_of_numbers_is_as_likely(wanted: int) -> None:
    """All subsets of 3 (and 6) of 9 numbers, 84 either way."""
    rng = np.random.default_rng(1)
    seen: dict[bytes, int] = {}
    for _ in range(8400):
        key = sampling.distinct_numbers(9, wanted, rng).tobytes()
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 84
    assert chisquare(list(seen.values())).pvalue > 1e-3


def test_impostor_numbers_are_all_the_impostor_pairs() -> None:
    whom = np.random.default_rng(2).integers(0, 5, 30)
    i, j = np.triu_indices(30, 1)
    other = whom[i] != whom[j]
    total = int(other.sum())
    codes = np.sort(sampling.impostor_codes(whom, total, np.random.default_rng(0)))
    a, b = sampling.pairs_of(codes)
    np.testing.assert_array_equal(a, i[other])
    np.testing.assert_array_equal(b, j[other])
    a, b = sampling.pairs_of(np.sort(sampling.genuine_codes(whom)))
    np.testing.assert_array_equal(a, i[~other])
    np.testing.assert_array_equal(b, j[~other])


def test_nearly_all_impostors_and_nearly_all_of_one_identity() -> None:
    """Drawing images until enough new pairs turn up would take nearly for ever on both."""
    rng = np.random.default_rng(3)
    embeddings, identity = rng.standard_normal((2000, 4)), np.arange(2000) // 2
    total = 2000 * 1999 // 2 - 1000
    trials = evaluate.Trials.of_identities(embeddings, identity, max_impostors=total - 1)
    assert (trials.num_impostor, trials.num_genuine) == (total - 1, 1000)
    identity = np.where(np.arange(1500) < 1498, 0, np.arange(1500))
    trials = evaluate.Trials.of_identities(embeddings[:1500], identity, max_impostors=2000)
    assert trials.sampled == 2 * 1498 + 1
    np.testing.assert_array_equal(trials.genuine, identity[trials.a] == identity[trials.b])
    with pytest.raises(ValueError, match="max_impostors must be 1 or more, got 0"):
        evaluate.Trials.of_identities(embeddings, np.arange(2000) // 2, max_impostors=0)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(4)
    identity = np.arange(60) // 4
    embeddings = rng.standard_normal((15, 8))[identity] + rng.standard_normal((60, 8))
    trials = evaluate.Trials.of_identities(embeddings, identity)
    options = {"protocols": evaluate.PROTOCOLS, "fmr": [0.05], "draws": 50}
    whole = evaluate.compare(trials, {"q": rng.random(60)}, **options)
    rng = np.random.default_rng(4)
    rng.standard_normal((15, 8)), rng.standard_normal((60, 8))
    monkeypatch.setattr(curves, "_CHUNK_WEIGHTS", 1)
    one_by_one = evaluate.compare(trials, {"q": rng.random(60)}, **options)
    for one, other in zip(whole.rows, one_by_one.rows, strict=True):
        assert one.pauc_interval.low == pytest.approx(other.pauc_interval.low, abs=1e-15)
        assert one.pauc_interval.high == pytest.approx(other.pauc_interval.high, abs=1e-15)


def test_a_small_limit_costs_no_more() -> None:
    rng = np.random.default_rng(5)
    trials = evaluate.Trials.of_identities(rng.standard_normal((60, 8)), np.arange(60) // 4)
    for limit in (0.001, 0.3, 0.95):
        found = evaluate.compare(
            trials, {"q": rng.random(60)}, protocols=evaluate.PROTOCOLS, fmr=[0.1], limit=limit,
            draws=3,
        )  # fmt: skip
        for curve in found.curves:
            assert len(curve.discard) <= max(200, trials.num_genuine)
        for row in found.rows:
            assert row.pauc_ratio == pytest.approx(1, abs=0.5)


def test_more_pairs_than_sixteen_bits_count() -> None:
    """How often an identity is drawn is a small number; sums over pairs of one quality are not."""
    each = 40_000
    image = np.repeat([0, 1, 2], each).astype(np.int32)
    failing = [np.arange(each) < share * each for share in (0.1, 0.3, 0.9)]
    trials = evaluate.Trials(
        image, image, image < 2, 1.0 - np.concatenate(failing), np.arange(3, dtype=np.int64)
    )
    options = {"protocols": ["dasec"], "fmr": [0.05], "draws": 60}
    (row,) = evaluate.compare(trials, {"q": np.ones(3)}, **options).rows
    assert row.fnmr == 0.2
    # Of two identities one, the other or both are drawn.
    assert row.pauc_interval.low == pytest.approx(0.3 * 0.1, abs=1e-12)
    assert row.pauc_interval.high == pytest.approx(0.3 * 0.3, abs=1e-12)
