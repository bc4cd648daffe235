"""Each bound of what a scan looks at: what is at it is judged, what is just over it is never called plain data.

The bounds are lowered to what the smallest file reaches; what they are in truth is held by test_costs.py.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from .test_costs import in_turn

Run = Callable[..., Any]
SIZE = b"torch\nSize\n"


def of(data: bytes, path: str = "x/x.bin") -> Callable[[], None]:
    def make() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)

    return make


def zipped(*records: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for i, data in enumerate(records):
            archive.writestr(str(i), data)
    return out.getvalue()


def tar(*members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, data in enumerate(members):
            info = tarfile.TarInfo(str(i))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def folders() -> None:
    os.makedirs("x/a/b")
    Path("x/a/b/c").write_bytes(b"")


def files() -> None:
    for name in "abc":
        of(b"", f"x/{name}")()


PLAIN = pickle.dumps({})
BOUNDS: dict[str, tuple[Callable[[], None], int]] = {
    "SCAN_OPS": (of(b"\x80\x04" + b"N0" * 9 + b"N."), 21),
    "SCAN_BYTES": (of(pickle.dumps(b"a" * 100)), len(pickle.dumps(b"a" * 100))),
    "SCAN_UNPACKED": (of(zlib.compress(b"a" * 1000)), 1000),
    "SCAN_SEARCHED": (of(zipped(PLAIN) + zipped(PLAIN)), 2 * len(zipped(PLAIN))),
    "SCAN_DEPTH": (of(in_turn(3)), 3),
    "SCAN_MARKS": (of(b"\x80\x04(((]ttt."), 3),
    "SCAN_NAMES": (of(b"\x80\x02c" + SIZE + b"0ctorch\ndevice\n."), 2),
    "SCAN_NAME_CHARACTERS": (of(b"\x80\x02ctorch\nSize\n."), 5),
    "SCAN_FOUND": (of(zipped(PLAIN, PLAIN)), 3),
    "SCAN_NESTED": (of(pickle.dumps([b"\x80\x02c" + SIZE + b".", b"\x80\x03c" + SIZE + b"."])), 2),
    "SCAN_PARTS": (of(tar(b"a", b"b", b"c")), 3),
    "SCAN_TEXT_BYTES": (of(b'{"a": 1}', "x/config.json"), 8),
    "SCAN_FOLDERS": (folders, 2),
    "SCAN_FILES": (files, 3),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_at_a_bound_is_judged_and_over_it_is_said(name: str, monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    make, most = BOUNDS[name]
    make()
    monkeypatch.setattr(limits, name, most)
    done = ckpt("scan", "x", "--json")
    assert (done.code, json.loads(done.out)["ok"]) == (0, True), done
    monkeypatch.setattr(limits, name, most - 1)
    done = ckpt("scan", "x", "--json")
    if name == "SCAN_FILES":
        assert (done.code, "more than 2 files" in done.err) == (3, True)
        return
    said = json.loads(done.out)
    assert (done.code, said["ok"]) == (1, False), done
    assert said["verdict"] == "unknown code" or not said["whole"]


def test_every_bound_is_held() -> None:
    assert set(BOUNDS) == {name for name in vars(limits) if name.startswith("SCAN_")}


def test_records_of_a_broken_archive_that_are_not_searched_for_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SCAN_FOUND", 3)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.txt", "text")
    Path("x.zip").write_bytes(whole.getvalue().partition(b"PK\1\2")[0])
    assert [one.fault.why for one in cs.scan("x.zip").found if one.fault and one.format == "too much"] == [
        "it has over 3 records: the rest is not scanned"
    ]


def test_what_is_over_a_bound_is_still_found_to_be_code_where_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from .hostile import payload

    monkeypatch.setattr(limits, "SCAN_FOUND", 2)
    of(zipped(PLAIN, PLAIN, payload()))()
    found = cs.scan("x")
    assert (found.verdict, found.whole) == (cs.Verdict.CODE, False)
