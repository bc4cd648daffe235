"""numpy's arrays: those of objects are found however their header spells it, wherever they lie."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptsurgeon as cs
from ckptsurgeon.analysis.scan.content.arrays import is_array_of_numbers


class Calls:
    def __reduce__(self) -> Any:
        return os.system, ("exit 0",)


def array(header: str, version: int = 1, behind: bytes | None = None) -> bytes:
    """An array of one header, with a pickle that calls behind it."""
    raw = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + length + raw + (pickle.dumps(Calls(), 2) if behind is None else behind)


USUAL = "{'descr': %s, 'fortran_order': False, 'shape': (1,), }"
OBJECTS = {
    "usual": USUAL % "'|O'",
    "numpy 1.0's": USUAL % "'|O8'",
    "behind spaces": " " * 5000 + USUAL % "'|O'",
    "padded": (USUAL % "'|O'").ljust(60_000) + "\n",
    "another order": "{'shape': (1,), 'fortran_order': False, 'descr': '|O'}",
    "double quotes": '{"descr": "|O", "fortran_order": False, "shape": (1,)}',
    "escaped": USUAL % r"'|\x4f'",
    "escaped by number": USUAL % r"'|\117'",
    "in two pieces": USUAL % "'|' 'O'",
    "marked as text": USUAL % "u'|O'",
    "by its long name": USUAL % "'object'",
    "among others": USUAL % "'u4, O'",
    "field": USUAL % "[('a', '<f4'), ('b', '|O')]",
    "field of a field": USUAL % "[('a', '<f4'), ('b', [('c', '<i4'), ('d', 'O', (2,))])]",
    "titled field": USUAL % "[(('t', 'a'), '|O')]",
    "behind a key of its own": "{'x': '" + "y" * 4096 + "', 'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("spelling", OBJECTS)
@pytest.mark.parametrize("where", ["npy", "stored", "deflated"])
def test_objects_are_found_however_they_are_spelt(where: str, spelling: str, version: int, ckpt: Any) -> None:
    data = array(OBJECTS[spelling], version)
    assert not is_array_of_numbers(data)
    if where == "npy":
        Path("x.npy").write_bytes(data)
    else:
        method = zipfile.ZIP_STORED if where == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile("x.npz", "w", method) as archive:
            archive.writestr("a.npy", data)
    (name,) = (path.name for path in Path().iterdir())
    done = ckpt("scan", name)
    assert (done.code, "system" in done.out) == (1, True), done


@pytest.mark.parametrize(
    "made",
    [
        np.ones(3), np.ones((2, 3), ">f2"), np.array(3), np.zeros(0, "<i8"), np.array(["O", "a"]), np.array([b"O"]),
        np.zeros(2, "u1"), np.ones(2, ">u4"),
        np.array([1, 2], "M8[ns]"), np.ones(2, "m8[25s]"), np.ones((2, 2), order="F"), np.ones(1, "c16"), np.zeros(2, "V5"),
        np.zeros(2, [("Offset", "<f4"), ("O", "S3", (2, 2))]), np.zeros(1, [("a", [("b", "<f4"), ("c", [("d", "?")])])]),
        np.zeros(1, [(("title", "name"), "<i2")]), np.zeros(2, [(f"field {i}", "<f4") for i in range(300)]),
    ],
    ids=lambda made: str(made.dtype)[:20],
)  # fmt: skip
@pytest.mark.parametrize("where", ["npy", "stored", "deflated"])
def test_numbers_and_texts_are_plain(where: str, made: np.ndarray[Any, Any]) -> None:
    path = f"x.{'npy' if where == 'npy' else 'npz'}"
    if where == "npy":
        np.save(path, made)
    else:
        (np.savez if where == "stored" else np.savez_compressed)(path, a=made)
    assert cs.scan(path).verdict is cs.Verdict.PLAIN
    assert cs.scan(path).ok


def test_a_header_that_decides_nothing_is_said(ckpt: Any) -> None:
    Path("x.npy").write_bytes(array("{'descr': '<f4' if True else 'O', }", behind=bytes(64)))
    done = ckpt("scan", "x.npy")
    assert done.code == 1
    assert "its header has no numeric dtype" in " ".join(done.out.split())


def test_python_2_wrote_its_long_numbers_with_a_mark() -> None:
    Path("x.npy").write_bytes(array("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }", behind=bytes(8)))
    assert cs.scan("x.npy").verdict is cs.Verdict.PLAIN


def test_numpy_reads_what_is_spelt_so() -> None:
    """The spellings are such as numpy takes: it comes as far as the pickle."""
    for name, header in OBJECTS.items():
        if len(header) > 9000 or "own" in name:
            continue
        with pytest.raises((ValueError, OSError), match="[Oo]bject arrays cannot be loaded"):
            np.load(io.BytesIO(array(header.replace("spaces", ""))), allow_pickle=False)


@pytest.mark.parametrize("first", [np.arange(3), np.array([{"a": 1}], dtype=object), np.zeros(2, [("a", "<f4"), ("b", [("c", "U3", (2, 2)), ("d", "M8[s]")])])], ids=["numbers", "objects", "records"])  # fmt: skip
@pytest.mark.parametrize("second", ["array", "pickle"])
def test_what_lies_behind_an_array_is_looked_at(first: Any, second: str, ckpt: Any) -> None:
    with open("x.npy", "wb") as file:
        np.save(file, first, allow_pickle=True)
        if second == "array":
            np.save(file, np.array([Calls()], dtype=object), allow_pickle=True)
        else:
            pickle.dump(Calls(), file)
    done = ckpt("scan", "x.npy")
    assert (done.code, "posix.system" in done.out or "nt.system" in done.out) == (1, True), done


def test_two_arrays_of_numbers_are_plain() -> None:
    with open("x.npy", "wb") as file:
        np.save(file, np.arange(3))
        np.save(file, np.ones((2, 2), "<f4"))
    assert cs.scan("x.npy").ok
