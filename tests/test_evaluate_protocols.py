# SPDX-License-Identifier: Apache-2.0
"""The three protocols against the published code's numbers and plain re-tellings of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_faces import cross_quality

from fiqa_fast import evaluate
from fiqa_fast.evaluate.protocols.crfiqa import survived_shares
from fiqa_fast.evaluate.trials import connected

PARITY = Path(__file__).parent / "data" / "parity" / "edc_crfiqa.npz"


def plain_crfiqa(distance, genuine, quality, wanted):
    """Every kept distance is tried as a threshold."""
    order = np.argsort(quality, kind="stable")
    curve = []
    for u in np.arange(0, 0.98, 0.05):
        kept = order[int(u * len(order)) :]
        d, same = distance[kept], genuine[kept]
        impostors = np.sort(d[~same])
        candidates = np.unique(d)
        fmr = np.searchsorted(impostors, candidates, side="right") / len(impostors)
        errors = np.abs(fmr - wanted)
        threshold = candidates[np.flatnonzero(errors == errors.min())[-1]]
        curve.append(1 - np.count_nonzero(d[same] < threshold) / np.count_nonzero(same))
    return np.array(curve)


def plain_fixed_fmr(similarity, genuine, quality, wanted, limit):
    threshold = np.quantile(similarity[~genuine], 1 - wanted)
    mine, q = similarity[genuine], quality[genuine]
    order = np.argsort(q, kind="stable")
    shares = np.linspace(0, limit, 61)
    fnmr = [np.mean(mine[order[int(u * len(order)) :]] < threshold) for u in shares]
    return shares, np.array(fnmr)


def plain_dasec(similarity, genuine, quality, threshold, limit):
    """The area, by one rectangle per distinct quality."""
    mine, q = similarity[genuine], quality[genuine]
    area, levels = 0.0, np.unique(q)
    for t, following in zip(levels, [*levels[1:], None], strict=True):
        u = np.mean(q < t)
        end = 1.0 if following is None else np.mean(q < following)
        fnmr = np.mean(mine[q >= t] < threshold)
        area += fnmr * (min(end, limit) - min(u, limit))
    return area


def make(rng, *, images=60, pairs=800, levels=None, steps=None):
    """Trials and image qualities, which tie where ``steps`` and ``levels`` are given."""
    identity = rng.integers(0, 12, images)
    a, b = rng.integers(0, images, (2, pairs))
    genuine = identity[a] == identity[b]
    similarity = np.clip(rng.normal(0.1, 0.2, pairs) + 0.5 * genuine, -1, 1)
    if steps:
        similarity = np.round(similarity * steps) / steps
    quality = rng.random(images) if levels is None else rng.integers(0, levels, images) / levels
    trials = evaluate.Trials(
        a.astype(np.int32), b.astype(np.int32), genuine, similarity, identity.astype(np.int64)
    )
    return trials, quality, np.minimum(quality[a], quality[b])


def test_crfiqa_reproduces_the_published_code_to_the_bit() -> None:
    expected = np.load(PARITY)
    trials = evaluate.Trials.of_pairs(
        expected["features"], expected["pair_a"], expected["pair_b"], expected["same"]
    )
    found = evaluate.compare(
        trials, {"q": expected["image_quality"]}, protocols=["crfiqa"], draws=0
    )
    for row, curve, name in zip(found.rows, found.curves, ("1e2", "1e3", "1e4"), strict=True):
        assert np.array_equal(curve.discard, expected["discard"])
        assert np.array_equal(curve.fnmr, expected[f"fnmr_{name}"])
        assert row.auc == float(expected[f"auc_{name}"])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wanted=st.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 0.37, 0.9]),
    levels=st.sampled_from([None, 1, 3, 10]),
    steps=st.sampled_from([None, 5, 30]),
    pairs=st.integers(200, 900),
)
def test_crfiqa_is_the_plain_search_whatever_ties(seed, wanted, levels, steps, pairs) -> None:
    trials, quality, worst = make(
        np.random.default_rng(seed), pairs=pairs, levels=levels, steps=steps
    )
    found = evaluate.compare(trials, {"q": quality}, protocols=["crfiqa"], fmr=[wanted], draws=0)
    with np.errstate(invalid="ignore"):
        expected = plain_crfiqa(-trials.similarity, trials.genuine, worst, wanted)
    np.testing.assert_array_equal(found.curves[0].fnmr, expected)


def test_of_equally_near_rates_crfiqa_takes_the_larger() -> None:
    similarity = np.array([0.9, 0.7, 0.5, 0.3, 0.8, 0.6, 0.4, 0.2])
    images = np.arange(8, dtype=np.int32)
    genuine = images >= 4
    trials = evaluate.Trials(images, images, genuine, similarity, images.astype(np.int64))
    # One impostor of four (threshold 0.8) is as far from 0.375 as two (0.6).
    found = evaluate.compare(trials, {"q": np.ones(8)}, protocols=["crfiqa"], fmr=[0.375], draws=0)
    assert found.rows[0].threshold == 0.6
    assert found.rows[0].fnmr == 0.75


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wanted=st.sampled_from([1e-4, 1e-2, 0.2]),
    levels=st.sampled_from([None, 1, 4, 20]),
    steps=st.sampled_from([None, 10]),
    limit=st.sampled_from([0.05, 0.3, 0.7]),
)
def test_thresholds_that_stay(seed, wanted, levels, steps, limit) -> None:
    trials, quality, worst = make(np.random.default_rng(seed), levels=levels, steps=steps)
    found = evaluate.compare(
        trials,
        {"q": quality},
        protocols=["fixed-fmr", "dasec"],
        fmr=[wanted],
        fnmr=[0.15],
        limit=limit,
        draws=0,
    )
    shares, fnmr = plain_fixed_fmr(trials.similarity, trials.genuine, worst, wanted, limit)
    fixed, *steps_rows = found.rows
    np.testing.assert_allclose(found.curves[0].fnmr[:61], fnmr, atol=1e-15)
    assert fixed.pauc == pytest.approx(np.trapezoid(fnmr, shares), abs=1e-14)
    assert fixed.threshold == np.quantile(trials.similarity[~trials.genuine], 1 - wanted)
    thresholds = (fixed.threshold, np.quantile(trials.similarity[trials.genuine], 0.15))
    for row, threshold in zip(steps_rows, thresholds, strict=True):
        assert row.threshold == threshold
        area = plain_dasec(trials.similarity, trials.genuine, worst, threshold, limit)
        assert row.pauc == pytest.approx(area, abs=1e-14)


def test_draws_are_repetitions_of_an_identitys_pairs() -> None:
    """Against trials in which the pairs really are repeated."""
    rng = np.random.default_rng(0)
    trials, quality, _ = make(rng, levels=25)
    identities = int(trials.genuine_identity.max()) + 1
    counts = rng.integers(0, 4, (5, identities))
    from fiqa_fast.evaluate.compare import _outcomes
    from fiqa_fast.evaluate.protocols.curves import OperatingPoint

    for protocol in ("fixed-fmr", "dasec"):
        (outcome,) = _outcomes(protocol, trials, quality, [OperatingPoint(0.05)], 0.3)
        drawn = np.concatenate([c.area(0.3) for c in outcome.resampled(counts)])
        for row, area in zip(counts, drawn, strict=True):
            times = np.ones(len(trials.a), np.int64)
            times[trials.genuine_pairs] = row[trials.genuine_identity]
            again = np.repeat(np.arange(len(times)), times)
            similarity, genuine = trials.similarity[again], trials.genuine[again]
            worst = np.minimum(quality[trials.a], quality[trials.b])[again]
            if protocol == "fixed-fmr":
                shares, fnmr = plain_fixed_fmr(similarity, genuine, worst, 0.05, 0.3)
                expected = np.trapezoid(fnmr, shares)
            else:
                expected = plain_dasec(similarity, genuine, worst, outcome.threshold, 0.3)
            assert area == pytest.approx(expected, abs=1e-13)
    # crfiqa keeps each share's pairs and threshold, and weighs what is kept.
    (outcome,) = _outcomes("crfiqa", trials, quality, [OperatingPoint(0.05)], 0.3)
    (drawn_curve,) = outcome.resampled(np.ones((1, identities), np.int64))
    np.testing.assert_allclose(drawn_curve.fnmr[0], outcome.curve().fnmr, atol=1e-15)


def test_a_perfect_score_and_a_random_one() -> None:
    rng = np.random.default_rng(1)
    trials, _, _ = make(rng, images=4000, pairs=40_000)
    threshold = trials.impostor_quantile(0.2)
    # Each pair's images are its own, so that a pair's quality can be its outcome.
    images = np.arange(len(trials.a), dtype=np.int32)
    own = evaluate.Trials(
        images, images, trials.genuine, trials.similarity, np.arange(len(images), dtype=np.int64)
    )
    scores = {
        "perfect": (own.similarity >= threshold).astype(float),
        "random": rng.random(len(images)),
    }
    found = evaluate.compare(
        own, scores, protocols=["dasec"], fmr=[0.2], draws=100, baseline="random"
    )
    perfect, random = found.rows
    # Equal qualities go together: nothing is discarded until all failures are, at once.
    assert perfect.pauc == pytest.approx(perfect.fnmr * min(perfect.fnmr, 0.3), abs=1e-3)
    assert random.pauc_ratio == pytest.approx(1, abs=0.1)
    assert random.pauc_ratio_interval.low < random.pauc_ratio < random.pauc_ratio_interval.high
    assert perfect.difference_interval.high < 0
    assert random.difference is None
    assert 0 < perfect.pauc - perfect.pauc_above_best < perfect.pauc


def test_shares_survived_are_those_of_a_stable_sort() -> None:
    rng = np.random.default_rng(2)
    shares = np.arange(0, 0.98, 0.05)
    for levels in (1, 2, 7, 500):
        rank = rng.integers(0, levels, 1003).astype(np.int32)
        expected = np.zeros(len(rank), np.uint8)
        order = np.argsort(rank, kind="stable")
        for share in shares:
            expected[order[int(share * len(rank)) :]] += 1
        np.testing.assert_array_equal(survived_shares(rank, shares), expected)


def test_trials_of_identities_are_all_pairs() -> None:
    rng = np.random.default_rng(3)
    embeddings = rng.standard_normal((40, 16))
    identity = [f"p{i}" for i in rng.integers(0, 6, 40)]
    trials = evaluate.Trials.of_identities(embeddings, identity)
    a, b = np.triu_indices(40, 1)
    np.testing.assert_array_equal(trials.a, a)
    np.testing.assert_array_equal(trials.b, b)
    listed = evaluate.Trials.of_pairs(embeddings, a, b, trials.genuine, identity)
    np.testing.assert_allclose(trials.similarity, listed.similarity, atol=1e-14)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(listed.similarity, (unit[a] * unit[b]).sum(1), atol=1e-14)


def test_a_sample_of_the_impostors() -> None:
    rng = np.random.default_rng(4)
    embeddings, identity = rng.standard_normal((60, 8)), rng.integers(0, 9, 60)
    whole = evaluate.Trials.of_identities(embeddings, identity)
    some = evaluate.Trials.of_identities(embeddings, identity, max_impostors=500)
    again = evaluate.Trials.of_identities(embeddings, identity, max_impostors=500)
    assert some.num_impostor == 500
    assert some.sampled == whole.num_impostor
    assert some.num_genuine == whole.num_genuine
    np.testing.assert_array_equal(some.a, again.a)
    codes = some.a.astype(np.int64) * 60 + some.b
    assert (np.diff(codes) > 0).all()  # in order, no pair twice
    assert (some.a < some.b).all()
    np.testing.assert_array_equal(some.genuine, identity[some.a] == identity[some.b])


def test_identities_are_what_genuine_pairs_connect() -> None:
    chain = np.arange(999, dtype=np.int32)
    np.testing.assert_array_equal(connected(chain, chain + 1, 1001), [0] * 1000 + [1000])
    np.testing.assert_array_equal(
        connected(np.array([3, 1], np.int32), np.array([0, 2], np.int32), 5), [0, 1, 1, 0, 4]
    )


def test_limits_between_grid_points() -> None:
    trials, quality, _ = make(np.random.default_rng(5))
    whole, part = (
        evaluate.compare(
            trials, {"q": quality}, protocols=["crfiqa"], fmr=[0.05], limit=limit, draws=0
        )
        for limit in (0.3, 0.275)
    )
    u, y = whole.curves[0].discard, whole.curves[0].fnmr
    assert whole.rows[0].pauc == np.trapezoid(y[:7], u[:7])  # u[6] is a little more than 0.3
    middle = (y[5] + y[6]) / 2
    expected = np.trapezoid(y[:6], u[:6]) + 0.025 * (y[5] + middle) / 2
    assert part.rows[0].pauc == pytest.approx(expected, abs=1e-14)


def test_what_the_trials_cannot_support_is_said() -> None:
    trials, quality, _ = make(np.random.default_rng(6))
    found = evaluate.compare(trials, {"q": quality}, fmr=[1e-4, 0.5], draws=0)
    assert any("FMR 0.0001 rests on 0.0" in line for line in found.warnings)
    assert not any("FMR 0.5 rests" in line for line in found.warnings)
    assert any("false non-matches among" in line for line in found.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocols": ["erc"]}, "crfiqa, dasec, fixed-fmr, got 'erc'"),
        ({"protocols": "crfiqa"}, "got 'c'"),
        ({"fmr": [0.0]}, "between 0 and 1, got 0.0"),
        ({"fmr": []}, "at least one FMR"),
        ({"limit": 1.0}, "limit must lie between 0.001 and 0.95"),
        ({"baseline": "other"}, "baseline must be one of q"),
        ({"draws": -1}, "draws must be 0 or more"),
    ],
)
def test_options_out_of_range(options, words) -> None:
    trials, quality, _ = make(np.random.default_rng(7))
    with pytest.raises(ValueError, match=words):
        evaluate.compare(trials, {"q": quality}, **{"draws": 0, **options})


def test_scores_and_pairs_that_do_not_fit() -> None:
    rng = np.random.default_rng(8)
    trials, quality, _ = make(rng)
    with pytest.raises(ValueError, match=r"wanted one score per image, \[60\], got \[59\]"):
        evaluate.compare(trials, {"q": quality[:-1]}, draws=0)
    with pytest.raises(ValueError, match="1 of 60 scores are NaN"):
        evaluate.compare(trials, {"q": np.append(quality[:-1], np.nan)}, draws=0)
    embeddings = rng.standard_normal((4, 3))
    with pytest.raises(ValueError, match="images 0 to 3, got 1 to 4"):
        evaluate.Trials.of_pairs(embeddings, [0, 1], [1, 4], [0, 1])
    with pytest.raises(ValueError, match="1 genuine and 0 impostor"):
        evaluate.Trials.of_pairs(embeddings, [0], [1], [1])
    with pytest.raises(ValueError, match="must hold 0 and 1"):
        evaluate.Trials.of_pairs(embeddings, [0, 1], [1, 2], [1, 2])
    embeddings[2] = 0
    with pytest.raises(ValueError, match="finite"):
        evaluate.Trials.of_pairs(embeddings, [0, 1], [1, 2], [1, 0])


def test_infinite_scores_are_first_or_last_to_go() -> None:
    trials, quality, _ = make(np.random.default_rng(9))
    low = np.where(np.arange(60) < 3, -np.inf, quality)
    finite = np.where(np.arange(60) < 3, -1.0, quality)
    first, second = (
        evaluate.compare(trials, {"q": q}, draws=0, fmr=[0.1]).rows[0] for q in (low, finite)
    )
    assert first.pauc == second.pauc


def test_real_faces(needs_data: Path) -> None:
    """FNMR 15.6 % and LightQNet's 0.499 [0.43, 0.57], which a right evaluation reproduces."""
    trials, paths, control = cross_quality(needs_data)
    assert (trials.num_genuine, trials.num_impostor) == (2185, 417_801)
    scores = {
        "lightqnet": control,
        "random": np.random.default_rng(0).random(len(paths)),
    }
    lightqnet, random = evaluate.compare(trials, scores, fmr=[1e-3]).rows
    assert lightqnet.fnmr == pytest.approx(0.156, abs=5e-4)
    assert lightqnet.pauc_ratio == pytest.approx(0.499, abs=5e-4)
    assert lightqnet.pauc_ratio_interval.low == pytest.approx(0.432, abs=0.01)
    assert lightqnet.pauc_ratio_interval.high == pytest.approx(0.566, abs=0.01)
    assert random.pauc_ratio == pytest.approx(1, abs=0.06)
