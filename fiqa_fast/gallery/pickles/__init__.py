# SPDX-License-Identifier: Apache-2.0
"""Reads the pickles of face verification sets without running what is in them.

Python's unpickler calls what a file names, allocates what it claims, and holds it all in memory.
This one is a small interpreter of the instructions that lists of encoded images need, from
Python 2 or 3. It calls nothing, makes nothing but lists, tuples, numbers and numpy arrays' parts,
and remembers where the images' bytes stand instead of reading them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from fiqa_fast.gallery.pickles.calls import build, push_name, push_stacked_name, reduce
from fiqa_fast.gallery.pickles.machine import Machine
from fiqa_fast.gallery.pickles.values import Array, Blob, PickleContentError, read_blob

__all__ = ["Array", "Blob", "PickleContentError", "read_blob", "read_pickle"]

# Bounds memory and time: about a gigabyte at worst. A set takes two to twenty for each image.
_MAX_INSTRUCTIONS = 2**24


def read_pickle(file: BinaryIO) -> Any:
    """Return what a pickle holds: lists, tuples, numbers, flags, None, blobs and arrays.

    Raises :class:`PickleContentError` for anything else, which it names.
    """
    try:
        return _run(Machine(file))
    except PickleContentError:
        raise
    except RecursionError as error:
        raise PickleContentError("its lists are nested too deeply") from error
    except (IndexError, KeyError, ValueError, TypeError, struct.error, OverflowError) as error:
        raise PickleContentError("damaged or cut off, or no pickle at all") from error


def _run(machine: Machine) -> Any:
    for _ in range(_MAX_INSTRUCTIONS):
        code = machine.read(1)
        if code == b".":
            return machine.pop()
        if code in _STRINGS:
            machine.push_string(*_STRINGS[code])
        elif code in _INSTRUCTIONS:
            _INSTRUCTIONS[code](machine)
        else:
            got = _REFUSED.get(code, f"the instruction {code!r}")
            raise PickleContentError(f"wanted images and flags alone, got {got}")
    raise PickleContentError(f"wanted at most {_MAX_INSTRUCTIONS} instructions, got more")


def _push_lines_name(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    push_name(machine, module.decode("latin-1"), name.decode("latin-1"))


# How the length before a string is written, and the string itself.
_STRINGS = {
    b"U": ("<B", "raw"),
    b"T": ("<i", "raw"),
    b"C": ("<B", "raw"),
    b"B": ("<I", "raw"),
    b"\x8e": ("<Q", "raw"),
    b"\x96": ("<Q", "raw"),
    b"\x8c": ("<B", "utf-8"),
    b"X": ("<I", "utf-8"),
    b"\x8d": ("<Q", "utf-8"),
}
_INSTRUCTIONS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.read(1),  # protocol
    b"\x95": lambda m: m.read(8),  # length of a frame
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"J": lambda m: m.stack.append(m.number("<i")),
    b"K": lambda m: m.stack.append(m.number("<B")),
    b"M": lambda m: m.stack.append(m.number("<H")),
    b"\x8a": Machine.push_long,
    b"I": Machine.push_line_number,
    b"L": Machine.push_line_number,
    b"S": lambda m: m.push_line("escape", 1),
    b"V": lambda m: m.push_line("raw-unicode-escape", 0),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"]": lambda m: m.stack.append([]),
    b")": lambda m: m.stack.append(()),
    b"l": lambda m: m.stack.append(m.pop_to_mark()),
    b"t": lambda m: m.stack.append(tuple(m.pop_to_mark())),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.pop_to_mark()),
    b"p": lambda m: m.put(int(m.line(32))),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(m.line(32))),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": _push_lines_name,
    b"\x93": push_stacked_name,
    b"R": reduce,
    b"b": build,
}
_REFUSED = {
    b"}": "a dictionary",
    b"d": "a dictionary",
    b"\x8f": "a set",
    b"\x91": "a set",
    b"i": "an object of a class",
    b"o": "an object of a class",
    b"\x81": "an object of a class",
    b"\x92": "an object of a class",
    b"P": "a reference to elsewhere",
    b"Q": "a reference to elsewhere",
    b"\x97": "a buffer outside the file",
    b"F": "a fraction",
    b"G": "a fraction",
}
