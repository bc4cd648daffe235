"""Streams and archives that would cost without end are given up within bounds, and said to be."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ...helpers.pace import bounded


def doubling() -> bytes:
    """Lists of lists, each twice the one before: 2**60 values, were they made."""
    return b"]" + b"".join(b"q%c(h%ch%ce0(h%ch%cl" % (i, i, i, i, i) for i in range(60)) + b"."


def in_turn(layers: int) -> bytes:
    data = pickle.dumps({})
    for _ in range(layers):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("inner.zip", data)
        data = out.getvalue()
    return data


STREAMS: dict[str, Callable[[], bytes]] = {
    "marks": lambda: b"\x80\x04" + b"(" * 750_000,
    "marks and closings": lambda: b"\x80\x04" + b"(" * 90_000 + b"t" * 90_000 + b".",
    "tuples in tuples": lambda: b"\x80\x04N" + b"\x85" * 750_000 + b".",
    "calls of calls": lambda: b"\x80\x04cx\ny\n" + b")R" * 125_000 + b".",
    "doubled": lambda: b"\x80\x04N" + b"2" * 750_000 + b".",
    "doubling through the memo": doubling,
    "a huge memo number": lambda: b"\x80\x04Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.",
    "a memo number of many digits": lambda: b"\x80\x04Np" + b"9" * 100_000 + b"\n.",
    "a false length": lambda: b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "a false frame": lambda: b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "faults": lambda: b"\x80\x04" + b"0" * 250_000 + b".",
    "constants in a mark": lambda: b"\x80\x04(" + b"N" * 750_000 + b"t.",
    "names": lambda: b"\x80\x04" + b"".join(b"cm%d\nn\n0" % i for i in range(50_000)) + b"N.",
    "texts like pickles": lambda: pickle.dumps(["c" * 2000 + str(i) + "\n" for i in range(3000)], 4),
    "lines without an end": lambda: b"\x80\x04" + b"I1\n" * 10 + b"V" + b"x" * 750_000,
    "pickles in turn": lambda: b"N." * 75_000,
    "archives in archives": lambda: in_turn(40),
    "gzip bomb": lambda: gzip.compress(b"\0" * (16 << 20)),
    "bzip2 bomb": lambda: bz2.compress(b"\0" * (4 << 20)),
    "xz bomb": lambda: lzma.compress(b"\0" * (16 << 20)),
    "gzip in gzip": lambda: gzip.compress(gzip.compress(gzip.compress(b"\0" * (16 << 20)))),
    "zlib bomb": lambda: zlib.compress(b"\0" * (16 << 20)),
    "nested archives without directories": lambda: b"PK\3\4" * 25_000,
}

LONG = ("doubled", "nested archives without directories", "xz bomb", "tuples in tuples", "gzip in gzip")
"""Those that take longest; each has one of its kind that is quicker."""


@pytest.mark.costly
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in STREAMS]
)
def test_nothing_takes_long_or_much(name: str) -> None:
    Path("x.bin").write_bytes(STREAMS[name]())
    done = bounded("scan", "x.bin", "-q", memory=1 << 30, share=4)
    assert done.returncode in (0, 1), (done.returncode, done.err)
    assert not done.err


def test_instructions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCAN_OPS", 1000)
    Path("fine.pkl").write_bytes(b"\x80\x04" + b"N0" * 400 + b"N.")
    Path("over.pkl").write_bytes(b"\x80\x04" + b"N0" * 600 + b"N.")
    assert cs.scan("fine.pkl").ok
    found = cs.scan("over.pkl")
    assert not found.whole
    assert found.beyond[0].fault == cs.Fault(
        "unreadable", "it has pickles of over 1000 instructions: the rest is not scanned"
    )


@pytest.mark.parametrize(
    ("limit", "value", "data"),
    [
        ("SCAN_UNPACKED", 1000, zlib.compress(b"a" * 1001)),
        ("SCAN_BYTES", 1000, pickle.dumps(b"a" * 1001)),
        ("SCAN_MARKS", 3, b"\x80\x04(((((Nttttt."),
        ("SCAN_DEPTH", 3, in_turn(5)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bound_is_said(limit: str, value: int, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.bin").write_bytes(data)
    assert cs.scan("x.bin").ok
    monkeypatch.setattr(limits, limit, value)
    found = cs.scan("x.bin")
    assert not found.whole
    assert {one.fault.kind for one in found.beyond if one.fault} == {"unreadable"}


@pytest.mark.long
def test_names_beyond_the_limit_are_one_unknown_name() -> None:
    Path("x.pkl").write_bytes(STREAMS["names"]())
    uses = cs.scan("x.pkl").found[0].uses
    assert len(uses) == limits.SCAN_NAMES + 1
    assert sum(use.imported for use in uses) == 50_000
