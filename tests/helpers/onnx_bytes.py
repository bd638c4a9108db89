# SPDX-License-Identifier: Apache-2.0
"""ONNX models of a few nodes, written by hand: no exporter is needed to test a reader."""

from __future__ import annotations

from collections.abc import Sequence

FLOAT, UINT8, INT64, FLOAT16 = 1, 2, 7, 10

Value = tuple[str, int, Sequence[int | str]]  # name, type, shape; a name in a shape is any size


def _varint(n: int) -> bytes:
    parts = []
    while n > 127:
        parts.append(n & 127 | 128)
        n >>= 7
    return bytes([*parts, n])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def model(
    nodes: Sequence[tuple[str, str, str]], inputs: list[Value], outputs: list[Value]
) -> bytes:
    """A graph of nodes (operator, inputs, outputs), names separated by spaces."""
    graph = b""
    for operator, sources, results in nodes:
        node = b"".join(_field(1, name) for name in sources.split())
        node += b"".join(_field(2, name) for name in results.split())
        graph += _field(1, node + _field(4, operator))
    graph += _field(2, "graph")
    graph += b"".join(_field(11, _value(*value)) for value in inputs)
    graph += b"".join(_field(12, _value(*value)) for value in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def mean_colour(shape: Sequence[int | str], kind: int = FLOAT, batch: int | str = "n") -> bytes:
    """[n, 3, S, S] -> the whole image again, and the mean of each channel [n, 3]."""
    return model(
        [
            ("Identity", "x", "same"),
            ("GlobalAveragePool", "x", "pooled"),
            ("Flatten", "pooled", "e"),
        ],
        [("x", kind, shape)],
        [("same", kind, shape), ("e", kind, [batch, 3])],
    )
