# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table hold images and keys, and their values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fiqa_fast.errors import ImageError
from fiqa_fast.gallery.errors import InputError
from fiqa_fast.gallery.sources.container import check_size, fails
from fiqa_fast.gallery.sources.item import InMemory
from fiqa_fast.gallery.text import brief

__all__ = ["IMAGE_NAMES", "find_columns", "named_images"]

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_KEYS = ("__key__", "key", "path", "file_name", "filename", "image_path", "id", "image_id")


def find_columns(schema: Any) -> tuple[str, str | None]:
    """Return the names of the columns of images and of keys."""
    import pyarrow

    types = pyarrow.types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(
                kind.field(i).name == "bytes" and _is_bytes(kind.field(i).type)
                for i in range(kind.num_fields)
            )
        return _is_bytes(kind)

    found = [field.name for field in schema if holds_images(field.type)]
    named = [name for name in IMAGE_NAMES if name in found]
    if not named and len(found) != 1:
        wanted = "a column of encoded images: binary, or a struct with binary 'bytes'"
        got = f"these to choose from: {brief(', '.join(found))}" if found else "none"
        raise InputError(f"wanted {wanted}; got {got}; name it 'image'")
    texts = {field.name for field in schema if _is_text(field.type)}
    numbers = {field.name for field in schema if types.is_integer(field.type)}
    keys = [name for name in _KEYS if name in texts or (name in numbers and "id" in name)]
    return (named or found)[0], keys[0] if keys else None


def _is_bytes(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def named_images(batch: Any, image: str, key: str | None) -> Iterator[tuple[str | None, Any]]:
    """Yield the name of each image, if it has one, and what opens it."""
    import pyarrow

    column = batch.column(batch.schema.get_field_index(image))
    # Offsets come from the file: pyarrow follows them wherever they lead.
    column.validate(full=False)
    data, names = column, None
    if pyarrow.types.is_struct(column.type):
        fields = {column.type.field(i).name: i for i in range(column.type.num_fields)}
        parts = column.flatten()
        data = parts[fields["bytes"]]
        path = fields.get("path")
        names = parts[path] if path is not None and _is_text(parts[path].type) else None
    other = batch.column(batch.schema.get_field_index(key)) if key is not None else None
    for array in (data, names, other):
        if array is not None:
            array.validate(full=True)
    for i in range(len(column)):
        name = names[i].as_py() if names is not None else None
        if name is None and other is not None:
            name = other[i].as_py()
        yield (None if name is None else str(name)), _opener(data[i])


def _opener(value: Any) -> Any:
    if not value.is_valid:
        return fails("wanted an encoded image, got nothing")
    buffer = value.as_buffer()
    try:
        check_size(len(buffer))
    except ImageError as error:
        return fails(str(error))
    return InMemory(buffer.to_pybytes())
