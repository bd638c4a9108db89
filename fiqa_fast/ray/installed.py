# SPDX-License-Identifier: Apache-2.0
"""Ray itself, which only those who ask for it need to have."""

from __future__ import annotations

from typing import Any

from fiqa_fast.gallery.errors import InputError

__all__ = ["import_ray"]


def import_ray() -> Any:
    """Return the module ``ray`` with ``ray.data``. Raises :class:`InputError` without them."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"Ray Data cannot be imported ({error}): pip install 'fiqa_fast[ray]'"
        ) from error
    return ray
