"""Forms that were passed over, and what reads them: joblib's old files, HDF5 behind a block, TensorFlow, llamafile."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

import ckptsurgeon as cs

from .hostile import payload

LAMBDA = b'{"class_name": "Lambda", "config": {"function": "x"}}'
DENSE = b'{"class_name": "Dense", "module": "keras.layers", "config": {"units": 1}}'
HDF5 = b"\x89HDF\r\n\x1a\n" + b"\0" * 100 + b"model_config"


def zfile(data: bytes, wider: bytes = b"") -> bytes:
    """As joblib wrote it before 0.10 (joblib/numpy_pickle_compat.py, write_zfile)."""
    return b"ZF" + hex(len(data)).encode().ljust(19) + wider + zlib.compress(data)


def as_zip(*records: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in records:
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("wider", [b"", b" "], ids=["Python 3", "Python 2"])
def test_what_joblib_compressed_before_0_10_is_looked_at(wider: bytes) -> None:
    for value, verdict in ((payload(2), cs.Verdict.CODE), (pickle.dumps({"a": [1, 2]}, 2), cs.Verdict.PLAIN)):
        Path("x.pkl").write_bytes(zfile(value, wider))
        found = cs.scan("x.pkl")
        assert (found.verdict, found.whole) == (verdict, True)
        assert [one.format for one in found.found] == ["joblib zlib", "pickle"]
    Path("x.pkl").write_bytes(zfile(payload(2), wider)[:-6])
    assert not cs.scan("x.pkl").whole


@pytest.mark.parametrize("before", [512, 1024, 2048, 1 << 16])
def test_hdf5_behind_a_user_block_is_looked_at(before: int) -> None:
    for config, verdict in ((LAMBDA, cs.Verdict.CODE), (DENSE, cs.Verdict.PLAIN)):
        for name in ("x.h5", "x.bin"):
            Path(name).write_bytes(b"anything".ljust(before, b"\0") + HDF5 + config)
            found = cs.scan(name)
            assert (found.verdict, found.whole) == (verdict, True)
            assert "HDF5" in found.found[0].format


def test_hdf5_elsewhere_is_none_for_its_readers() -> None:
    Path("x.bin").write_bytes(b"anything".ljust(1536, b"\0") + HDF5 + LAMBDA)
    assert cs.scan("x.bin").verdict is cs.Verdict.PLAIN


@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt", "saved_model.cpb"])
def test_a_program_of_tensorflow_is_unknown_code_in_each_spelling(name: str) -> None:
    Path("model").mkdir()
    Path("model", name).write_bytes(b"saved_model_schema_version: 1\n")
    assert cs.scan("model").verdict is cs.Verdict.CODE
    Path("x.zip").write_bytes(as_zip((f"model/{name}", b"\x08\x01\x12\0")))
    assert cs.scan("x.zip").verdict is cs.Verdict.CODE


def windows_program() -> bytes:
    return b"MZ".ljust(60, b"\0") + struct.pack("<I", 128) + b"\0" * 64 + b"PE\0\0" + b"\0" * 64


PROGRAMS = {
    "Actually Portable Executable": b"MZqFpD='\n" + b"x" * 500, "its older form": b"jartsr='\n" + b"x" * 500,
    "ELF": b"\x7fELF" + b"\0" * 60, "Windows": windows_program(), "WebAssembly": b"\0asm\1\0\0\0",
    "Mach-O of 32 bits": b"\xce\xfa\xed\xfe" + b"\0" * 60, "fat Mach-O": b"\xca\xfe\xba\xbf" + b"\0" * 60,
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_with_an_archive_behind_is_machine_code(name: str) -> None:
    """llamafile is such: a program, and weights and arguments behind it as a zip archive."""
    archive = as_zip(("model.gguf", b"GGUF\3\0\0\0" + b"\0" * 64), (".args", b"-m\nmodel.gguf\n"))
    for data in (PROGRAMS[name], PROGRAMS[name] + archive):
        Path("x.llamafile").write_bytes(data)
        found = cs.scan("x.llamafile")
        assert found.verdict is cs.Verdict.CODE
        assert "machine code" in {one.format for one in found.found}


def test_a_script_with_an_archive_of_programs_behind_is_unknown_code() -> None:
    Path("x.pyz").write_bytes(b"#!/usr/bin/env python3\n" + as_zip(("__main__.py", b"print(1)\n")))
    assert cs.scan("x.pyz").verdict is cs.Verdict.CODE


def test_bytes_that_begin_as_a_program_of_dos_are_none() -> None:
    Path("x.bin").write_bytes(b"MZ" + bytes(range(256)) * 4)
    assert cs.scan("x.bin").ok
