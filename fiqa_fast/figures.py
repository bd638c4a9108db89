# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib, which is an extra: made without global state, written whole."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING, Any

from fiqa_fast.gallery.atomic import check_suffix, write_atomically
from fiqa_fast.gallery.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_figure", "need_matplotlib", "new_figure", "rendered", "save_figure"]

_SUFFIXES = (".png", ".svg", ".pdf")


def need_matplotlib() -> None:
    """Raise :class:`OutputError` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("figures need matplotlib: pip install 'fiqa_fast[evaluate]'")


def check_figure(path: str) -> None:
    """Raise :class:`OutputError` where no figure can be drawn, or none written to ``path``."""
    check_suffix(path, _SUFFIXES)
    need_matplotlib()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    need_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure, its kind chosen by suffix; the same figure is the same file."""
    check_figure(path)
    kind = check_suffix(path, _SUFFIXES).removeprefix(".")
    write_atomically(path, rendered(figure, kind, dpi=150))


def rendered(figure: Figure, kind: str, dpi: int, **options: Any) -> bytes:
    """The bytes of a figure as a file of this kind (svg, pdf, png, ..): the same every time."""
    import matplotlib

    # The date and random identifiers would differ between two runs.
    metadata: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fiqa_fast"}):
        figure.savefig(content, format=kind, dpi=dpi, metadata=metadata.get(kind), **options)
    return content.getvalue()
