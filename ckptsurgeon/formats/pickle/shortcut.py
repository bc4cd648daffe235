"""Reads a tensor in one step, instead of the pickle instructions that ``torch.save`` writes for it.

There are 27 instructions for a vector and 29 for a matrix, and a file may have 92,000 tensors. The instructions call
``_rebuild_tensor_v2(('storage', type, key, location, numel), offset, size, stride, False, OrderedDict())`` and put
every part into the memo (torch/serialization.py, pickle protocol 2). If a byte differs, ``PickleMachine`` reads the
tensor one instruction at a time, with the same result.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .torch import StridedForm, TypedStorage, form_of, view
from .values import GlobalName

__all__ = ["SHORT_PUTS", "plain_tensors"]

SHORT_PUTS = 256
"""The number of memo entries that pickle writes with BINPUT. The pattern below only matches LONG_BINPUT, used later."""

_INT = rb"(?:K.|M..|J...[\0-\x7f])"
"""Matches BININT1, BININT2, or BININT with a number that is not negative."""
_GET = rb"(h.|j....)"
"""Matches BINGET or LONG_BINGET."""
_PUT = rb"r(....)"
"""Matches LONG_BINPUT."""
_TUPLE = rb"(?:\)|(%b(?:\x85|%b(?:\x86|%b\x87))|\(%b{4,8}t)%b)" % (_INT, _INT, _INT, _INT, _PUT)
"""Matches a tuple of numbers: EMPTY_TUPLE; one to three numbers and TUPLE1 to TUPLE3; or MARK, more numbers, TUPLE."""

_TENSOR = re.compile(
    rb"\(\(h(.)%bX(.)\0\0\0([0-9]+)%b%b(%b)t%bQ" % (_GET, _PUT, _GET, _INT, _PUT)  # the storage
    + rb"(%b)%b%b\x89" % (_INT, _TUPLE, _TUPLE)  # offset, size, stride, requires_grad
    + rb"h(.)\)R%bt%bR%b" % (_PUT, _PUT, _PUT),  # OrderedDict() of hooks, the arguments, the tensor
    re.DOTALL,
)
_EACH_INT = re.compile(_INT, re.DOTALL)
_BEHIND_KEY = struct.Struct("<BIBB")
"""The two instructions after a key: LONG_BINPUT for the key, and BINGET for the name ``_rebuild_tensor_v2``."""
_UINT4 = struct.Struct("<I")
_FIVE, _SEVEN = struct.Struct("<5I"), struct.Struct("<7I")

_AT_ONCE = 1000
"""How many tensors and keys are read before ``PickleMachine`` checks its limits again."""
_REMEMBERED = 4096

_Made = tuple[list[object], int, int]


def plain_tensors(
    data: bytes, at: int, memo: list[Any], persistent: Callable[[Any], object], rebuild: GlobalName, *, edge: int
) -> _Made | None:
    """Return (values, end, text) for the tensors from the offset ``at`` on.

    ``at`` is the offset of the arguments of the first tensor. ``values`` is a tensor, the key of the next tensor, the
    next tensor, and so on. ``end`` is the offset after the last value, at most ``edge``. ``text`` is the number of
    bytes of all strings in the values. The keys and all parts of the tensors are put into ``memo``. ``rebuild`` is the
    name ``_rebuild_tensor_v2``; ``persistent`` returns the storage for a persistent id.

    Returns None, and changes nothing, if ``torch.save`` would write the first tensor differently.
    """
    values: list[object] = []
    end = text = 0
    while found := _TENSOR.match(data, at, edge):
        made = _tensor(found, memo, persistent)
        if made is None:
            break
        values.append(made)
        end, text = found.end(), text + found.end(4) - found.start(4)
        if data[end : end + 1] != b"X" or len(values) > _AT_ONCE:  # no BINUNICODE
            break
        length = _UINT4.unpack_from(data, end + 1)[0]
        begin, behind = end + 5, end + 5 + length
        if behind + _BEHIND_KEY.size > edge:
            break
        put, index, get, name = _BEHIND_KEY.unpack_from(data, behind)
        if (put, get) != (0x72, 0x68) or not name < index == len(memo) or memo[name] is not rebuild:
            break
        key = data[begin:behind].decode("utf-8", "surrogatepass")
        memo.append(key)
        values.append(key)
        text += length
        end, at = behind + 5, behind + _BEHIND_KEY.size
    return (values, end, text) if values else None


def _tensor(found: re.Match[bytes], memo: list[Any], persistent: Callable[[Any], object]) -> object | None:
    """Return the tensor that ``found`` matched, and put its parts into ``memo``.

    Returns None, and leaves the memo unchanged, if the matched bytes are inconsistent: a wrong length or memo index.
    """
    (
        word, kind, length, key, memo0, location, numel, memo1, offset, size, memo2, stride, memo3,
        hooks, memo4, memo5, memo6,
    ) = found.groups(b"")  # fmt: skip
    n = len(memo)
    if memo2 and memo3:
        expected = _SEVEN.pack(n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6)
    else:
        expected = _FIVE.pack(n, n + 1, n + 2, n + 3, n + 4)
    if b"".join((memo0, memo1, memo2, memo3, memo4, memo5, memo6)) != expected or len(key) != length[0]:
        return None
    try:
        ordered = memo[hooks[0]]
        pid = (memo[word[0]], memo[_number(kind)], key.decode(), memo[_number(location)], _number(numel))
    except IndexError:
        return None
    if pid[0] != "storage" or type(ordered) is not GlobalName or ordered.name != "OrderedDict" or ordered.ours is None:
        return None
    storage = persistent(pid)
    if type(storage) is not TypedStorage:
        return None
    backward = ordered.ours()
    start, form = _number(offset), _form(size, stride)
    made = view(storage, start, form)
    args = (storage, start, form.size, form.stride, False, backward)
    if memo2:
        memo += pid[2], pid, form.size, form.stride, backward, args, made
    else:
        memo += pid[2], pid, backward, args, made
    return made


@lru_cache(_REMEMBERED)
def _number(raw: bytes) -> int:
    """Return the number in an instruction; ``raw`` is the opcode (one byte), then the number in little-endian order."""
    return int.from_bytes(raw[1:], "little")


@lru_cache(_REMEMBERED)
def _form(size: bytes, stride: bytes) -> StridedForm:
    """Return the StridedForm of a size and a stride; the arguments are the pickle instructions for their numbers."""
    return form_of(_numbers(size), _numbers(stride))


def _numbers(raw: bytes) -> tuple[int, ...]:
    return tuple(map(_number, _EACH_INT.findall(raw)))
