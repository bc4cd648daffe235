"""Checkpoints far away are opened by their headers, and what is read is held to the same rules as on this machine."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError, UnsafeError
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.header import OutTensor

from ...helpers.hub.server import Hub
from ...helpers.torch_files import same, saved, variety

MOST_BYTES, MOST_REQUESTS = 1_000_000, 12
LAYERS, SIDE = 300, 1344
"""A float32 model of 2.2 GB."""


def sparse(path: Path, kind: str) -> Path:
    """A checkpoint of 2.2 GB that takes a few blocks on disk: all of its values are zeros."""
    nbytes = SIDE * SIDE * 4
    tensors = [OutTensor(f"encoder.layers.{i}.weight", "float32", (SIDE, SIDE), nbytes) for i in range(LAYERS)]
    layout = writers()[kind].layout(tensors, {}, ())
    with path.open("wb") as file:
        file.truncate(layout.size)
        for offset, data in layout.frame({one.key: 0 for one in tensors}, ""):
            file.seek(offset)
            file.write(data)
    return path


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_two_gigabytes_are_inspected_with_less_than_one_megabyte(
    hub: Hub, tmp_path: Path, ckpt: Callable[..., object], kind: str
) -> None:
    path = sparse(tmp_path / f"big.{kind}", kind)
    assert path.stat().st_size > 2e9
    here = json.loads(ckpt("inspect", path, "--json").out)
    url = hub.file(path.name, path, etag='"1"')
    there = json.loads(ckpt("inspect", url, "--json").out)
    (sparse_note,) = here["notes"]  # a server does not say what was never written
    assert "never written" in sparse_note
    assert {**there, "path": here["path"], "notes": [sparse_note]} == here
    print(f"{kind}: {hub.sent} bytes, {len(hub.requests)} requests")
    assert hub.sent <= MOST_BYTES
    assert len(hub.requests) <= MOST_REQUESTS


@pytest.mark.long
def test_a_file_of_torch_with_many_tensors_takes_few_requests(hub: Hub) -> None:
    data = saved({f"layers.{i}.weight": torch.full((40, 50), float(i)) for i in range(2000)})
    with cs.open_checkpoint(hub.file("many.pth", data)) as far:
        assert len(far) == 2000
        assert len(hub.requests) <= 5
        assert hub.sent < len(data) / 10
        assert torch.equal(far.tensor("layers.1234.weight"), torch.full((40, 50), 1234.0))


@pytest.mark.costly
@pytest.mark.parametrize("legacy", [False, True])
def test_every_variety_is_read_as_from_here(hub: Hub, legacy: bool) -> None:
    data = saved(variety(), _use_new_zipfile_serialization=not legacy)
    Path("x.pth").write_bytes(data)
    with cs.open_checkpoint("x.pth") as here, cs.open_checkpoint(hub.file("x.pth", data)) as far:
        assert repr(dict(far)) == repr(dict(here))
        assert [one.sha256 for one in far.files] == [one.sha256 for one in here.files]
        for key, info in here.items():
            if not info.opaque:
                assert same(far.tensor(key), here.tensor(key)), key


def test_other_zips_are_read_too(hub: Hub) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(1000.0), b=np.ones((3, 4), np.int32))
    with cs.open_checkpoint(hub.file("x.npz", buffer.getvalue())) as far:
        assert torch.equal(far.tensor("a"), torch.arange(1000.0, dtype=torch.float64))
        assert far["b"].shape == (3, 4)


def test_records_that_the_directory_does_not_place_are_looked_at(hub: Hub) -> None:
    """A zip written to a pipe has descriptors, and nothing in it is aligned."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += bytes(data)
            return len(data)

    pipe, values = Pipe(), {f"layers.{i}": torch.randn(30 + i) for i in range(9)}
    with zipfile.ZipFile(io.BytesIO(saved(values))) as made, zipfile.ZipFile(pipe, "w") as out:
        for name in made.namelist():
            out.writestr(name, made.read(name))
    with cs.open_checkpoint(hub.file("x.pth", pipe.data)) as far:
        assert all(torch.equal(far.tensor(key), value) for key, value in values.items())


def _header(data: bytes, name: str) -> int:
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return found.getinfo(name).header_offset


def _name(data: bytearray, header: int) -> None:
    data[header + 30] ^= 1


def _flags(data: bytearray, header: int) -> None:
    data[header + 6] ^= 8


def _sizes(data: bytearray, header: int) -> None:
    data[header + 22] ^= 1


def _extra(data: bytearray, header: int) -> None:
    length = struct.unpack_from("<H", data, header + 28)[0]
    struct.pack_into("<H", data, header + 28, length - 1)


def _descriptor(data: bytearray, header: int) -> None:
    at = data.index(b"PK\7\x08", header)
    data[at + 8] ^= 1


@pytest.mark.parametrize("spoil", [_name, _flags, _sizes, _extra, _descriptor])
def test_a_record_that_contradicts_the_directory_is_an_error_when_it_is_read(
    hub: Hub, spoil: Callable[[bytearray, int], None]
) -> None:
    data = bytearray(saved({"a": torch.randn(500, 500), "b": torch.randn(500, 500), "c": torch.randn(500, 500)}))
    spoil(data, _header(bytes(data), "archive/data/1"))
    Path("x.pth").write_bytes(data)
    with pytest.raises(FormatError) as here:
        cs.open_checkpoint("x.pth")
    with cs.open_checkpoint(hub.file("x.pth", bytes(data))) as far:
        assert far.tensor("a").shape == (500, 500)
        with pytest.raises(FormatError) as there:
            far.tensor("b")
        if spoil is not _extra:  # here its data is sought elsewhere first
            assert (there.value.rule, type(there.value)) == (here.value.rule, type(here.value))
    plan = cs.convert(hub.file("x.pth", bytes(data)))
    with pytest.raises((FormatError, UnsafeError)):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()


def test_a_sharded_checkpoint_is_read_through_its_index(hub: Hub) -> None:
    first, second = {"a.weight": torch.randn(300, 300)}, {"b.weight": torch.randn(300, 300)}
    weight_map = {}
    for number, part in enumerate((first, second), 1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file(part, name)
        hub.file(f"net/{name}", Path(name).read_bytes())
        weight_map.update(dict.fromkeys(part, name))
    url = hub.file("net/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    with cs.open_checkpoint(url) as far:
        assert list(far) == ["a.weight", "b.weight"]
        assert hub.sent < 200_000
        assert torch.equal(far.tensor("b.weight"), second["b.weight"])


@pytest.mark.long
def test_a_distributed_checkpoint_is_read_through_its_metadata(hub: Hub) -> None:
    values = {f"layers.{i}.weight": torch.full((300, 300), float(i)) for i in range(6)}
    torch.save(values, "x.pth")
    cs.apply(cs.convert("x.pth"), "dcp", to="dcp")
    for path in Path("dcp").iterdir():
        hub.file(f"dcp/{path.name}", path.read_bytes())
    with cs.open_checkpoint(f"{hub.url}/files/dcp/.metadata") as far:
        assert hub.sent < sum(path.stat().st_size for path in Path("dcp").iterdir())
        assert all(torch.equal(far.tensor(key), value) for key, value in values.items())


def test_a_web_page_and_nothing_are_no_checkpoints(hub: Hub) -> None:
    with pytest.raises(FormatError, match="it is a web page. Fetch it again"):
        cs.open_checkpoint(hub.file("x.pth", b"<html><body>Sign in</body></html>"))
    with pytest.raises(FormatError, match="is empty"):
        cs.open_checkpoint(hub.file("y.pth", b""))
