# SPDX-License-Identifier: Apache-2.0
"""A synthetic evaluation set, written in every layout and form that `fiqa-fast evaluate` reads."""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

LIMIT, FMR = 0.3, 0.05


@dataclass
class Faces:
    """Images of identities, the poor ones with embeddings far from their identity's centre."""

    paths: list[str]
    whom: np.ndarray  # [n]
    quality: np.ndarray  # [n]
    embeddings: np.ndarray  # float32 [n, 16]
    pairs: np.ndarray  # [P, 2]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def genuine(self) -> np.ndarray:
        return self.whom[self.pairs[:, 0]] == self.whom[self.pairs[:, 1]]


def make_faces(identities: int = 12, each: int = 5, seed: int = 0) -> Faces:
    rng = np.random.default_rng((7, seed))  # not those of the random control
    n = identities * each
    whom = np.repeat(np.arange(identities), each)
    quality = np.round(rng.random(n) ** 0.5, 2)  # with ties
    noise = rng.standard_normal((n, 16)) * np.where(quality < 0.35, 8, 1.2 - quality)[:, None]
    embeddings = (2 * rng.standard_normal((identities, 16))[whom] + noise).astype(np.float32)
    paths = [f"p{who:02}/{i:03} é.png" for i, who in enumerate(whom)]
    return Faces(paths, whom, quality, embeddings, np.argwhere(np.triu(np.ones((n, n)), 1)))


def in_pairs(faces: Faces) -> Faces:
    """The images of a .bin: pair i is of the images 2i and 2i + 1."""
    rng = np.random.default_rng(5)
    pairs = faces.pairs[faces.genuine]
    others = faces.pairs[~faces.genuine]
    pairs = np.concatenate([pairs, others[rng.permutation(len(others))[:200]]])
    images = pairs.ravel()
    return Faces(
        [f"{i:05d}" for i in range(len(images))],
        faces.whom[images],
        faces.quality[images],
        faces.embeddings[images],
        np.arange(len(images)).reshape(-1, 2),
    )


def expected_area(faces: Faces, quality: np.ndarray, fmr: float = FMR) -> tuple[float, float]:
    """FNMR and partial area of protocol fixed-fmr, told plainly, in float64."""
    unit = faces.embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    a, b = faces.pairs.T
    similarity = (unit[a] * unit[b]).sum(1)
    threshold = np.quantile(similarity[~faces.genuine], 1 - fmr)
    mine = similarity[faces.genuine]
    order = np.argsort(np.minimum(quality[a], quality[b])[faces.genuine], kind="stable")
    shares = np.linspace(0, LIMIT, 61)
    fnmr = [np.mean(mine[order[int(u * len(order)) :]] < threshold) for u in shares]
    return fnmr[0], float(np.trapezoid(fnmr, shares))


def encoded(seed: int, kind: str = "PNG", size: int = 20) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_images(faces: Faces, folder: Path, suffix: str = "") -> Path:
    for i, path in enumerate(faces.paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{path}{suffix}").write_bytes(encoded(i))
    return folder


def write_csv(path: Path, columns: dict[str, Iterable[Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({k: list(v) for k, v in columns.items()}), path)
    return path


def _table(faces: Faces) -> dict[str, Any]:
    names = [f"person {who}" for who in faces.whom]
    return {"path": faces.paths, "identity": names, "count": range(len(faces))}


def _reference(faces: Faces, folder: Path) -> Path:
    home = folder / "quality_data" / "tiny"
    home.mkdir(parents=True)
    names = [path.replace(" ", "_") for path in faces.paths]  # pairs are separated by spaces
    faces.paths = names
    listed = [f"quality_data/tiny/images/{name}" for name in names]
    (home / "image_path_list.txt").write_text("\n".join(listed) + "\n")
    lines = [
        f"{Path(names[a]).with_suffix('')} {Path(names[b]).with_suffix('')} {int(same)}"
        for (a, b), same in zip(faces.pairs, faces.genuine, strict=True)
    ]
    (home / "pair_list.txt").write_text("\n".join(lines) + "\n")
    write_images(faces, home / "images")
    return home


def _pair_set(faces: Faces, folder: Path) -> Path:
    content = ([encoded(i, "JPEG") for i in range(len(faces))], [bool(g) for g in faces.genuine])
    path = folder / "tiny.bin"
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


# Each writes the set below a folder, and returns DATA.
LAYOUTS: dict[str, Callable[[Faces, Path], Path]] = {
    "csv": lambda faces, folder: write_csv(folder / "tiny.csv", _table(faces)),
    "parquet": lambda faces, folder: write_parquet(folder / "tiny.parquet", _table(faces)),
    "folder": lambda faces, folder: write_images(faces, folder / "crops"),
    "reference": _reference,
    "bin": _pair_set,
}


def _npz(faces: Faces, folder: Path) -> Path:
    order = np.random.default_rng(1).permutation(len(faces))
    np.savez(folder / "e.npz", paths=np.array(faces.paths)[order], emb=faces.embeddings[order])
    return folder / "e.npz"


def _npy_folder(faces: Faces, folder: Path) -> Path:
    for path, vector in zip(faces.paths, faces.embeddings, strict=True):
        file = folder / "emb" / f"{path.removesuffix('.png')}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, vector)
    return folder / "emb"


def _npy(faces: Faces, folder: Path) -> Path:
    np.save(folder / "e.npy", faces.embeddings)
    return folder / "e.npy"


def _embedding_column(faces: Faces, folder: Path) -> Path:
    columns = {"path": faces.paths, "embedding": faces.embeddings.tolist()}
    return write_parquet(folder / "e.parquet", columns)


EMBEDDINGS: dict[str, Callable[[Faces, Path], Path]] = {
    "npz": _npz,
    "npy folder": _npy_folder,
    "npy": _npy,
    "parquet": _embedding_column,
}


def _score_table(faces: Faces) -> dict[str, Any]:
    order = np.random.default_rng(2).permutation(len(faces))
    return {
        "path": [faces.paths[i] for i in order],
        "score": faces.quality[order].tolist(),
        "error": [None] * len(faces),
    }


def _score_lines(faces: Faces, folder: Path) -> Path:
    lines = [f"{path} {q}" for path, q in zip(faces.paths, faces.quality, strict=True)]
    (folder / "mine.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "mine.txt"


SCORES: dict[str, Callable[[Faces, Path], Path]] = {
    "csv": lambda faces, folder: write_csv(folder / "mine.csv", _score_table(faces)),
    "parquet": lambda faces, folder: write_parquet(folder / "mine.parquet", _score_table(faces)),
    "lines": _score_lines,
}
