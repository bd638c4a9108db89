# SPDX-License-Identifier: Apache-2.0
"""One run per output: a lock that the system gives up when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress

from fiqa_fast.gallery.atomic import synchronise
from fiqa_fast.gallery.errors import OutputError

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = "lock"
_FLAGS = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class FolderLock:
    """A folder, created if need be, that belongs to this process and its worker processes.

    Workers inherit the descriptor, so that the lock outlives a killed parent for as long as one
    of them is writing.
    """

    def __init__(self, folder: str, name: str) -> None:
        """Take the lock; raises :class:`OutputError` where another run has it."""
        self.folder = folder
        while True:
            try:
                os.makedirs(folder, exist_ok=True)
                path = os.path.join(folder, LOCK_NAME)
                self.fd = os.open(path, _FLAGS, 0o666)
            except (FileNotFoundError, FileExistsError) as error:
                if not os.path.lexists(folder) or os.path.isdir(folder):
                    continue  # its last holder has just finished and removed the folder
                raise OutputError(f"{folder}: wanted a folder, got something else") from error
            except OSError as error:
                raise OutputError(f"{folder}: {error.strerror}") from error
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(self.fd)
                os.close(self.fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise OutputError(
                        f"{name}: another run is writing it ({holder}); wait for it or stop it"
                    ) from None
                raise OutputError(
                    f"{folder}: this file system has no locks ({error.strerror}); write to "
                    "another one"
                ) from error
            if self._is_ours(path):
                break
            os.close(self.fd)  # of a folder that was removed meanwhile
        synchronise(os.path.dirname(folder))  # what is in it is kept only where it is
        with suppress(OSError):  # a full disk: nobody but a second run would read it
            os.truncate(self.fd, 0)
            os.pwrite(self.fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _is_ours(self, path: str) -> bool:
        try:
            there, here = os.stat(path), os.fstat(self.fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def remove(self) -> None:
        """Let others have it, and remove the folder if it is empty but for the lock."""
        os.unlink(os.path.join(self.folder, LOCK_NAME))
        self.release()  # NFS keeps what is open, under another name in the same folder
        with suppress(OSError):  # the next run may be there already
            os.rmdir(self.folder)

    def release(self) -> None:
        """Let others have it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _holder(fd: int) -> str:
    return os.pread(fd, 200, 0).decode("utf-8", "replace") or "it has just begun"
