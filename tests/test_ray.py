# SPDX-License-Identifier: Apache-2.0
"""Ray Data as the engine, on a real cluster of worker processes on this machine."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import COMMAND, Outcome, one_line_error
from containers import write_rec, write_tar, write_zip
from PIL import Image

import fiqa_fast
from fiqa_fast.gallery import InputError, open_sources
from fiqa_fast.gallery.shares import Share, numbered
from fiqa_fast.images import decode
from fiqa_fast.ray.actor import ScoreActor
from fiqa_fast.ray.dataset import make_recipe
from fiqa_fast.ray.slices import slices_of

# Of Ray about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TEXT = {"capture_output": True, "text": True, "check": False}
TEXT_PIPES = {"stderr": subprocess.PIPE, "text": True}
ACTORS = 2
WAIT = 240.0  # seconds until something that happens in one or two is given up


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster with room for two actors and a reader."""
    # Short: the paths of its sockets have to fit in 107 bytes.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="r") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
        patch.setenv("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
        # What does not fit the store goes to the disk, which others may have filled to 95 %, Ray's
        # own limit: so it all fits the store, and a fuller disk is no reason.
        patch.setenv("RAY_local_fs_capacity_threshold", "1")
        # Workers look for packages where the driver stands, and the source tree has no compiled
        # code: so not there.
        patch.chdir(folder)
        ray = pytest.importorskip("ray", reason="Ray is not installed")
        pytest.importorskip("ray.data", reason="Ray Data's needs are not installed")
        ray.init(
            num_cpus=3,
            object_store_memory=800 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        try:
            yield ray
        finally:
            ray.shutdown()


def encoded(seed: int, side: int = 112) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3 + seed % 9, 3 + seed % 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [encoded(i, 112 if i % 3 else 90 + i) for i in range(24)]
BROKEN = [b"", b"no image", IMAGES[0][:200]]


@pytest.fixture(scope="module")
def scorer() -> fiqa_fast.Scorer:
    return fiqa_fast.Scorer(
        fiqa_fast.load_model("starter"), outputs=("score", "embedding", "patch_map"), device="cpu"
    )


@pytest.fixture(scope="module")
def local(scorer: fiqa_fast.Scorer) -> fiqa_fast.QualityResult:
    return scorer([decode(data) for data in IMAGES])


def bits(values: Any) -> bytes:
    return np.asarray(values, np.float32).tobytes()


KINDS = {
    "bytes": lambda n, path, data: {"jpg": data, "path": "elsewhere.png"},
    "structs": lambda n, path, data: {"image": {"bytes": data, "path": "elsewhere.png"}},
    "structs of paths": lambda n, path, data: {"img": {"bytes": None, "path": str(path)}},
    "structs of both": lambda n, path, data: {
        "img": {"bytes": data if n % 2 else None, "path": None if n % 2 else str(path)}
    },
    "paths": lambda n, path, data: {"path": str(path), "id": "x"},
    "relative paths": lambda n, path, data: {"file_name": path.name},
    "arrays of one size": lambda n, path, data: {"image": decode(data)},
    "arrays of many sizes": lambda n, path, data: {"crop": decode(data)},
    "the only one": lambda n, path, data: {"face": data, "path": "elsewhere.png"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column(
    kind: str, actor: Any, ray: Any, local: fiqa_fast.QualityResult, tmp_path: Path
) -> None:
    """What Ray makes of each kind, through an actor's code in this process."""
    numbers = [1, 2, 4, 5] if kind == "arrays of one size" else [0, 1, 2, 3]
    rows = []
    for n in numbers:
        path = tmp_path / f"{n}.png"
        path.write_bytes(IMAGES[n])
        rows.append({"n": n, **KINDS[kind](n, path, IMAGES[n])})
    table = ray.data.from_items(rows).take_batch(4, batch_format="pyarrow")
    scored = actor(root=str(tmp_path))(table)
    assert scored.column_names == [*table.column_names, "score", "error"]
    assert scored["error"].to_pylist() == [None] * 4
    order = scored["n"].to_pylist()
    assert sorted(order) == numbers
    assert bits(scored["score"]) == bits(local.score[order])


@pytest.fixture
def actor(ray: Any) -> Any:
    """An actor's code without an actor."""

    def make(column: str | None = None, root: str = "", outputs: Any = ("score",)) -> ScoreActor:
        recipe = make_recipe("starter", outputs, 1, 0, {})
        before = torch.get_num_threads()
        try:
            return ScoreActor(recipe, column, root)
        finally:
            torch.set_num_threads(before)

    return make


ERRORS = {
    "empty": (b"", "got an empty file"),
    "no image": (b"no image", "got something else"),
    "nothing": (None, "wanted an encoded image, got nothing"),
    "no struct": ({"bytes": None, "path": None}, "wanted an encoded image, got nothing"),
    "no file": ("missing.png", "no such file"),
    "grey array": (np.zeros((9, 9), np.uint8), "wanted an RGB array uint8 [H, W, 3], got uint8"),
    "float array": (np.zeros((9, 9, 3), np.float32), "[H, W, 3], got float32 [9, 9, 3]"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_a_bad_image_is_an_error_row(kind: str, actor: Any, ray: Any) -> None:
    value, wanted = ERRORS[kind]
    table = ray.data.from_items([{"image": value, "n": 3}]).take_batch(1, batch_format="pyarrow")
    scored = actor("image", outputs=("embedding",))(table)
    assert scored["score"].to_pylist() == [None]
    assert wanted in scored["error"][0].as_py()
    assert np.isnan(scored["embedding"][0].as_py()).all()
    assert scored["embedding"][0].as_py().shape == (128,)
    assert scored["n"].to_pylist() == [3]


REFUSED = {
    "no column of that name": ({"image": b""}, {"column": "face"}, "'face', got only image"),
    "another type": ({"image": 3.0}, {"column": "image"}, "'image': wanted encoded images"),
    "no images": ({"label": 3, "size": 2.0}, {}, "got label, size: name one with column="),
    "which one": ({"a": b"", "b": b"", "path": "x"}, {}, "got a, b, path: name one"),
    "score is taken": ({"image": b"", "score": 1}, {}, "a column 'score' already"),
    "output is taken": ({"image": b"", "embedding": 1}, {"outputs": ["embedding"]}, "'embedding'"),
    "batch size": ({"image": b""}, {"batch_size": 0}, "batch_size: wanted at least 1, got 0"),
    "option": ({"image": b""}, {"reduction": "mode"}, "reduction must be one of"),
    "device": ({"image": b""}, {"dtype": "int4"}, "dtype must be auto"),
    "outputs": ({"image": b""}, {"outputs": "score"}, "outputs must be a sequence"),
    "model": ({"image": b""}, {"model": "missing.pt"}, "missing.pt"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_anything_runs(kind: str, ray: Any) -> None:
    row, options, wanted = REFUSED[kind]
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        fiqa_fast.ray.score_dataset(ray.data.from_items([row]), **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_scorer_is_refused_and_its_model_taken(
    ray: Any, scorer: fiqa_fast.Scorer, local: fiqa_fast.QualityResult
) -> None:
    dataset = ray.data.from_items([{"n": 0, "image": IMAGES[0]}])
    with pytest.raises(ValueError, match="give the model it was made of"):
        fiqa_fast.ray.score_dataset(dataset, scorer)
    with pytest.raises(InputError, match=r"wanted a ray\.data\.Dataset, got list"):
        fiqa_fast.ray.score_dataset([IMAGES[0]])


def test_a_killed_actor_loses_nothing(
    ray: Any, local: fiqa_fast.QualityResult, tmp_path: Path
) -> None:
    """Stopped first, so that it is known to hold work when it is killed; error rows too."""
    images = [*IMAGES, *BROKEN] * 3
    data = pa.table({"n": range(len(images)), "image": images})
    reading, gate = tmp_path / "reading", tmp_path / "gate"

    def wait_for_gate(table: pa.Table) -> pa.Table:
        reading.touch()
        while not gate.exists():
            time.sleep(0.05)
        return table

    dataset = ray.data.from_arrow([data.slice(i, 3) for i in range(0, len(images), 3)])
    dataset.context.wait_for_min_actors_s = WAIT  # nothing is read before
    dataset = dataset.map_batches(wait_for_gate, batch_format="pyarrow", num_cpus=0.5)
    scored = fiqa_fast.ray.score_dataset(
        dataset, outputs=("embedding", "patch_map"), concurrency=ACTORS, batch_size=3
    )
    got: list[dict[str, Any]] = []
    consumer = threading.Thread(target=lambda: [got.append(row) for row in scored.iter_rows()])
    consumer.daemon = True
    consumer.start()
    until(reading.exists)
    victim, _ = actors()
    victim.send_signal(signal.SIGSTOP)
    gate.touch()
    # The other one does the rest; what is missing then is with the one that stands still.
    until(lambda: got)
    rest = settled(lambda: len(got))
    assert rest < len(images)
    victim.kill()
    consumer.join(WAIT)
    assert not consumer.is_alive()
    assert not victim.is_running()
    assert sorted(row["n"] for row in got) == list(range(len(images)))
    assert list(got[0]) == ["n", "image", "score", "error", "embedding", "patch_map"]
    for row in got:
        assert row["image"] == images[row["n"]]
        n = row["n"] % (len(IMAGES) + len(BROKEN))
        assert row["embedding"].shape == (128,)
        assert row["patch_map"].shape == (8, 8)
        if n < len(IMAGES):
            assert row["error"] is None
            assert bits(row["score"]) == bits(local.score[n])
            assert bits(row["embedding"]) == bits(local.embedding[n])
            assert bits(row["patch_map"]) == bits(local.patch_map[n])
        else:
            assert row["score"] is None
            assert row["error"]
            assert np.isnan(row["embedding"]).all()


FILES = {f"{i:03}.png": data for i, data in enumerate([*IMAGES, *BROKEN] * 5)}


@pytest.fixture
def mixed(tmp_path: Path) -> list[Path]:
    """A folder with files and containers, a container of its own, one that is cut off."""
    names = sorted(FILES)
    folder = tmp_path / "faces"
    (folder / "inner").mkdir(parents=True)
    for name in names[:50]:
        (folder / "inner" / name).write_bytes(FILES[name])
    images = {name: FILES[name] for name in names[50:90]}
    write_tar(folder / "a.tar", images)
    write_zip(folder / "b.zip", images)
    record = write_rec(tmp_path / "c.rec", {name: FILES[name] for name in names[90:]})
    cut = write_tar(tmp_path / "cut.tar", images)
    cut.write_bytes(cut.read_bytes()[:100_000])
    return [folder, record, cut]


@pytest.mark.parametrize("share", [Share(), Share(1, 3), Share(1, 3, "containers")])
@pytest.mark.parametrize("wanted", [1, 2, 9])
def test_slices_are_the_gallery(mixed: list[Path], share: Share, wanted: int) -> None:
    sources = open_sources(mixed)
    expected = [(place, item.key) for place, item in numbered(sources, share)]
    found = []
    for part in pickle.loads(pickle.dumps(slices_of(sources, share, wanted))):
        items = numbered(part.sources, part.share)
        found += [(place + part.offset, item.key) for place, item in items]
    assert sorted(found) == expected
    assert len(found) > 20


def test_a_killed_driver_and_a_killed_actor_lose_nothing(
    ray: Any, mixed: list[Path], tmp_path: Path
) -> None:
    """The driver in the first run, an actor in the second, which goes on; the same table."""
    options = ["--outputs", "score,embedding", "--batch-size", "8", "--threads", "1"]
    command = [*COMMAND, "score", *map(str, mixed), *options]
    local = subprocess.run([*command, "-o", tmp_path / "local.parquet"], cwd=tmp_path, **TEXT)
    address = ray.get_runtime_context().gcs_address
    remote = [*command, "-o", tmp_path / "ray.parquet", "--save-every", "0"]
    remote += ["--engine", "ray", "--ray-address", address, "--actors", str(ACTORS)]
    total = pq.read_metadata(tmp_path / "local.parquet").num_rows
    parts = tmp_path / ".ray.parquet.unfinished"

    def stored() -> int:
        files = parts.glob("part-*.parquet")
        return sum(pq.read_metadata(file).num_rows for file in files)

    with subprocess.Popen(remote, cwd=tmp_path, stderr=subprocess.DEVNULL) as driver:
        until(stored)
        driver.kill()
    before = stored()
    assert 0 < before < total
    until(lambda: not actors())

    with subprocess.Popen(remote, cwd=tmp_path, **TEXT_PIPES) as driver:
        until(lambda: stored() > before)
        both = actors()
        assert len(both) == ACTORS
        for process in both:
            process.send_signal(signal.SIGSTOP)
        assert stored() < total
        both[0].kill()
        both[1].send_signal(signal.SIGCONT)
        _, err = driver.communicate(timeout=WAIT)
    assert driver.returncode == local.returncode == 1, err  # an archive is cut off
    assert f"{before} rows are there already" in err
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()
    told = ("passed over", "not read to its end")
    for line in local.stderr.splitlines():
        assert line in err or not any(words in line for words in told)
    assert not parts.exists()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], "--engine ray needs a table to write: -o FILE or -o DIR/"),
        (["-o", "-"], "--engine ray needs a table to write: -o FILE or -o DIR/"),
        (["-o", "x.csv", "--processes", "2"], "--engine ray has --actors, not --processes"),
        (["-o", "x.csv", "--ray-address", "127.0.0.1:1"], "no Ray cluster at 127.0.0.1:1: "),
    ],
)
def test_refused_in_one_line(
    options: list[str],
    wanted: str,
    cli: Callable[..., Outcome],
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray.data", reason="Ray Data is not installed")
    monkeypatch.chdir(tmp_path)
    assert one_line_error(cli("score", gallery, "--engine", "ray", *options)).startswith(wanted)
    assert os.listdir(tmp_path) == ["in"]


def test_options_of_the_other_engine(cli: Callable[..., Outcome], gallery: Path) -> None:
    error = one_line_error(cli("score", gallery, "--actors", "2"))
    assert error == "--actors goes with --engine ray"


def test_without_ray(
    cli: Callable[..., Outcome], gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = cli("score", gallery, "-o", tmp_path / "x.csv", "--engine", "ray")
    assert "pip install 'fiqa_fast[ray]'" in one_line_error(outcome)


def actors() -> list[psutil.Process]:
    """The processes of the actors of this process's own cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "Actor)" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone meanwhile
            continue
    return found


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def settled(count: Callable[[], int], quiet: float = 2.0) -> int:
    """The count when it has not changed for a while."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < quiet:
        if count() != last:
            last, since = count(), time.monotonic()
        time.sleep(0.05)
    return last
