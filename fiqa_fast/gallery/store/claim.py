# SPDX-License-Identifier: Apache-2.0
"""Whether an output may be written: what is there has to be ours, and of the same settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Layout
from fiqa_fast.gallery.store.finishing import clear
from fiqa_fast.gallery.store.parts import PartFiles
from fiqa_fast.gallery.store.record import RECORD_NAME, Record, differences

__all__ = ["claim"]


def claim(layout: Layout, files: PartFiles, settings: Mapping[str, Any], overwrite: bool) -> Record:
    """Return the record to go on with, or raise :class:`OutputError` saying why not.

    ``files`` are the parts of the unfinished output, if any; those that ``overwrite`` gives up are
    removed.
    """
    parts = files.list()
    found = _record(files, overwrite) if parts else None  # without rows, a record binds nobody
    if found is not None:
        other = differences(settings, found.settings)
        if not other and not (overwrite and found.extends):
            return _go_on(layout, found, settings, overwrite)
        if not overwrite:
            raise OutputError(
                f"{layout.path}: its unfinished run has other settings ({'; '.join(other)}); "
                "repeat its command to finish it, or start anew with --overwrite"
            )
    elif parts and not overwrite:
        raise OutputError(
            f"{files.folder}: finished rows, but no record of what they are; start anew with "
            "--overwrite"
        )
    clear(files.folder)
    if overwrite:
        return Record(dict(settings), replaces=True)
    if os.path.lexists(layout.path):
        _check_table(layout, settings)
        return Record(dict(settings), extends=True)
    if stranger := _in_the_way(layout):
        raise OutputError(
            f"{stranger}: this file exists, and no table says how it was made; write to another "
            "one, or replace it with --overwrite"
        )
    return Record(dict(settings))


def _record(files: PartFiles, overwrite: bool) -> Record | None:
    try:
        return Record.load(os.path.join(files.folder, RECORD_NAME))
    except OutputError:
        if not overwrite:
            raise
        return None


def _go_on(layout: Layout, found: Record, settings: Mapping[str, Any], overwrite: bool) -> Record:
    """Return the record of an unfinished run of the same settings, if nothing has come between."""
    if found.extends:
        if not os.path.lexists(layout.path):
            raise OutputError(
                f"{layout.path}: has vanished while new rows for it were unfinished; put it back, "
                "or start anew with --overwrite"
            )
        _check_table(layout, settings)
    elif not (found.replaces or overwrite) and (stranger := _in_the_way(layout)):
        raise OutputError(
            f"{stranger}: this file has appeared while its rows were unfinished; move it away, or "
            "replace it with --overwrite"
        )
    found.replaces |= overwrite
    return found


def _in_the_way(layout: Layout) -> str | None:
    """Return a file that is there already, the table or an array beside it."""
    arrays = map(layout.array_path, layout.arrays)
    return next(filter(os.path.lexists, [layout.path, *arrays]), None)


def _check_table(layout: Layout, settings: Mapping[str, Any]) -> None:
    """Raise :class:`OutputError` unless the table in place is one of these settings."""
    path = layout.path
    description = layout.description()
    if not isinstance(description, dict):
        raise OutputError(
            f"{path}: this file exists, and nothing says how it was made; write to another one, "
            "or replace it with --overwrite"
        )
    other = differences(settings, Record.settings_of(description))
    if other:
        raise OutputError(
            f"{path}: holds rows of other settings ({'; '.join(other)}); write to another file, "
            "or replace it with --overwrite"
        )
    layout.format.table.check(path, layout.columns)
