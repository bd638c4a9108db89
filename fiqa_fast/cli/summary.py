# SPDX-License-Identifier: Apache-2.0
"""What ``fiqa-fast score`` says once it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiqa_fast.cli.output import Output
    from fiqa_fast.gallery.runner import Summary

__all__ = ["summary_lines"]


def summary_lines(summary: Summary, passed: int, size: int, output: Output) -> list[str]:
    """Return the lines of a run that scored images of ``size`` and passed over some."""
    statistics = summary.statistics
    if not summary.images:
        return ["nothing left to score"]
    lines = [
        f"{summary.scored} of {summary.images} images scored in {summary.seconds:.1f} s, "
        f"{summary.rate:.1f} images/s"
    ]
    if summary.scoring_seconds:  # a cluster does not tell its stages apart
        lines.append(_shares(summary))
    if summary.scored:
        about = "" if statistics.exact else "about "
        lines.append(
            f"score: min {statistics.minimum:.6f}, median {about}{statistics.median:.6f}, "
            f"max {statistics.maximum:.6f}"
        )
    if summary.failed:
        where = "in the column error" if output.holds_errors else "above"
        lines.append(f"{summary.failed} without a score; the reasons stand {where}")
    if summary.resized:
        much = f" ({summary.reduced} reduced more than twofold)" if summary.reduced else ""
        lines.append(f"{summary.resized} resized to {size} x {size}{much}: are they aligned crops?")
    if passed:
        lines.append(f"{passed} passed over: links, pipes, devices, or members that are no images")
    return lines


def _shares(summary: Summary) -> str:
    """Say how busy each stage was; they overlap, and the busiest is the one to make faster."""

    def share(seconds: float, workers: int = 1) -> str:
        percent = 100 * seconds / (summary.seconds * workers)
        return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1f} %"

    model = share(summary.scoring_seconds, summary.calls)
    threads = f" of {summary.workers} threads" if summary.workers > 1 else ""
    return (
        f"busy: source {share(summary.source_seconds)}, "
        f"decode {share(summary.decode_seconds, summary.workers)}{threads}, "
        f"model {model}, write {share(summary.write_seconds)}"
    )
