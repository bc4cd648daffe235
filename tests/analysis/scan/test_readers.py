"""CPython's two unpicklers are the reference: where they could part, or ours from them, the verdict is unknown code."""

from __future__ import annotations

import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.pace import little_memory
from .hostile import as_legacy, as_torch_zip
from .readers import judged, parting, read, streams

STREAMS = 8_000


def frame(length: int) -> bytes:
    return b"\x95" + struct.pack("<Q", length)


def hidden(code: bytes, shown: bytes) -> bytes:
    """A stream that is ``shown`` to who walks straight on, and ``code`` to C's reader of a file.

    The second frame reaches beyond the first, of which what is left is dropped: with it, the length of a byte string.
    """
    drop = b"C" + bytes([len(code)])
    inner = frame(len(code) + len(shown))
    return b"\x80\x04" + frame(len(inner) + len(drop)) + inner + drop + code + shown


EVIL = b"cevil\nx\n."
HIDDEN = hidden(EVIL, b"0}.")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_wherever_readers_part_it_is_said() -> None:
    parted = []
    with little_memory():
        for data in streams(STREAMS, seed=21):
            why = parting(data)
            if why:
                parted.append((why, data))
    assert not parted, parted[:5]


@pytest.mark.long
def test_the_streams_are_worth_reading() -> None:
    """A fifth of them or more is read to the end, and a twentieth imports what is unknown, or parts readers."""
    with little_memory():
        told = [read(data) for data in streams(2000, seed=5)]
    whole = sum(not any(one.failed for one in each.values()) for each in told)
    evil = sum(any(name[0] in ("evil", "posix") for one in each.values() for name in one.names) for each in told)
    parts = sum(len({(str(one.names), one.failed) for one in each.values()}) > 1 for each in told)
    assert whole > 400
    assert evil > 100
    assert parts > (100 if _c_sees_no_frames() else 60)


def test_c_reads_what_a_straight_walk_does_not_see() -> None:
    """The reference itself: without this, the cases below would prove nothing."""
    told = read(HIDDEN)
    if _c_sees_no_frames():
        assert ("evil", "x") in told["C, of bytes"].names
    assert told["Python"].names == []


def _c_sees_no_frames() -> bool:
    """Return whether the unpickler in C reads a frame inside another: that of Python 3.14.10 refuses it, as that in Python does."""
    return "beginning of a new frame before end of current frame" not in read(HIDDEN)["C, of bytes"].why


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (HIDDEN, "a frame begins inside another"),
        (HIDDEN[2:], "a frame begins inside another"),
        (b"\x80\x04" + frame(3) + b"N0X\3\0\0\0abc.", "an instruction reaches beyond its frame"),
        (frame(4) + b"F\0000.5\0\ncevil\nx\n.", "an instruction reaches beyond its frame"),
        (frame(9) + b"NI109\t511627776\n.cevil\nx\n.", "an instruction reaches beyond its frame"),
        (b"K\2" + frame(5) + b"(K\0p10\x8c95\n.", "an instruction reaches beyond its frame"),
        (b"\x80\x04" + frame(9) + b"N.cevil\nx\n.", "it stops inside a frame"),
        (b"\x80\x04" + frame(900) + b"N.", "it stops inside a frame"),
        (b"(lp0\0x\n.", "a memo index has a form that no pickler writes"),
        (b"(lp0\n0g0\0x\n.", "a memo index has a form that no pickler writes"),
        (b"L1 L\n.", "a line has its value in a form that no pickler writes"),
        (b"I010\n.", "a line has its value in a form that no pickler writes"),
        (b"I1\0x\n.", "a line has its value in a form that no pickler writes"),
        (b"F1e400\n.", "a line has its value in a form that no pickler writes"),
        (b"\x80\x02Nr\0\0\0\x7f.", "gigabytes"),
        (b"\x80\x02N(e.", "an empty group of items is added"),
        (b"\x80\x02ctorch\nSize\n]R.", "a call has arguments that are not a tuple"),
        (b"\x80\x02ctorch\nSize\n)R}R.", "a call has arguments that are not a tuple"),
        (b"\x80\x02ccollections\nOrderedDict\n)R)b.", "a state has a form that no pickler writes"),
        (b"\x80\x02ctorch\nSize\n)N\x92.", "keyword arguments are not a dictionary"),
    ],
)  # fmt: skip
def test_a_stream_that_readers_read_apart_is_unknown_code(data: bytes, why: str, ckpt: Any) -> None:
    Path("x.pkl").write_bytes(data)
    found = cs.scan("x.pkl")
    assert found.verdict is cs.Verdict.CODE
    assert any(why in note for one in found.found for note in one.notes), found.found
    done = ckpt("scan", "x.pkl")
    assert (done.code, "UNKNOWN CODE" in done.out or "with unknown code" in done.out) == (1, True)


@pytest.mark.parametrize("make", [as_torch_zip, as_legacy], ids=["torch zip", "torch legacy"])
@pytest.mark.parametrize(
    "data",
    [
        HIDDEN,
        b"\x80\x04" + frame(3) + b"N0X\3\0\0\0abc0}.",
        b"\x80\x04" + frame(9) + b"}.cevil\nx\n.",
        b"\x80\x02}p0\0x\n.",
        b"\x80\x02}X\1\0\0\0aL1 L\ns.",
        b"\x80\x02}X\1\0\0\0aI010\ns.",
        b"\x80\x02}X\1\0\0\0aS'b' \ns.",
        b"\x80\x02}X\1\0\0\0aF1e400\ns.",
        b"\x80\x02}r\0\0\0\x7f.",
        b"\x80\x02}X\1\0\0\0aNN\x87s.",
        b"\x80\x02}X\1\0\0\0a](N\x90s.",
        b"\x80\x02}X\1\0\0\0actorch\nSize\n)N\x92s.",
        b"\x80\x02}X\1\0\0\0actorch\nSize\n))\x92s.",
    ],
)  # fmt: skip
def test_inspect_refuses_what_readers_read_apart(make: Any, data: bytes) -> None:
    Path("x.pth").write_bytes(make(data))
    with pytest.raises(cs.FormatError):
        cs.inspect("x.pth")


@pytest.mark.parametrize(
    ("data", "module"),
    [(b"cevil\nx\n\xff", "evil"), (b"cevil\nx\nzzz", "evil"), (b"cevil\nxy", "evil"), (b"(ievil\nxy", "evil"), (b"ievil\nx\n", "evil"),
     (b"cevils", "evil"), (b"L1 L\n0cevil\nx\n\xff", "evil"), (b"cmy module\nx\n\xff", "my module"), (b"c1evil\nx\n.rest", "1evil")],
)  # fmt: skip
def test_an_import_alone_is_unknown_code_whatever_follows(data: bytes, module: str) -> None:
    for name, wrapped in (("x.pkl", data), ("x.bin", data), ("x.pth", as_torch_zip(data))):
        Path(name).write_bytes(wrapped)
        found = cs.scan(name)
        assert found.verdict is cs.Verdict.CODE, name
        assert module in {use.module for one in found.found for use in one.uses}, name


def test_a_file_that_is_named_as_nothing_is_a_pickle_if_it_imports_what_programs_name() -> None:
    for data, verdict in ((b"cevil\nx\n\xff", cs.Verdict.CODE), (b"cmy words\nx y\n\xff", cs.Verdict.PLAIN)):
        Path("model").write_bytes(data)
        assert cs.scan("model").verdict is verdict
    Path("vocab.txt").write_bytes(b"cat\ndog\nzebra")
    assert cs.scan("vocab.txt").ok


@pytest.mark.parametrize("data", [b"", b"hello", b"N", b"]a.", b"I\n.", b"\x80\x02}"])
def test_what_torch_reads_as_a_pickle_and_is_none_is_corrupt(data: bytes) -> None:
    Path(".metadata").write_bytes(data)
    Path("x.pth").write_bytes(as_torch_zip(data))
    for name in (".metadata", "x.pth"):
        assert any(one.fault is not None and one.fault.kind == "corrupt" for one in cs.scan(name).found), name


@pytest.mark.long
def test_what_picklers_write_is_read_alike_by_all() -> None:
    source = random.Random(3)
    for protocol in range(6):
        for size in (10, 70_000):
            value = {
                "a": [1, 2.5, -0.0, 1e300, 10**30],
                "b": ("x" * size, b"y" * size, bytearray(b"z")),
                "c": {1, 2},
                "d": [],
            }
            rows = [{"id": i, "at": source.random(), "xy": (i, i)} for i in range(size // 10)]
            found = judged(pickle.dumps([value, rows, rows], protocol))
            assert [(one.verdict, one.fault, one.notes) for one in found] == [(cs.Verdict.PLAIN, None, ())]


@pytest.mark.parametrize("function", ["bytes", "bytearray", "str"])
def test_a_codec_that_a_type_is_given_is_a_module_too(function: str) -> None:
    for codec, verdict in (("latin-1", cs.Verdict.PLAIN), ("evil", cs.Verdict.CODE)):
        text = b"X" + struct.pack("<I", len(codec)) + codec.encode()
        Path("x.pkl").write_bytes(b"\x80\x02cbuiltins\n" + function.encode() + b"\nX\1\0\0\0a" + text + b"\x86R.")
        assert cs.scan("x.pkl").verdict is verdict
