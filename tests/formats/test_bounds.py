"""Hostile files cost neither time nor memory: each is opened in a process of 2 GiB and ten seconds."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SECONDS = 10
ADDRESS_SPACE = 2 << 30


def zipped(pickled: bytes, method: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


def many_entries(number: int) -> bytes:
    """A directory that claims a million records and more."""
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, 0, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    return end64 + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


def laughs(levels: int) -> bytes:
    """A list of ten times the list before, shared: 10 ** levels when flattened."""
    data = b"]q\x00"
    for i in range(levels):
        data += b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1])
    return data + b"."


BOMB = b")" + b"q\x00h\x00\x86" * 240  # a tuple of itself twice, 240 deep: showing it whole would take for ever


def module(children: bytes) -> bytes:
    """A pickled nn.Module of an unknown class with these modules in it."""
    return (
        b"cx\nNet\n)R}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}X\x08\x00\x00\x00_modules}"
        + children
        + b"ub"
    )


def shared_modules(depth: int) -> bytes:
    data = module(b"") + b"q\x01"
    for _ in range(depth):
        data = data[:-2] + b"q\x010" + module(b"(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01u") + b"q\x01"
    return data + b"."


FILES = {
    "a persistent id of itself": zipped(BOMB + b"Q."),
    "a storage of itself": zipped(b"(X\x07\x00\x00\x00storage" + BOMB + b"X\x01\x00\x00\x000NK\x01tQ."),
    "an object named by a tuple of itself": zipped(BOMB + b")R."),
    "an extra that is a tuple of itself": zipped(b"}X\x01\x00\x00\x00a" + BOMB + b"s."),
    "a tensor over a tuple of itself": zipped(b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + BOMB + b"K\x00))\x89NtRs."),
    "a tensor of a type that is a tuple of itself": zipped(b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_meta_tensor_no_storage\n(" + BOMB + b")tRs."),
    "modules shared by modules": zipped(shared_modules(40)),
    "a million empty mappings": zipped(b"}" * 12_000_000 + b"."),
    "a million memos": zipped(b"N" + b"\x94" * 12_000_000 + b"."),
    "a million marks": zipped(b"(" * 1_000_000),
    "a million tuples deep": zipped(b")" + b"\x85" * 8_000_000 + b"."),
    "a tuple of itself as a key": zipped(b"})" + b"q\x00h\x00\x86" * 240 + b"Ns."),
    "billion laughs": zipped(b"}(X\x05\x00\x00\x00model" + laughs(200)[:-1] + b"u."),
    "a list that holds itself": zipped(b"}(X\x05\x00\x00\x00model]q\x00h\x00au."),
    "a mapping that holds itself": zipped(b"}q\x00X\x05\x00\x00\x00modelh\x00s."),
    "a false length": zipped(b"\x8e" + struct.pack("<Q", 2**62) + b"."),
    "a memo index of four billion": zipped(b"Nr\xff\xff\xff\xff."),
    "a deflate bomb": zipped(b"N0" * 100_000_000 + b"N.", zipfile.ZIP_DEFLATED),
    "a million records claimed": many_entries(2_000_000),
    "a safetensors header of a terabyte": struct.pack("<Q", 1 << 40) + b"{",
    "a deep safetensors header": struct.pack("<Q", 20_000_000) + b'{"a":' + b"[" * 19_999_995,
    "a safetensors header of numbers": struct.pack("<Q", 5_000_001) + b"{" + b'"a":' + b"9" * 4_999_995 + b"}",
    "text": b"hello\n" * 1000,
    "nothing": b"",
    "zeros": bytes(1_000_000),
    "only the legacy magic": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"}" * 5_000_000,
}  # fmt: skip


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_time_and_memory(name: str) -> None:
    Path("x.pth").write_bytes(FILES[name])
    done = subprocess.run(
        [sys.executable, "-m", "ckptsurgeon", "inspect", "x.pth"],
        capture_output=True,
        text=True,
        timeout=SECONDS * 3,  # the machine may be busy; the limit itself is on the process's own time
        preexec_fn=lambda: (limited(), resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))),  # type: ignore[arg-type,return-value]
    )
    if name == "a tensor over a tuple of itself":  # which opens, and shows the tensor as opaque
        assert (done.returncode, "[over a tuple]" in done.stdout) == (0, True)
        return
    assert done.returncode == 3, (done.returncode, done.stderr[-500:])
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr) < 2000


def test_devices_pipes_and_sockets_are_refused_at_once(tmp_path: Path) -> None:
    import os
    import socket

    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in ("fifo", "socket", "/dev/zero"):
            done = subprocess.run(
                [sys.executable, "-m", "ckptsurgeon", "inspect", path], capture_output=True, text=True, timeout=SECONDS
            )
            assert done.returncode == 3
            assert "only regular files" in done.stderr
