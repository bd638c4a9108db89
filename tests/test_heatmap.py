# SPDX-License-Identifier: Apache-2.0
"""``fiqa-fast heatmap``: overlays that line up, colours that compare, files that are safe."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import face, jpeg, make_broken, one_line_error
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from PIL import Image

from fiqa_fast import Scorer, load_model
from fiqa_fast.gallery.atomic import AtomicFolder
from fiqa_fast.gallery.errors import InputError, OutputError
from fiqa_fast.gallery.sinks import Rows
from fiqa_fast.gallery.sources import Item
from fiqa_fast.heatmap import Colours, MapTable, Painter, PatchGrid, colormap, find_limits
from fiqa_fast.heatmap.choice import choose
from fiqa_fast.heatmap.contact import check_sheet
from fiqa_fast.heatmap.crops import reread
from fiqa_fast.heatmap.folder import COLOUR_BAR, INDEX, overlay_name
from fiqa_fast.heatmap.sheet import Bar, Section, Tile, balanced_columns, draw_sheet, save

PARITY = Path(__file__).parent / "data" / "parity"
# Side of the image and of a patch: with a remainder, without, one patch alone.
GEOMETRIES = [(112, 8), (112, 9), (112, 14), (140, 14), (112, 60), (20, 3)]
UNITS = {
    "calibrated": "expected cosine similarity (calibrated logit)",
    "none": "mean attention logit",
}


# Where a patch's value goes


@pytest.mark.parametrize(("image", "patch"), GEOMETRIES)
def test_a_hot_patch_lights_its_own_pixels(image: int, patch: int) -> None:
    grid = PatchGrid(image, patch, smooth=False)
    table = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    painter = Painter(grid, table, 1.0, (0.0, 1.0))
    crop = np.full((image, image, 3), 77, np.uint8)
    side = image // patch
    for row, column in itertools.product({0, side // 2, side - 1}, repeat=2):
        values = np.zeros((side, side), np.float32)
        values[row, column] = 1
        want = np.zeros_like(crop)
        want[side * patch :] = want[:, side * patch :] = 77  # what the model does not see
        want[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 255
        assert np.array_equal(painter.paint(crop, values), want)


@pytest.mark.parametrize(("image", "patch"), GEOMETRIES)
def test_smooth_maps_interpolate_between_the_centres_of_patches(image: int, patch: int) -> None:
    grid = PatchGrid(image, patch)
    side = image // patch
    values = np.random.default_rng(0).normal(size=(2, side, side)).astype(np.float32)
    got = grid.spread(values)
    size = (side * patch, side * patch)
    want = F.interpolate(torch.from_numpy(values)[None], size, mode="bilinear")[0].numpy()
    assert np.abs(got - want).max() < 1e-5
    if patch % 2:  # then a patch has a pixel at its centre
        assert np.abs(got[:, patch // 2 :: patch, patch // 2 :: patch] - values).max() < 1e-6
    assert got.min() >= values.min() - 1e-6
    assert got.max() <= values.max() + 1e-6


@pytest.mark.parametrize(("name", "heads"), [("cvlface_patch8", 2), ("arcface_patch9", 4)])
def test_the_grid_is_that_of_the_model(name: str, heads: int) -> None:
    """A change of one patch's pixels shows most at its own place in the map, one of the pixels
    beyond the grid nowhere."""
    model = load_model(PARITY / f"{name}.pt", {"num_heads": heads})
    scorer = Scorer(model, outputs=("score", "patch_map"), exit=1, dtype="float32")
    grid = PatchGrid(model.config.img_size, model.config.patch_size, smooth=False)
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8).repeat(3, 1, 1, 1)
    row, column, patch = 2, 9, model.config.patch_size
    images[1, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] ^= 255
    images[2, :, grid.covered :] ^= 255
    images[2, :, :, grid.covered :] ^= 255
    maps = scorer(images).patch_map
    assert maps is not None
    assert torch.equal(maps[2], maps[0])
    change = grid.spread((maps[1] - maps[0]).abs().numpy())
    y, x = np.unravel_index(change.argmax(), change.shape)
    assert (y // patch, x // patch) == (row, column)


# Colours


@pytest.mark.parametrize("name", ["viridis", "magma", "twilight_shifted", "tab10", "coolwarm_r"])
def test_colours_are_matplotlib_s(name: str) -> None:
    low, high = -1.5, 2.25
    values = np.random.default_rng(0).uniform(-2, 3, 20000).astype(np.float32)
    values[:4] = low, high, np.nextafter(np.float32(high), 0), -50
    colours = Colours(colormap(name), low, high)
    got = colours.table[colours.index(values)]
    want = matplotlib.colormaps[name](Normalize(low, high)(values), bytes=True)[:, :3]
    assert np.array_equal(got, want)


def test_blending() -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(0, 256, (20, 20, 3), np.uint8)
    values = rng.normal(size=(6, 6)).astype(np.float32)
    table = colormap("viridis")
    grid = PatchGrid(20, 3, smooth=False)

    def paint(alpha: float) -> np.ndarray:
        return Painter(grid, table, alpha, (-1.0, 1.0)).paint(crop, values)

    assert np.array_equal(paint(0), crop)
    colours = table[Colours(table, -1.0, 1.0).index(values)].repeat(3, 0).repeat(3, 1)
    assert np.array_equal(paint(1)[:18, :18], colours)
    mixed = crop[:18, :18] * 0.7 + colours * 0.3
    assert np.abs(paint(0.3)[:18, :18] - mixed).max() <= 0.501
    assert np.array_equal(paint(0.3)[18:], crop[18:])


def test_limits() -> None:
    maps = np.random.default_rng(0).normal(size=(50, 4, 4)).astype(np.float32)
    assert find_limits(maps, (0, 100), None, None) == (maps.min(), maps.max())
    got = find_limits(maps, (5, 90), None, None)
    assert got == pytest.approx(np.percentile(maps, (5, 90)))
    assert find_limits(maps, (5, 90), -9.0, None) == (-9.0, got[1])
    assert find_limits(maps, (5, 90), -9.0, 7.0) == (-9.0, 7.0)
    assert find_limits(np.ones((2, 3, 3), np.float32), (1, 99), None, None) == (0.5, 1.5)
    with pytest.raises(InputError, match="would run from 9 to"):
        find_limits(maps, (1, 99), 9.0, None)


def test_limits_of_many_images_are_of_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the values in a fixed stride could be one patch of every image."""
    monkeypatch.setattr("fiqa_fast.heatmap.colours._SAMPLE", 1000)
    maps = np.tile(np.arange(16, dtype=np.float32).reshape(4, 4), (5000, 1, 1))
    assert find_limits(maps, (1, 99), None, None) == (0, 15)


# Sheets


def text_of(figure: Any) -> list[Any]:
    return [text for axes in figure.axes for text in axes.texts] + [figure.axes[-1].xaxis.label]


@pytest.mark.parametrize("count", [1, 3, 30])
@pytest.mark.parametrize("columns", [(), ("crop", "head 0", "head 1")])
def test_labels_neither_overlap_nor_leave_the_sheet(count: int, columns: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    names = ("W" * 60, "$\\frac$.jpg", "line\nbreak\x01.jpg", "M.png")
    tiles = [
        Tile(rng.integers(0, 256, (112, 112, 3), np.uint8), (f"#{i}  -10.967", names[i % 4]))
        for i in range(count * len(columns or "x"))
    ]
    width = len(columns) or balanced_columns(count)
    rows = [tiles[at : at + width] for at in range(0, len(tiles), width)]
    sections = [Section(rows, "best", columns), Section(rows, "worst", columns)]
    title = "model: attn-fiqa, mean, exit 12, depth fusion, published scores; maps per head" * 2
    bar = Bar(colormap("viridis"), (-1.0, 2.0), UNITS["calibrated"])
    figure = draw_sheet(sections, 112, title, bar)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in text_of(figure)]
    ticks = figure.axes[-1].get_xticklabels()
    boxes += [tick.get_window_extent(renderer) for tick in ticks if tick.get_text()]
    assert len(boxes) > 2 * len(tiles)
    width_, height = figure.bbox.width, figure.bbox.height
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width_
        assert 0 <= box.y0 < box.y1 <= height
    for a, b in itertools.combinations(boxes, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
    assert figure.axes[-1].get_xlabel() == UNITS["calibrated"]


def test_tiles_are_drawn_pixel_by_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 200, (12, 112, 112, 3), np.uint8)
    tiles = [Tile(p, ("0.5", "name")) for p in pixels]
    rows = [tiles[:5], tiles[5:10], tiles[10:]]
    bar = Bar(colormap("viridis"), (0.0, 1.0), "unit")
    save(draw_sheet([Section(rows)], 112, "title", bar), str(tmp_path / "s.png"))
    sheet = np.array(Image.open(tmp_path / "s.png").convert("RGB"))
    corners = np.argwhere((sheet[:-1, :-1] == pixels[6, 0, 0]).all(-1))
    found = [
        (y, x) for y, x in corners if np.array_equal(sheet[y : y + 112, x : x + 112], pixels[6])
    ]
    assert len(found) == 1
    y, x = found[0]
    assert np.array_equal(sheet[y : y + 112, x + 118 : x + 230], pixels[7])
    assert (sheet[y : y + 112, x + 112 : x + 118] == 255).all()


def test_columns_leave_few_places_empty() -> None:
    assert [balanced_columns(n) for n in (1, 2, 4, 9, 10, 12, 40, 100)] == [
        *(1, 2, 2, 3, 5, 4, 8, 10)
    ]  # fmt: skip
    with pytest.raises(OutputError, match="at most 500 such images, and there are 501"):
        check_sheet(501, [], 112)
    check_sheet(500, [], 112)
    with pytest.raises(OutputError, match=r"at most 100 .* --best, --worst or --limit"):
        check_sheet(101, ["a", "b", "c", "d"], 112)


def svg_texts(path: Path) -> list[str]:
    """matplotlib writes each text as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


# The command


@pytest.fixture(scope="module")
def starter() -> Any:
    return load_model("starter")


def test_overlays(cli: Any, gallery: Path, tmp_path: Path, starter: Any) -> None:
    """Against matplotlib and torch's interpolation, with one scale for all files."""
    outcome = cli("heatmap", gallery, "-o", tmp_path / "out", "--alpha", 0.4, "--cmap", "magma")
    assert outcome.status == 0, outcome.err
    assert "7 of 7 images" in outcome.err
    assert UNITS["calibrated"] in outcome.err
    paths = sorted(gallery.iterdir())
    result = Scorer(starter, outputs=("score", "patch_map"))(paths)
    maps = result.patch_map.numpy()
    low, high = np.percentile(maps, (1, 99))
    with open(tmp_path / "out" / INDEX, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [path.name for path in paths]
    for path, values, row, score in zip(paths, maps, rows, result.score, strict=True):
        assert float(row["vmin"]) == pytest.approx(low, rel=1e-6)
        assert float(row["vmax"]) == pytest.approx(high, rel=1e-6)
        assert np.float32(row["score"]) == score.numpy()
        assert row["overlay"] == f"{path.name}.png"
        got = np.array(Image.open(tmp_path / "out" / row["overlay"])).astype(float)
        smooth = F.interpolate(torch.from_numpy(values)[None, None], (112, 112), mode="bilinear")
        tint = matplotlib.colormaps["magma"](Normalize(low, high)(smooth[0, 0].numpy()))
        want = np.array(Image.open(path)) * 0.6 + tint[..., :3] * 255 * 0.4
        # A colour at the edge of two may be either; they are neighbours.
        assert np.abs(got - want).max() < 4
        assert np.abs(got - want).mean() < 0.35
    bar = svg_texts(tmp_path / "out" / COLOUR_BAR)
    assert UNITS["calibrated"] in bar
    assert "starter: attn-fiqa, mean, exit 8, calibrated by its gauge" in bar


def test_each_image_s_own_scale(cli: Any, gallery: Path, tmp_path: Path, starter: Any) -> None:
    args = ("--scale", "image", "--alpha", 1, "--blocky", "--quiet")
    assert cli("heatmap", gallery, "-o", tmp_path / "out", *args).err == ""
    assert not (tmp_path / "out" / COLOUR_BAR).exists()
    paths = sorted(gallery.iterdir())
    maps = Scorer(starter, outputs=("patch_map",))(paths).patch_map.numpy()
    table = colormap("viridis")
    with open(tmp_path / "out" / INDEX, newline="") as file:
        limits = [(float(row["vmin"]), float(row["vmax"])) for row in csv.DictReader(file)]
    assert limits == [pytest.approx((m.min(), m.max()), rel=1e-6) for m in maps]
    got = np.array(Image.open(tmp_path / "out" / "3.png.png"))
    y, x = np.unravel_index(maps[3].argmax(), (8, 8))
    assert (got[y * 14 : (y + 1) * 14, x * 14 : (x + 1) * 14] == table[-1]).all()
    assert cli("heatmap", gallery, "-o", tmp_path / "s.svg", *args).status == 0
    assert any("each map on its own scale" in text for text in svg_texts(tmp_path / "s.svg"))


@pytest.mark.parametrize(
    ("per", "output"), [("image", "patch_map"), ("head", "head_maps"), ("block", "exit_maps")]
)
def test_arrays_are_the_scorer_s(
    cli: Any, gallery: Path, tmp_path: Path, starter: Any, per: str, output: str
) -> None:
    (gallery / "3.png").write_bytes(b"")
    outputs = ("-o", tmp_path / "maps.npz", "-o", tmp_path / "maps.npy")
    outcome = cli("heatmap", gallery, *outputs, "--per", per, "--batch-size", 2)
    assert outcome.status == 0, outcome.err
    assert "3.png: wanted a JPEG" in outcome.err
    assert "6 of 7 images" in outcome.err
    paths = [path for path in sorted(gallery.iterdir()) if path.name != "3.png"]
    want = Scorer(starter, outputs=("score", output))(paths)
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as got:
        assert got["keys"].tolist() == [path.name for path in paths]
        assert got["maps"].dtype == got["score"].dtype == np.float32
        assert np.array_equal(got["maps"], getattr(want, output))
        assert np.array_equal(got["score"], want.score)
        description = json.loads(str(got["description"]))
    assert description["exit"] == 8
    assert description["unit"] == UNITS["none" if per == "head" else "calibrated"]
    records = np.load(tmp_path / "maps.npy", allow_pickle=False)
    assert records["key"].tolist() == [path.name for path in paths]
    assert np.array_equal(records["map"], getattr(want, output))
    assert np.array_equal(records["score"], want.score)


def test_best_and_worst(cli: Any, gallery: Path, tmp_path: Path, starter: Any) -> None:
    (gallery / "00.png").write_bytes(b"")  # numbers count it, maps do not
    args = ("--best", 3, "--worst", 2)
    outputs = ("-o", tmp_path / "s.svg", "-o", tmp_path / "m.npz")
    assert cli("heatmap", gallery, *outputs, *args).status == 0
    paths = [path for path in sorted(gallery.iterdir()) if path.name != "00.png"]
    scores = Scorer(starter)(paths).score.numpy()
    order = np.argsort(-scores, kind="stable")
    drawn = [(rank, order[rank - 1]) for rank in (1, 2, 3, 7, 6)]
    with np.load(tmp_path / "m.npz") as arrays:
        assert arrays["keys"].tolist() == [paths[i].name for _, i in drawn]
        assert np.array_equal(arrays["score"], [scores[i] for _, i in drawn])
    texts = svg_texts(tmp_path / "s.svg")
    captions = [text for text in texts if text.startswith("#")]
    assert captions == [f"#{rank}  {scores[i]:.3f}" for rank, i in drawn]
    assert [text for text in texts if text.endswith(".png")] == [paths[i].name for _, i in drawn]
    assert {"best 3 of 7", "worst 2 of 7", UNITS["calibrated"]} <= set(texts)
    # The scale is the whole run's: an overlay is the same with all and with few.
    assert cli("heatmap", gallery, "-o", tmp_path / "all").status == 0
    assert cli("heatmap", gallery, "-o", tmp_path / "few", "--best", 1).status == 0
    (few,) = (tmp_path / "few").glob("*.png")
    assert few.name == f"{paths[order[0]].name}.png"
    assert few.read_bytes() == (tmp_path / "all" / few.name).read_bytes()
    assert cli("heatmap", gallery, "-o", tmp_path / "n.svg", *args, "--no-names").status == 0
    assert not [text for text in svg_texts(tmp_path / "n.svg") if text.endswith(".png")]


def test_equal_scores_keep_the_gallery_s_order() -> None:
    table = MapTable("m")
    score = np.array([1, 2, 1, 2, np.nan], np.float32)
    errors = [None, None, None, None, "broken"]
    table.write(Rows(list("abcde"), errors, score, {"m": np.zeros((5, 2, 2), np.float32)}))
    table.commit()
    best, worst = choose(table, 3, 9)
    assert best.numbers == [1, 3, 0]
    assert worst.numbers == [2, 0, 3, 1]
    assert worst.ranks == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("args", "names", "unit"),
    [
        (["--per", "head"], [f"head {n}" for n in range(4)], UNITS["none"]),
        (["--per", "block"], [f"block {n}" for n in range(1, 9)], UNITS["calibrated"]),
        (["--per", "block", "--gauge", "none"], [f"block {n}" for n in range(1, 9)], UNITS["none"]),
        (["--gauge", "none"], [], UNITS["none"]),
    ],
)
def test_rows_of_heads_and_blocks(
    cli: Any, gallery: Path, tmp_path: Path, args: list[str], names: list[str], unit: str
) -> None:
    outputs = ("-o", tmp_path / "s.svg", "-o", tmp_path / "out/")
    outcome = cli("heatmap", gallery, *outputs, "--limit", 2, *args)
    assert outcome.status == 0, outcome.err
    texts = svg_texts(tmp_path / "s.svg")
    assert [text for text in texts if text in names] == names
    assert unit in texts
    with Image.open(tmp_path / "out" / "1.png.png") as strip:
        tiles = len(names) + 1 if names else 1
        assert strip.size == (tiles * 114 - 2, 112)
        if names:  # the first is the crop as it is
            crop = np.array(Image.open(gallery / "1.png"))
            assert np.array_equal(np.array(strip)[:, :112], crop)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        ["0.png.png", "1.png.png", INDEX, COLOUR_BAR]
    )


@pytest.mark.parametrize(
    ("suffix", "start"),
    [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("jpg", b"\xff\xd8"), ("svg", b"<?xml")],
)
def test_every_kind_of_sheet(
    cli: Any, gallery: Path, tmp_path: Path, suffix: str, start: bytes
) -> None:
    path = tmp_path / f"s.{suffix}"
    path.write_bytes(b"old")  # a sheet replaces the one before
    assert cli("heatmap", gallery, "-o", path, "--limit", 1).status == 0
    assert path.read_bytes().startswith(start)
    again = tmp_path / f"again.{suffix}"
    assert cli("heatmap", gallery, "-o", again, "--limit", 1).status == 0
    assert again.read_bytes() == path.read_bytes()


def test_a_model_whose_patches_leave_a_remainder(cli: Any, gallery: Path, tmp_path: Path) -> None:
    model = ("--model", PARITY / "arcface_patch9.pt", "--architecture", "num_heads=4")
    args = ("--alpha", 1, "--limit", 1, "--quiet")
    assert cli("heatmap", gallery, "-o", tmp_path / "out", *model, *args).status == 0
    crop = np.array(Image.open(gallery / "0.png"))
    painted = np.array(Image.open(tmp_path / "out" / "0.png.png"))
    assert np.array_equal(painted[108:], crop[108:])
    assert np.array_equal(painted[:, 108:], crop[:, 108:])
    assert not np.array_equal(painted[:108, 107], crop[:108, 107])


# What goes wrong


def test_broken_images_are_named_and_left_out(cli: Any, gallery: Path, tmp_path: Path) -> None:
    make_broken(gallery / "broken", jpeg())
    outputs = ("-o", tmp_path / "s.svg", "-o", tmp_path / "out")
    outcome = cli("heatmap", gallery, *outputs)
    assert outcome.status == 0
    assert "7 of 57 images" in outcome.err
    assert "50 left out; the reasons stand above" in outcome.err
    assert outcome.err.count("broken/") == 50
    names = [text for text in svg_texts(tmp_path / "s.svg") if text.endswith(".png")]
    assert names == [f"{i}.png" for i in range(7)]
    with open(tmp_path / "out" / INDEX, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["error"]) for row in rows) == 50
    assert sum(bool(row["overlay"]) for row in rows) == 7
    strict = cli("heatmap", gallery, "-o", tmp_path / "t.svg", "--strict")
    assert strict.status == 1


def test_images_that_vanish_between_the_passes(tmp_path: Path) -> None:
    paths = [face(tmp_path / f"{i}.png", i) for i in range(5)]
    errors: list[tuple[str, str]] = []
    table = MapTable("m", on_error=lambda key, error: errors.append((key, error)))
    keys = [path.name for path in paths]
    maps = np.zeros((5, 2, 2), np.float32)
    table.write(Rows(keys, [None] * 5, np.zeros(5, np.float32), {"m": maps}))
    table.commit()
    paths[1].unlink()
    items = [Item(path.name, partial(path.open, "rb")) for path in paths]
    items = [*items[:3], items[4]]
    made = dict(reread(items, table, [0, 1, 3, 4], 112, lambda n, crop: crop.shape, 2))
    assert made == {0: (112, 112, 3), 1: None, 3: None, 4: None}
    assert [key for key, _ in errors] == ["1.png", "3.png", "4.png"]
    assert table.failed == 3


HOSTILE = (
    "../up.jpg", "../../etc/x", "/abs/x.jpg", "abs/x.jpg", "a//b", "a/%/b", "a/./b", "a/b", "", "%",
    "a", "a.png", "a.png/b", "a.png%/b", "heatmap.csv/x", "colourbar.svg/y",
    "n\nl", "n%0Al", "nul\0",
    "x" * 300, "x" * 301, "é" * 150, "é" * 151, "c:\\x", "...", "..", ".", "%2E",
)  # fmt: skip


def check_names(keys: tuple[str, ...]) -> None:
    names = {key: overlay_name(key) for key in keys}
    assert len(set(names.values())) == len(set(keys))
    files = set(names.values())
    for name in files:
        parts = name.split("/")
        assert all(part.strip(".") and len(part.encode()) < 256 for part in parts)
        assert all(part.isprintable() and "\\" not in part for part in parts)
        folders = {"/".join(parts[:n]) for n in range(1, len(parts))}
        assert not folders & (files | {INDEX, COLOUR_BAR})
        assert name.endswith(".png")


def test_names_of_overlays_stay_inside_and_apart() -> None:
    check_names(HOSTILE)


@given(st.lists(st.text("a.%/\\p ng\n", max_size=9), max_size=8))
def test_names_of_any_keys(keys: list[str]) -> None:
    check_names(tuple(set(keys)))


def test_hostile_keys_write_nothing_outside(cli: Any, gallery: Path, tmp_path: Path) -> None:
    lines = ["../in/0.png", str(gallery / "1.png"), "2.png", "./2.png", "../in/../in/3.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    before = sorted(tmp_path.rglob("*"))
    outcome = cli("heatmap", tmp_path / "list.txt", "--root", gallery, "-o", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert "5 of 5 images" in outcome.err
    inside = list((tmp_path / "out").rglob("*.png"))
    assert len(inside) == 5
    new = set(tmp_path.rglob("*")) - set(before)
    assert all((tmp_path / "out") in path.parents or path == tmp_path / "out" for path in new)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["nowhere", "-o", "s.png"], "nowhere: no such file or directory"),
        (["empty", "-o", "s.png"], "no image found in empty"),
        (["in"], "Missing option '-o' / '--output'"),
        (["in", "-o", "no/s.png"], "does not exist; create it first"),
        (["in", "-o", "no/out/"], "does not exist; create it first"),
        (
            ["in", "-o", "maps.mat"],
            "wanted .png, .pdf, .svg, .jpg, .jpeg for a sheet, .npz or .npy",
        ),
        (["in", "-o", "full"], "full: wanted a new or an empty folder"),
        (["in", "-o", "in/s.png"], "it lies in the input in, where it would be taken for an image"),
        (["in", "-o", "in"], "in: wanted a new or an empty folder"),
        (["in/0.png", "-o", "in/0.png"], "this is an input too"),
        (["in", "-o", "s.png", "-o", "./s.png"], "named twice"),
        (["in", "-o", "s.png", "--cmap", "virdis"], "such as viridis"),
        (["in", "-o", "s.png", "--cmap", "Plasma"], "such as plasma"),
        (
            ["in", "-o", "s.png", "--cmap", "qqqq"],
            "wanted a matplotlib colormap such as viridis, m",
        ),
        (["in", "-o", "s.png", "--alpha", "1.5"], "0<=x<=1"),
        (["in", "-o", "s.png", "--alpha", "nan"], "--alpha"),
        (["in", "-o", "s.png", "--percentiles", "99,1"], "wanted LOW,HIGH with 0 <= LOW < HIGH"),
        (["in", "-o", "s.png", "--percentiles", "x"], "wanted LOW,HIGH with 0 <= LOW < HIGH"),
        (["in", "-o", "s.png", "--vmin", "2", "--vmax", "1"], "--vmin must be below --vmax"),
        (["in", "-o", "s.png", "--vmin", "99"], "the scale would run from 99 to"),
        (["in", "-o", "s.png", "--vmax", "inf"], "wanted a finite number"),
        (["in", "-o", "s.png", "--vmin", "-1e300"], "wanted a finite number"),
        (["in", "-o", "s.png", "--vmin", "1", "--scale", "image"], "--vmin belongs to --scale set"),
        (["in", "-o", "s.png", "--per", "patch"], "--per"),
        (["in", "-o", "s.png", "--best", "0"], "--best"),
        (["in", "-o", "s.png", "--method", "vit-fiqa"], "use attn-fiqa"),
        (["in", "-o", "s.png", "--exit", "99"], "99"),
        (["broken.jpg", "-o", "s.png"], "none of 1 images could be scored: nothing to draw"),
        (
            ["many.txt", "-o", "s.png"],
            "at most 500 such images, and there are 501: choose some with",
        ),
        (["many.txt", "-o", "s.png", "--per", "block", "--best", "56"], "at most 55 such images"),
    ],
)
def test_refusals_are_one_line(
    cli: Any, gallery: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], match: str
) -> None:
    monkeypatch.chdir(gallery.parent)
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/mine.txt").write_text("kept")
    Path("broken.jpg").write_bytes(b"")
    Path("many.txt").write_text("in/0.png\n" * 501)
    before = sorted(Path().rglob("*"))
    outcome = cli("heatmap", *args)
    if args[0] == "broken.jpg":  # the image is named first
        assert "broken.jpg: wanted a JPEG" in outcome.err
        outcome = outcome._replace(err=outcome.err.splitlines()[-1])
    assert match in one_line_error(outcome)
    assert sorted(Path().rglob("*")) == before


def test_a_quality_head_has_no_maps(cli: Any, gallery: Path, tmp_path: Path) -> None:
    model = ("--model", PARITY / "vitfiqa_token.pt", "--architecture", "num_heads=2")
    outcome = cli("heatmap", gallery, "-o", tmp_path / "s.png", *model, "--method", "vit-fiqa")
    assert "vit-fiqa has no patch_map" in one_line_error(outcome)


def test_without_matplotlib(
    cli: Any, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    message = one_line_error(cli("heatmap", gallery, "-o", tmp_path / "s.png"))
    assert "pip install 'fiqa_fast[evaluate]'" in message
    assert cli("heatmap", gallery, "-o", tmp_path / "maps.npz").status == 0


def test_a_run_that_fails_leaves_nothing(
    cli: Any, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Painter, "paint", fail)
    before = sorted(tmp_path.rglob("*"))
    outcome = cli("heatmap", gallery, "-o", tmp_path / "out", "--quiet")
    assert "No space left on device" in one_line_error(outcome)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_temporary_folder_is_named(
    cli: Any, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")  # as a disk would: the error comes when a buffer is flushed
    if not full.exists():
        pytest.skip("there is no /dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full.open("r+b"))
    outcome = cli("heatmap", gallery, "-o", tmp_path / "s.png", "--quiet")
    message = one_line_error(outcome)
    assert "(no space left on device); name a folder with room in TMPDIR" in message


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
    for finish in ("abort", "commit"):
        folder = AtomicFolder(target)
        Path(folder.path, "a").mkdir()
        Path(folder.path, "a", "b.txt").write_text("whole")
        assert not list(target.glob("a"))
        getattr(folder, finish)()
        assert not [p for p in [*tmp_path.iterdir(), *tmp_path.glob("out/.*")] if ".tmp" in p.name]
    assert (target / "a" / "b.txt").read_text() == "whole"
    folder.abort()
    assert (target / "a" / "b.txt").exists()
    with pytest.raises(OutputError, match="wanted a new or an empty folder"):
        AtomicFolder(target)


def test_help_has_examples(cli: Any) -> None:
    outcome = cli("heatmap", "--help")
    assert outcome.status == 0
    assert "fiqa-fast heatmap crops/ -o sheet.png --best 20 --worst 20" in outcome.out
    assert "heatmap" in cli("--help").out
