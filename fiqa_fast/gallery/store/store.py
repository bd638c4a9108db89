# SPDX-License-Identifier: Apache-2.0
"""An output that a run can be killed over, at any moment, and go on with."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.gallery.sinks import Layout
from fiqa_fast.gallery.store.claim import claim
from fiqa_fast.gallery.store.finishing import clear, is_ready, move_into_place, prepare
from fiqa_fast.gallery.store.lock import FolderLock
from fiqa_fast.gallery.store.part_sink import Guard, PartSink, entries
from fiqa_fast.gallery.store.parts import PartFiles
from fiqa_fast.gallery.store.record import RECORD_NAME, Record
from fiqa_fast.gallery.store.writer import SAVE_SECONDS, PartWriter

__all__ = ["Store", "state_folder"]


def state_folder(path: str) -> str:
    """Return the hidden folder beside an output that holds it while it is unfinished."""
    folder, name = os.path.split(os.path.realpath(path))
    if len(os.fsencode(name)) > 200:  # names end at 255 bytes
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    return os.path.join(folder, f".{name}.unfinished")


class Store(PartSink):
    """The rows of one output: those in place, those stored in parts, and those to come.

    A sink for the runner: give it ``store.pending(numbered(sources))`` as its items.

    Args:
        layout: The files of the output.
        settings: Everything that decides a value, JSON-able.
        build: What computes here, see :func:`this_build`.
        overwrite: Replace an output that is not one of these settings, or score it anew.
        retry_errors: Score rows again that have an error.
        save_seconds: After how long rows are stored at the latest.
        guard: Called before failed rows are taken in; raises where not they are at fault.

    Attributes:
        kept: How many rows were there at the start.
        failed: How many of them have an error and are not scored again.

    Raises:
        OutputError: Another run has the output, or it is of other settings, or of something
            else, or cannot be written.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Mapping[str, Any],
        *,
        build: Mapping[str, str] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
        save_seconds: float = SAVE_SECONDS,
        guard: Guard = None,
    ) -> None:
        self.layout = layout
        self.folder = state_folder(layout.path)
        self._lock = FolderLock(self.folder, layout.path)
        self._files = PartFiles(self.folder)
        self.record = Record({})
        try:
            if move_into_place(self.folder, layout.path):
                clear(self.folder)
            for name in glob.glob(".fiqa-fast-*.tmp", root_dir=glob.escape(self.folder)):
                os.unlink(os.path.join(self.folder, name))
            self.record = claim(layout, self._files, settings, overwrite)
            self._note(build, retry_errors)
            parts = self._files.list()
            self._in_place, self.failed = 0, sum(part.failed() for part in parts)
            for _, failed in self._entries() if self.record.extends else ():
                self._in_place += 1
                self.failed += failed
            self.kept = self.stored()
        except OSError as error:
            self._leave()
            raise self._failure(error) from error
        except BaseException:
            self._leave()
            raise
        self.start = 1 + max((part.start for part in parts), default=0)
        writer = PartWriter(self._files, self.start, 0, layout.dtype, save_seconds)
        super().__init__(layout, self.record, self._files, writer, guard)

    @property
    def lock_fd(self) -> int:
        """The descriptor that worker processes inherit."""
        return self._lock.fd

    def stored(self) -> int:
        """Return how many rows are safe: in place, or in parts of whoever wrote them."""
        if not os.path.isdir(self.folder):
            return self._in_place
        return self._in_place + sum(part.count() for part in self._files.list())

    def commit(self) -> None:
        """Put the whole output in its place and remove the folder beside it.

        Raises :class:`OutputError` where that is impossible; all rows are kept then.
        """
        self.writer.flush()
        self.done.note_examples()
        try:
            parts = self._files.list()
            if self._builds_before and not any(part.start == self.start for part in parts):
                self.record.builds = self._builds_before  # this one has added no row
            if parts or not self.record.extends or self.record.retries:
                prepare(self.folder, self.layout, self.record, parts)
                move_into_place(self.folder, self.layout.path)
            clear(self.folder)
            self._lock.remove()
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self._lock.release()

    def abort(self) -> None:
        """Keep what is finished for the next start of the run; without that, leave no trace.

        Does nothing the second time, or after :meth:`commit`.
        """
        with suppress(OutputError, OSError):
            self.writer.flush()
        self._leave()

    def _leave(self) -> None:
        with suppress(OSError):
            if self._lock.fd >= 0 and not (self._files.list() or is_ready(self.folder)):
                clear(self.folder)
                self._lock.remove()
        self._lock.release()

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.layout.path}: {error.strerror or error}; all rows are kept in {self.folder}: "
            "mend that and run the same command again"
        )

    def _note(self, build: Mapping[str, str] | None, retry_errors: bool) -> None:
        """Bring the record up to this start of the run, and store it before any row."""
        if self.record.extends and not self.record.builds:
            description = self.layout.description()
            self.record.builds = list(description.get("builds", []))
        self._builds_before = list(self.record.builds)
        if build is not None and dict(build) not in self.record.builds:
            self.record.builds.append(dict(build))
        if retry_errors:
            self._files.drop_failed()
            if self.record.extends and any(failed for _, failed in self._entries(True)):
                self.record.retries = True
        self.record.save(os.path.join(self.folder, RECORD_NAME))

    def _entries(self, failed_too: bool = False) -> Iterator[tuple[str, bool]]:
        """Yield the keys of the table in place, failed ones unless they are scored again."""
        return entries(self.layout, failed_too or not self.record.retries)
