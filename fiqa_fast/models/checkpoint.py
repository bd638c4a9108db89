# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint file to a flat, unprefixed state dict. Nothing here runs code from the file."""

from __future__ import annotations

import pickle
import re
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from ..workers import run_shared

# The dicts within dicts that training scripts write, and the key by which a ViT is known.
NESTINGS = ("state_dict", "model", "state_dict_backbone")
LANDMARK = "patch_embed.proj.weight"
MAX_NESTING = 4


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The ViT's state dict, nesting and key prefix removed, and the file's metadata.

    Reads safetensors and ``torch.save`` files, told apart by content, the latter with
    ``weights_only=True``. Tensors stay in the dtype of the file.

    Raises:
        CheckpointError: unreadable, truncated, holding pickled code, or no ViT (or two) inside.
    """
    content, metadata = _read_file(path)
    found = list(_state_dicts(content, ""))
    if not found:
        keys = ", ".join(str(key) for key in list(content)[:4]) or "nothing"
        raise CheckpointError(
            f"{path}: no face ViT inside: no key ends in {LANDMARK}; it holds {keys}"
            f"{', ...' if len(content) > 4 else ''}"
        )
    if len(found) > 1:
        places = " and ".join(repr(f"{nesting}{prefix}") for nesting, prefix, _ in found[:3])
        raise CheckpointError(
            f"{path}: holds {len(found)} ViTs, under {places}: save the wanted one alone"
        )
    _, prefix, state = found[0]
    return _strip(path, state, prefix), metadata


def _read_file(path: Path) -> tuple[Mapping[Any, Any], dict[str, str]]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise CheckpointError(f"{path}: wanted a file, got a folder, a pipe or a device")
        size = status.st_size
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    if size == 0:
        raise CheckpointError(f"{path}: is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull`")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_zip(path, size)
    return _read_torch(path, mapped=archive), {}


def _check_zip(path: Path, size: int) -> None:
    """torch.save stores its entries as they are; a compressed one may unpack to anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or (
                sum(e.file_size for e in entries) > size
            ):
                raise CheckpointError(
                    f"{path}: a compressed archive, not a checkpoint of torch.save: unpack it"
                )
            if any(e.filename.endswith("constants.pkl") for e in entries):
                raise CheckpointError(f"{path}: a TorchScript archive; save the state_dict instead")
            damaged = _damaged(archive, entries)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({_first_line(error)})") from None
    if damaged:
        _, name = min(damaged)
        raise CheckpointError(
            f"{path}: damaged: the checksum of {name} is wrong; download or copy it again"
        )


def _damaged(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> list[tuple[int, str]]:
    """Numbers and names of the entries whose bytes are not those of their checksums, which torch
    does not look at."""
    damaged: list[tuple[int, str]] = []
    counting = threading.Lock()  # of the archive's open entries, for which it has none

    def check(number: int) -> None:
        entry = entries[number]
        try:
            with counting:
                file = archive.open(entry)
            try:
                while file.read(1 << 20):
                    pass
            finally:
                with counting:
                    file.close()
        except zipfile.BadZipFile:
            damaged.append((number, entry.filename))

    run_shared(check, len(entries))
    return damaged


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({_first_line(error)})"
        ) from None


def _read_torch(path: Path, mapped: bool) -> Mapping[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about how the file was pickled
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: not a plain checkpoint: it holds pickled code or objects, or is no "
            "checkpoint at all, and was not opened; save weights alone, with "
            f"torch.save(model.state_dict(), path){_cause(error)}"
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files; all mean the same here
        raise CheckpointError(
            f"{path}: truncated or damaged, or not a checkpoint ({_first_line(error)})"
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: wanted a dict of tensors (a state_dict), got {type(content).__name__}"
        )
    return content


def _state_dicts(
    content: Mapping[Any, Any], nesting: str, depth: int = 0
) -> Iterator[tuple[str, str, Mapping[Any, Any]]]:
    """Every (nesting, key prefix, dict) under which a ViT is found."""
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor) and key.endswith(LANDMARK):
            yield nesting, key.removesuffix(LANDMARK), content
    if depth < MAX_NESTING:
        for name in NESTINGS:
            inner = content.get(name)
            if isinstance(inner, Mapping):
                yield from _state_dicts(inner, f"{nesting}{name}/", depth + 1)


def _strip(path: Path, state: Mapping[Any, Any], prefix: str) -> dict[str, Tensor]:
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: wanted tensors alone beside {prefix}{LANDMARK}, got {key!r} of type "
                f"{type(value).__name__}; save the state_dict alone"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path}: {key} is not a plain dense tensor")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(f"{path}: {key} claims more values than the file holds")
        # A key without the prefix must be reported as unexpected, whatever its name.
        inside = key.startswith(prefix)
        stripped[key.removeprefix(prefix) if inside else f"{key} (outside {prefix})"] = value
    return stripped


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def _cause(error: pickle.UnpicklingError) -> str:
    """The name in torch's weights_only report of what it refused, if it gives one."""
    found = re.search(r"(?i)unsupported (?:global|class)[:\s]+(?:GLOBAL )?(\S+)", str(error))
    return f" (found {found[1]})" if found else ""
