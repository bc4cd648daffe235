"""HDF5: files that h5py and Keras wrote (`make oracle-hdf5`), and files that break rules."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import bands, limits
from ckptsurgeon.formats.hdf5.checksums import fletcher32, lookup3

from ...helpers.hdf5_files import (
    CONTINUATION,
    EXTERNAL,
    FILL,
    FLOAT32,
    GOLDEN,
    LAYOUT,
    LINK,
    LINKS,
    NONE,
    TABLE,
    Blocks,
    chunked,
    contiguous,
    deflated,
    filters,
    link,
    message,
    place,
    resealed,
    space,
)  # fmt: skip
from ...helpers.hub.server import Hub

FILES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "datasets.json").read_text())["files"]
LATER = sorted(name for name in FILES if "latest" in name or "_v1" in name)


def opened(data: bytes) -> cs.Checkpoint:
    Path("x.h5").write_bytes(data)
    return cs.open_checkpoint("x.h5")


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", FILES)
def test_every_dataset_has_the_values_that_h5py_reads(name: str) -> None:
    read = 0
    with cs.open_checkpoint(str(GOLDEN / name)) as found:
        for key, (dtype, shape, said) in FILES[name].items():
            if said is None or found[key].opaque:
                assert name.startswith("others"), key
                continue
            read += 1
            assert (found[key].dtype, list(found[key].shape)) == (dtype, shape), key
            assert digest(found.tensor(key)) == said, key
    assert read == {"others_earliest.h5": 1, "others_latest.h5": 1}.get(name, len(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_every_dataset_is_copied(name: str) -> None:
    others = [key for key, one in FILES[name].items() if one[2] is None or key in ("lzf", "scaled")]
    source = cs.open_checkpoint(str(GOLDEN / name))
    cs.apply(cs.filter(source, exclude=[key for key in others if key in source]), "out.safetensors")
    copied = load_file("out.safetensors")
    assert {key: digest(one) for key, one in copied.items() if key in FILES[name]} == {
        key: one[2] for key, one in FILES[name].items() if key not in others
    }
    assert cs.verify("out.safetensors").ok


def test_what_is_not_read_is_named() -> None:
    for name in ("others_earliest.h5", "others_latest.h5"):
        with cs.open_checkpoint(str(GOLDEN / name)) as found:
            assert {key: one.opaque.partition(",")[0] for key, one in found.items() if one.opaque} == {
                "complex": "its type compound is not read from HDF5",
                "pair": "its type compound is not read from HDF5",
                "lzf": "it was stored through the filter lzf",
                "scaled": "it was stored through the filter scaleoffset",
                "virtual": "it is a virtual dataset: its values are in other datasets",
            }
            assert any("the soft links soft" in note for note in found.notes)
            with pytest.raises(cs.CheckpointError, match="the filter lzf, which is not supported"):
                found.tensor("lzf")


@pytest.mark.parametrize("name", ["many_earliest.h5", "many_latest.h5"])
def test_a_dataset_with_many_links_is_one_tensor_with_many_keys(name: str) -> None:
    with cs.open_checkpoint(str(GOLDEN / name)) as found:
        assert len(found) == 141
        assert {id(found[key].storage) for key in found} == {id(found["w"].storage)}
        assert list(found)[1:] == sorted(list(found)[1:])
    cs.apply(cs.convert(str(GOLDEN / name)), "out.pth")
    assert Path("out.pth").stat().st_size < 100_000
    assert len({one.data_ptr() for one in torch.load("out.pth").values()}) == 1


def test_attributes_of_the_file_that_are_texts_are_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("types_earliest.h5", "types_latest.h5"):
        with cs.open_checkpoint(str(GOLDEN / name)) as found:
            assert dict(found.metadata) == {"keras_version": "3.0", "fixed": "text", "long": "x" * 300}
    monkeypatch.setattr(limits, "HDF5_TEXT", 299)
    with cs.open_checkpoint(str(GOLDEN / "types_earliest.h5")) as found:
        assert "long" not in found.metadata
        assert any("the attributes long" in note for note in found.notes)
        assert "left out, because they are not single texts: the attributes number, names" in found.notes


def test_a_file_that_was_not_closed_is_a_warning_of_check() -> None:
    data = bytearray((GOLDEN / "many_latest.h5").read_bytes())
    data[11] |= 1  # the flag in the superblock, whose checksum follows its 44 bytes
    data[44:48] = struct.pack("<I", lookup3(bytes(data[:44])))
    Path("x.h5").write_bytes(data)
    assert [found.status.value for found in cs.check("x.h5").row("shard").found] == ["WARN"]


def test_attributes_of_groups_that_are_left_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with cs.open_checkpoint(str(GOLDEN / "keras_2.h5")) as found:
        assert not found.notes  # Keras repeats the names of layers and weights there
    monkeypatch.setattr("ckptsurgeon.formats.hdf5.content._OF_KERAS", frozenset({"layer_names"}))
    with cs.open_checkpoint(str(GOLDEN / "keras_2.h5")) as found:
        assert (
            "left out of the metadata: these attributes of groups and datasets: backend, keras_version, weight_names"
            in found.notes
        )


# Keras.


def test_a_model_of_keras_3_is_read_from_its_archive_in_place() -> None:
    with (
        cs.open_checkpoint(str(GOLDEN / "keras.keras")) as packed,
        cs.open_checkpoint(str(GOLDEN / "keras.weights.h5")) as plain,
    ):
        assert list(packed) == list(plain)
        assert all(torch.equal(packed.tensor(key), plain.tensor(key)) for key in plain)
        assert packed["layers/dense_1/vars/0"].dtype == "bfloat16"
        assert packed.metadata["keras_version"] == "3.15.1"
        assert "model.weights.h5" in packed.notes[0]


def test_a_file_with_addresses_of_four_bytes_has_its_texts() -> None:
    with cs.open_checkpoint(str(GOLDEN / "few_sizes.h5")) as found:
        assert dict(found.metadata) == {"backend": "numpy"}


def test_a_compressed_model_of_keras_is_named() -> None:
    with (
        zipfile.ZipFile(GOLDEN / "keras.keras") as archive,
        zipfile.ZipFile("x.keras", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(cs.FormatError, match="a compressed Keras model") as caught:
        cs.open_checkpoint("x.keras")
    assert "unzip x.keras model.weights.h5" in caught.value.hint


def test_a_folder_with_a_file_of_keras_is_a_checkpoint() -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/tf_model.h5").write_bytes((GOLDEN / "keras_2.h5").read_bytes())
    with cs.open_checkpoint("m") as found:
        assert "model_weights/dense_2/sequential_1/dense_2/kernel" in found
        assert found.metadata["backend"] == "numpy"


def test_other_exports_of_a_folder_come_first() -> None:
    Path("m").mkdir()
    Path("m/tf_model.h5").write_bytes((GOLDEN / "keras_2.h5").read_bytes())
    Path("m/flax_model.msgpack").write_bytes((GOLDEN.parent / "flax" / "types.msgpack").read_bytes())
    assert cs.open_checkpoint("m").format == "flax"
    torch.save({"w": torch.ones(1)}, "m/pytorch_model.bin")
    assert list(cs.open_checkpoint("m")) == ["w"]


def test_large_chunks_are_named_and_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HDF5_BAND", 400)
    with cs.open_checkpoint(str(GOLDEN / "types_earliest.h5")) as found:
        assert "a chunk, or a row of chunks, has more than 0 MB" in found["chunks/gzip"].opaque
        assert not found["chunks/whole"].opaque


def test_weights_are_transplanted_from_keras() -> None:
    torch.save({"fc.weight": torch.zeros(4, 3), "fc.bias": torch.zeros(3)}, "model.pth")
    rules = {"layers/dense/vars/0": "fc.weight", "layers/dense/vars/1": "fc.bias"}
    cs.apply(
        cs.transplant(str(GOLDEN / "keras.keras"), "model.pth", map=[f"{a}={b}" for a, b in rules.items()]),
        "out.pth",
    )
    with cs.open_checkpoint(str(GOLDEN / "keras.keras")) as found:
        assert torch.equal(torch.load("out.pth")["fc.weight"], found.tensor("layers/dense/vars/0"))


# Checksums, and values that are put together.


def test_checksums() -> None:
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551  # driver5 in lookup3.c
    assert fletcher32(bytes(10)) == 0
    assert fletcher32(b"\xff" * 4) == 0xFFFFFFFF
    assert fletcher32(b"\x01\x02\x03\x04\x05") == (0x102 * 3 + 0x304 * 2 + 0x500) % 0xFFFF << 16 | 0x906


@pytest.mark.parametrize("name", [name for name in LATER if "others" not in name])
def test_a_bit_in_metadata_with_checksums_is_noticed(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    for magic in (b"OHDR", b"FADB", b"EADB", b"FRHP", b"BTLF", b"FHDB"):
        at = data.find(magic)
        if at >= 0:
            broken = bytearray(data)
            broken[at + 9] ^= 4
            with pytest.raises(cs.FormatError, match=r"x\.h5"):
                opened(bytes(broken)).close()


@pytest.mark.parametrize(("shape", "chunk"), [
    ((7,), (3,)), ((1,), (4,)), ((5, 6, 7), (1, 4, 3)), ((4, 1, 9), (1, 2, 2)), ((3, 4), (1, 1)), ((6, 5), (6, 5)), ((2, 3, 4, 5), (2, 1, 4, 2)),
])  # fmt: skip
@pytest.mark.parametrize("band", [1, 40, 1 << 20])
def test_every_range_of_chunked_values_is_right(
    shape: tuple[int, ...], chunk: tuple[int, ...], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bands, "_BAND", band)
    values = np.arange(np.prod(shape), dtype="<i2").reshape(shape)
    data = opened(in_chunks(values, chunk))
    plain, segment = values.tobytes(), data.header.handles[" (chunks)"]
    for begin in range(0, len(plain), 3):
        for end in range(begin, len(plain) + 1, 11):
            assert segment.read(begin, end - begin) == plain[begin:end]


def in_chunks(values: Any, chunk: tuple[int, ...]) -> bytes:
    """A file with the dataset ``w``, whose chunks are deflated."""
    blocks, children = Blocks(), []
    for index in np.ndindex(*(-(-size // step) for size, step in zip(values.shape, chunk, strict=True))):
        begin = [at * step for at, step in zip(index, chunk, strict=True)]
        part = values[tuple(slice(at, at + step) for at, step in zip(begin, chunk, strict=True))]
        whole = np.full(chunk, -1, values.dtype)
        whole[tuple(slice(size) for size in part.shape)] = part
        raw = deflated(whole.tobytes())
        raw += bytes(-len(raw) % 8)
        children.append((place(len(raw), *begin), blocks.add(raw)))
    int16 = struct.pack("<B3sI2H", 0x10, b"\x08\0\0", 2, 0, 16)
    layout = chunked(blocks.tree(1, 0, children), chunk, 2)
    return blocks.file(blocks.group({"w": blocks.dataset(layout, filters(1), shape=values.shape, kind=int16)}))


def test_a_remote_file_is_read_in_few_requests(hub: Hub) -> None:
    values = np.random.default_rng(0).integers(-30_000, 30_000, (600, 1000)).astype("<i2")
    data = in_chunks(values, (100, 100))
    with cs.open_checkpoint(hub.file("x.h5", data)) as found:
        opened = len(hub.requests)
        assert np.array_equal(found.tensor("w").numpy(), values)
        assert opened <= 3
        assert len(hub.requests) - opened <= 3
    with cs.open_checkpoint(hub.file("y.h5", (GOLDEN / "types_latest.h5").read_bytes())) as found:
        assert digest(found.tensor("chunks/all")) == FILES["types_latest.h5"]["chunks/all"][2]


# Files that break rules.


def one(make: Callable[[Blocks], int], end: int | None = None, driver: int = NONE) -> bytes:
    blocks = Blocks()
    return blocks.file(make(blocks), end, driver)


def with_dataset(*more: bytes, shape: tuple[int, ...] = (2, 3), kind: bytes = FLOAT32) -> bytes:
    return one(lambda blocks: blocks.group({"w": blocks.dataset(*more, shape=shape, kind=kind)}))


def raw_space(data: bytes) -> bytes:
    return one(
        lambda blocks: blocks.group({"w": blocks.object(message(1, data), message(3, FLOAT32), contiguous(0, 24))})
    )


def in_itself(blocks: Blocks) -> int:
    return blocks.group({"w": blocks.floats(), "a": blocks.next})


def circle(blocks: Blocks) -> int:
    w = blocks.floats()
    inner = blocks.next
    size = len(link("up", 0)) + 48
    outer = inner + size + -size % 8
    assert blocks.group({"up": outer}) == inner
    assert blocks.group({"down": inner, "w": w}) == outer
    return outer


def deep(blocks: Blocks) -> int:
    address = blocks.floats()
    for _ in range(100):
        address = blocks.group({"g": address})
    return address


def doubled(blocks: Blocks) -> int:
    address = blocks.floats()
    for _ in range(60):
        address = blocks.group({"a": address, "b": address})
    return address


def continued(blocks: Blocks) -> int:
    own = blocks.next
    return blocks.object(message(CONTINUATION, struct.pack("<2Q", own + 16, 24)), number=2)


def tree_in_itself(blocks: Blocks) -> int:
    return blocks.table([("w", blocks.floats())], tree=blocks.tree(0, 1, [(bytes(8), blocks.next)]))


def tree_of_one_node(blocks: Blocks) -> int:
    node = blocks.tree(0, 0, [(bytes(8), 96)])
    return blocks.table([("w", blocks.floats())], tree=blocks.tree(0, 1, [(bytes(8), node)] * 2))


def tree_without_end(blocks: Blocks) -> int:
    return blocks.table([("w", blocks.floats())], tree=blocks.tree(0, 0, [], number=0xFFFF))


def large_heap(blocks: Blocks) -> int:
    return blocks.table([("w", blocks.floats())], heap=blocks.add(b"HEAP" + struct.pack("<4x3Q", 1 << 60, 1, 96)))


def name_outside(blocks: Blocks) -> int:
    heap = blocks.add(b"HEAP" + struct.pack("<4x3Q", 8, 1, blocks.next + 32))
    blocks.add(b"no end!!")
    return blocks.table([("w", blocks.floats())], heap=heap)


def unknown_symbol(blocks: Blocks) -> int:
    root = blocks.table([("w", blocks.floats())])
    at = blocks.data.index(b"SNOD") + 8 + 16
    blocks.data[at] = 3
    return root


def many_symbols(blocks: Blocks) -> int:
    node = blocks.add(b"SNOD" + struct.pack("<BxH", 1, 0xFFFF))
    return blocks.table([("w", blocks.floats())], tree=blocks.tree(0, 0, [(bytes(8), node)]))


def overlapping(blocks: Blocks) -> int:
    values = blocks.add(bytes(40))
    first, second = (blocks.dataset(contiguous(values + at, 24)) for at in (0, 16))
    return blocks.group({"v": first, "w": second})


def on_metadata(blocks: Blocks) -> int:
    first = blocks.floats()
    return blocks.group({"v": first, "w": blocks.dataset(contiguous(first, 24))})


def chunks_at(*places: bytes, data: bytes = bytes(64), step: int = 64, applied: bytes = b"") -> Callable[[Blocks], int]:
    """A dataset of 8 floats in chunks of 4: keys, and the bytes of each chunk, ``step`` bytes apart."""

    def make(blocks: Blocks) -> int:
        begin = blocks.add(data * len(places))
        tree = blocks.tree(1, 0, [(key, begin + step * at) for at, key in enumerate(places)])
        return blocks.group({"w": blocks.dataset(chunked(tree, (4,)), *([applied] if applied else []), shape=(8,))})

    return make


def bomb(blocks: Blocks) -> int:
    size = 100 << 20
    packed = deflated(bytes(1000))
    tree = blocks.tree(1, 0, [(place(len(packed), 0), blocks.add(packed))])
    return blocks.group({"w": blocks.dataset(chunked(tree, (size // 4,)), filters(1), shape=(size // 4,))})


def with_recipe(kind: bytes, address: int | None = None, size: int = 8) -> bytes:
    """A file with a tensor, and a dataset of this type with the name of the recipe."""

    def make(blocks: Blocks) -> int:
        at = blocks.add(b"{}" + bytes(size - 2)) if address is None else address
        recipe = blocks.dataset(contiguous(at, size), shape=(), kind=kind)
        return blocks.group({"ckptsurgeon.json": recipe, "w": blocks.floats()})

    return one(make)


TEXT = struct.pack("<4BI", 0x13, 0x11, 0, 0, 8)
V108 = (GOLDEN / "few_v108.h5").read_bytes()
LATEST = (GOLDEN / "many_latest.h5").read_bytes()
INDEXES = (GOLDEN / "indexes_latest.h5").read_bytes()
PACKED = deflated(bytes(16))
CHECKED = bytes(16) + struct.pack("<I", 7)
HOSTILE: dict[str, bytes] = {
    "the signature alone": b"\x89HDF\r\n\x1a\n",
    "cut in the superblock": V108[:40],
    "cut at the end": V108[:-1],
    "version 9": V108[:8] + b"\x09" + V108[9:],
    "addresses of 3 bytes": V108[:9] + b"\x03" + V108[10:],
    "a wrong checksum": V108[:12] + b"\xff" + V108[13:],
    "a wrong checksum of an object": V108.replace(b"OHDR\x02\x20", b"OHDR\x02\x24", 1),
    "an end beyond the file": one(lambda blocks: blocks.group({"w": blocks.floats()}), end=1 << 40),
    "a driver of several files": one(lambda blocks: blocks.group({"w": blocks.floats()}), driver=96),
    "the first of several files": one(lambda blocks: blocks.group({"w": blocks.floats()}), end=1 << 20, driver=96),
    "a root that is a dataset": one(lambda blocks: blocks.floats()),
    "a root that is nothing": one(lambda blocks: blocks.object(message(0, bytes(8)))),
    "a root outside": one(lambda blocks: 1 << 50),
    "an object of version 7": one(lambda blocks: blocks.add(b"\x07" + bytes(40))),
    "an object of 2^32 bytes": one(lambda blocks: blocks.add(struct.pack("<BxHII4x", 1, 1, 1, 0xFFFFFFFF))),
    "more messages than there are": one(lambda blocks: blocks.object(message(0, bytes(8)), number=9)),
    "a continuation that is itself": one(continued),
    "no tensors": one(lambda blocks: blocks.group({})),
    "a group in itself": one(in_itself),
    "groups in a circle": one(circle),
    "100 groups deep": one(deep),
    "2^60 paths": one(doubled),
    "a name twice": one(lambda blocks: blocks.group([("w", blocks.floats()), ("w", blocks.floats())])),
    "a name with a slash": one(lambda blocks: blocks.group({"a/b": blocks.floats()})),
    "a name that is a dot": one(lambda blocks: blocks.group({".": blocks.floats()})),
    "a name of nothing": one(lambda blocks: blocks.group({"": blocks.floats()})),
    "a name that is not text": one(lambda blocks: blocks.group([(b"\xff\xfe", blocks.floats())])),
    "a name of 60,000 bytes": one(lambda blocks: blocks.group({"n" * 60_000: blocks.floats()})),
    "a link of an unknown kind": one(lambda blocks: blocks.object(message(LINKS, bytes(2) + b"\xff" * 16), message(LINK, b"\1\x08\x09\1w\2\0ab"))),
    "a tree in itself": one(tree_in_itself),
    "a tree with a node twice": one(tree_of_one_node),
    "a tree of 65,535 entries": one(tree_without_end),
    "a heap of 2^60 bytes": one(large_heap),
    "a name without an end": one(name_outside),
    "names out of order": one(lambda blocks: blocks.table([("b", blocks.floats()), ("a", blocks.floats())])),
    "free space outside a heap": one(lambda blocks: blocks.table([("w", blocks.floats())], heap=blocks.add(b"HEAP" + struct.pack("<4x3Q", 16, 8, 96)))),
    "a symbol of an unknown kind": one(unknown_symbol),
    "65,535 symbols": one(many_symbols),
    "a link to another file": (GOLDEN / "outside_link_earliest.h5").read_bytes(),
    "a link to another file, newer": (GOLDEN / "outside_link_latest.h5").read_bytes(),
    "values in another file": (GOLDEN / "outside_data.h5").read_bytes(),
    "an object that is neither": one(
        lambda blocks: blocks.group({"w": blocks.object(message(1, b"\1\1" + bytes(6) + struct.pack("<Q", 3)))})
    ),
    "a type of class 15": with_dataset(contiguous(96, 24), kind=b"\x1f" + FLOAT32[1:]),
    "a type without a size": with_dataset(contiguous(96, 24), kind=FLOAT32[:4] + bytes(4) + FLOAT32[8:]),
    "a type that is cut": with_dataset(contiguous(96, 24), kind=FLOAT32[:8]),
    "a dataspace of version 9": raw_space(b"\x09\1\0\0\0\0\0\0" + bytes(8)),
    "100 dimensions": raw_space(space([1] * 100)),
    "a dataspace that is cut": raw_space(struct.pack("<BBB5x", 1, 2, 0)),
    "2^63 elements": with_dataset(contiguous(96, 24), shape=(1 << 63,)),
    "sizes whose product overflows": with_dataset(contiguous(96, 24), shape=(1 << 40, 1 << 40)),
    "2^62 elements": with_dataset(contiguous(96, 24), shape=(1 << 62,)),
    "too few bytes": with_dataset(contiguous(96, 20)),
    "values outside": with_dataset(contiguous(1 << 40, 24)),
    "a layout of version 2": with_dataset(message(LAYOUT, b"\x02\1\1" + bytes(20))),
    "a layout of an unknown kind": with_dataset(message(LAYOUT, b"\x03\x09" + bytes(20))),
    "two layouts": with_dataset(contiguous(96, 24), contiguous(96, 24)),
    "values that overlap": one(overlapping),
    "values that are metadata": one(on_metadata),
    "2^40 values never written": with_dataset(contiguous(NONE, 0), shape=(1 << 40,)),
    "a fill value of 3 bytes": with_dataset(contiguous(NONE, 0), message(FILL, struct.pack("<4BI", 2, 2, 2, 1, 3) + bytes(3))),
    "chunks of other dimensions": one(lambda blocks: blocks.group({"w": blocks.dataset(chunked(NONE, (4, 4, 4)))})),
    "chunks of no elements": one(lambda blocks: blocks.group({"w": blocks.dataset(chunked(NONE, (0, 4)))})),
    "a chunk twice": one(chunks_at(place(16, 0), place(16, 0))),
    "a chunk outside its dataset": one(chunks_at(place(16, 0), place(16, 8))),
    "a chunk between two": one(chunks_at(place(16, 0), place(16, 2))),
    "a chunk of too few bytes": one(chunks_at(place(16, 0), place(12, 4))),
    "chunks that overlap": one(chunks_at(place(16, 0), place(16, 4), step=8)),
    "a chunk outside the file": one(chunks_at(place(16, 0), place(16, 4), step=1 << 40)),
    "a bomb": one(bomb),
    "an array that is cut": resealed(INDEXES, b"FAHD", (6, b"\x07")),
    "an array of fewer chunks": resealed(INDEXES, b"FAHD", (8, b"\1" + bytes(7))),
    "an array of impossible sizes": resealed(INDEXES, b"EAHD", (7, b"\xff")),
    "an array of another file": resealed(INDEXES, b"EAHD", (12 + 6 * 8, struct.pack("<Q", 1 << 40))),
    "records of 1 byte": resealed(INDEXES, b"BTHD", (10, b"\1\0")),
    "a tree of 2^16 levels": resealed(INDEXES, b"BTHD", (12, b"\xff\xff")),
    "a heap without columns": resealed(LATEST, b"FRHP", (110, b"\0\0")),
    "a recipe of numbers": with_recipe(FLOAT32, size=4),
    "a recipe of 4 GB": with_recipe(TEXT[:4] + b"\xff" * 4, 96, (1 << 32) - 1),
    "a recipe outside the file": with_recipe(TEXT, 1 << 40),
    "a recipe of another length": with_recipe(TEXT, size=16),
    "a recipe in the metadata": with_recipe(TEXT, 104),
    "a heap with filters": resealed(LATEST, b"FRHP", (7, b"\1\0")),
}  # fmt: skip
AT_COPYING: dict[str, bytes] = {
    "a chunk that is not deflated": one(chunks_at(place(16, 0), place(16, 4), applied=filters(1))),
    "a chunk that unpacks to less": one(chunks_at(place(len(deflated(bytes(12))), 0), data=deflated(bytes(12)), applied=filters(1))),
    "a chunk that unpacks to more": one(chunks_at(place(len(deflated(bytes(99_999))), 0), data=deflated(bytes(99_999)), applied=filters(1))),
    "a chunk cut short": one(chunks_at(place(len(PACKED) - 5, 0), data=PACKED, applied=filters(1))),
    "a wrong checksum of a chunk": one(chunks_at(place(20, 0), data=CHECKED, applied=filters(3))),
    "a checksum without values": one(chunks_at(place(3, 0), data=CHECKED, applied=filters(3))),
}  # fmt: skip


LONG = pytest.param("2^60 paths", marks=pytest.mark.long)  # tests/hostile has it too


@pytest.mark.parametrize("name", [name if name not in LONG.values else LONG for name in HOSTILE])
def test_what_breaks_a_rule_is_refused(name: str) -> None:
    with pytest.raises((cs.FormatError, cs.UnsafeError), match=r"x\.h5"):
        opened(HOSTILE[name]).close()


@pytest.mark.parametrize("name", AT_COPYING)
def test_a_damaged_chunk_is_noticed_when_it_is_read(name: str) -> None:
    with opened(AT_COPYING[name]) as found, pytest.raises(cs.FormatError, match=r"x\.h5: the chunk \[\d\] of w"):
        found.tensor("w")


def test_sound_files_made_in_the_same_way_are_read() -> None:
    def both(blocks: Blocks) -> int:
        table = blocks.table([("a", blocks.floats()), ("b", blocks.floats())])
        return blocks.group({"new": blocks.group({"w": blocks.floats()}), "old": table, "again": table})

    with opened(one(both)) as found:
        assert set(found) == {"new/w", "old/a", "old/b", "again/a", "again/b"}
        assert found["old/a"] is found["again/a"]
    with opened(one(chunks_at(place(16, 0), place(16, 4)))) as found:
        assert found.tensor("w").tolist() == [0] * 8
    raw = struct.pack("<4f", 1, 2, 3, 4)
    key = place(len(raw) + 4, 4)
    with opened(one(chunks_at(key, data=raw + struct.pack("<I", fletcher32(raw)), applied=filters(3)))) as found:
        assert found.tensor("w").tolist() == [0] * 4 + [1, 2, 3, 4]
    assert {TABLE, LINK, EXTERNAL} == {17, 6, 7}


def test_a_named_type_is_no_damage() -> None:
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, "s.pth")
    cs.apply(cs.convert("s.pth"), "x.h5")
    data = bytearray(Path("x.h5").read_bytes())
    at = data.index(struct.pack("<4B4x2Q", 1, 2, 0, 0, 2, 2)) - 8
    for kind, nbytes in ((1, 24), (5, 8), (8, 24)):  # only the type is left of the dataset
        at = data.index(struct.pack("<2H", kind, nbytes), at)
        data[at : at + 2] = bytes(2)
    Path("x.h5").write_bytes(data)
    with cs.open_checkpoint("x.h5") as found:
        assert list(found) == ["a"]
