# SPDX-License-Identifier: Apache-2.0
"""Opens an evaluation set, whatever its layout. To add a layout, add a file to ``layouts``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fiqa_fast.evaluate.readers.files import StrPath
from fiqa_fast.evaluate.readers.layouts.dataset import Dataset, Pairs
from fiqa_fast.evaluate.readers.layouts.folder import open_folder
from fiqa_fast.evaluate.readers.layouts.pair_set import open_pair_set
from fiqa_fast.evaluate.readers.layouts.reference import IMAGES, PAIRS, open_reference
from fiqa_fast.evaluate.readers.layouts.table import open_table
from fiqa_fast.evaluate.readers.tables import TABLES
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources import printable

__all__ = ["Dataset", "Pairs", "open_dataset"]

_WANTED = (
    f"a folder with {IMAGES} and {PAIRS}, a folder with one subfolder per identity, an "
    f"insightface .bin file, or a table ({', '.join(TABLES)}) with the columns path and identity"
)


def open_dataset(
    path: StrPath,
    *,
    root: StrPath | None = None,
    columns: Sequence[str] | None = None,
    missing: str = "refuse",
) -> Dataset:
    """Open an evaluation set.

    Args:
        path: a folder with ``image_path_list.txt`` and ``pair_list.txt`` (``<name> <name> <0|1>``
            per line; names with or without suffix); a folder with one subfolder per identity, of
            which all pairs are compared; an insightface ``.bin`` file; or a CSV, Parquet or JSON
            lines table with the columns ``path`` and ``identity``, of which all pairs are
            compared.
        root: where the paths of a list or table start (default: its own folder). Without images
            there, ``items`` is None if ``root`` is not given, and an error if it is.
        columns: a table's score columns, by default every one with a number that is not whole.
        missing: empty cells in these: ``"refuse"`` raises, ``"worst"`` gives the score -inf.

    Raises:
        InputError: there is no such set, something is missing or damaged, or an option does not
            belong to the layout; one line, with the line number where there is one.
    """
    where = printable(os.fspath(path))
    if not os.path.exists(path):
        raise InputError(f"{where}: no such file or folder; wanted {_WANTED}")
    suffix = os.path.splitext(where)[1].lower()
    if os.path.isdir(path):
        _check_options(where, None, columns)
        listed = [os.path.isfile(os.path.join(path, name)) for name in (IMAGES, PAIRS)]
        if all(listed):
            return open_reference(path, root)
        if any(listed):
            there, gone = (IMAGES, PAIRS) if listed[0] else (PAIRS, IMAGES)
            raise InputError(f"{where}: wanted {gone} beside {there}, got no such file")
        _check_options(where, root, columns)
        return open_folder(path)
    if suffix == ".bin":
        _check_options(where, root, columns)
        return open_pair_set(path)
    if suffix in TABLES:
        return open_table(path, root, columns, missing)
    raise InputError(f"{where}: wanted {_WANTED}")


def _check_options(where: str, root: StrPath | None, columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise InputError(f"{where}: --columns names a table's scores, and this is no table")
    if root is not None:
        raise InputError(f"{where}: --root is where listed paths start, and this lists none")
