"""Takes in one step the 26 instructions that ``torch.save`` writes for a plain tensor: a file may hold 92,000.

They are ``_rebuild_tensor_v2(('storage', type, key, location, numel), offset, size, stride, False, OrderedDict())``
with everything put into the memo on the way (torch/serialization.py, pickle protocol 2). Whatever differs in a byte is
left to the machine, which gives the same result one instruction at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from ._values import Name

__all__ = ["plain_tensor"]

# MARK MARK BINGET 'storage' BINGET type BINUNICODE key
_HEAD = struct.Struct("<BBBBBBBI")
# LONG_BINPUT key, BINGET location
_LOCATION = struct.Struct("<BIBB")
# TUPLE LONG_BINPUT BINPERSID
_STORAGE = struct.Struct("<BBIB")
# NEWFALSE BINGET OrderedDict EMPTY_TUPLE REDUCE LONG_BINPUT TUPLE LONG_BINPUT REDUCE LONG_BINPUT
_TAIL = struct.Struct("<BBBBBBIBBIBBI")
_UINT2, _INT4, _UINT4 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")

_Made = tuple[object, int, int]


def plain_tensor(
    data: bytes, at: int, memo: dict[int, Any], persistent: Callable[[Any], object], rebuild: Callable[..., object]
) -> _Made | None:
    """Return the tensor whose arguments begin at ``at``, where they end, and the bytes of text in them.

    None where they are written in another way; then nothing has happened.
    """
    try:
        a, b, get, word, get2, kind, unicode, length = _HEAD.unpack_from(data, at)
        if (a, b, get, get2, unicode) != (0x28, 0x28, 0x68, 0x68, 0x58) or memo[word] != "storage":
            return None
        at += _HEAD.size + length
        key = data[at - length : at].decode("utf-8", "surrogatepass")
        put_key, key_memo, get, location = _LOCATION.unpack_from(data, at)
        numel, at = _integer(data, at + _LOCATION.size)
        mark, put, pid_memo, persid = _STORAGE.unpack_from(data, at)
        if (put_key, get, mark, put, persid) != (0x72, 0x68, 0x74, 0x72, 0x51):
            return None
        offset, at = _integer(data, at + _STORAGE.size)
        size, size_memo, at = _sizes(data, at)
        stride, stride_memo, at = _sizes(data, at)
        false, get, hooks, empty, reduce, put, hooks_memo, mark, put2, args_memo, reduce2, put3, made_memo = (
            _TAIL.unpack_from(data, at)
        )
        tail = (false, get, empty, reduce, put, mark, put2, reduce2, put3)
        ordered = memo[hooks]
        if tail != (0x89, 0x68, 0x29, 0x52, 0x72, 0x74, 0x72, 0x52, 0x72) or type(ordered) is not Name:
            return None
        if ordered.ours is None or ordered.name != "OrderedDict":
            return None
        pid = ("storage", memo[kind], key, memo[location], numel)
    except (struct.error, LookupError, ValueError):
        return None
    backward = ordered.ours()
    storage = persistent(pid)
    args = (storage, offset, size, stride, False, backward)
    made = rebuild(*args)
    memo[key_memo], memo[pid_memo], memo[hooks_memo] = key, pid, backward
    memo[args_memo], memo[made_memo] = args, made
    if size_memo >= 0:
        memo[size_memo] = size
    if stride_memo >= 0:
        memo[stride_memo] = stride
    return made, at + _TAIL.size, length


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands at ``at``, and where it ends; raises ValueError where there is none."""
    op = data[at]
    if op == 0x4B:
        return data[at + 1], at + 2
    if op == 0x4D:
        return _UINT2.unpack_from(data, at + 1)[0], at + 3
    if op == 0x4A:
        return _INT4.unpack_from(data, at + 1)[0], at + 5
    raise ValueError


def _sizes(data: bytes, at: int) -> tuple[tuple[int, ...], int, int]:
    """Return the tuple of up to three numbers at ``at``, the memo it goes into (-1: none), and where it ends."""
    if data[at] == 0x29:
        return (), -1, at + 1
    first, at = _integer(data, at)
    made: tuple[int, ...] = (first,)
    if data[at] != 0x85:
        second, at = _integer(data, at)
        made = (first, second)
        if data[at] != 0x86:
            third, at = _integer(data, at)
            made = (first, second, third)
            if data[at] != 0x87:
                raise ValueError
    if data[at + 1] != 0x72:
        raise ValueError
    return made, _UINT4.unpack_from(data, at + 2)[0], at + 6
