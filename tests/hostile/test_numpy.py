"""NumPy's files whose headers lie, and archives of them that hold pickles, compressed arrays or the same key twice."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from typing import Any

import numpy as np

import ckptsurgeon as cs

from ..helpers.pace import in_time
from ..promises.clauses import NEVER_RUN, NUMPY, clause
from .case import COPY, LOOK, Case, Refusal, broken, each, written
from .holding import held, nothing_executed

HEAD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


def npy(head: str, body: bytes = bytes(8), version: int = 1, length: int | None = None) -> bytes:
    text = head.encode() + b"\n"
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(text) if length is None else length) + text + body


def npz(method: int = zipfile.ZIP_STORED, **arrays: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


class Payload:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def saved(*values: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values, dtype=object), allow_pickle=True)
    return out.getvalue()


HEADERS: dict[str, tuple[Refusal, bytes]] = {
    "too few bytes": (broken("npy size"), npy(HEAD, bytes(7))),
    "too many bytes": (broken("npy size"), npy(HEAD, bytes(9))),
    "a size below zero": (broken("npy header"), npy(HEAD.replace("(2,)", "(-2,)"))),
    "a size beyond int64": (broken("tensor size"), npy(HEAD.replace("(2,)", f"({2**62}, 4)"))),
    "a size beyond int64 beside a 0": (broken("tensor size"), npy(HEAD.replace("(2,)", f"(0, {2**62}, 4)"), b"")),
    "a size of thirty digits": (broken("tensor size"), npy(HEAD.replace("(2,)", f"({'9' * 30},)"))),
    "65 dimensions": (broken("tensor size"), npy(HEAD.replace("(2,)", "(" + "1, " * 65 + ")"), bytes(4))),
    "no header": (broken("npy header"), npy("nothing")),
    "an empty header": (broken("npy header"), npy("", b"")),
    "another version": (broken("npy header"), npy(HEAD, version=9)),
    "a header longer than the file": (broken("npy header"), npy(HEAD, version=2, length=2**31 - 1)),
    "a header over the limit": (broken("npy header"), npy(HEAD + " " * 70_000, version=2)),
    "only the magic": (broken("npy header"), b"\x93NUMPY\1\0"),
    "code as a type": (broken("no state dict"), npy(HEAD.replace("'<f4'", "__import__('os').system('touch canary')"))),
    "an array of objects": (broken("no state dict"), saved(Payload())),
}  # fmt: skip

TWICE = io.BytesIO()
with zipfile.ZipFile(TWICE, "w") as _archive:
    for _name in ("a.npy", "w", "w.npy"):
        _archive.writestr(_name, npy(HEAD))

ARCHIVES: dict[str, tuple[Refusal, bytes]] = {
    "an archive of compressed arrays": (broken("compressed record"), npz(zipfile.ZIP_DEFLATED, w=npy(HEAD))),
    "an archive of one key twice": (broken("duplicate key"), TWICE.getvalue()),
    "an archive with a broken array": (broken("npy size"), npz(v=npy(HEAD), w=npy(HEAD, bytes(7)))),
    "an archive of objects": (broken("no state dict"), npz(w=saved(Payload()))),
}  # fmt: skip

CASES = [Case(name, NUMPY, refusal, written("x.npy", data)) for name, (refusal, data) in HEADERS.items()]
CASES += [Case(name, NUMPY, refusal, written("x.npz", data)) for name, (refusal, data) in ARCHIVES.items()]


@each(CASES)
def test_a_file_that_lies_is_refused(case: Case, ckpt: Any) -> None:
    held(case, ckpt)


@clause(NEVER_RUN)
def test_objects_beside_arrays_are_named_and_never_unpickled(ckpt: Any) -> None:
    path = written("x.npz", npz(w=npy(HEAD), evil=saved(Payload())))()
    with nothing_executed(), in_time():
        for command in (LOOK, COPY):
            done = ckpt(*(path if argument == "{}" else argument for argument in command))
            assert done.code == 0, done
    assert list(cs.open_checkpoint("out.safetensors")) == ["w"]
    assert not os.path.exists("canary")
