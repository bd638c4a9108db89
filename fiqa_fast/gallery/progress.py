# SPDX-License-Identifier: Apache-2.0
"""How a run shows that it is alive: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from tqdm import tqdm

__all__ = ["BarProgress", "LineProgress", "Progress", "SilentProgress", "choose_progress"]


class Progress(Protocol):
    """Told by the runner what happens, on the thread that runs it."""

    def update(self, images: int) -> None:
        """Note that so many more images are done."""
        ...

    def tell(self, line: str) -> None:
        """Show one line beside the progress."""
        ...

    def close(self) -> None:
        """Stop showing progress."""
        ...


class SilentProgress:
    """Shows no progress; lines still come through, on ``stream``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Tell lines on ``stream`` (default: standard error)."""
        self._stream = sys.stderr if stream is None else stream

    def update(self, images: int) -> None:
        """Do nothing."""

    def tell(self, line: str) -> None:
        """Write the line."""
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class LineProgress(SilentProgress):
    """A line every ten seconds or so, for logs."""

    def __init__(
        self,
        total: int | None,
        stream: TextIO | None = None,
        interval: float = 10.0,
        unit: str = "images",
    ) -> None:
        """Expect ``total`` images or other units (None: not known)."""
        super().__init__(stream)
        self._total = total
        self._unit = unit
        self._interval = interval
        self._done = 0
        self._start = self._last = time.monotonic()

    def update(self, images: int) -> None:
        """Count, and write a line when it is time."""
        self._done += images
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        rate = self._done / (now - self._start)
        line = f"{self._done} {self._unit}, {rate:.1f} {self._unit}/s"
        if self._total:
            left = max(0, self._total - self._done) / rate
            done = f"{self._done} of {self._total} {self._unit}"
            line = f"{done}, {rate:.1f} {self._unit}/s, {_span(left)} left"
        self.tell(line)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class BarProgress:
    """tqdm's bar, with images/s and the time left."""

    def __init__(
        self, total: int | None, stream: TextIO | None = None, unit: str = "images"
    ) -> None:
        """Expect ``total`` images or other units (None: not known)."""
        self._stream = sys.stderr if stream is None else stream
        self._bar = tqdm(
            total=total, unit=f" {unit}", file=self._stream, dynamic_ncols=True, leave=False
        )

    def update(self, images: int) -> None:
        """Move the bar."""
        self._bar.update(images)

    def tell(self, line: str) -> None:
        """Write a line above the bar."""
        tqdm.write(line, file=self._stream)

    def close(self) -> None:
        """Clear the bar."""
        self._bar.close()


def choose_progress(
    total: int | None, quiet: bool, rows_on_terminal: bool, unit: str = "images"
) -> Progress:
    """Return what suits standard error; rows printed on a terminal are progress enough."""
    if quiet or rows_on_terminal:
        return SilentProgress()
    if sys.stderr.isatty():
        return BarProgress(total, unit=unit)
    return LineProgress(total, unit=unit)
