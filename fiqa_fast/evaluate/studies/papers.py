# SPDX-License-Identifier: Apache-2.0
"""The papers' table: pAUC-EDC x 1e3 of every method, one column per operating point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fiqa_fast.tables import aligned, markdown

from ..compare import Comparison

__all__ = ["PUBLISHED", "papers_markdown", "papers_text"]

# On IJB-C with an ArcFace matcher at FMR 1e-3, pAUC to 0.3, x 1e3, as the papers print them.
PUBLISHED = {
    "SER-FIQ": 6.53,
    "CR-FIQA(L)": 6.58,
    "eDifFIQA(L)": 6.47,
    "GraFIQs(L)": 6.86,
    "CLIB-FIQA": 6.60,
    "ViT-FIQA(C)": 6.60,
    "ViT-FIQA(T)": 6.56,
    "EX-FIQA-FW(C)": 6.50,
    "EX-FIQA-10(T)": 6.38,
    "EX-FIQA-FW(T)": 6.36,
}


def papers_text(comparison: Comparison) -> str:
    """The table for a terminal, under a line that says what it shows."""
    title = f"{comparison.rows[0].protocol}, pAUC to {_limit(comparison)}, x 1e3"
    return f"{title}\n{aligned(*_cells(comparison))}"


def papers_markdown(
    by_matcher: Mapping[str, Comparison], title: str, notes: Sequence[str] = ()
) -> str:
    """A page with one table per matcher, what was compared, and the published figures."""
    parts = [f"# {title}", *notes]
    for matcher, comparison in by_matcher.items():
        facts = comparison.facts
        protocol = comparison.rows[0].protocol
        parts.append(
            f"## {matcher}\n\nProtocol {protocol}; {facts['images']} images, "
            f"{facts['genuine_pairs']} genuine and {facts['impostor_pairs']} impostor pairs; area "
            f"under the error-versus-discard curve to {_limit(comparison)}, x 1e3; lower is better."
        )
        parts.append(markdown(*_cells(comparison)))
        if comparison.warnings:
            parts.append("\n".join(f"- {line}" for line in comparison.warnings))
    listed = ", ".join(f"{name} {value:.2f}" for name, value in PUBLISHED.items())
    parts.append(
        "## Published figures to compare with\n\nOn IJB-C with an ArcFace matcher, FMR 1e-3, "
        f"protocol crfiqa, as printed in the papers: {listed}."
    )
    return "\n\n".join(parts) + "\n"


def _limit(comparison: Comparison) -> str:
    return f"{float(str(comparison.facts['limit'])):g}"


def _cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    points = list(dict.fromkeys(row.point for row in comparison.rows))
    lines: dict[str, list[str]] = {}
    for point in points:
        for row in comparison.rows:
            if row.point == point:
                interval = row.pauc_interval
                spread = (
                    "" if interval is None
                    else f" [{1e3 * interval.low:.2f}, {1e3 * interval.high:.2f}]"
                )  # fmt: skip
                lines.setdefault(row.method, []).append(f"{1e3 * row.pauc:.2f}{spread}")
    return ["score", *points], [[method, *cells] for method, cells in lines.items()]
