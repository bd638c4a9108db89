# SPDX-License-Identifier: Apache-2.0
"""The report as a reader sees it: a table per batch size, and a sentence for what is beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..tables import aligned
from .entries import PEERS_HINT
from .result import BatchResult, Bound, Line, Report
from .spread import Spread

__all__ = ["text"]

_HEADER = (
    "engine",
    "arithmetic",
    "images/s",
    "quartiles",
    "x published",
    "ours over it",
    "max error/std",
    "rank corr.",
)


def text(report: Report) -> str:
    """Everything, in paragraphs."""
    return "\n\n".join(_paragraphs(report))


def _paragraphs(report: Report) -> Iterator[str]:
    subject, machine = report.subject, report.machine
    weights = ", random weights" if subject["random_weights"] else ""
    options = ", ".join(
        f"{value}" if name == "method" else f"{name} {value}"
        for name, value in subject["options"].items()
        if value is not None
    )
    place = (
        machine.get("gpu") or f"{machine['cpu']} ({machine['isa']}), {subject['threads']} threads"
    )
    yield f"{subject['name']}{weights}: {options}, published score\n{place}"
    for batch in report.batches:
        yield _batch(batch)
    for dtype, stage in report.stages.items():
        yield _stage(dtype, stage)
    if report.memory:
        yield "\n".join([_memory(report.memory), *_accounts(report.batches[-1])])
    if report.startup is not None:
        yield _startup(report.startup)


def _batch(batch: BatchResult) -> str:
    lines = batch.best()
    rows = []
    for dtype in dict.fromkeys(line.dtype for line in lines):
        rows += [_row(line) for line in lines if line.dtype == dtype]
        bound = batch.bound(dtype)
        if bound is not None:
            rows.append(_bound(bound))
    parts = [
        f"batch size {batch.batch_size}, {batch.rounds} rounds of {batch.images} images",
        aligned(_HEADER, rows),
    ]
    parts += _latencies(lines) if batch.batch_size == 1 else []
    parts += [_preparations(lines), *_remarks(batch)]
    return "\n".join(parts)


def _row(line: Line) -> list[str]:
    arithmetic = line.dtype
    if line.executes != line.dtype and line.dtype not in ("high", "auto"):
        arithmetic += f" (runs {line.executes})"
    found = line.agreement
    return [
        line.name,
        arithmetic,
        _number(line.images_per_second.median),
        _quartiles(line.images_per_second),
        _times(line.over_published),
        _times(line.ours_over_it),
        "-" if math.isnan(found.max_error_over_std) else f"{found.max_error_over_std:.1e}",
        "-" if math.isnan(found.spearman) else f"{found.spearman:.6f}",
    ]


def _bound(bound: Bound) -> list[str]:
    return [
        f"GEMM bound ({bound.library})",
        bound.dtype,
        _number(bound.images_per_second.median),
        _quartiles(bound.images_per_second),
        "",
        _times(bound.ours_of_it),
        "",
        "",
    ]


def _latencies(lines: Sequence[Line]) -> list[str]:
    return [
        f"latency of {line.name}, {line.dtype}: median {line.latency_ms['median']:.2f} ms, "
        f"95 % within {line.latency_ms['p95']:.2f} ms ({line.latency_ms['calls']} calls)"
        for line in lines
        if line.latency_ms is not None
    ]


def _preparations(lines: Sequence[Line]) -> str:
    parts = [
        f"{line.name}, {line.dtype}: {line.prepare_seconds:.1f} s"
        for line in lines
        if line.prepare_seconds >= 0.1
    ]
    return "prepared in " + "; ".join(parts or ["no time"])


def _remarks(batch: BatchResult) -> list[str]:
    remarks = [
        f"NOT THE SAME SCORE: {line.name}, {line.dtype}; its speed says nothing"
        for line in batch.lines
        if line.agreement.wrong
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for missing in batch.missing:
        names = reasons.setdefault((missing.dtype, missing.reason), [])
        names.append(missing.name)
    # What is not installed is so in every arithmetic: one line says it.
    for reason in dict.fromkeys(m.reason for m in batch.missing if PEERS_HINT in m.reason):
        engines = dict.fromkeys(m.name.split()[0] for m in batch.missing if m.reason == reason)
        remarks.append(f"without {', '.join(engines)}: {reason}")
    remarks += [
        f"without {'; '.join(names)} in {dtype}: {reason}"
        for (dtype, reason), names in reasons.items()
        if PEERS_HINT not in reason
    ]
    return remarks


def _stage(dtype: str, stage: dict[str, Any]) -> str:
    rates = stage["images_per_second"]
    parts = ", ".join(
        f"{name} {_number(rates[name]['median'])} ({_number(rates[name]['low'])} to "
        f"{_number(rates[name]['high'])})"
        for name in ("decode", "model", "total")
    )
    return (
        f"images/s from an archive, {dtype}, batch size {stage['batch_size']}, turns of "
        f"{stage['images']} images, {stage['decode_threads']} threads decode:\n{parts}"
    )


def _memory(entries: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            f"{entry['name']}, {entry['dtype']}",
            f"{entry['prepared_mb']:.0f}",
            f"{entry['peak_mb']:.0f}",
            f"{entry['mb_per_further_image']:.2f}" if "mb_per_further_image" in entry else "-",
        ]
        for entry in entries
        if "missing" not in entry
    ]
    sizes = ", ".join(sorted({str(e["batch_size"]) for e in entries if "batch_size" in e}))
    lines = [
        f"resident MB above the loaded model, batch size {sizes}",
        aligned(("engine", "prepared", "peak", "per further image"), rows),
    ]
    lines += [
        f"without {entry['name']}, {entry['dtype']}: {entry['missing']}"
        for entry in entries
        if "missing" in entry
    ]
    return "\n".join(lines)


def _accounts(batch: BatchResult) -> Iterator[str]:
    """What our own engine says it holds."""
    for line in batch.lines:
        if "weight_bytes" in line.facts:
            weights, in_pass, each = (
                line.facts[name] / 1e6
                for name in ("weight_bytes", "bytes_per_pass", "bytes_per_image_in_flight")
            )
            yield (
                f"{line.name}, {line.dtype}, by its own account: weights {weights:.1f} MB; a pass "
                f"of {line.facts['images_per_pass']} images {in_pass:.2f} MB, {each:.2f} MB per "
                "image in flight"
            )


def _startup(found: dict[str, Any]) -> str:
    seconds = found["seconds"]
    return (
        f"start-up: `fiqa-fast score` of one image {seconds['score']['median']:.2f} s, "
        f"`import torch` {seconds['import torch']['median']:.2f} s, "
        f"{found['score_over_import_torch']['median']:.2f} x ({found['rounds']} rounds)"
    )


def _number(rate: float) -> str:
    """Three digits that mean something."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def _quartiles(of: Spread) -> str:
    return f"{_number(of.low)} to {_number(of.high)}"


def _times(of: Spread | None) -> str:
    return "-" if of is None else f"{of.median:.2f}"
