"""The directory of a zip archive against the archive itself, each rule by name."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.header import OutTensor
from ckptsurgeon.formats.zip import layout as written
from ckptsurgeon.formats.zip.archive import read_archive
from ckptsurgeon.storage.read.local import LocalFile

from ...helpers.torch_files import rezipped, saved, write

FULL = 0xFFFFFFFF


@dataclass
class Record:
    """One record as it stands in an archive; what is None is as it should be."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    local_flags: int | None = None
    local_method: int | None = None
    size: int | None = None
    stored: int | None = None
    local_sizes: tuple[int, int] | None = None
    extra: bytes = b""


def archive(*records: Record, disk: int = 0) -> bytes:
    out, directory = b"", b""
    for record in records:
        name, raw = record.name.encode(), record.data
        plain = zlib.decompressobj(-15).decompress(raw) if record.method else raw
        crc = zlib.crc32(plain)
        stored = len(raw) if record.stored is None else record.stored
        size = len(plain) if record.size is None else record.size
        local_stored, local_size = record.local_sizes or (stored, size)
        flags = record.flags if record.local_flags is None else record.local_flags
        method = record.method if record.local_method is None else record.local_method
        header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, crc, local_stored, local_size, len(name), len(record.extra))  # fmt: skip
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, record.flags, record.method, 0, 0, crc, stored, size, len(name), 0, 0, 0, 0, 0, len(out)) + name  # fmt: skip
        out += header + name + record.extra + raw
    number = len(records)
    return out + directory + struct.pack("<4s4H2LH", b"PK\5\6", disk, 0, number, number, len(directory), len(out), 0)


def pickled() -> bytes:
    """The pickle of a state dict of one tensor over sixteen bytes."""
    with zipfile.ZipFile(io.BytesIO(saved({"weight": torch.arange(4.0)}))) as found:
        return found.read(next(name for name in found.namelist() if name.endswith("data.pkl")))


PICKLE = Record("a/data.pkl", pickled())
STORAGE = Record("a/data/0", torch.arange(4.0).numpy().tobytes())


def deflated(data: bytes, behind: bytes = b"") -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return made.compress(data) + made.flush() + behind


def wide(stored: int, size: int) -> bytes:
    return struct.pack("<2H2Q", 1, 16, size, stored)


def storage(**changes: object) -> Record:
    return Record(**{**STORAGE.__dict__, **changes})  # type: ignore[arg-type]


SOUND = {
    "plain": archive(PICKLE, STORAGE),
    "a deflated pickle": archive(Record("a/data.pkl", deflated(pickled()), 8), STORAGE),
    "zip64 sizes in a local header": archive(PICKLE, storage(local_sizes=(FULL, FULL), extra=wide(16, 16))),
    "another data.pkl further down": archive(PICKLE, STORAGE, Record("a/b/data.pkl", b"N.")),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_archive_is_read(name: str) -> None:
    write("x.pth", SOUND[name])
    assert cs.open_checkpoint("x.pth").tensor("weight").tolist() == [0, 1, 2, 3]


BROKEN = {
    "a record that runs into the next": ("zip overlap", archive(PICKLE, Record("a/x", b"xx", size=4, stored=4), STORAGE)),
    "a record that runs into the directory": ("zip overlap", archive(PICKLE, storage(size=20, stored=20))),
    "bytes behind the end of deflated data": ("deflate", archive(Record("a/data.pkl", deflated(pickled(), b"x"), 8), STORAGE)),
    "deflated data of another size": ("deflate", archive(Record("a/data.pkl", deflated(pickled()), 8, size=len(pickled()) - 1), STORAGE)),
    "encrypted, says the directory alone": ("zip encryption", archive(PICKLE, storage(flags=1, local_flags=0))),
    "encrypted, says the record alone": ("zip encryption", archive(PICKLE, storage(flags=0, local_flags=1))),
    "a split archive": ("zip disks", archive(PICKLE, STORAGE, disk=1)),
    "a pickle that was changed": ("crc", archive(PICKLE, STORAGE).replace(b"weight", b"weighs")),
    "a data.pkl only further down": ("persistent id", archive(Record("a/b/data.pkl", pickled()), Record("a/b/data/0", STORAGE.data))),
    "other zip64 sizes where it lies": ("zip local header", archive(PICKLE, storage(local_sizes=(FULL, FULL), extra=wide(999, 999)))),
    "another method where it lies": ("zip local header", archive(PICKLE, storage(local_method=8))),
    "zip64 sizes that are not there": ("zip64", archive(PICKLE, storage(local_sizes=(FULL, FULL)))),
    "two equal names of one letter": ("zip duplicate", archive(PICKLE, STORAGE, Record("x", b"1"), Record("x", b"2"))),
    "a byte order of neither kind": ("byteorder", archive(PICKLE, STORAGE, Record("a/byteorder", b"BIG"))),
    "a bomb": ("deflate bomb", archive(Record("a/data.pkl", deflated(b"N0" * 10_000_000 + b"N."), 8))),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_refused_by_name(name: str) -> None:
    rule, data = BROKEN[name]
    write("x.pth", data)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.pth")
    assert caught.value.rule == rule
    assert caught.value.message.startswith("x.pth")


BROKEN_WORDS = {
    "has a name with a backslash": archive(PICKLE, STORAGE, Record("a\\x", b"1")),
    "has a name with a backslash or a NUL": archive(PICKLE, STORAGE, Record("a/x\0", b"1")),
    "has a name that leads out of the archive's folder": archive(PICKLE, STORAGE, Record("../x", b"1")),
    "does not begin with a local header": b"PK\3\5".join(archive(PICKLE, STORAGE).rsplit(b"PK\3\4", 1)),
    "record a/data/0 reaches into the zip directory": archive(PICKLE, storage(size=20, stored=20)),
    "is followed by bytes that belong to no record": archive(PICKLE, storage(data=STORAGE.data + b"x" * 9, size=16, stored=16)),
}  # fmt: skip


@pytest.mark.parametrize("words", BROKEN_WORDS)
def test_the_error_on_an_archive_says_what_is_true(words: str) -> None:
    write("x.pth", BROKEN_WORDS[words])
    with pytest.raises(cs.FormatError, match=words):
        cs.open_checkpoint("x.pth")


def test_a_record_that_is_stored_in_too_many_bytes_is_given_with_this_size(monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.pth", archive(Record("a/data.pkl", deflated(pickled()) + bytes(2000), 8), STORAGE))
    monkeypatch.setattr(limits, "PICKLE_BYTES", 1000)
    with pytest.raises(cs.FormatError, match=r"has 2\d\d\d bytes, more than the limit of 1000"):
        cs.open_checkpoint("x.pth")


def test_the_number_of_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.pth", archive(PICKLE, STORAGE))
    monkeypatch.setattr(limits, "ZIP_ENTRIES", 2)
    cs.open_checkpoint("x.pth")
    monkeypatch.setattr(limits, "ZIP_ENTRIES", 1)
    with pytest.raises(cs.FormatError, match="lists 2 records, more than the limit"):
        cs.open_checkpoint("x.pth")


def test_the_size_of_the_directory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    write("x.pth", archive(PICKLE, STORAGE))
    monkeypatch.setattr(limits, "ZIP_DIRECTORY_BYTES", 10)
    with pytest.raises(cs.FormatError, match="has a zip directory of [0-9]+ bytes, more than the limit of 10"):
        cs.open_checkpoint("x.pth")


@pytest.mark.long
@pytest.mark.parametrize("records", [65_534, 65_535])
def test_as_many_records_as_fit_in_16_bits_and_one_more(records: int) -> None:
    tensors = [OutTensor(f"k{i}", "uint8", (0,), 0) for i in range(records - 5)]
    layout = writers()["pth"].layout(tensors, {}, ())
    with open("x.pth", "wb") as file:
        for offset, data in layout.frame(dict.fromkeys(layout.slots, 0), ""):
            file.seek(offset)
            file.write(data)
    assert len(zipfile.ZipFile("x.pth").namelist()) == records
    assert (b"PK\6\6" in Path("x.pth").read_bytes()) is (records >= 65_535)
    with closing(LocalFile("x.pth")) as file:
        assert len(read_archive(file).entries) == records


@pytest.mark.parametrize("records", [0xFFFF - 1, 0xFFFF, 0xFFFF + 1])
def test_more_records_than_fit_in_16_bits_are_counted_in_zip64(records: int) -> None:
    data = written._end(records, 46 * records, 0)
    fits = records < 0xFFFF
    assert data.startswith(b"PK\5\6" if fits else b"PK\6\6")
    assert struct.unpack("<2H", data[-14:-10]) == (min(records, 0xFFFF),) * 2
    assert fits or struct.unpack("<2Q", data[24:40]) == (records, records)


def test_a_view_is_refused_when_its_storage_was_changed_elsewhere() -> None:
    whole = torch.arange(1000.0)
    data = bytearray(saved({"whole": whole, "view": whole[:2], "other": whole[5:6]}))
    at = data.find(whole[990:].numpy().tobytes())
    data[at] ^= 1
    write("x.pth", bytes(data))
    found = cs.open_checkpoint("x.pth")
    for key in ("view", "view", "other", "whole"):
        with pytest.raises(cs.FormatError, match="checksum"):
            found.tensor(key)


def test_the_checksum_of_a_storage_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.arange(1000.0)
    write("x.pth", saved({"a": whole[:2], "b": whole[5:6], "whole": whole}))
    found = cs.open_checkpoint("x.pth")
    seen = []
    file = next(iter(found.open_files().values()))
    real = type(file).readinto
    monkeypatch.setattr(type(file), "readinto", lambda self, at, view: seen.append(len(view)) or real(self, at, view))
    for key, number in (("a", 2), ("b", 1), ("whole", 1)):
        seen.clear()
        assert torch.equal(found.tensor(key), {"a": whole[:2], "b": whole[5:6], "whole": whole}[key])
        assert len(seen) == number
    assert found.unwrapped().checked is found.checked


def test_the_error_of_a_pickle_names_its_file() -> None:
    write("x.pth", rezipped(saved({"a": torch.ones(1)}), lambda name, raw: b"\0" if name.endswith("data.pkl") else raw))
    with pytest.raises(cs.FormatError, match=r"^x.pth: the pickle has an unknown opcode 0x00 \(near byte 1\)"):
        cs.open_checkpoint("x.pth")


def test_a_zip64_field_that_is_longer_than_what_holds_it_is_refused() -> None:
    from ckptsurgeon.formats.zip.records import FULL, wide_sizes

    class File:
        uri = "x.pth"

    for length in range(26):
        for have in range(24):
            extra = struct.pack("<2H", 1, length) + bytes(have)
            try:
                sizes = wide_sizes(File(), extra, FULL, FULL, 0)  # type: ignore[arg-type]
            except cs.CheckpointError:
                continue
            assert sizes == (0, 0, 0)
