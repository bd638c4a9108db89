# SPDX-License-Identifier: Apache-2.0
"""A comparison as a table: for the terminal, as CSV, JSON (curves included) or Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from typing import Any

from fiqa_fast.gallery.atomic import check_suffix, write_atomically
from fiqa_fast.tables import aligned, markdown

from .compare import Comparison, Interval, Row

__all__ = ["check_report", "to_csv", "to_json", "to_markdown", "to_text", "write_report"]


def to_text(comparison: Comparison) -> str:
    """Aligned columns for a terminal, one table per protocol and operating point."""
    return "\n\n".join(
        f"{title}\n{aligned(header, cells)}" for title, header, cells in _tables(comparison)
    )


def to_markdown(comparison: Comparison) -> str:
    """The same tables in Markdown."""
    parts = [
        f"**{title}**\n\n{markdown(header, cells)}" for title, header, cells in _tables(comparison)
    ]
    return "\n\n".join(parts) + "\n"


def to_csv(comparison: Comparison) -> str:
    """One line per row with every number in full; intervals as two columns."""
    output = io.StringIO()
    writer = csv.DictWriter(output, list(_flat(comparison.rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(row) for row in comparison.rows)
    return output.getvalue()


def to_json(comparison: Comparison) -> str:
    """Everything, curves included. What is undefined is null."""
    rows = [
        {
            **_flat(row),
            "curve": {
                "discard": curve.discard.tolist(),
                "fnmr": curve.fnmr.tolist(),
                "between": "step" if curve.step else "line",
            },
        }
        for row, curve in zip(comparison.rows, comparison.curves, strict=True)
    ]
    document = {"facts": comparison.facts, "warnings": comparison.warnings, "rows": rows}
    return json.dumps(_finite(document), indent=1, allow_nan=False) + "\n"


_WRITERS = {".csv": to_csv, ".json": to_json, ".md": to_markdown, ".txt": to_text}


def check_report(path: str) -> None:
    """Raise :class:`OutputError` where no report can be written under that name."""
    check_suffix(path, tuple(_WRITERS))


def write_report(comparison: Comparison, path: str) -> None:
    """Write a report, its kind chosen by suffix, whole or not at all."""
    suffix = check_suffix(path, tuple(_WRITERS))
    write_atomically(path, _WRITERS[suffix](comparison).encode())


def _tables(comparison: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    limit = f"{float(str(comparison.facts['limit'])):g}"
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in comparison.rows:
        groups.setdefault((row.protocol, row.point), []).append(row)
    tables = []
    for (protocol, point), rows in groups.items():
        title = (
            f"{protocol}, {point}: threshold {rows[0].threshold:.4f}, "
            f"FNMR {_percent(rows[0].fnmr)} before any discard"
        )
        header = ["score", f"pAUC to {limit}", "ratio", "95 % interval", "AUC"]
        compared = any(row.difference is not None for row in rows)
        if compared:
            header += [f"minus {comparison.facts['baseline']}", "95 % interval"]
        cells = []
        for row in rows:
            line = [row.method, _number(row.pauc, 5), _number(row.pauc_ratio, 3),
                    _interval(row.pauc_ratio_interval), _number(row.auc, 4)]  # fmt: skip
            if compared:
                line += [_number(row.difference, 3, "+"), _interval(row.difference_interval)]
            cells.append(line)
        tables.append((title, header, cells))
    return tables


def _number(value: float | None, digits: int, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.{digits}f}" if math.isfinite(value) else "undefined"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %" if math.isfinite(value) else "undefined"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.name.endswith("_interval"):
            stem = field.name.removesuffix("_interval")
            flat[f"{stem}_low"] = None if value is None else value.low
            flat[f"{stem}_high"] = None if value is None else value.high
        else:
            flat[field.name] = value
    return flat


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
