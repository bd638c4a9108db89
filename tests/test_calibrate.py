# SPDX-License-Identifier: Apache-2.0
"""Fitting a gauge, against float64 numpy on stacked rows; and that every bit comes again."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import face, one_line_error
from safetensors.torch import save_file
from scipy.stats import spearmanr

import fiqa_fast
from fiqa_fast import FaceViT, Gauge, Scorer, ViTConfig, fit_gauge, load_gauge, save_gauge
from fiqa_fast.calibrate import crops, fitting, gathering, ridge, state
from fiqa_fast.calibrate.crops import Crop, Drawing, make_copies
from fiqa_fast.calibrate.moments import Moments
from fiqa_fast.calibrate.report import cheapest_exit
from fiqa_fast.calibrate.subject import FaceViTSubject
from fiqa_fast.degradations import degrade, random_degradation
from fiqa_fast.gallery.errors import OutputError
from fiqa_fast.models import state_dict_sha256
from fiqa_fast.models.gauge import gauge_bytes

CONFIG = {"patch_size": 14, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0,
          "num_classes": 8, "img_size": 56}  # fmt: skip
COUNT = 40


@pytest.fixture(scope="module")
def model() -> FaceViT:
    torch.manual_seed(0)
    vit = FaceViT(ViTConfig(**CONFIG))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(COUNT, 3, 7, 7, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(56, 56), mode="bilinear")
    return (fine * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def gauge(model: FaceViT, images: torch.Tensor) -> Gauge:
    return fit_gauge(model, images)


def random_rows(rows: int, seed: int = 0) -> torch.Tensor:  # [rows, 2, 6]
    """Correlated variables far from zero, of different sizes; the target last."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2, 5)) @ rng.standard_normal((5, 5))
    x = 100 + x * [1, 10, 0.01, 1, 1]
    t = x[..., :1] + rng.standard_normal((rows, 2, 1)) + 7
    return torch.from_numpy(np.concatenate([x, t], -1))


def test_moments_equal_brute_force() -> None:
    rows = random_rows(900)
    moments = Moments.around(rows[:40].mean(0))
    for part in rows.split([1, 399, 0, 500]):
        moments.add(part)
    for block in range(2):
        x = rows[:, block].numpy()
        assert np.allclose(moments.mean(block), x.mean(0), rtol=1e-14)
        assert np.allclose(moments.covariance(block), np.cov(x.T, bias=True), rtol=1e-10)
    left, right = Moments.around(moments.origin), Moments.around(moments.origin)
    left.add(rows[:123])
    right.add(rows[123:])
    merged = left.merged(right)
    assert merged.rows == 900
    assert torch.allclose(merged.products, moments.products, rtol=1e-12)


def numpy_ridge(rows: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Least squares with the penalty as extra rows: no normal equations, no moments."""
    x, t = rows[:, :-1], rows[:, -1]
    center, size = x.mean(0), x.std(0)
    n, features = x.shape
    stacked = np.concatenate([(x - center) / size, math.sqrt(n * strength) * np.eye(features)])
    target = np.concatenate([t - t.mean(), np.zeros(features)])
    weight = np.linalg.lstsq(stacked, target, rcond=None)[0] / size
    return weight, t.mean() - weight @ center


@pytest.mark.parametrize("strength", [1e-6, 1e-2, 10.0])
def test_ridge_equals_least_squares(strength: float) -> None:
    rows, other = random_rows(300), random_rows(200, seed=1)
    moments, held_back = Moments.around(rows[0]), Moments.around(rows[0])
    moments.add(rows)
    held_back.add(other)
    for block in range(2):
        (got,) = ridge.fit(moments, block, [strength])
        weight, offset = numpy_ridge(rows[:, block].numpy(), strength)
        assert np.allclose(got.weight, weight, rtol=1e-8)
        assert math.isclose(got.offset, offset, rel_tol=1e-8)
        x, t = other[:, block, :-1].numpy(), other[:, block, -1].numpy()
        r2 = 1 - ((x @ weight + offset - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
        assert math.isclose(ridge.r2(held_back, block, got), r2, rel_tol=1e-8)


@pytest.mark.parametrize("tolerance", [0.0, 0.001, 0.1])
def test_the_largest_strength_close_to_the_best(
    tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "R2_TOLERANCE", tolerance)
    rows, other = random_rows(230).split([30, 200])
    moments, held_back = Moments.around(rows[0]), Moments.around(rows[0])
    moments.add(rows)
    held_back.add(other)
    chosen, score = ridge.choose(moments, held_back, 0)
    scores = {f.strength: ridge.r2(held_back, 0, f) for f in ridge.fit(moments, 0, ridge.STRENGTHS)}
    assert score == scores[chosen.strength]
    near = [s for s, value in scores.items() if value >= max(scores.values()) - tolerance]
    assert chosen.strength == max(near) < max(scores)
    assert len(near) == 1 if tolerance == 0 else len(near) > 1


def test_a_feature_that_does_not_vary_gets_no_weight() -> None:
    rows = random_rows(300)
    rows[..., 1] = 12345.678
    moments = Moments.around(rows[0])
    moments.add(rows)
    (got,) = ridge.fit(moments, 0, [1e-3])
    weight, _ = numpy_ridge(rows[:, 0, [0, 2, 3, 4, 5]].numpy(), 1e-3)
    assert got.weight[1] == 0
    assert np.allclose(got.weight[[0, 2, 3, 4]], weight, rtol=1e-6)


def rows_by_hand(model: FaceViT, images: torch.Tensor, copies: int) -> np.ndarray:
    """[images, copies, L, D + 2] with every degraded image through the model in float64."""
    double = FaceViT(model.config).double().requires_grad_(False)
    double.load_state_dict(model.state_dict())
    config = model.config
    queries: list[torch.Tensor] = []
    for block in double.blocks:
        block.attn.qkv.register_forward_hook(lambda _m, _i, out: queries.append(out))
    result = []
    for place, image in enumerate(images):
        pixels = image.permute(1, 2, 0).numpy()
        batch = [pixels]
        for copy in range(copies):
            rng = crops.generator(0, str(place), copy)
            kind, level = random_degradation(rng)
            batch.append(pixels if kind is None else degrade(pixels, kind, level, rng))
        x = torch.from_numpy(np.stack(batch).transpose(0, 3, 1, 2)).double()
        queries.clear()
        e = double((x / 255 - 0.5) / 0.5).numpy()
        cosine = e[1:] @ e[0] / np.linalg.norm(e[1:], axis=1) / np.linalg.norm(e[0])
        cosine = cosine.round(12)  # clean copies are ties
        columns = []
        for out in queries:
            q, k, _ = out.numpy()[1:].reshape(copies, -1, 3, config.num_heads, 8).swapaxes(0, 2)
            q, k = q.swapaxes(0, 1), k.swapaxes(0, 1)  # [copies, N, H, d]
            logits = np.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
            phi = q.mean(1).reshape(copies, -1) * 8**-0.5 / config.num_heads
            mean = logits.mean((1, 2, 3))[:, None]
            columns.append(np.concatenate([mean, phi, cosine[:, None]], 1))
        result.append(np.stack(columns, 1))
    return np.stack(result)


def test_the_whole_fit_by_hand(model: FaceViT, images: torch.Tensor, gauge: Gauge) -> None:
    copies = gauge.notes["copies"]
    assert copies == 16  # 30 rows for each of 17 features from 32 images
    rows = rows_by_hand(model, images, copies)
    held = np.arange(COUNT) % 5 == 4
    for block, report in enumerate(gauge.notes["blocks"]):
        everything = rows[:, :, block].reshape(-1, 18)
        weight, offset = numpy_ridge(everything, report["strength"])
        got = np.concatenate([gauge.scale[block : block + 1], gauge.query_weight[block]])
        x = everything[:, :-1]
        want = x @ weight + offset
        assert np.abs(x @ got.astype(np.float64) + gauge.offset[block].item() - want).max() < 2e-4
        # The report is of a fit that has not seen the images held back.
        trial, at = numpy_ridge(rows[~held][:, :, block].reshape(-1, 18), report["strength"])
        seen = rows[held][:, :, block].reshape(-1, 18)
        residual = seen[:, :-1] @ trial + at - seen[:, -1]
        r2 = 1 - (residual**2).mean() / seen[:, -1].var()
        assert abs(r2 - report["r2"]) < 1e-3
        ranked = spearmanr((seen[:, :-1] @ trial).round(12), seen[:, -1])[0]
        assert abs(ranked - report["spearman"]) < 1e-3
        published = spearmanr(seen[:, 0].round(12), seen[:, -1])[0]
        assert abs(published - report["published_spearman"]) < 1e-3
        assert report["blocks_run"] == block


def test_scorer_applies_it(model: FaceViT, images: torch.Tensor, gauge: Gauge) -> None:
    before = Scorer(model, outputs=("exit_scores", "embedding"), gauge=None, dtype="float32")
    after = Scorer(model, outputs=("exit_scores", "embedding"), gauge=gauge, dtype="float32")
    published, calibrated = before(images), after(images)
    seen = FaceViTSubject(model, "cpu", "float32").observe(images)
    assert torch.equal(seen.mean_logits, published.exit_scores)
    assert torch.equal(seen.embedding, published.embedding)
    assert torch.equal(calibrated.embedding, published.embedding)
    want = gauge.scale * seen.mean_logits + (seen.phi * gauge.query_weight).sum(-1) + gauge.offset
    assert torch.allclose(calibrated.exit_scores, want, atol=1e-6)


def test_a_quality_token_is_left_out(images: torch.Tensor) -> None:
    model = FaceViT(ViTConfig(**CONFIG, quality_head="token"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    published = Scorer(model, outputs=("exit_scores", "embedding"), gauge=None, dtype="float32")
    seen = FaceViTSubject(model, "cpu", "float32").observe(images)
    assert torch.equal(seen.mean_logits, published(images).exit_scores)
    assert torch.equal(seen.embedding, published(images).embedding)
    gauge = fit_gauge(model, images, copies=4)
    calibrated = Scorer(model, outputs=("exit_scores",), gauge=gauge, dtype="float32")(images)
    want = gauge.scale * seen.mean_logits + (seen.phi * gauge.query_weight).sum(-1) + gauge.offset
    assert torch.allclose(calibrated.exit_scores, want, atol=1e-6)


def test_file_round_trip(gauge: Gauge, tmp_path: Path) -> None:
    path = tmp_path / "mine.gauge.safetensors"
    save_gauge(gauge, path)
    read = load_gauge(path)
    for name in ("scale", "query_weight", "offset"):
        assert torch.equal(getattr(read, name), getattr(gauge, name))
    assert (read.hash, read.model_sha256) == ("state_dict", gauge.model_sha256)
    assert read.notes == json.loads(json.dumps(gauge.notes))
    assert read.architecture == gauge.architecture
    assert gauge_bytes(read) == path.read_bytes()
    broken = fiqa_fast.Gauge(gauge.scale, gauge.query_weight, gauge.offset * math.nan, "0")
    with pytest.raises(fiqa_fast.CheckpointError, match="finite"):
        save_gauge(broken, path)
    assert gauge_bytes(load_gauge(path)) == gauge_bytes(gauge)


def test_a_full_disk_is_named(
    gauge: Gauge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    path = tmp_path / "g.safetensors"
    with pytest.raises(OutputError, match=r"g\.safetensors: cannot be written: No space left"):
        save_gauge(gauge, path)
    assert not list(tmp_path.iterdir())


def test_the_model_stays_as_it_is(model: FaceViT, images: torch.Tensor) -> None:
    x = images[:2].float() / 127.5 - 1
    digest, output = state_dict_sha256(model), model(x)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    fit_gauge(model, images, copies=4)
    assert state_dict_sha256(model) == digest
    assert torch.equal(model(x), output)
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_threads_and_workers_change_no_bit(
    model: FaceViT, images: torch.Tensor, gauge: Gauge, set_threads: Callable[[int], None]
) -> None:
    for threads, workers in ((1, 1), (3, 4)):
        set_threads(threads)
        assert gauge_bytes(fit_gauge(model, images, workers=workers)) == gauge_bytes(gauge)
    assert gauge_bytes(fit_gauge(model, images, seed=1)) != gauge_bytes(gauge)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    assert gauge_bytes(fit_gauge(model, arrays)) == gauge_bytes(gauge)


def test_torch_s_defaults_change_no_bit(model: FaceViT, images: torch.Tensor, gauge: Gauge) -> None:
    before = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            assert gauge_bytes(fit_gauge(model, images)) == gauge_bytes(gauge)
        finally:
            torch.set_default_dtype(before)
    with torch.device("meta"):
        assert gauge_bytes(fit_gauge(model, images)) == gauge_bytes(gauge)


def test_copies_do_not_depend_on_order_or_company(model: FaceViT, images: torch.Tensor) -> None:
    drawing = Drawing(copies=6)
    listed = [Crop(f"{i}.png", lambda size, i=i: images[i].numpy()) for i in range(8)]
    forward = [make_copies(i, crop, 56, drawing) for i, crop in enumerate(listed)]
    backward = [make_copies(i, crop, 56, drawing) for i, crop in enumerate(listed[::-1])][::-1]
    subject = FaceViTSubject(model, "cpu", "float32")
    together = gathering.rows_of(subject, forward)
    for number, (one, other) in enumerate(zip(forward, backward, strict=True)):
        assert np.array_equal(one.planes, other.planes)
        assert np.array_equal(one.rows, other.rows)
        assert torch.equal(gathering.rows_of(subject, [other])[0], together[number])
    clean = together[..., 0, -1][torch.from_numpy(np.stack([c.rows for c in forward])) == 0]
    assert len(clean) > 5
    assert (clean == 1).all()
    assert len({c.planes[1:].tobytes() for c in forward}) == 8


def test_the_sample_is_bounded_and_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    from fiqa_fast.calibrate import sample

    monkeypatch.setattr(sample, "SAMPLE_ROWS", 50)
    rows = torch.rand(400, 1, 3)
    lots = torch.randperm(400)
    samples = []
    for order in (torch.arange(400), torch.randperm(400)):
        kept = sample.RowSample.empty(1, 3)
        for part in order.split(37):
            kept.add(lots[part], rows[part])
        samples.append(kept)
    assert torch.equal(samples[0].lots, torch.arange(50))
    for kept in samples:
        assert torch.equal(kept.rows, rows[lots.argsort()[:50]])


# Refusals ----------------------------------------------------------------------------------------


def test_too_few_images(model: FaceViT, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"wanted at least 25 images, got 24: .* held back"):
        fit_gauge(model, images[:24])
    with pytest.raises(ValueError, match=r"wanted at least 43 images, got 40: .* 17 features"):
        fit_gauge(model, images, copies=1)


def test_images_that_give_nothing_to_fit(model: FaceViT, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one and the same image 40 times"):
        fit_gauge(model, images[:1].expand(COUNT, -1, -1, -1))
    plain = images[:, :, :1, :1].expand_as(images)
    with pytest.raises(ValueError, match=r"cosines that are all 1\.0"):
        fit_gauge(model, plain, types=("gblur", "mblur"))
    blind = FaceViT(model.config)
    with torch.no_grad():
        blind.feature[3].bias.fill_(1)
        blind.feature[3].weight.zero_()
    with pytest.raises(ValueError, match=r"cosines that are all 1\.0"):
        fit_gauge(blind, images)
    with torch.no_grad():
        blind.feature[3].bias.zero_()
    with pytest.raises(ValueError, match=r"0: wanted finite features and an embedding with a dir"):
        fit_gauge(blind, images)
    deaf = FaceViT(model.config)
    deaf.load_state_dict(model.state_dict())
    with torch.no_grad():
        deaf.blocks[1].attn.qkv.weight.zero_()
    with pytest.raises(ValueError, match="constant queries at block 2"):
        fit_gauge(deaf, images)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"copies": 0}, "copies must be"),
        ({"copies": 2.5}, "copies must be"),
        ({"clean_share": 1}, "clean_share must be"),
        ({"clean_share": math.nan}, "clean_share must be"),
        ({"types": ("blur",)}, "types must be some of gblur"),
        ({"types": ()}, "types must be"),
        ({"seed": 0.5}, "seed must be"),
        ({"dtype": "int4"}, "dtype must be"),
        ({"image_size": 56}, "a FaceViT brings its own"),
    ],
)
def test_options_out_of_range(
    model: FaceViT, images: torch.Tensor, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        fit_gauge(model, images, **options)


def test_images_of_other_kinds(model: FaceViT, images: torch.Tensor, tmp_path: Path) -> None:
    for wrong in (images.float(), images[0], "crops/", 3):
        with pytest.raises(fiqa_fast.ImageError, match="images must be"):
            fit_gauge(model, wrong)  # type: ignore[arg-type]
    # Resized, floats from 0 to 1 would all but vanish.
    with pytest.raises(fiqa_fast.ImageError, match="stack them"):
        fit_gauge(model, [image.float()[:, :40] / 255 for image in images])
    paths: list[Any] = [face(tmp_path / f"{i}.png", i, 56) for i in range(30)]
    paths[3].write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"leaves out image 3: .*3\.png"):
        assert fit_gauge(model, paths).notes["images_unread"] == 1
    with (
        pytest.warns(UserWarning, match="leaves out"),
        pytest.raises(
            ValueError, match=r"got 5: .*; 25 more could not be read, such as 5: .*missing"
        ),
    ):
        fit_gauge(model, [*paths[4:9], *[tmp_path / "missing.png"] * 25])


# An interrupted fit ------------------------------------------------------------------------------


def fit_again(
    model: FaceViT, images: torch.Tensor, output: Path, stop_after: int | None = None, seed: int = 0
) -> Gauge:
    subject = FaceViTSubject(model, "cpu", "float32")
    drawing = fitting.make_drawing(subject, len(images), copies=5, seed=seed)
    kept = state.StateFile(output, fitting.plan(subject, drawing, "these"))

    def listed() -> Any:
        for place, image in enumerate(images):
            if place == stop_after:
                raise KeyboardInterrupt
            yield Crop(str(place), lambda size, image=image: image.numpy())

    return fitting.fit(subject, listed(), drawing, state=kept)


def test_resumes_to_the_bit(
    model: FaceViT, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_SECONDS", 0)
    monkeypatch.setattr(gathering, "CHUNK", 4)
    whole = fit_again(model, images, tmp_path / "whole")
    output = tmp_path / "again.safetensors"
    done = []
    for stop in (14, 30):
        with pytest.raises(KeyboardInterrupt):
            fit_again(model, images, output, stop_after=stop)
        left = state.StateFile(output, {})
        assert left.path.parent == tmp_path
        assert left.path.name.startswith(".")
        with pytest.raises(
            ValueError, match=r"unfinished fit of other settings \(seed\).*--overwr"
        ):
            fit_again(model, images, output, seed=1)
        done.append(left.path.stat().st_mtime_ns)
    assert done[1] > done[0]
    seen = []
    original = crops.make_copies
    monkeypatch.setattr(crops, "make_copies", lambda *a: seen.append(a[0]) or original(*a))
    assert gauge_bytes(fit_again(model, images, output)) == gauge_bytes(whole)
    assert 8 <= min(seen) <= 28  # not from the beginning
    left.path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged unfinished fit"):
        fit_again(model, images, output)


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(model: FaceViT, tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), path, {"architecture": json.dumps(CONFIG)})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        face(tmp_path / "crops" / f"{i:02}.png", i, 56)
    return tmp_path / "crops"


def test_command(cli: Any, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "07.png").write_bytes(b"no image")
    report = tmp_path / "report.json"
    outcome = cli("calibrate", folder, "--model", checkpoint, "--report", report)
    assert outcome.status == 0, outcome.err
    assert "07.png: wanted a JPEG" in outcome.err
    assert "39 images, 1 left out (named above)" in outcome.err
    gauge = load_gauge(tmp_path / "vit.gauge.safetensors")
    facts = json.loads(report.read_text())
    assert facts["gauge_sha256"] == gauge.sha256()
    assert facts["blocks"] == gauge.notes["blocks"]
    assert gauge.hash == "file"
    lines = outcome.out.splitlines()
    assert len([line for line in lines if "cheapest" in line]) == 2
    for block, line in zip(facts["blocks"], lines[1:4], strict=True):
        assert f"{block['spearman']:.3f}" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "crops", "report.json", "vit.gauge.safetensors", "vit.safetensors"
    ]  # fmt: skip
    # `score` finds it by itself.
    assert "calibrated by its gauge" in cli("score", folder, "--model", checkpoint).err
    model = fiqa_fast.load_model(checkpoint)
    assert Scorer(model).gauge.sha256() == gauge.sha256()


def test_command_equals_the_function(
    cli: Any, model: FaceViT, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """But for the seeds: those of files go by their names, those of a list by the place."""
    listed = tmp_path / "list.txt"
    for i in range(COUNT):
        (folder / f"{i:02}.png").rename(folder / f"{i}")
    listed.write_text("".join(f"{i}\n" for i in range(COUNT)))
    options = ("--root", folder, "--copies", 5, "--types", "noise,dark", "--seed", 3, "--quiet")
    args = ("calibrate", listed, "--model", checkpoint, "-o", tmp_path / "g", *options)
    outcome = cli(*args)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    paths = [folder / f"{i}" for i in range(COUNT)]
    ours = fit_gauge(model, paths, copies=5, types=("dark", "noise"), seed=3)
    assert load_gauge(tmp_path / "g").sha256() == ours.sha256()
    assert cli(*args).status == 0  # the same fit again
    text = one_line_error(cli(*args, "--clean-share", "0.3"))
    assert "differs in clean_share); --overwrite replaces it" in text
    face(folder / "0", 77, 56)
    assert "differs in images); --overwrite" in one_line_error(cli(*args))
    assert load_gauge(tmp_path / "g").sha256() == ours.sha256()
    assert cli(*args, "--overwrite").status == 0
    assert load_gauge(tmp_path / "g").sha256() != ours.sha256()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--limit", "24"), "wanted at least 25 images, got 24"),
        (("--types", "blur"), "types must be some of"),
        (("--clean-share", "1"), "clean-share"),
        (("-o", "missing/g"), "folder"),
        (("--device", "cuda:99"), "device"),
        (("-o", "{folder}/00.png"), "is no gauge"),
        (("-o", "{model}", "--overwrite"), "this is an input too"),
        (("--report", "{model}"), "this is an input too"),
        (("-o", "{folder}/../g", "--report", "{folder}/../g"), "this is another output too"),
        (("--within", "nan"), "--within"),
        (("--model", "starter"), "say where yours goes, with -o"),
    ],
)
def test_command_refuses(
    cli: Any, checkpoint: Path, folder: Path, options: tuple[str, ...], text: str
) -> None:
    options = tuple(option.format(folder=folder, model=checkpoint) for option in options)
    before = checkpoint.read_bytes()
    message = one_line_error(cli("calibrate", folder, "--model", checkpoint, *options))
    assert text in message
    assert checkpoint.read_bytes() == before


def test_another_number_of_heads_is_another_fit(
    cli: Any, model: FaceViT, folder: Path, tmp_path: Path
) -> None:
    """Weights do not show it, nor does this file."""
    path = tmp_path / "bare.safetensors"
    told = {name: value for name, value in CONFIG.items() if name != "num_heads"}
    save_file(model.state_dict(), path, {"architecture": json.dumps(told)})

    def run(heads: int) -> Any:
        given = ("--architecture", f"num_heads={heads}")
        return cli("calibrate", folder, "--model", path, *given, "--quiet")

    assert run(2).status == 0
    assert Scorer(fiqa_fast.load_model(path, {"num_heads": 2})).gauge is not None
    assert "differs in architecture" in one_line_error(run(4))
    with pytest.raises(fiqa_fast.CheckpointError, match="num_heads 2, and this model has 4"):
        Scorer(fiqa_fast.load_model(path, {"num_heads": 4}))


def test_names_of_several_lines(cli: Any, checkpoint: Path, folder: Path) -> None:
    (folder / "two\nlines.png").write_bytes(b"")
    outcome = cli("calibrate", folder, "--model", checkpoint, "--copies", "4", "--quiet")
    assert outcome.err.startswith("two\\nlines.png: wanted a JPEG")


KILLED = """
import os, signal, sys
from fiqa_fast.calibrate import gathering, state
from fiqa_fast.cli import main
state.SAVE_SECONDS = 0
gathering.CHUNK = 5
save = state.StateFile.save
def save_and_die(self, gathered):
    save(self, gathered)
    if gathered.chunks == int(os.environ.get("KILLED_AFTER", "0")):
        os.kill(os.getpid(), 9)
state.StateFile.save = save_and_die
main(os.environ["ARGUMENTS"].split("|"))
"""


def test_killed_and_given_again(
    run_python: Any, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    def arguments(name: str) -> str:
        return f"calibrate|{folder}|--model|{checkpoint}|-o|{tmp_path / name}|--copies|4"

    assert run_python(KILLED, ARGUMENTS=arguments("whole")).returncode == 0
    done = run_python(KILLED, ARGUMENTS=arguments("killed"), KILLED_AFTER="4")
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / ".killed.unfinished").exists()
    done = run_python(KILLED, ARGUMENTS=arguments("killed"))
    assert done.returncode == 0, done.stderr
    assert "going on after 20 images" in done.stderr
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / ".killed.unfinished").exists()


def test_cheapest_exit() -> None:
    def notes(*values: float | None) -> dict[str, Any]:
        return {"blocks": [{"spearman": value} for value in values]}

    assert cheapest_exit(notes(0.1, 0.55, 0.6, 0.56), within=0.02) == 3
    assert cheapest_exit(notes(0.1, 0.55, 0.6, 0.56), within=0.06) == 2
    assert cheapest_exit(notes(None, 0.3), within=0.0) == 2


def test_documented_seeds_are_stable() -> None:
    """A resumed fit and a fit of next year draw the same copies."""
    draws = [float(crops.generator(0, "a.jpg", copy).random()) for copy in range(2)]
    assert draws == [float(crops.generator(0, "a.jpg", copy).random()) for copy in range(2)]
    assert draws[0] != draws[1]
    assert crops.digest(0, "a.jpg", 1) != crops.digest(0, "a.jpg", 0)
    assert crops.digest(1, "a.jpg", 0) != crops.digest(0, "a.jpg", 0)
