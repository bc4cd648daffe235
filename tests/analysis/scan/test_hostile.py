"""Hostile pickles, in every container: found, named, and never run."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptsurgeon as cs

from .hostile import CANARY, Calls, as_legacy, as_torch_zip, by_hand, command, libraries, payload


def as_tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("model.ckpt")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda data: data,
    "torch zip": as_torch_zip,
    "other record": lambda data: as_torch_zip(pickle.dumps({}), **{"extra/data.bin": data}),
    "legacy": as_legacy,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
    "tar": as_tar,
    "tar.gz of torch zip": lambda data: gzip.compress(as_tar(as_torch_zip(data))),
    "in bytes": lambda data: pickle.dumps({"a": data}, 4),
    "in text": lambda data: pickle.dumps({"a": data.decode("latin-1")}, 2),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", list(by_hand()))
def test_a_hand_made_stream_is_unknown_code(name: str, container: str) -> None:
    Path("model.safetensors").write_bytes(CONTAINERS[container](by_hand()[name]))
    found = cs.scan("model.safetensors")
    assert found.verdict is cs.Verdict.CODE, found
    assert not found.ok
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("name", list(by_hand()))
def test_the_canary_sings_when_the_stream_is_loaded_for_real(name: str) -> None:
    Path("x.pkl").write_bytes(by_hand()[name])
    loads = "import pickle\nwith open('x.pkl', 'rb') as f:\n    while True: pickle.Unpickler(f).load()"
    subprocess.run([sys.executable, "-c", loads], capture_output=True, check=False)
    assert Path(CANARY).exists()


@pytest.mark.parametrize("name", [*by_hand()])
def test_what_would_be_called_is_named(name: str) -> None:
    Path("x.pkl").write_bytes(by_hand()[name])
    uses = [use for one in cs.scan("x.pkl").found for use in one.uses if use.verdict is cs.Verdict.CODE]
    said = {f"{use.module}.{use.name}" for use in uses}
    assert said & {
        "posix.system", "os.system", "subprocess.Popen", "builtins.eval", "__builtin__.eval", "builtins.getattr",
        "operator.methodcaller", "pickle.loads",
    }  # fmt: skip
    assert any(use.called for use in uses)
    assert any(command()[:30] in call or "touch" in call for use in uses for call in use.calls)


@pytest.mark.parametrize("how", ["global", "stack"])
@pytest.mark.parametrize("name", libraries())
def test_no_name_needs_to_be_known_to_be_found(name: str, how: str) -> None:
    module, attribute = libraries()[name]
    spelled = f"c{module}\n{attribute}\n".encode()
    if how == "stack":
        parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)]
        spelled = b"\x80\x04" + b"".join(parts) + b"\x93"
    Path("x.pkl").write_bytes(spelled + b"(I1\ntR.")
    found = cs.scan("x.pkl")
    use = found.found[0].uses[0]
    assert (use.module, use.name, use.verdict, use.called) == (module, attribute, cs.Verdict.CODE, 1)
    assert use.calls == (f"{module}.{attribute}(1)",)


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x02", b"\x84\x01\x02\x03\x04"])
def test_extension_codes_are_up_to_the_reader(code: bytes) -> None:
    Path("x.pkl").write_bytes(b"\x80\x02" + code + b")R.")
    use = cs.scan("x.pkl").found[0].uses[0]
    assert (use.module, use.verdict, use.called) == ("copyreg.extension", cs.Verdict.CODE, 1)


@pytest.mark.parametrize("stream", [b"Pits id\n.", b"\x80\x02X\x06\0\0\0its idQ."])
def test_persistent_ids_are_up_to_the_reader(stream: bytes) -> None:
    Path("x.pkl").write_bytes(b"\x80\x02" + stream)
    use = cs.scan("x.pkl").found[0].uses[0]
    assert (use.name, use.verdict, use.called) == ("persistent_load", cs.Verdict.CODE, 1)
    assert "its id" in use.calls[0] or "?" in use.calls[0] or "…" in use.calls[0]


def test_an_array_of_objects_is_a_pickle() -> None:
    np.save("x.npy", np.array([Calls(os.system, command())], dtype=object))
    np.savez("x.npz", a=np.ones(2), b=np.array([Calls(os.system, command())], dtype=object))
    np.savez_compressed("y.npz", a=np.ones(2), b=np.array([Calls(os.system, command())], dtype=object))
    for name in ("x.npy", "x.npz", "y.npz"):
        assert cs.scan(name).verdict is cs.Verdict.CODE
    assert not Path(CANARY).exists()


def test_a_known_name_that_is_changed_itself_is_unknown_code() -> None:
    Path("x.pkl").write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0aK\x01sb.")
    use = cs.scan("x.pkl").found[0].uses[0]
    assert (use.name, use.verdict, use.changed) == ("_rebuild_tensor_v2", cs.Verdict.CODE, 1)


def test_a_codec_is_a_module_that_is_imported() -> None:
    for codec, verdict in (("latin1", cs.Verdict.PLAIN), ("evil", cs.Verdict.CODE)):
        stream = f"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX{chr(len(codec))}\0\0\0{codec}\x86R."
        Path("x.pkl").write_bytes(stream.encode("latin-1"))
        assert cs.scan("x.pkl").verdict is verdict


def test_a_long_name_that_begins_as_a_known_one_is_unknown() -> None:
    Path("x.pkl").write_bytes(b"ctorch\nSize" + b" " * 5000 + b"\n.")
    assert cs.scan("x.pkl").verdict is cs.Verdict.CODE


def test_a_pickle_in_front_of_an_archive_and_an_archive_behind_a_pickle_are_both_seen() -> None:
    Path("x.pth").write_bytes(pickle.dumps({}) + as_torch_zip(payload()))
    found = cs.scan("x.pth")
    assert found.verdict is cs.Verdict.CODE
    assert not found.whole
    Path("y.pth").write_bytes(payload() + as_torch_zip(pickle.dumps({})))
    assert cs.scan("y.pth").verdict is cs.Verdict.CODE


def safetensors_and_pickle(tensor: bytes) -> bytes:
    """Safetensors whose length reads as BINUNICODE, and whose metadata reads as strings up to the tensor."""
    length = 0x58 | 25 << 8
    prefix = b'{"__metadata__":{"a":"'
    suffix = b'"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(tensor), len(tensor))
    skip = b"U~" + b"x" * 126
    rest = length - len(prefix) - 49 * len(skip) - len(skip)
    header = prefix + 49 * skip + b"U" + bytes([rest - 2]) + b"x" * (rest - 2) + skip[: -len(suffix)] + suffix
    assert len(header) == length
    return length.to_bytes(8, "little") + header + tensor


def test_safetensors_that_are_a_pickle_too_are_both() -> None:
    Path("x.safetensors").write_bytes(safetensors_and_pickle(payload(2)))
    assert list(cs.open_checkpoint("x.safetensors")) == ["w"]
    found = cs.scan("x.safetensors")
    assert found.verdict is cs.Verdict.CODE
    assert {one.format for one in found.found} == {"safetensors", "pickle"}
    loads = "import pickle\npickle.load(open('x.safetensors', 'rb'))"
    subprocess.run([sys.executable, "-c", loads], capture_output=True, check=False)
    assert Path(CANARY).exists()


@pytest.mark.parametrize("text", [b"p\\x6", b"p\\x", b"\\8", b"\\9x", b"\\", b"\\xzz", b"\\777"])
def test_escapes_that_are_none_are_names_that_nobody_knows(text: bytes, ckpt: Any) -> None:
    Path("x.pkl").write_bytes(b"\x80\x04S'" + text + b"'\nS'system'\n\x93)R.")
    done = ckpt("scan", "x.pkl")
    assert (done.code, "UNKNOWN CODE" in done.out) == (1, True), done


@pytest.mark.parametrize("line", [b"--5", b"-", b"", b"5-", b"0x1", b"1" * 2000])
def test_numbers_that_are_none_are_passed_over(line: bytes, ckpt: Any) -> None:
    Path("x.pkl").write_bytes(b"\x80\x02cposix\nsystem\n(I" + line + b"\ntR.")
    done = ckpt("scan", "x.pkl")
    assert (done.code, "posix.system" in done.out) == (1, True), done
