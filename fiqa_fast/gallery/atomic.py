# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO

from fiqa_fast.gallery.errors import OutputError

__all__ = [
    "AtomicFile",
    "AtomicFolder",
    "check_folder",
    "check_suffix",
    "check_target",
    "synchronise",
    "write_atomically",
]


def check_target(path: str | os.PathLike[str]) -> str:
    """Return the real path that will be written, or raise :class:`OutputError` saying why not.

    A link keeps pointing where it does: the file behind it is the one replaced.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: the folder {folder} does not exist; create it first")
    if os.path.lexists(target):
        if not stat.S_ISREG(os.stat(target).st_mode):
            raise OutputError(f"{path}: wanted a file to write, got a folder, pipe or device")
        if not os.access(target, os.W_OK):
            raise OutputError(f"{path}: this file exists and must not be written")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {folder} must not be written to")
    return target


def check_suffix(path: str, suffixes: Sequence[str]) -> str:
    """Return the suffix of a file to be written, or raise :class:`OutputError` saying why not."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in suffixes:
        raise OutputError(
            f"{path}: wanted a name ending in {', '.join(suffixes)}, got {suffix or 'none'!r}"
        )
    check_target(path)
    return suffix


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears whole or not at all, or raise :class:`OutputError`."""
    target = AtomicFile(path)
    try:
        target.file.write(content)
        target.commit()
    except OSError as error:  # a full disk does not say which file did not fit
        target.abort()
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    except BaseException:
        target.abort()
        raise


class AtomicFile:
    """A binary file under a hidden temporary name that takes its place on :meth:`commit`.

    Until then whatever was there before stays untouched; :meth:`abort` leaves no trace.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the temporary file; raises :class:`OutputError` where that is impossible."""
        self._target = check_target(path)
        folder = os.path.dirname(self._target)
        # Not derived from the target's name, which may already be as long as names can be.
        self._temporary = os.path.join(folder, f".fiqa-fast-{secrets.token_hex(8)}.tmp")
        try:
            # Unlike tempfile's, this file gets the permissions of any other new file.
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
            descriptor = os.open(self._temporary, flags, 0o666)
        except OSError as error:
            raise OutputError(f"{path}: cannot write here: {error.strerror}") from error
        self.file: BinaryIO = os.fdopen(descriptor, "wb")
        if os.path.exists(self._target):
            shutil.copymode(self._target, self._temporary)

    def commit(self) -> None:
        """Put the file in its place, on disk before it is visible."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self._temporary, self._target)
        synchronise(os.path.dirname(self._target))

    def abort(self) -> None:
        """Remove the temporary file; does nothing after :meth:`commit`."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self.file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._temporary)


def synchronise(folder: str) -> None:
    """Have the names in a folder on disk."""
    with suppress(OSError):  # not every file system lets a folder be synchronised
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_folder(path: str | os.PathLike[str]) -> str:
    """Return the real path of a folder to fill, or raise :class:`OutputError` saying why not.

    It must be new or empty: nothing that somebody keeps there is ever mixed up or overwritten.
    """
    target = os.path.realpath(path)
    if not os.path.lexists(target):
        parent = os.path.dirname(target)
        if not os.path.isdir(parent):
            raise OutputError(f"{path}: the folder {parent} does not exist; create it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: the folder {parent} must not be written to")
        return target
    if not os.path.isdir(target):
        raise OutputError(f"{path}: wanted a folder, got a file")
    if not os.access(target, os.R_OK | os.W_OK | os.X_OK):
        raise OutputError(f"{path}: this folder must not be written to")
    if os.listdir(target):
        raise OutputError(f"{path}: wanted a new or an empty folder; this one holds files")
    return target


class AtomicFolder:
    """A folder that is filled under a hidden temporary name, ``path``, until :meth:`commit`.

    :meth:`abort` leaves no trace. Files are not synchronised one by one: thousands of small ones
    would spend most of their time waiting for the disk.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the temporary folder; raises :class:`OutputError` where that is impossible."""
        self._target = check_folder(path)
        # An empty folder may be a mount point, which nothing can be moved onto: fill it inside.
        self._inside = os.path.isdir(self._target)
        parent = self._target if self._inside else os.path.dirname(self._target)
        self.path = os.path.join(parent, f".fiqa-fast-{secrets.token_hex(8)}.tmp")
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise OutputError(f"{path}: cannot write here: {error.strerror}") from error

    def commit(self) -> None:
        """Put the folder, or what it holds, in its place."""
        if not self._inside:
            os.rename(self.path, self._target)
            return
        for name in os.listdir(self.path):
            os.rename(os.path.join(self.path, name), os.path.join(self._target, name))
        os.rmdir(self.path)

    def abort(self) -> None:
        """Remove the temporary folder; does nothing after :meth:`commit`."""
        shutil.rmtree(self.path, ignore_errors=True)
