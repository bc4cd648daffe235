"""Tar archives from before torch 0.1.10: read as torch reads them."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..helpers.tar_files import STATE, SYSTEM, Kind, archive, described, parts, pickled


def write(data: bytes) -> str:
    Path("x.pt").write_bytes(data)
    return "x.pt"


@pytest.mark.filterwarnings("ignore:Python 3.14 will", "ignore:The default behavior of tarfile")
def test_an_archive_gives_the_tensors_that_torch_gives() -> None:
    path = write(archive(parts()))
    wanted = torch.load(path, weights_only=False)
    with cs.open_checkpoint(path) as found:
        assert (found.format, list(found)) == ("torch tar", list(wanted))
        for key, tensor in wanted.items():
            assert found.tensor(key).equal(tensor)
            assert found.tensor(key).stride() == tensor.stride()
    assert all(wanted[key].equal(tensor) for key, tensor in STATE.items())


def test_an_archive_is_converted_and_verified(ckpt: Any) -> None:
    path = write(archive(parts()))
    assert ckpt("convert", path, "-o", "out.safetensors").code == 0
    assert ckpt("verify", "out.safetensors").code == 0
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("turned"), STATE["turned"])


def test_a_tensor_in_a_view_of_a_storage() -> None:
    files = parts({"weight": STATE["weight"]}, [(11, STATE["weight"].untyped_storage().data_ptr(), 2, 3)])
    files["tensors"] = pickled(1) + described(id(STATE["weight"]), 11, (3,), (1,), 0)
    with cs.open_checkpoint(write(archive(files))) as found:
        assert found.tensor("weight").tolist() == [2.0, 3.0, 4.0]


def without(name: str) -> bytes:
    return archive({key: data for key, data in parts().items() if key != name})


def with_part(name: str, data: bytes) -> bytes:
    return archive({**parts(), name: data})


def kept(change: Callable[[tarfile.TarInfo], object]) -> bytes:
    return archive(parts(), change)


def described_as(**changes: Any) -> bytes:
    """One tensor, described in another way."""
    one = STATE["weight"]
    said: dict[str, Any] = {
        "key": id(one),
        "storage": one.untyped_storage().data_ptr(),
        "size": (2, 3),
        "stride": (3, 1),
        "offset": 0,
    }
    return archive({**parts({"weight": one}), "tensors": pickled(1) + described(**{**said, **changes})})


def viewed(*view: Any) -> bytes:
    return archive(parts({"weight": STATE["weight"]}, [view]))


ROOT = STATE["weight"].untyped_storage().data_ptr()
SOUND = archive(parts())
STORED = pickled((3, "cpu", Kind("FloatStorage")))
BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no storages": ("tar members", lambda: without("storages")),
    "no pickle": ("tar members", lambda: without("pickle")),
    "another member": ("tar members", lambda: archive({**parts(), "evil": b""})),
    "a member outside": ("tar name", lambda: archive({**parts(), "../evil": b""})),
    "a member by an absolute name": ("tar name", lambda: archive({**parts(), "/tmp/evil": b""})),
    "a member twice": ("tar members", lambda: archive(parts())[:-10240] + archive({"pickle": b"N."})),
    "a symbolic link": ("tar members", lambda: kept(lambda info: info.name == "pickle" and link(info, tarfile.SYMTYPE))),
    "a hard link": ("tar members", lambda: kept(lambda info: info.name == "pickle" and link(info, tarfile.LNKTYPE))),
    "a device": ("tar members", lambda: kept(lambda info: info.name == "pickle" and link(info, tarfile.CHRTYPE))),
    "a sparse member": ("tar header", lambda: kept(lambda info: info.pax_headers.update({"GNU.sparse.major": "1"}))),
    "a link in an extended header": ("tar header", lambda: kept(lambda info: info.pax_headers.update({"linkpath": "/etc"}))),
    "a size in an extended header": ("tar size", lambda: kept(lambda info: info.pax_headers.update({"size": "99999999"}))),
    "a size that is none": ("tar header", lambda: kept(lambda info: info.pax_headers.update({"size": "-1"}))),
    "a header with another checksum": ("tar header", lambda: SOUND.replace(b"sys_info", b"Sys_info", 1)),
    "cut short": ("tar size", lambda: SOUND[: SOUND.index(b"storages") + 600]),
    "bytes behind": ("tar end", lambda: SOUND + b"x"),
    "a big-endian machine": ("byte order", lambda: with_part("sys_info", pickled({**SYSTEM, "little_endian": False}))),
    "a number of storages without end": ("tensors", lambda: with_part("storages", pickled(10**9))),
    "a number of tensors that is none": ("tensors", lambda: with_part("tensors", pickled(-1))),
    "a storage of an unknown type": ("tar storages", lambda: with_part("storages", pickled(1) + pickled((3, "cpu", Kind("X"))) + bytes(8))),
    "a storage twice": ("tar storages", lambda: with_part("storages", pickled(2) + 2 * (STORED + bytes(8)) + pickled([]))),
    "a storage beyond the member": ("tar size", lambda: with_part("storages", pickled(1) + STORED + struct.pack("<q", 1 << 40))),
    "a storage of less than nothing": ("tar size", lambda: with_part("storages", pickled(1) + STORED + struct.pack("<q", -1))),
    "bytes behind the views": ("tar size", lambda: with_part("storages", parts()["storages"] + b"x")),
    "views that are no list": ("tar storages", lambda: with_part("storages", pickled(0) + pickled(None))),
    "a view beyond": ("tar storages", lambda: viewed(11, ROOT, 2, 5)),
    "a view before": ("tar storages", lambda: viewed(11, ROOT, -1, 2)),
    "a view of nothing": ("tar storages", lambda: viewed(11, 12, 0, 1)),
    "a view in place of a storage": ("tar storages", lambda: viewed(ROOT, ROOT, 0, 1)),
    "a tensor of no storage": ("tar tensors", lambda: described_as(storage=12)),
    "a tensor beyond its storage": ("tensor beyond storage", lambda: described_as(offset=1)),
    "an offset below zero": ("tensor offset", lambda: described_as(offset=-1)),
    "a size below zero": ("tensor size", lambda: described_as(size=(-1, 3))),
    "too many dimensions": ("tensor size", lambda: described_as(size=(1,) * 65, stride=(1,) * 65)),
    "a key that is no number": ("persistent id", lambda: with_part("tensors", pickled(1) + pickled((1, "x", None)) + bytes(16))),
    "a tensor that is not there": ("persistent id", lambda: with_part("tensors", pickled(0))),
    "a tensor in the system's description": ("persistent id", lambda: with_part("sys_info", b"K\1Q.")),
    "a pickle that is none": ("pickle", lambda: with_part("pickle", b"hello")),
}  # fmt: skip


def link(info: tarfile.TarInfo, kind: bytes) -> None:
    info.type, info.linkname, info.size = kind, "/etc/passwd", 0


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_archive_is_refused_by_its_rule(kind: str) -> None:
    rule, make = BROKEN[kind]
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint(write(make()))
    assert caught.value.rule == rule, caught.value


def test_a_tar_archive_of_anything_else_says_so() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name in ("readme", "net/model.pth"):
            made.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(
        cs.FormatError, match=r"a tar archive that contains net/model.pth\. Unpack model.pth, and use it: tar xf"
    ):
        cs.open_checkpoint(write(out.getvalue()))
