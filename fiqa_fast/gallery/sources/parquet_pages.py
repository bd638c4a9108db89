# SPDX-License-Identifier: Apache-2.0
"""What Parquet's pages claim, read from their headers before pyarrow reserves memory for it.

A header is a struct of Thrift's compact protocol; only its numbers matter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fiqa_fast.gallery.sources.container import DamagedError, RandomFile

__all__ = ["MAX_DICTIONARY", "MAX_PAGE", "check_pages"]

# Writers aim at pages of 1 MiB, but some look only after 1024 images.
MAX_PAGE = 512 * 2**20
# A value of the dictionary is unpacked for each row that has it.
MAX_DICTIONARY = 64 * 2**20
_LONGEST = 2**16  # of a header; statistics may hold two values
_SHORTEST_VALUE = 4  # bytes: the length of a string, or a number

# Thrift's kinds of values, and the fields of a page's header.
_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 6, 7, 8, 12
_UNPACKED, _PACKED, _DICTIONARY, _COUNT = 2, 3, 7, 1


def check_pages(file: RandomFile, group: Any, columns: Sequence[str]) -> None:
    """Raise :class:`DamagedError` where a page of a row group's columns claims too much.

    ``group`` is pyarrow's metadata of it.
    """
    for i in range(group.num_columns):
        chunk = group.column(i)
        if chunk.path_in_schema.split(".")[0] in columns:
            start = chunk.data_page_offset
            if chunk.has_dictionary_page:
                start = min(start, chunk.dictionary_page_offset)
            _check_chunk(file, start, start + chunk.total_compressed_size)


def _check_chunk(file: RandomFile, offset: int, end: int) -> None:
    if not 0 <= offset <= end <= file.size:
        raise DamagedError("damaged: a column beyond the end of the file")
    while offset < end:
        data = file.read(offset, min(_LONGEST, end - offset))
        try:
            header, length = _struct(data, 0)
            packed = _check_page(header)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError("damaged: wanted a page's header, got something else") from error
        if not 0 <= packed <= end - offset - length:
            raise DamagedError("damaged or cut off: a page beyond the end of its column")
        offset += length + packed


def _check_page(header: dict[int, Any]) -> int:
    """Return how many bytes the page has."""
    unpacked, dictionary = header[_UNPACKED], header.get(_DICTIONARY)
    most = MAX_PAGE if dictionary is None else MAX_DICTIONARY
    if not 0 <= unpacked <= most:
        raise DamagedError(
            f"wanted pages of at most {most // 2**20} MiB, got {unpacked} bytes unpacked"
        )
    if dictionary is not None and not 0 <= dictionary[_COUNT] * _SHORTEST_VALUE <= unpacked:
        raise DamagedError("damaged: a dictionary of more values than it has room for")
    return int(header[_PACKED])


def _struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the numbers and structs of a struct by their fields, and where it ends."""
    fields: dict[int, Any] = {}
    field = 0
    while (head := data[place]) & 15:
        place += 1
        if head >> 4:
            field += head >> 4
        else:
            field, place = _number(data, place)
        fields[field], place = _value(data, place, head & 15, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, place
    if kind == _BYTE:
        return None, place + 1
    if kind <= _I64:
        return _number(data, place)
    if kind == _DOUBLE:
        return None, place + 8
    if kind == _BINARY:
        length, place = _varint(data, place)
        return None, place + length
    if kind == _STRUCT and depth < 4:
        return _struct(data, place, depth + 1)
    raise KeyError(kind)  # lists and maps, which no header has


def _number(data: bytes, place: int) -> tuple[int, int]:
    value, place = _varint(data, place)
    return value >> 1 ^ -(value & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while data[place] & 128:
        value |= (data[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1
