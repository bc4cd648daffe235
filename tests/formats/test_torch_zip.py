"""torch's zip files: everything torch saves is read as torch reads it, and what we write torch reads."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.header import OutTensor

from ..helpers.torch_files import bytes_of, rezipped, same, saved, variety, write

OPAQUE = ("sparse", "csr", "quantised", "per_channel", "meta")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_variety_is_the_very_tensor_that_torch_loads(protocol: int) -> None:
    write("x.pth", saved(variety(), pickle_protocol=protocol))
    theirs, ours = torch.load("x.pth", weights_only=False), cs.open_checkpoint("x.pth")
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert same(ours.tensor(key), tensor), key
        assert (ours[key].shape, ours[key].dtype) == (tuple(tensor.shape), str(tensor.dtype)[6:])
        assert bool(ours[key].opaque) == (key in OPAQUE)


def test_aliases_are_known_and_views_are_not_aliases() -> None:
    a = torch.randn(4, 4)
    write("x.pth", saved({"a": a, "b": a, "row": a[0], "t": a.t(), "c": a.clone()}))
    assert dict(cs.open_checkpoint("x.pth").ties) == {"b": "a"}


def test_a_big_endian_file_is_swapped() -> None:
    values = {"a": torch.tensor([1.0, -2.5]), "c": torch.tensor([1 + 2j]), "i": torch.tensor([7], dtype=torch.int16)}
    sizes = {"0": 4, "1": 4, "2": 2}

    def turn(name: str, data: bytes) -> bytes:
        record = name.split("/")[-1]
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name:
            size = sizes[record]
            return b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
        return data

    write("big.pth", rezipped(saved(values), turn))
    found = cs.open_checkpoint("big.pth")
    for key, tensor in values.items():
        assert torch.equal(found.tensor(key), tensor)
    plan = cs.transplant("big.pth", "big.pth")
    cs.apply(plan, "out.safetensors")
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("c"), values["c"])


def test_a_file_without_checksums_is_read() -> None:
    try:
        torch.serialization.set_crc32_options(False)
        write("x.pth", saved({"a": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(True)
    found = cs.open_checkpoint("x.pth")
    assert found["a"].storage is not None
    assert found["a"].storage.crc32 is None
    assert torch.equal(found.tensor("a"), torch.ones(3))


def test_a_wrong_checksum_is_found_when_the_tensor_is_read() -> None:
    data = bytearray(saved({"a": torch.ones(100)}))
    at = data.find(torch.ones(2).numpy().tobytes())
    data[at + 5] ^= 1
    write("x.pth", bytes(data))
    found = cs.open_checkpoint("x.pth")  # headers only: nothing to see yet
    with pytest.raises(cs.FormatError, match="checksum"):
        found.tensor("a")


def test_a_compressed_pickle_is_read_and_a_compressed_tensor_is_refused() -> None:
    data = saved({"a": torch.ones(100)})
    write("deflated.pth", rezipped(data, lambda name, raw: raw, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(cs.FormatError, match="compressed"):
        cs.open_checkpoint("deflated.pth")
    write("empty.pth", rezipped(saved({"a": torch.ones(0)}), lambda name, raw: raw, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(cs.FormatError, match="compressed"):
        cs.open_checkpoint("empty.pth")


def written(
    tensors: dict[str, torch.Tensor], recipe: tuple[str, ...] = (), ties: dict[str, str] | None = None
) -> bytes:
    ties = ties or {}
    out = [
        OutTensor(k, str(t.dtype)[6:], tuple(t.shape), t.numel() * t.element_size(), ties.get(k, ""))
        for k, t in tensors.items()
    ]
    layout = writers()["pth"].layout(out, {}, recipe)
    buffer = bytearray(layout.size)
    crcs = {}
    import zlib

    for key, (offset, nbytes) in layout.slots.items():
        raw = bytes_of(tensors[key])
        buffer[offset : offset + nbytes] = raw
        crcs[key] = zlib.crc32(raw)
        assert offset % 64 == 0
    for offset, data in layout.frame(crcs, recipe):
        buffer[offset : offset + len(data)] = data
    return bytes(buffer)


def test_what_we_write_torch_reads_safely() -> None:
    tensors = {k: v for k, v in variety().items() if k not in OPAQUE}
    data = written(tensors, ('{"a":', " 1}"))
    found = torch.load(io.BytesIO(data), weights_only=True)
    assert list(found) == list(tensors)
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(found[key]) == bytes_of(tensor), key
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/.data/ckptsurgeon.json") == b'{"a": 1}'


def test_ties_share_their_storage_in_what_we_write() -> None:
    a = torch.randn(3, 3)
    data = written({"a": a, "b": a}, ties={"b": "a"})
    found = torch.load(io.BytesIO(data), weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_a_tiny_file_has_this_very_frame() -> None:
    data = written({"a": torch.zeros(2)})
    assert data[:4] == b"PK\3\4"
    assert data[30:46] == b"archive/data.pkl"
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == [
        "archive/data.pkl", "archive/.format_version", "archive/.storage_alignment", "archive/byteorder",
        "archive/data/0", "archive/version",
    ]  # fmt: skip
    assert all(info.date_time == (1980, 0, 0, 0, 0, 0) for info in zipfile.ZipFile(io.BytesIO(data)).infolist())


def test_a_record_over_4_gib_is_laid_out_with_zip64() -> None:
    out = [OutTensor("a", "uint8", (5 << 30,), 5 << 30), OutTensor("b", "uint8", (8,), 8)]
    layout = writers()["pth"].layout(out, {}, ())
    frame = layout.frame({"a": 1, "b": 2}, "")
    with open("sparse.pth", "wb") as file:  # a sparse file: five gigabytes of holes
        file.truncate(layout.size)
        for offset, data in frame:
            file.seek(offset)
            file.write(data)
    found = cs.open_checkpoint("sparse.pth")
    assert found["a"].nbytes == 5 << 30
    assert found["b"].storage is not None
    assert found["b"].storage.offset > 5 << 30
    assert {info.filename: info.file_size for info in zipfile.ZipFile("sparse.pth").infolist()}[
        "archive/data/0"
    ] == 5 << 30


# Archives that two readers could read differently.


def plain() -> bytes:
    return saved({"a": torch.arange(6.0), "b": torch.arange(4)})


def central(data: bytes, name: bytes) -> int:
    """Offset of a directory entry."""
    at = data.rfind(name)
    return data.rfind(b"PK\1\2", 0, at)


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def with_extra(name: str) -> bytes:
    data = io.BytesIO(rezipped(plain(), lambda n, raw: raw))
    with zipfile.ZipFile(data, "a") as archive:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(name, b"x")
    return data.getvalue()


def local(data: bytes, name: bytes) -> int:
    at = data.find(name)
    return data.rfind(b"PK\3\4", 0, at)


def hostile() -> dict[str, bytes]:
    data = plain()
    rezip = rezipped(data, lambda name, raw: raw)
    record = next(n for n in zipfile.ZipFile(io.BytesIO(data)).namelist() if n.endswith("data/0")).encode()
    pkl = next(n for n in zipfile.ZipFile(io.BytesIO(data)).namelist() if n.endswith("data.pkl")).encode()
    return {
        "cut in the middle": data[: len(data) // 2],
        "cut at the end": data[:-10],
        "bytes in front": b"x" * 16 + data,
        "bytes behind": data + b"x",
        "a prefix that only the directory knows": b"PK\3\4" + b"\0" * 60 + data,
        "another local name": patched(data, local(data, record) + 30, b"X"),
        "another local size": patched(rezip, local(rezip, record) + 22, struct.pack("<L", 5)),
        "another local checksum": patched(rezip, local(rezip, record) + 14, struct.pack("<L", 5)),
        "another central name": patched(data, central(data, record) + 46, b"X"),
        "another central size": patched(data, central(data, record) + 24, struct.pack("<L", 8)),
        "another central checksum": patched(data, central(data, record) + 16, struct.pack("<L", 8)),
        "another central offset": patched(data, central(data, record) + 42, struct.pack("<L", 0)),
        "encrypted": patched(patched(data, central(data, record) + 8, b"\x09\x08"), local(data, record) + 6, b"\x09\x08"),
        "unknown method": patched(data, central(data, record) + 10, b"\x0c\x00"),
        "a broken descriptor": data.replace(b"PK\7\x08", b"PK\7\x09"),
        "no descriptor where one is announced": patched(rezip, local(rezip, record) + 6, b"\x08\x00"),
        "twice the same name": with_extra(record.decode()),
        "names that differ in case": with_extra(pkl.decode().upper()),
        "two roots": with_extra("other/data.pkl"),
        "dots": with_extra("../evil"),
        "absolute": with_extra("/etc/evil"),
        "backslash": with_extra("a\\b"),
        "no data.pkl": rezipped(data, lambda name, raw: None if name.endswith("data.pkl") else raw),
        "a missing storage": rezipped(data, lambda name, raw: None if name.endswith("data/0") else raw),
        "a short storage": rezipped(data, lambda name, raw: raw[:-4] if name.endswith("data/0") else raw),
        "a long storage": rezipped(data, lambda name, raw: raw + b"xxxx" if name.endswith("data/0") else raw),
        "wrong pickle checksum": patched(data, data.find(b"\x80\x02}") + 5, b"\0"),
    }  # fmt: skip


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_contradicts_itself_is_refused(name: str) -> None:
    write("x.pth", HOSTILE[name])
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.pth")
    assert caught.value.rule, caught.value
    assert caught.value.exit_code == 3


def test_what_torch_itself_reads_without_a_word_is_among_them() -> None:
    write("x.pth", HOSTILE["another local name"])
    torch.load("x.pth", weights_only=True)


# Tensors that claim what they do not have.


def rebuilt(storage: str, *args: Any, kind: bytes = b"_rebuild_tensor_v2") -> bytes:
    """A pickle of one tensor with these arguments behind its storage of six floats."""
    from ckptsurgeon.formats.torch.pickle_writer import PickleWriter

    writer = PickleWriter()
    writer.out += b"}X\x01\x00\x00\x00actorch._utils\n" + kind + b"\n(("
    writer.text("storage")
    writer.out += b"ctorch\nFloatStorage\n"
    writer.text(storage)
    writer.text("cpu")
    writer.integer(6)
    writer.out += b"tQ"
    for arg in args:
        if isinstance(arg, bytes):
            writer.out += arg
        elif isinstance(arg, tuple):
            writer.out += b"("
            for value in arg:
                writer.out += value if isinstance(value, bytes) else b""
                if not isinstance(value, bytes):
                    writer.integer(value)
            writer.out += b"t"
        else:
            writer.integer(arg)
    writer.out += b"\x89ccollections\nOrderedDict\n)RtRs."
    return bytes(writer.out)


CLAIMS = {
    "beyond its storage": rebuilt("0", 0, (7,), (1,)),
    "offset beyond": rebuilt("0", 5, (2,), (1,)),
    "negative offset": rebuilt("0", -1, (2,), (1,)),
    "offset beyond int64 of nothing": rebuilt("0", 2**200, (0,), (1,)),
    "overflowing size beside a 0": rebuilt("0", 0, (2**40, 2**40, 0), (1, 1, 1)),
    "huge offset": rebuilt("0", 2**62, (2,), (1,)),
    "negative size": rebuilt("0", 0, (-2,), (1,)),
    "negative stride": rebuilt("0", 5, (6,), (-1,)),
    "overflowing size": rebuilt("0", 0, (2**62, 2**62), (0, 0)),
    "overflowing stride": rebuilt("0", 0, (2, 2), (2**62, 1)),
    "four terabytes by stride 0": rebuilt("0", 0, (2**40,), (0,)),
    "sizes and strides of other lengths": rebuilt("0", 0, (2, 2), (1,)),
    "65 dimensions": rebuilt("0", 0, (1,) * 65, (1,) * 65),
    "a size that is no number": rebuilt("0", 0, (b"N",), (1,)),
    "a nested tuple as size": rebuilt("0", 0, (b")" + b"q\x00h\x00\x86" * 200,), (1,)),
    "a list as size": rebuilt("0", 0, b"]", b"]"),
    "no such storage": rebuilt("../../x", 0, (1,), (1,)),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_tensor_that_claims_too_much_is_refused(name: str) -> None:
    data = rezipped(saved({"a": torch.arange(6.0)}), lambda n, raw: CLAIMS[name] if n.endswith("data.pkl") else raw)
    write("x.pth", data)
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.pth")
    assert caught.value.rule
    assert len(str(caught.value)) < 400


def test_a_modest_expansion_is_no_attack() -> None:
    write("x.pth", saved({"a": torch.randn(1, 4).expand(1000, 4)}))
    cs.apply(cs.transplant("x.pth", "x.pth"), "out.safetensors")
    assert Path("out.safetensors").stat().st_size > 16_000
