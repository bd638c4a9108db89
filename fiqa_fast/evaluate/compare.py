# SPDX-License-Identifier: Apache-2.0
"""Several quality scores on the same trials: areas, intervals, and differences between scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .protocols.crfiqa import crfiqa
from .protocols.curves import Counts, Curve, Floats, OperatingPoint, Outcome
from .protocols.dasec import best_area, dasec
from .protocols.fixed_fmr import fixed_fmr
from .trials import Trials

__all__ = [
    "DRAWS",
    "FMRS",
    "LIMIT",
    "PROTOCOLS",
    "Comparison",
    "Interval",
    "Row",
    "check_options",
    "check_scores",
    "compare",
]

PROTOCOLS = ("crfiqa", "dasec", "fixed-fmr")
FMRS = (1e-2, 1e-3, 1e-4)
LIMIT = 0.3  # of the discarded share, as in the papers
DRAWS = 1000
# An error rate that rests on fewer errors says little: Doddington's rule of 30.
RULE_OF_30 = 30
_LEAST = 0.001  # a limit below which rounding would show
_END = 0.95  # of the full area: the last share of crfiqa's grid


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval of 95 %."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Row:
    """One score under one protocol at one operating point.

    Attributes:
        threshold: the similarity below which a pair is a non-match (crfiqa: or equal to which),
            before any discard.
        fnmr: share of false non-matches before any discard.
        auc: area under the curve over discarded shares from 0 to 0.95.
        pauc: the same over 0 to ``limit``.
        pauc_ratio: ``pauc / (limit fnmr)``: about 1 for random scores, lower is better.
        pauc_above_best: ``pauc`` minus that of a score which discards all false non-matches first
            (dasec only).
        pauc_interval, pauc_ratio_interval: identity bootstrap.
        difference: ``pauc_ratio`` minus the baseline's, with the interval of the paired draws.
    """

    method: str
    protocol: str
    point: str
    threshold: float
    fnmr: float
    auc: float
    pauc: float
    pauc_ratio: float
    pauc_above_best: float | None = None
    pauc_interval: Interval | None = None
    pauc_ratio_interval: Interval | None = None
    difference: float | None = None
    difference_interval: Interval | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        rows: by protocol, operating point and score, in the order asked for.
        curves: of each row, for plots.
        facts: counts and settings, JSON-able.
        warnings: what the trials cannot support, a line each.
    """

    rows: list[Row]
    curves: list[Curve]
    facts: dict[str, object]
    warnings: list[str]


def compare(
    trials: Trials,
    scores: Mapping[str, npt.ArrayLike],
    *,
    protocols: Sequence[str] = ("fixed-fmr",),
    fmr: Sequence[float] = FMRS,
    fnmr: Sequence[float] = (),
    limit: float = LIMIT,
    draws: int = DRAWS,
    seed: int = 0,
    baseline: str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Error-versus-discard areas of quality scores [n], one value per image, higher is better.

    Args:
        trials: see :class:`Trials`.
        scores: float [n] by name. An infinite value is discarded first, or last.
        protocols: some of crfiqa, dasec, fixed-fmr; their modules define them.
        fmr: false match rates at which the threshold stands.
        fnmr: the same by the FNMR before any discard; dasec only.
        limit: of the discarded share, for the partial area.
        draws: of the identity bootstrap; 0 leaves the intervals out. Identities that have genuine
            pairs are drawn with replacement, a genuine pair has the weight of its identity, and
            thresholds (in crfiqa also which pairs each share keeps) stay those of all trials.
        seed: of the bootstrap. All scores see the same draws.
        baseline: the score that the others are compared with.
        progress: called once per row.

    Raises:
        ValueError: a name, rate or limit is out of range, or scores do not fit the trials.
    """
    check_options(protocols, fmr, fnmr, limit, draws)
    check_scores(scores, baseline)
    values = {name: _checked_score(name, score, trials) for name, score in scores.items()}
    counts = _draws(trials, draws, seed)
    rows: list[Row] = []
    curves: list[Curve] = []
    for protocol in protocols:
        points = [OperatingPoint(value) for value in fmr]
        if protocol == "dasec":
            points += [OperatingPoint(value, "FNMR") for value in fnmr]
        found: dict[str, list[_Areas]] = {}
        for name, quality in values.items():
            outcomes = _outcomes(protocol, trials, quality, points, limit)
            found[name] = []
            for outcome in outcomes:
                found[name].append(_Areas(outcome, limit, counts))
                progress()
        for p, point in enumerate(points):
            for name in values:
                base = None if baseline in (None, name) else found[str(baseline)][p]
                rows.append(found[name][p].row(name, protocol, point, limit, base))
                curves.append(found[name][p].curve)
    facts: dict[str, object] = {
        "images": len(trials.identity),
        "identities": int(trials.genuine_identity.max()) + 1,
        "genuine_pairs": trials.num_genuine,
        "impostor_pairs": trials.num_impostor,
        "impostor_pairs_sampled_from": trials.sampled,
        "limit": limit,
        "draws": draws,
        "seed": seed,
        "baseline": baseline,
    }
    return Comparison(rows, curves, facts, _warnings(trials, rows, fmr))


class _Areas:
    """The areas of one outcome, as it is and in every draw."""

    def __init__(self, outcome: Outcome, limit: float, counts: Counts) -> None:
        self.threshold = outcome.threshold
        self.curve = outcome.curve()
        self.pauc = float(self.curve.area(limit))
        self.ratio = float(self.curve.normalised_area(limit))
        paucs, ratios = [np.zeros(0)], [np.zeros(0)]
        if len(counts):
            for drawn in outcome.resampled(counts):
                paucs.append(drawn.area(limit))
                ratios.append(drawn.normalised_area(limit))
        self.paucs, self.ratios = np.concatenate(paucs), np.concatenate(ratios)

    def row(
        self, name: str, protocol: str, point: OperatingPoint, limit: float, base: _Areas | None
    ) -> Row:
        start = float(self.curve.fnmr[0])
        differs = base is not None and len(self.ratios) > 0
        return Row(
            method=name,
            protocol=protocol,
            point=str(point),
            threshold=self.threshold,
            fnmr=start,
            auc=float(self.curve.area(_END)),
            pauc=self.pauc,
            pauc_ratio=self.ratio,
            pauc_above_best=(
                self.pauc - float(best_area(start, limit)) if protocol == "dasec" else None
            ),
            pauc_interval=_interval(self.paucs),
            pauc_ratio_interval=_interval(self.ratios),
            difference=None if base is None else self.ratio - base.ratio,
            difference_interval=(
                _interval(self.ratios - base.ratios) if base is not None and differs else None
            ),
        )


def _outcomes(
    protocol: str,
    trials: Trials,
    quality: Floats,
    points: Sequence[OperatingPoint],
    limit: float,
) -> Sequence[Outcome]:
    if protocol == "crfiqa":
        return crfiqa(trials, quality, points)
    if protocol == "dasec":
        return dasec(trials, quality, points)
    return fixed_fmr(trials, quality, points, limit)


def _draws(trials: Trials, draws: int, seed: int) -> Counts:
    """How often each identity is drawn: [draws, identities]."""
    identities = int(trials.genuine_identity.max()) + 1
    rng = np.random.default_rng(seed)
    # Sets of pairs without shared images have as many identities as genuine pairs.
    counts = np.empty((draws, identities), np.uint16)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, identities, identities), minlength=identities)
    return counts


def _interval(values: Floats) -> Interval | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def check_options(
    protocols: Sequence[str],
    fmr: Sequence[float],
    fnmr: Sequence[float],
    limit: float,
    draws: int,
) -> None:
    """Raise ``ValueError`` for options that :func:`compare` refuses whatever the scores are."""
    for name in protocols:
        if name not in PROTOCOLS:
            raise ValueError(f"protocols must be some of {', '.join(PROTOCOLS)}, got {name!r}")
    if isinstance(protocols, str) or not protocols:
        raise ValueError(f"protocols must be a sequence of names, got {protocols!r}")
    if not len(fmr) and not (len(fnmr) and set(protocols) == {"dasec"}):
        raise ValueError("an evaluation needs at least one FMR, or dasec alone an FNMR, got none")
    if len(fnmr) and "dasec" not in protocols:
        raise ValueError(f"an FNMR belongs to dasec, got {', '.join(protocols)}")
    for rate in (*fmr, *fnmr):
        if not 0 < rate < 1:
            raise ValueError(f"an FMR or FNMR must lie between 0 and 1, got {rate}")
    if not _LEAST <= limit <= _END:
        raise ValueError(f"limit must lie between {_LEAST} and {_END}, got {limit}")
    if draws < 0:
        raise ValueError(f"draws must be 0 or more, got {draws}")


def check_scores(names: Collection[str], baseline: str | None) -> None:
    """Raise ``ValueError`` where there is no score, or none called ``baseline``."""
    if not names:
        raise ValueError("an evaluation needs at least one quality score, got none")
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline must be one of {', '.join(names)}, got {baseline!r}")


def _checked_score(name: str, score: npt.ArrayLike, trials: Trials) -> Floats:
    values = np.asarray(score, dtype=np.float64)
    if values.shape != trials.identity.shape:
        raise ValueError(
            f"{name}: wanted one score per image, [{len(trials.identity)}], got "
            f"{list(values.shape)}"
        )
    if np.isnan(values).any():
        raise ValueError(f"{name}: {int(np.isnan(values).sum())} of {len(values)} scores are NaN")
    return values


def _warnings(trials: Trials, rows: Iterable[Row], fmr: Sequence[float]) -> list[str]:
    found = []
    for rate in fmr:
        matches = rate * trials.num_impostor
        if matches < RULE_OF_30:
            found.append(
                f"FMR {rate:g} rests on {matches:.3g} of {trials.num_impostor} impostor pairs: "
                f"wanted {RULE_OF_30} or more, so {RULE_OF_30 / rate:.3g} impostor pairs"
            )
    errors = {row.point: round(row.fnmr * trials.num_genuine) for row in rows if row.fnmr >= 0}
    for point, count in errors.items():
        if count < RULE_OF_30:
            found.append(
                f"{point} leaves {count} false non-matches among {trials.num_genuine} genuine "
                f"pairs: wanted {RULE_OF_30} or more for any claim"
            )
    return found
