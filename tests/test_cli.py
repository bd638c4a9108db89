# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: tables, messages, exit statuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import fiqa_fast
from fiqa_fast import FaceViT, ViTConfig
from fiqa_fast.cli import main
from fiqa_fast.cli.options import OUTPUTS, parse_architecture
from fiqa_fast.images import load_image

COMMAND = [sys.executable, "-c", "from fiqa_fast.cli import main; main()"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process."""

    def invoke(*args: object) -> Outcome:
        handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)}
        try:
            with pytest.raises(SystemExit) as caught:
                main([str(arg) for arg in args])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return Outcome(int(caught.value.code or 0), out, err)

    return invoke


def face(path: Path, seed: int, size: int = 112) -> Path:
    """A picture that differs from its neighbours in detail, and so in score."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3 + seed % 9, 3 + seed % 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, "PNG")
    return path


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    for i in range(7):
        face(tmp_path / "in" / f"{i}.png", i)
    return tmp_path / "in"


def make_broken(folder: Path, sample: bytes) -> list[str]:
    """Fifty files that are no image, of many kinds; ``sample`` is a good JPEG. Returns the keys."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8)).save(buffer, "PNG")
    png = buffer.getvalue()
    bomb = b"P6\n60000 60000\n255\n" + b"\0" * 100
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"this is not an image\n",
        "page.png": b"<!DOCTYPE html><html><body>404</body></html>",
        "numbers.csv": b"path,score\n",
        "archive.zip": b"PK\x03\x04" + bytes(60),
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "name with spaces.jpg": b"x",
        'comma, "quote".jpg': b"x",
        "line\nbreak.jpg": b"x",
        "bomb.ppm": bomb,
        "bomb.png": png[:16] + (60000).to_bytes(4, "big") * 2 + png[24:],
        "float.tif": _tiff("F"),
        "integer.tif": _tiff("I"),
        "only header.png": png[:8],
        "flipped bits.png": png[:60] + bytes(255 - b for b in png[60:2000]) + png[2000:],
    }
    for i in range(10):
        contents[f"cut{i}.jpg"] = sample[: len(sample) * i // 10]
        contents[f"cut{i}.png"] = png[: len(png) * (i + 1) // 11]
        contents[f"noise{i}.jpg"] = rng.bytes(1000 + i)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / os.fsdecode(b"not utf8 \xff\xfe.jpg")).write_bytes(b"x")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "link to empty.jpg").symlink_to("empty.jpg")
    # These are no inputs, and must neither hang nor count.
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / ".hidden.jpg").write_bytes(b"x")
    keys = [*contents, "not utf8 \\xff\\xfe.jpg", "dangling.jpg", "self.jpg", "link to empty.jpg"]
    assert len(keys) == 50
    return keys


def _tiff(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (112, 112)).save(buffer, "TIFF")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (112, 112, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(path: Path) -> dict[str, tuple[Any, Any]]:
    columns = pq.read_table(path).to_pydict()
    rows = zip(columns["path"], columns["score"], columns["error"], strict=True)
    return {key: (score, error) for key, score, error in rows}


def one_line_error(outcome: Outcome) -> str:
    assert outcome.status == 2
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("fiqa-fast: error: ")
    return lines[0].removeprefix("fiqa-fast: error: ")


# What a run writes


def test_score_agrees_with_the_scorer(cli: Any, gallery: Path) -> None:
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    direct = scorer(sorted(gallery.iterdir())).score
    assert direct is not None
    kind = "starter: attn-fiqa, mean, exit 8, calibrated by its gauge; "
    for suffix in ("parquet", "csv", "jsonl", "txt"):
        path = gallery / f"out.{suffix}"  # in the gallery, where it must not be an input
        outcome = cli("score", gallery, "--ext", "png", "-o", path, "--batch-size", 3)
        assert outcome.status == 0, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith(kind)
        assert "7 of 7 images scored" in outcome.err
        assert f"written to {path}" in outcome.err
    names = [f"{i}.png" for i in range(7)]
    assert list(table(gallery / "out.parquet")) == names
    scores = [score for score, _ in table(gallery / "out.parquet").values()]
    assert np.array_equal(np.float32(scores), direct.numpy())
    with open(gallery / "out.csv", newline="") as file:
        assert np.array_equal(np.float32([r["score"] for r in csv.DictReader(file)]), direct)
    lines = (gallery / "out.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == names
    assert np.array_equal(np.float32([line.split()[1] for line in lines]), direct.numpy())


def test_a_second_run_does_not_score_the_first_one_s_table(cli: Any, gallery: Path) -> None:
    path = gallery / "out.parquet"
    tables = []
    for _ in range(2):
        assert cli("score", gallery, "-o", path, "--strict").status == 0
        tables.append(table(path))
    assert tables[0] == tables[1]


def test_parquet_says_what_the_scores_mean(cli: Any, gallery: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    args = ("--gauge", "none", "--exit", 4, "--dtype", "float32", "--quiet")
    assert cli("score", gallery, "-o", path, *args) == Outcome(0, "", "")
    description = json.loads(pq.read_schema(path).metadata[b"fiqa_fast"])
    assert description["exit"] == 4
    assert description["dtype"] == "float32"
    assert description["version"] == fiqa_fast.__version__
    model = fiqa_fast.load_model("starter")
    scorer = fiqa_fast.Scorer(model, exit=4, dtype="float32", gauge=None)
    direct = scorer(sorted(gallery.iterdir())).score
    assert direct is not None
    scores = [score for score, _ in table(path).values()]
    assert np.array_equal(np.float32(scores), direct.numpy())


def test_vector_outputs(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (gallery / "3.png").write_bytes(b"")
    names = ("embedding", "patch_map", "query_map", "head_scores", "exit_scores")
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path, "--outputs", ",".join(names))
    assert outcome.status == 0, outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"), outputs=("score", *names))
    good = [p for p in sorted(gallery.iterdir()) if p.name != "3.png"]
    direct = scorer(good)
    got = pq.read_table(path)
    assert got.column_names == ["path", "score", "error", *names]
    for name in names:
        expected = getattr(direct, name).numpy()
        values = got[name].to_pylist()
        assert values.pop(3) is None
        assert np.array_equal(np.float32(values), expected.reshape(len(good), -1))
        shape = json.loads(got.schema.field(name).metadata[b"shape"])
        assert shape == list(expected.shape[1:])
    assert cli("score", gallery, "-o", tmp_path / "o.jsonl", "--outputs", "patch_map").status == 0
    record = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
    assert np.array_equal(np.float32(record["patch_map"]), direct.patch_map[0].numpy())


def test_without_output_scores_go_to_stdout(cli: Any, gallery: Path) -> None:
    (gallery / "3.png").write_bytes(b"")
    outcome = cli("score", gallery, "--quiet")
    lines = [line.rsplit(" ", 1) for line in outcome.out.splitlines()]
    assert [name for name, _ in lines] == [f"{i}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert all(len(score.partition(".")[2]) == 6 for _, score in lines)
    assert outcome.err.startswith("3.png: wanted a JPEG")
    assert len(outcome.err.splitlines()) == 1
    assert outcome.status == 0


# Bad images


def test_fifty_broken_files_lose_nothing(cli: Any, gallery: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.parquet"
    assert cli("score", gallery, "-o", before).status == 0
    keys = make_broken(gallery / "broken", jpeg())
    path = tmp_path / "out.parquet"
    outcome = cli("score", gallery, "-o", path)
    assert outcome.status == 0
    assert "7 of 57 images scored" in outcome.err
    assert "50 without a score" in outcome.err
    assert "2 passed over" in outcome.err
    rows = table(path)
    assert list(rows)[:7] == [f"{i}.png" for i in range(7)]
    assert set(rows) == {f"{i}.png" for i in range(7)} | {f"broken/{key}" for key in keys}
    for key, (score, error) in rows.items():
        if key.startswith("broken/"):
            assert score is None
            assert error
            assert "\n" not in error
        else:
            assert (score, error) == table(before)[key]


def test_strict_reports_failures_by_its_status(cli: Any, gallery: Path, tmp_path: Path) -> None:
    assert cli("score", gallery, "--strict", "-o", tmp_path / "a.csv").status == 0
    (gallery / "bad.jpg").write_bytes(b"")
    outcome = cli("score", gallery, "--strict", "-o", tmp_path / "a.csv")
    assert outcome.status == 1
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 9


def test_text_tables_have_their_errors_told(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (gallery / "bad.jpg").write_bytes(b"")
    outcome = cli("score", gallery, "-o", tmp_path / "a.txt")
    assert "bad.jpg: wanted a JPEG" in outcome.err
    assert (tmp_path / "a.txt").read_text().splitlines()[-1] == "bad.jpg nan"


def test_lists_with_missing_files(cli: Any, gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0.png\r\n\nmissing.png\n1.png\n")
    path = tmp_path / "out.parquet"
    assert cli("score", tmp_path / "list.txt", "--root", gallery, "-o", path).status == 0
    rows = table(path)
    assert list(rows) == ["0.png", "missing.png", "1.png"]
    assert rows["missing.png"] == (None, "no such file")


def test_other_sizes_are_resized_and_mentioned(cli: Any, tmp_path: Path) -> None:
    face(tmp_path / "in" / "a.png", 1, 96)
    face(tmp_path / "in" / "b.png", 1, 300)
    path = tmp_path / "out.parquet"
    outcome = cli("score", tmp_path / "in", "-o", path)
    assert "2 resized to 112 x 112 (1 reduced more than twofold)" in outcome.err
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    direct = scorer(load_image(tmp_path / "in" / "a.png", 112)[None]).score
    assert direct is not None
    assert table(path)["a.png"][0] == direct[0].item()


# Bad requests


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["score", "nowhere"], "nowhere: no such file or directory"),
        (["score", "in", "-o", "out.xlsx"], "wanted a name ending in .parquet, .csv, .jsonl or .t"),
        (["score", "in", "-o", "no/out.csv"], "does not exist; create it first"),
        (["score", "in", "-o", "out.csv", "--outputs", "embedding"], "use -o with a .parquet or"),
        (["score", "in", "--outputs", "embedding"], "the terminal cannot hold embedding"),
        (["score", "in", "--outputs", "nonsense"], "wanted some of score, embedding, patch_map, q"),
        (["score", "in", "in"], "named twice"),
        (["score", "in", "--ext", "gif"], "no image with the suffix gif found"),
        (["score", "in", "--model", "nowhere.pt"], "nowhere.pt"),
        (["score", "in", "--model", "in/0.png"], "0.png"),
        (["score", "in", "--gauge", "nowhere.safetensors"], "nowhere.safetensors"),
        (["score", "in", "--architecture", "heads=3"], "wanted KEY=VALUE with KEY one of patch_si"),
        (["score", "in", "--architecture", "depth=x"], "depth=x cannot be read"),
        (["score", "in", "--architecture", "resnet"], "resnet"),
        (["score", "in", "--exit", "99"], "99"),
        (["score", "in", "--exit", "0"], "0"),
        (["score", "in", "--heads", "many"], "wanted all, average or a head number, got 'many'"),
        (["score", "in", "--heads", "77"], "77"),
        (["score", "in", "--method", "magic"], "magic"),
        (["score", "in", "--device", "toaster"], "toaster"),
        (["score", "in", "--dtype", "float7"], "float7"),
        (["score", "in", "--batch-size", "0"], "batch-size"),
        (["score", "in", "--nonsense"], "nonsense"),
        (["score"], None),
        (["nonsense"], "nonsense"),
        (["bench", "--dtype", "float7"], "wanted some of float32"),
        (["bench", "-o", "no/out.json"], "does not exist"),
        (["models", "extra"], "extra"),
    ],
)
def test_bad_requests_are_one_line(
    cli: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], match: str | None
) -> None:
    monkeypatch.chdir(gallery.parent)
    outcome = cli(*args)
    if match is None:  # no argument at all: help is the better answer
        assert outcome.status == 2
        assert "Usage: fiqa-fast score" in outcome.err
    else:
        assert match in one_line_error(outcome)
    assert sorted(os.listdir()) == ["in"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(cli: Any, gallery: Path) -> None:
    assert "cuda" in one_line_error(cli("score", gallery, "--device", "cuda")).lower()


def test_a_failing_scorer_leaves_the_old_table(
    cli: Any, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiqa_fast.scorer import Scorer

    def fail(self: Scorer, images: torch.Tensor) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate\n 2 GiB")

    monkeypatch.setattr(Scorer, "__call__", fail)
    path = tmp_path / "out.csv"
    path.write_text("old")
    message = one_line_error(cli("score", gallery, "-o", path))
    assert message.startswith("the scorer failed: RuntimeError: CUDA out of memory. Tried to alloc")
    assert message.endswith("lower --batch-size")
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in", "out.csv"]


def test_mistakes_of_ours_keep_their_traceback(
    gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fiqa_fast.gallery.runner as runner

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(AssertionError, match="a mistake"):
        main(["score", str(gallery)])


# Interrupts and pipes


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_leave_nothing_behind(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    face(tmp_path / "a.png", 0)
    (tmp_path / "list.txt").write_text("a.png\n" * 200_000)
    path = tmp_path / "out.csv"
    path.write_text("old")
    process = subprocess.Popen(
        [*COMMAND, "score", str(tmp_path / "list.txt"), "-o", str(path)],
        cwd=tmp_path,  # not the source tree, which has no compiled libraries
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(name.endswith(".tmp") for name in os.listdir(tmp_path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == ""
    assert "Traceback" not in err
    if number == signal.SIGINT:
        assert err == "fiqa-fast: interrupted\n"
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "list.txt", "out.csv"]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    face(tmp_path / "a.png", 0)
    (tmp_path / "list.txt").write_text("a.png\n" * 5000)
    process = subprocess.Popen(
        [*COMMAND, "score", str(tmp_path / "list.txt"), "--quiet"],
        cwd=tmp_path,  # not the source tree, which has no compiled libraries
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("a.png ")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


# Help and the other commands


def test_early_exits_of_a_vit_fiqa_model(cli: Any, gallery: Path, tmp_path: Path) -> None:
    config = ViTConfig(28, 16, 3, 2, 3, quality_head="token")
    torch.save(FaceViT(config).state_dict(), tmp_path / "m.pt")
    model = ("--model", tmp_path / "m.pt", "--architecture", "num_heads=2")
    for options in (["--exit", 2], ["--fusion", "depth"], ["--outputs", "exit_scores"]):
        table = tmp_path / "out.parquet"
        outcome = cli("score", gallery, "-o", table, *model, "--method", "ex-fiqa", *options)
        assert outcome.status == 0, outcome.err
        assert "ex-fiqa, exit" in outcome.err
        assert pq.read_table(table).num_rows == 7
    refused = cli("score", gallery, *model, "--method", "vit-fiqa", "--exit", 2)
    assert refused.status == 2
    assert "use ex-fiqa" in refused.err
    assert cli("score", gallery, "--method", "ex-fiqa").status == 2  # the starter has no such head


def test_help_is_there_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fiqa_fast.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'numpy', 'pyarrow', 'PIL'} & set(sys.modules)))"
    )
    for args in (["--help"], ["score", "--help"], ["bench", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, check=True
        )
        *text, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        if args[-1] == "--help":
            assert (
                "fiqa-fast score crops/" in done.stdout or "fiqa-fast bench crops/" in done.stdout
            )
        else:
            assert text == [f"fiqa-fast {fiqa_fast.__version__}"]


@pytest.mark.parametrize("name", ["score", "bench", "models", "info"])
def test_every_command_has_help_with_examples(cli: Any, name: str) -> None:
    outcome = cli(name, "--help")
    assert outcome.status == 0
    assert "Examples:" in outcome.out
    assert f"fiqa-fast {name}" in outcome.out
    assert name in cli("--help").out


def test_models(cli: Any) -> None:
    from fiqa_fast.models.registry import ARCHITECTURES

    outcome = cli("models")
    assert outcome.status == 0
    entries = json.loads(cli("models", "--json").out)
    assert list(entries) == list(ARCHITECTURES)
    for name, entry in ARCHITECTURES.items():
        assert name in outcome.out
        assert entry.source in outcome.out
        assert entry.terms in outcome.out
        assert entries[name]["config"]["num_heads"] == entry.config.num_heads


def test_info(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("info")
    assert outcome.status == 0
    for text in (fiqa_fast.__version__, torch.__version__, "cpu ", "CPU kernels", "CUDA kernels"):
        assert text in outcome.out
    assert set(json.loads(cli("info", "--json").out)) == {"versions", "devices", "kernels"}
    # Where the compiled parts are missing, it says so instead of failing.
    for name in ("_runtime", "_load"):
        monkeypatch.setitem(sys.modules, f"fiqa_fast.{name}", None)
    outcome = cli("info")
    assert outcome.status == 0
    assert "not loaded: ModuleNotFoundError" in outcome.out


@pytest.mark.parametrize("with_images", [False, True])
def test_bench(cli: Any, gallery: Path, tmp_path: Path, with_images: bool) -> None:
    path = tmp_path / "bench.json"
    inputs = [gallery] if with_images else []
    options = ("--batch-size", 2, "--repeat", 2, "--dtype", "float32,bfloat16", "-o", path)
    outcome = cli("bench", *inputs, *options)
    assert outcome.status == 0, outcome.err
    report = json.loads(path.read_text())
    assert list(report["dtypes"]) == ["float32", "bfloat16"]
    exact = report["dtypes"]["float32"]
    assert exact["published"]["max_error_over_std"] == 0
    assert exact["fiqa_fast"]["max_error_over_std"] < 1e-3
    assert exact["fiqa_fast"]["spearman"] > 0.99
    for entry in report["dtypes"].values():
        rates = [entry[name]["images_per_second"] for name in ("fiqa_fast", "published")]
        assert entry["ratio"] == pytest.approx(rates[0] / rates[1])
        assert min(rates) > 0
    assert "images/s" in outcome.out


def test_threads_reach_the_scoring_thread(
    cli: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fiqa_fast.scorer import Scorer

    call, seen = Scorer.__call__, []

    def watch(self: Scorer, images: torch.Tensor) -> Any:
        seen.append(torch.get_num_threads())
        return call(self, images)

    monkeypatch.setattr(Scorer, "__call__", watch)
    before = torch.get_num_threads()
    try:
        assert cli("score", gallery, "--threads", before + 2).status == 0
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 2]


def test_the_outputs_of_the_help_are_those_of_the_scorer() -> None:
    from fiqa_fast import scorer

    assert set(OUTPUTS) == set(scorer.OUTPUTS)


def test_architectures_are_parsed() -> None:
    assert parse_architecture(None) is None
    assert parse_architecture("cvlface_vit_small") == "cvlface_vit_small"
    assert parse_architecture("num_heads=8, mlp_ratio=2.5,qkv_bias=True") == {
        "num_heads": 8,
        "mlp_ratio": 2.5,
        "qkv_bias": True,
    }


# Real faces


@pytest.fixture
def faces() -> Path:
    root = os.environ.get("FIQA_FAST_TEST_DATA")
    if not root or not (Path(root) / "faces" / "aligned112" / "lfw").is_dir():
        pytest.skip("FIQA_FAST_TEST_DATA does not name a folder with faces/aligned112/lfw")
    return Path(root) / "faces" / "aligned112" / "lfw"


def test_real_faces_with_and_without_broken_files(cli: Any, faces: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.parquet"
    assert cli("score", faces, "-o", clean).status == 0
    rows = table(clean)
    assert len(rows) == 917
    scorer = fiqa_fast.Scorer(fiqa_fast.load_model("starter"))
    keys = list(rows)
    assert keys == sorted(keys, key=lambda key: key.split("/"))
    for start in range(0, 917, 100):
        direct = scorer([faces / key for key in keys[start : start + 100]]).score
        assert direct is not None
        got = [rows[key][0] for key in keys[start : start + 100]]
        assert np.array_equal(np.float32(got), direct.numpy())

    mixed = tmp_path / "mixed"
    shutil.copytree(faces, mixed)
    sample = (faces / keys[0]).read_bytes()
    make_broken(tmp_path / "broken", sample)
    people = sorted(p for p in mixed.iterdir() if p.is_dir())
    for i, path in enumerate(sorted((tmp_path / "broken").iterdir())):
        shutil.move(path, people[i * 7 % len(people)] / path.name)
    outcome = cli("score", mixed, "-o", tmp_path / "mixed.parquet")
    assert outcome.status == 0
    assert "917 of 967 images scored" in outcome.err
    both = table(tmp_path / "mixed.parquet")
    assert sum(score is not None for score, _ in both.values()) == 917
    assert sum(error is not None for _, error in both.values()) == 50
    assert {key: both[key] for key in keys} == rows
