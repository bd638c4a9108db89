# SPDX-License-Identifier: Apache-2.0
"""Real runs of ``fiqa-fast score`` that are killed at random moments and started again.

Every moment is chosen by what the run has reached, so that the short ones, in which files move,
are met as often as the long ones. As a script it does as many runs as wanted and says what became
of them: ``python tests/helpers/kills.py --runs 50 --images 5000 -o kills.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from command_line import COMMAND
from containers import write_rec
from PIL import Image, ImageEnhance, ImageOps

CROPS = Path(__file__).parents[2] / "examples" / "crops"
_SECONDS = 8.0  # about what a run of 5,000 takes
CHEAP = ("--exit", "1", "--workers", "1", "--threads", "1", "--batch-size", "16")


def jpegs(count: int) -> list[bytes]:
    """Small JPEG files of crops, different ones; one in fifty is cut off."""
    made = []
    for path in sorted(CROPS.iterdir()):
        with Image.open(path) as opened:
            crop = opened.convert("RGB")
        for picture in (crop, ImageOps.mirror(crop)):
            for light in (0.5, 0.7, 0.9, 1.1):
                buffer = io.BytesIO()
                ImageEnhance.Brightness(picture).enhance(light).save(buffer, "JPEG", quality=85)
                made.append(buffer.getvalue())
    return [
        made[i % len(made)] if i % 50 else made[i % len(made)][: 100 + i % 400]
        for i in range(count)
    ]


def write_gallery(path: Path, count: int) -> None:
    """A ``.rec`` of so many crops; a larger one begins with what a smaller one has."""
    write_rec(path, {str(i): data for i, data in enumerate(jpegs(count))})


@dataclass(frozen=True)
class Scenario:
    """One command: its table, its options, and how much of the gallery a first run has done."""

    table: str
    options: tuple[str, ...] = ()
    before: float = 0.0
    processes: int = 1  # at most

    def command(self, folder: Path, save_seconds: float, processes: int = 1) -> list[str]:
        """The command that is killed and repeated, over ``folder``/g.rec."""
        saving = ("--save-every", f"{save_seconds:.3f}", "--processes", str(processes))
        inputs = (str(folder / "g.rec"), "-o", str(folder / "out" / self.table))
        return [*COMMAND, "score", *inputs, *CHEAP, *self.options, *saving]


SCENARIOS = (
    Scenario("scores.parquet"),
    Scenario("scores.csv", ("--outputs", "score,patch_map", "--vectors-dtype", "float16")),
    Scenario("scores.parquet", before=0.6),
    Scenario("scores.parquet", processes=2),
    Scenario("scores.jsonl", ("--outputs", "score,head_scores")),
    Scenario("scores.csv", ("--outputs", "score,head_scores"), before=0.4),
)


class Run:
    """One process in a group of its own."""

    def __init__(self, command: Sequence[str]) -> None:
        # Elsewhere than the source tree, which `python -c` would import.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=tempfile.gettempdir(),
            start_new_session=True,
        )

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill_one(self, rng: random.Random) -> None:
        """Kill the process or one of its workers, and wait for the others to notice."""
        try:
            leader = psutil.Process(self.process.pid)
            rng.choice([leader, *leader.children()]).kill()
        except psutil.NoSuchProcess:
            pass
        self.process.wait(60)
        limit = time.monotonic() + 60
        while any(_group(p) == self.process.pid for p in psutil.process_iter()):
            assert time.monotonic() < limit, "workers outlive their parent"
            time.sleep(0.01)

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """Wait for it; return its status and what it wrote."""
        try:
            self.process.wait(timeout)
        finally:
            if self.alive():
                self.signal(signal.SIGKILL)
                self.process.wait()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        self._log.close()
        return self.process.returncode, text


def _group(process: psutil.Process) -> int | None:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getpgid(process.pid)
    return None


def finished(command: Sequence[str]) -> str:
    """Run a command undisturbed; return what it wrote."""
    status, text = Run(command).end(600)
    assert status == 0, text
    return text


@dataclass
class Folder:
    """What can be seen of a run from outside."""

    out: Path
    table: str

    @property
    def state(self) -> Path:
        """The folder of the unfinished output."""
        return self.out / f".{self.table}.unfinished"

    def parts(self) -> int:
        """How many parts there are."""
        with suppress(OSError):
            return sum(name.startswith("part-") for name in os.listdir(self.state))
        return 0

    def stage(self) -> str:
        """What a killed run had reached."""
        if not self.state.exists():
            return "done" if (self.out / self.table).exists() else "starting"
        names = os.listdir(self.state)
        for name, stage in (("ready", "moving"), ("ready.tmp", "finishing")):
            if name in names:
                return stage
        return "scoring" if any(name.startswith("part-") for name in names) else "opening"


_EARLY = ("time", "lock", "parts", "parts")
_LATE = ("time", "finishing", "finishing", "moving", "table")


def moment(folder: Folder, rng: random.Random, late: bool) -> Callable[[], bool]:
    """Choose a moment; return what says whether it has come."""
    kind = rng.choice(_LATE if late else _EARLY)
    if kind == "time":
        end = time.monotonic() + rng.uniform(0, _SECONDS)
        return lambda: time.monotonic() > end
    if kind == "lock":
        return folder.state.exists
    if kind == "parts":
        wanted = folder.parts() + rng.randint(1, 40)
        end = time.monotonic() + rng.uniform(0.5, 1.5) * _SECONDS
        return lambda: folder.parts() >= wanted or time.monotonic() > end
    if kind == "table":
        table = folder.out / folder.table
        before = _identity(table)
        return lambda: _identity(table) != before
    inner = folder.state / ("ready.tmp" if kind == "finishing" else "ready")
    return inner.exists


def _identity(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_ino
    return 0


@dataclass
class Story:
    """What was done to one output."""

    stages: list[str] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # tracebacks of runs that were asked to end
    starts: int = 1

    def kill(
        self, run: Run, folder: Folder, rng: random.Random, processes: int, late: bool
    ) -> None:
        """Kill one run of so many processes at a random moment: all of them, or one."""
        come = moment(folder, rng, late)
        limit = time.monotonic() + 300
        while run.alive() and not come() and time.monotonic() < limit:
            time.sleep(0.0002)
        time.sleep(rng.choice((0.0, 0.001, 0.01, 0.1)) * rng.random())
        number = rng.choice((signal.SIGKILL,) * 3 + (signal.SIGTERM, signal.SIGINT))
        if processes > 1 and rng.random() < 0.4:
            run.kill_one(rng)
            number = signal.SIGKILL
        else:
            run.signal(number)
        if number != signal.SIGKILL and rng.random() < 0.5:
            time.sleep(rng.random() * 0.05)  # impatient: while it ends in good order
            run.signal(signal.SIGKILL)
        status, text = run.end()
        if "Traceback" in text and "KeyboardInterrupt" not in text:
            self.complaints.append(text)
        self.stages.append("ended" if status == 0 else folder.stage())
        self.signals.append(signal.Signals(number).name)
        self.starts += 1


def prepare(work: Path, source: Path, scenario: Scenario, count: int) -> None:
    """Bring ``work`` to where the killed command starts."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    if scenario.before:
        begun = source / f"begun-{SCENARIOS.index(scenario)}"
        if not begun.exists():
            write_gallery(work / "g.rec", int(scenario.before * count))
            finished(scenario.command(work, 30))
            shutil.copytree(work / "out", begun)
        shutil.copytree(begun, work / "out", dirs_exist_ok=True)
    for suffix in ("rec", "idx"):
        shutil.copy(source / f"g.{suffix}", work / f"g.{suffix}")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too; folders are there by their names."""
    return {
        path.name: path.read_bytes() if path.is_file() else b"(folder)"
        for path in sorted(folder.iterdir())
    }


def sorted_rows(files: dict[str, bytes]) -> list[object]:
    """The rows of a table, sorted: for Parquet its values, for others its lines."""
    name = next(name for name in files if name.endswith((".parquet", ".csv", ".jsonl")))
    if not name.endswith(".parquet"):
        return sorted(files[name].splitlines())
    columns = pq.read_table(io.BytesIO(files[name])).to_pydict()
    return sorted(zip(*columns.values(), strict=True), key=lambda row: row[0])


@dataclass
class Campaign:
    """Many outputs, each killed several times."""

    source: Path
    images: int
    seed: int = 0
    stories: list[Story] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Write the gallery."""
        write_gallery(self.source / "g.rec", self.images)

    def run(self, runs: int, kills: tuple[int, int] = (1, 5)) -> None:
        """Do so many runs, each killed ``kills`` times (from, to) before it may end."""
        rng = random.Random(self.seed)
        for i in range(runs):
            scenario = SCENARIOS[i % len(SCENARIOS)]
            self.stories.append(self._tell(scenario, rng, rng.randint(*kills)))
            stages = ", ".join(self.stories[-1].stages)
            print(f"{i + 1}/{runs} {scenario.table}: {stages}", flush=True)

    def expected(self, scenario: Scenario) -> dict[str, bytes]:
        """What an undisturbed run makes."""
        kept = self.source / f"expected-{SCENARIOS.index(scenario)}"
        if not kept.exists():
            work = self.source / "work"
            prepare(work, self.source, scenario, self.images)
            finished(scenario.command(work, 30))
            shutil.move(work / "out", kept)
        return contents(kept)

    def _tell(self, scenario: Scenario, rng: random.Random, kills: int) -> Story:
        expected = self.expected(scenario)
        work = self.source / "work"
        prepare(work, self.source, scenario, self.images)
        folder = Folder(work / "out", scenario.table)
        story = Story()
        for i in range(kills):
            processes = rng.randint(1, scenario.processes)
            saving = rng.choice((0.0, 0.05, 0.2, 1.0))
            run = Run(scenario.command(work, saving, processes))
            # Once a run has come to its end, there is little left to kill.
            story.kill(run, folder, rng, processes, late=i + 1 == kills)
        finished(scenario.command(work, 30))
        made = contents(folder.out)
        assert list(made) == list(expected)
        assert sorted_rows(made) == sorted_rows(expected)
        assert made == expected, "the same rows, other bytes"
        return story

    def figures(self) -> dict[str, object]:
        """What was done, as numbers."""
        return {
            "images": self.images,
            "runs": len(self.stories),
            "kills": sum(len(story.stages) for story in self.stories),
            "stages": dict(Counter(s for story in self.stories for s in story.stages)),
            "signals": dict(Counter(s for story in self.stories for s in story.signals)),
            "equal": len(self.stories),  # an unequal one has raised
            "tracebacks": sum(len(story.complaints) for story in self.stories),
        }


def main() -> None:
    """Kill as often as wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.images, options.seed)
        start = time.monotonic()
        campaign.run(options.runs)
        figures = {**campaign.figures(), "seconds": round(time.monotonic() - start)}
    for story in campaign.stories:
        for complaint in story.complaints:
            print(complaint, file=sys.stderr)
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
