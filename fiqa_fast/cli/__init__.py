# SPDX-License-Identifier: Apache-2.0
"""The command ``fiqa-fast``.

One file per command. Heavy modules are imported inside the commands, so that help is instant.
Every error of the user's is one line on standard error and exit status 2; an interrupt is one
line and 130; a closed pipe is silent.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import click

from fiqa_fast.cli.errors import PIPE_CLOSED, USAGE, explain
from fiqa_fast.cli.group import Interrupted, PipeClosed, group

__all__ = ["main"]

_INTERRUPTED = [
    128 + getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status.

    Without ``args``, it is this process's own, which then waits for nothing when interrupted.
    """
    _open_closed_streams()
    _terminate_cleanly()
    status: Any = None
    try:
        status = _run(list(sys.argv[1:] if args is None else args))
    except SystemExit as end:
        status = end.code
    finally:
        _end_at_once()
    if args is None and status in _INTERRUPTED:
        _leave(status)
    sys.exit(status)


def _run(args: list[str]) -> int:
    try:
        status = group.main(args, prog_name="fiqa-fast", standalone_mode=False, obj=list(args))
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return USAGE
    except (Interrupted, click.Abort, KeyboardInterrupt):
        return _interrupted()
    except (PipeClosed, BrokenPipeError):
        # Python would complain once again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        end = _ending_behind(error)
        if isinstance(end, KeyboardInterrupt):
            return _interrupted()
        if end is not None:
            raise end from None
        message = explain(error)
        if message is None or os.environ.get("FIQA_FAST_TRACEBACK"):
            raise
        click.echo(f"fiqa-fast: error: {message}", err=True)
        return USAGE


def _interrupted() -> int:
    start = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C in this line
    click.echo(f"{start}fiqa-fast: interrupted", err=True)
    return 128 + signal.SIGINT


def _leave(status: int) -> NoReturn:
    """Exit without waiting for threads, one of which may wait for ever.

    Where the signal came while a thread was being started, its pool does not know of it.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may be reading any more
            stream.flush()
    os._exit(status)


def _ending_behind(error: BaseException | None) -> BaseException | None:
    """Return the exit or interrupt in whose handling ``error`` was raised, if any.

    A signal raises wherever the main thread happens to be. In the middle of a library's lock, the
    library's own unwinding fails ("release unlocked lock"), and its complaint comes instead.
    """
    while error is not None and not isinstance(error, (KeyboardInterrupt, SystemExit)):
        error = error.__cause__ or error.__context__
    return error


def _open_closed_streams() -> None:
    """Give a process that was started without standard streams the null device for them.

    In order, so that each takes its own number and no table is ever opened under it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _terminate_cleanly() -> None:
    """Make SIGTERM and SIGHUP unwind as an exit does, so that what is finished is stored.

    The first one only: `timeout`, a closed terminal or a parent may send several, and the next
    would end the storing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _on_signals(("SIGTERM", "SIGHUP"), signal.SIG_IGN)
        raise SystemExit(128 + number)

    _on_signals(("SIGTERM", "SIGHUP"), stop)


def _end_at_once() -> None:
    """Once all is done, let a signal end the process: Python would complain of it in its exit."""
    _on_signals(("SIGTERM", "SIGHUP", "SIGINT"), signal.SIG_DFL)


def _on_signals(names: Sequence[str], handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for name in names:
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
                signal.signal(getattr(signal, name), handler)
