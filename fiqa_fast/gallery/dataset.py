# SPDX-License-Identifier: Apache-2.0
"""A folder of Parquet parts that several machines fill, one share of the gallery each.

What all parts have in common stands in ``_gallery.json``, which whoever comes first writes: the
settings, how many shares there are, and the order of the containers, by which they are shared
out. A share of other settings, or of a gallery that would be shared out otherwise, is refused.
Readers of Parquet datasets pass over names that begin with an underscore.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fiqa_fast.gallery.atomic import write_atomically
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.shares import Share, fingerprint
from fiqa_fast.gallery.store.record import differences

__all__ = ["is_dataset", "join", "part_path"]

_PLAN = "_gallery.json"


def is_dataset(output: str) -> bool:
    """Whether an output is meant as a folder of parts."""
    return output.endswith("/") or os.path.isdir(output)


def part_path(folder: str, index: int, count: int) -> str:
    """Return the file of one share."""
    return os.path.join(folder, part_name(index, count))


def part_name(index: int, count: int) -> str:
    """Return the name of one share's file."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def _parts(folder: str) -> list[str]:
    """Return the names of all parts, finished and unfinished ones."""
    names = (name.lstrip(".").removesuffix(".unfinished") for name in os.listdir(folder))
    return [name for name in names if name.startswith("part-") and name.endswith(".parquet")]


def join(
    folder: str,
    index: int,
    count: int,
    settings: Mapping[str, Any],
    containers: Sequence[str],
    overwrite: bool = False,
) -> Share:
    """Return the share to score, after the plan of all shares was compared or written.

    Containers are shared out whole where there are as many as shares. Raises
    :class:`OutputError` where the folder holds rows of other settings or another plan.
    """
    plan = {
        "settings": json.loads(json.dumps(settings)),
        "shares": count,
        "by": "containers" if len(containers) >= count > 1 else "keys",
        "first": fingerprint(containers),  # stays, so that parts of another plan are known
        "containers": list(containers),
    }
    path = os.path.join(folder, _PLAN)
    try:
        os.makedirs(folder, exist_ok=True)
        found = _first(path, plan)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    other = _other(plan, found)
    if overwrite or not other:
        stale = sorted(set(_parts(folder)) - {part_name(i, count) for i in range(count)})
        if stale:
            raise OutputError(
                f"{folder}: holds parts of another number of shares ({stale[0]}), whose rows would "
                "come twice; remove them first"
            )
    if other and overwrite:
        write_atomically(path, _text(plan))
        found = plan
    elif other:
        raise OutputError(
            f"{folder}: holds parts of other settings ({'; '.join(other)}); write to another "
            "folder, or replace them, share by share, with --overwrite"
        )
    elif found["by"] == "containers" and len(containers) > len(found["containers"]):
        write_atomically(path, _text({**found, "containers": list(containers)}))
    by = found["by"]
    return Share(index, count, by, found["first"] if by == "containers" else "")


def _text(plan: Mapping[str, Any]) -> bytes:
    return json.dumps(plan, indent=1, sort_keys=True).encode()


def _first(path: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Write the plan unless there is one, whoever else tries; return the one that is there."""
    if not os.path.exists(path):
        temporary = f"{path}.{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(_text(plan))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except (FileExistsError, FileNotFoundError):
                pass  # another process was faster, and a third one has swept already
            except OSError:  # not every file system has hard links
                if not os.path.exists(path):
                    os.rename(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    else:  # what processes left that were killed here
        for name in glob.glob(f"{_PLAN}.*.tmp", root_dir=glob.escape(os.path.dirname(path))):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(os.path.dirname(path), name))
    try:
        with open(path, "rb") as file:
            found = json.load(file)
        kinds = {"settings": dict, "shares": int, "by": str, "first": str, "containers": list}
        if not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise TypeError
        return {name: found[name] for name in kinds}
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{path}: the plan of this folder is damaged; remove it") from None


def _other(plan: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name what two plans differ in, so that rows would not fit together."""
    lines = differences(plan["settings"], found["settings"])
    if plan["shares"] != found["shares"]:
        lines.append(f"{plan['shares']} shares here, {found['shares']} there")
    # A gallery may grow at its end: then every container stays whose it was.
    known = found["containers"]
    if found["by"] == "containers" and plan["containers"][: len(known)] != known:
        lines.append(
            "containers that were there are missing or others stand before them, so that shares "
            "would change; name new ones to come last"
        )
    return lines
