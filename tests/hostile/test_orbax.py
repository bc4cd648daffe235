"""Folders of Orbax that break a rule: of Orbax's lists, of zarr, or of the database (OCDBT)."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptsurgeon.storage.crc32c import crc32c

from ..helpers.ocdbt_files import NODE, Reference, framed, inner, leaf, manifest, numbered, varint, varints
from ..helpers.orbax_files import VALUES, item, metadata, zarr, zarr3
from ..helpers.pace import bounded
from ..promises.clauses import ORBAX
from .case import COPY, LOOK, Case, Refusal, broken, each, unsafe
from .holding import divide, held, nothing_changed

Change = Callable[[Path], object]


def said(text: str) -> Change:
    """``_METADATA`` with this text."""
    return lambda folder: (folder / "_METADATA").write_text(text)


def leaves(values: Any) -> Change:
    return said(json.dumps({"tree_metadata": values}))


def one(keys: Any, about: Any) -> dict[str, Any]:
    return {"key_metadata": keys, "value_metadata": about}


def listed(about: dict[str, dict[str, Any]], **more: Any) -> Change:
    return said(json.dumps(metadata(about, **more)))


def array(text: str) -> Change:
    """The metadata of the array with this text."""
    return lambda folder: (folder / "w" / ".zarray").write_text(text)


def of(**more: Any) -> Change:
    return array(json.dumps(zarr(**more)))


def of3(**more: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "w" / "zarr.json").write_text(json.dumps(zarr3(**more)))
        listed({"w": {}}, use_zarr3=True)(folder)

    return change


def linked(target: str, name: str = "w/0.0") -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def fifo(folder: Path) -> None:
    (folder / "w" / "0.0").unlink()
    os.mkfifo(folder / "w" / "0.0")


def moved(name: str) -> Change:
    return lambda folder: (folder.joinpath(name).parent.mkdir(parents=True), folder.joinpath(name).write_bytes(b"x"))


def gone_lists(folder: Path) -> None:
    (folder / "_METADATA").unlink()
    (folder / "w" / ".zarray").unlink()


def steps(number: int) -> Change:
    """Steps without metadata of their own, each with one item."""
    return lambda folder: (gone_lists(folder), [moved(f"{at}/state/_METADATA")(folder) for at in range(number)])


def items(number: int) -> Change:
    def change(folder: Path) -> None:
        gone_lists(folder)
        (folder / "w" / "_METADATA").write_text("{}")
        (folder / "_CHECKPOINT_METADATA").write_text("{}")
        for at in range(1, number):
            moved(f"item{at}/_METADATA")(folder)

    return change


def deep(levels: int) -> list[dict[str, Any]]:
    return [{"key": "a", "key_type": 2}] * levels


KEY = [{"key": "w", "key_type": 2}]
ARRAY, NOTHING = {"value_type": "jax.Array"}, {"value_type": "None", "skip_deserialize": True}

LISTS: dict[Refusal, dict[str, Change]] = {
    broken("orbax metadata"): {
        "no JSON": said("{"), "a list": said("[]"), "no tree": said("{}"), "a tree that is a list": leaves([]),
        "a value that is text": leaves({"w": "x"}), "no keys": leaves({"w": one([], ARRAY)}),
        "keys that are text": leaves({"w": one("w", ARRAY)}), "a key of lists": leaves({"w": one([["w"]], ARRAY)}),
        "a key that is a fraction": leaves({"w": one([{"key": 1.5}], ARRAY)}), "no type": leaves({"w": one(KEY, {})}),
        "65 levels": leaves({"w": one(deep(65), ARRAY)}),
        "a shape of texts": leaves({"w": one(KEY, ARRAY | {"write_shape": ["5"]})}),
        "brackets without end": said("[" * 5_000), "ten million commas": said("[" + "0," * 10_000_001 + "0]"),
        "a database without a list": lambda folder: (gone_lists(folder), (folder / "manifest.ocdbt").write_bytes(b"x")),
    },
    broken("duplicate key"): {
        "a key twice": leaves({"w": one(KEY, ARRAY), "v": one(KEY, ARRAY)}),
        "an array and a dict": leaves({"w": one(KEY, ARRAY), "v": one([*KEY, *KEY], NOTHING)}),
        "a dict and an array": leaves({"v": one([*KEY, *KEY], NOTHING), "w": one(KEY, ARRAY)}),
    },
    broken("orbax array"): {
        "an array without a folder": listed({"v": {}}), "a key that leads out": listed({"../x/w": {}}),
        "a key from the root": listed({"/etc": {}}), "metadata of zarr 2 instead of 3": listed({"w": {}}, use_zarr3=True),
        "a surrogate in a key": listed({"\ud800": {}}),
    },
    broken("orbax shape"): {
        "a larger part": listed({"w": {"write_shape": [6, 6]}}), "a part of three dimensions": listed({"w": {"write_shape": [5, 6, 1]}}),
    },
    unsafe("deflate bomb"): {
        "2^60 elements": of(shape=[1 << 60], chunks=[4]), "2^40 rows": of(shape=[1 << 40, 6]), "a chunk of 2^40 rows": of(chunks=[1 << 40, 4]),
    },
    unsafe("outside"): {
        "a link to a file outside": linked("/etc/passwd"), "a link to a folder outside": linked("/etc", "v"), "a link to a folder inside": linked("w", "v"),
    },
    Refusal("SourceError", ""): {"a FIFO": fifo, "a link to nothing": linked("nothing"), "a link to itself": linked("0.0")},
    broken("orbax unfinished"): {
        "databases that were not merged": moved("ocdbt.process_0/manifest.ocdbt"),
    },
    broken("several checkpoints"): {
        "two steps": lambda folder: (gone_lists(folder), moved("1/_METADATA")(folder), moved("2/_METADATA")(folder)),
    },
    broken("orbax folders"): {"65 steps": steps(65), "65 items": items(65)},
    unsafe("orbax metadata"): {"metadata of a megabyte": array(" " * (1 << 20) + "{}")},
}  # fmt: skip

ZARR: dict[Refusal, dict[str, Change]] = {
    broken("zarr"): {
        "zarr that is no JSON": array("{"), "zarr that is a list": array("[]"), "zarr 3 in a file of zarr 2": array(json.dumps(zarr3())),
        "chunks of 0": of(chunks=[0, 4]), "chunks of one dimension": of(chunks=[4]), "an unknown order": of(order="X"),
        "a compressor that is a number": of(compressor=5), "a compressor without a name": of(compressor={}),
        "a compressor that is a text": of(compressor="zlib"), "bool of two bytes": of(dtype="|b2"), "bool of ten bytes": of(dtype="|b10"),
        "an unknown separator": of(dimension_separator=":"),
        "an order of lists": of(order=["C"]), "no grid": of3(chunk_grid=None), "another grid": of3(chunk_grid={"name": "x"}),
        "no codecs": of3(codecs=[]), "codecs without names": of3(codecs=[{}]), "a group": of3(node_type="group"),
        "parts that do not divide a chunk": of3(inner=[3, 3]), "parts of 0": of3(inner=[0, 3]), "parts of one dimension": of3(inner=[2]),
        "zarr of many brackets": array("[" * 5_000),
    },
    broken("tensor shape"): {
        "a shape that is text": of(shape="5"), "a negative size": of(shape=[-5, 6]), "a size that is true": of(shape=[True, 6]),
        "a size that is a fraction": of(shape=[5.0, 6]), "65 dimensions": of(shape=[1] * 65, chunks=[1] * 65),
    },
    broken("tensor size"): {"2^64 elements": of(shape=[1 << 32, 1 << 32])},
}  # fmt: skip


def chunk(data: bytes, compressor: str = "", **more: Any) -> Change:
    """An array with one chunk, which has these bytes."""

    def change(folder: Path) -> None:
        of(shape=[4], chunks=[4], compressor={"id": compressor} if compressor else None, **more)(folder)
        (folder / "w" / "0").write_bytes(data)

    return change


def shard(index: bytes, data: bytes = bytes(96)) -> Change:
    """An array with one chunk in four parts, whose places this index has."""

    def change(folder: Path) -> None:
        of3()(folder)
        (folder / "w" / "c" / "0").mkdir(parents=True)
        (folder / "w" / "c" / "0" / "0").write_bytes(data + index)

    return change


def index(*numbers: int, wrong: int = 0) -> bytes:
    plain = struct.pack(f"<{len(numbers)}Q", *numbers)
    return plain + struct.pack("<I", crc32c(plain) ^ wrong)


def gone(folder: Path) -> None:
    listed({"w": {}}, store_array_data_equal_to_fill_value=True)(folder)
    (folder / "w" / "0.1").unlink()


def unfilled(value: Any) -> Change:
    """An array with this fill value, a chunk of which is missing."""
    return lambda folder: (of(fill_value=value)(folder), (folder / "w" / "0.1").unlink())


NONE = 2**64 - 1
CHUNKS: dict[str, Change] = {
    "a chunk that is too short": chunk(bytes(15)), "a chunk that is too long": chunk(bytes(17)), "a chunk without bytes": chunk(b""),
    "a chunk that is missing": gone, "a fill value that is a text": unfilled("x"), "two zeros as the fill value of integers": unfilled([0, 0]),
    "gzip that is cut": chunk(zlib.compress(bytes(16))[:-1], "gzip"), "gzip of too few bytes": chunk(zlib.compress(bytes(15)), "gzip"),
    "gzip of a gigabyte": chunk(zlib.compress(bytes(1 << 24)), "gzip"), "no gzip": chunk(b"abc", "gzip"),
    "a part beyond the end": shard(index(*(0, 24) * 3, 160, 24)), "a part of too few bytes": shard(index(*(0, 24) * 3, 0, 23)),
    "a part of 2^64 bytes": shard(index(*(0, 24) * 3, 0, NONE)), "an index with a wrong checksum": shard(index(*(0, 24) * 4, wrong=1)),
    "an index that is cut": shard(b"", bytes(20)), "a chunk without an index": shard(b"", b""),
}  # fmt: skip
GIGABYTE = bytes.fromhex("28b52ffd0068") + bytes.fromhex("02001000") * 8192 + bytes.fromhex("010000")
"""A frame of zstd, which does not say how long its content is: 8,192 blocks that repeat a byte 131,072 times."""
EXABYTE = bytes.fromhex("28b52ffde0") + (1 << 60).to_bytes(8, "little") + bytes.fromhex("010000")
"""A frame of zstd that claims to have 2^60 bytes."""
ZSTD: dict[str, Change] = {
    "zstd that is cut": chunk(bytes.fromhex("28b52ffd2010"), "zstd"), "no zstd": chunk(b"abc", "zstd"),
    "zstd of a gigabyte": chunk(GIGABYTE, "zstd"), "zstd of an exabyte": chunk(EXABYTE, "zstd"),
    "zstd and more bytes": chunk(bytes.fromhex("28b52ffd2010810000") + bytes(16) + b"more", "zstd"),
}  # fmt: skip
CHUNKS |= {
    "Blosc that is cut": chunk(b"\x02\x01\x01\x01", "blosc"), "Blosc of 2^31 bytes": chunk(struct.pack("<4B3I", 2, 1, 1, 1, 1 << 31, 1 << 17, 40) + bytes(24), "blosc"),
    "Blosc that is longer than its file": chunk(struct.pack("<4B3I", 2, 1, 1, 1, 16, 16, 1 << 30) + bytes(24), "blosc"),
}  # fmt: skip
BLOSC: dict[str, Change] = {
    "Blosc of bytes that mean nothing": chunk(struct.pack("<4B3I", 2, 1, 1, 1, 16, 16, 40) + b"\xff" * 24, "blosc"),
}  # fmt: skip


def database(root: Callable[[int], bytes], height: int = 0, **files: bytes) -> Change:
    """An item in a database; ``root`` makes its root node, given a guess of its length."""

    def change(folder: Path) -> None:
        node = root(0)
        for _ in range(4):
            node = root(len(node))
        (folder / "d").mkdir()
        (folder / "d" / "root").write_bytes(node)
        for name, data in files.items():
            (folder / "d" / name).write_bytes(data)
        (folder / "manifest.ocdbt").write_bytes(manifest(Reference("d/root", 0, len(node)), height))

    return change


ZARRAY = json.dumps(zarr()).encode()


def held_in(file: str, length: int = 10, base: str = "") -> Change:
    """A database whose metadata of the array are in a file."""
    return database(lambda _: leaf({"w/.zarray": Reference(file, 0, length, base)}))


def cut(name: str, at: int) -> Change:
    def change(folder: Path) -> None:
        database(lambda _: leaf({"w/.zarray": ZARRAY}))(folder)
        path = folder / name
        path.write_bytes(path.read_bytes()[:at])

    return change


def flipped(name: str, at: int) -> Change:
    def change(folder: Path) -> None:
        database(lambda _: leaf({"w/.zarray": ZARRAY}))(folder)
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return change


def node(body: bytes, height: int = 0, compression: int = 0) -> Change:
    """A database whose root has these bytes, for example after its height."""
    return database(lambda _: framed(NODE, body if compression else bytes([height]) + body, compression), height)


def only(*manifests: tuple[str, bytes]) -> Change:
    """A database with these manifests by their names, and a root."""

    def change(folder: Path) -> None:
        database(lambda _: leaf({"w/.zarray": ZARRAY}))(folder)
        for name, data in manifests:
            (folder / name).write_bytes(data)

    return change


LOOPED = inner({"": Reference("d/root", 0, len(inner({"": Reference("d/other", 0, 100)}, 2)))}, 1)
NOWHERE = manifest(Reference("d/root", 0, 1 << 40))
NO_FILES = varint(0)
MANY = varint(1 << 60)
OCDBT: dict[Refusal, dict[str, Change]] = {
    broken("ocdbt"): {
        "a value beyond the end of its file": held_in("w/0.0", 1000), "a path with a point": held_in("./w/0.0"), "a path with two slashes": held_in("w//0.0"),
        "a path with a zero byte": held_in("w/0.0\0"), "a path that leads out and back": held_in("../x/w/0.0"), "a path to a folder": held_in("w"), "a value whose file is missing": held_in("d/missing"),
        "a root beyond the end of its file": only(("manifest.ocdbt", NOWHERE)), "manifests with numbers that are missing": only(("manifest.ocdbt", numbered())),
        "a manifest with a number that lists no versions": only(("manifest.ocdbt", numbered()), ("manifest.0000000000000001", numbered())),
        "the newest of the manifests is damaged": only(("manifest.ocdbt", numbered()), ("manifest.000000000000000a", b""), ("manifest.0000000000000009", manifest(Reference("d/root", 0, 60)))),
        "a node twice": database(lambda _: inner(dict.fromkeys("ab", Reference("d/other", 0, len(LEAF))), 1), 1, other=leaf({"w/.zarray": ZARRAY})),
        "keys that are not in order": node(NO_FILES + varints(2, 0, 1, 1) + b"ba" + varints(0, 0) + bytes(2)), "a key twice": node(NO_FILES + varints(2, 1, 1, 0) + b"a" + varints(0, 0) + bytes(2)),
        "a key that shares more than there is": node(NO_FILES + varints(2, 2, 1, 1) + b"ab" + varints(0, 0) + bytes(2)), "a key of 65,536 bytes": node(NO_FILES + varints(1, 65_536) + bytes(65_536) + varint(0) + bytes(1)),
        "a node without keys": node(NO_FILES + varint(0)), "a value of an unknown kind": node(NO_FILES + varints(1, 1) + b"a" + varint(0) + bytes([2])),
        "a file that is not in the table": node(NO_FILES + varints(1, 1) + b"a" + varint(0) + bytes([1]) + varints(0, 0)), "bytes after the last field": node(NO_FILES + varints(1, 1) + b"a" + varint(0) + bytes(2)),
        "a child that shares more than its key": database(lambda _: inner({"a": Reference("d/other", 0, len(LEAF))}, 1, common=2), 1, other=leaf({"w/.zarray": ZARRAY})),
        "a base longer than its path": node(varints(1, 1, 2) + b"a" + varints(1, 1) + b"a" + varint(0) + bytes(1)), "a number of 70 bits": node(b"\xff" * 9 + b"\x7f"), "a number without end": node(b"\xff" * 100),
        "another version of the format": database(lambda _: reframed(1, 0)), "another compression": database(lambda _: reframed(0, 2)),
        "an empty manifest": cut("manifest.ocdbt", 0), "a manifest of 15 bytes": cut("manifest.ocdbt", 15), "a manifest that is cut": cut("manifest.ocdbt", -1),
        "a flipped bit in the manifest": flipped("manifest.ocdbt", 20), "another magic": flipped("manifest.ocdbt", 0),
        "a node that is cut": cut("d/root", -1), "a flipped bit in a node": flipped("d/root", 30),
        "a node that is its own child": database(lambda size: inner({"": Reference("d/root", 0, size)}, 1), 1),
        "a node that is its own child, 200 levels high": database(lambda size: inner({"": Reference("d/root", 0, size)}, 200), 200),
        "two nodes that are children of each other": database(lambda _: inner({"": Reference("d/other", 0, len(LOOPED))}, 2), 2, other=LOOPED),
        "a manifest that is the root": database(lambda size: inner({"": Reference("manifest.ocdbt", 0, 60)}, 1), 1),
        "a node of another height": database(lambda _: leaf({"w/.zarray": ZARRAY}), 3),
        "a root that is missing": lambda folder: (folder / "manifest.ocdbt").write_bytes(manifest(Reference("d/root", 0, 60))),
        "a value outside": held_in("../outside"), "a base path outside": held_in("outside", base="../"), "a path from the root": held_in("/etc/passwd"),
        "a value at an address": held_in("http://127.0.0.1:1/x"), "a value of 2^60 bytes": held_in("w/0.0", 1 << 60),
        "a root outside": lambda folder: (Path("outside").write_bytes(leaf({"w/.zarray": ZARRAY})), (folder / "manifest.ocdbt").write_bytes(manifest(Reference("../outside", 0, 60)))),
    },
    broken("orbax array"): {"a database without the array": database(lambda _: leaf({"v/.zarray": ZARRAY}))},
    unsafe("ocdbt"): {
        "2^60 files": node(MANY), "2^60 keys": node(NO_FILES + MANY), "2^60 children": node(NO_FILES + MANY, 1),
        "keys that are long together": node(NO_FILES + varint(9_000) + varints(*[60_000] * 8_999) + varint(60_000) + varints(*[2] * 8_999) + bytes(60_000) + b"".join(number.to_bytes(2, "big") for number in range(1, 9_000)) + bytes(18_000)),
    },
    unsafe("outside"): {
        "a link in a database": lambda folder: (database(lambda _: leaf({"w/.zarray": Reference("d/link", 0, 10)}))(folder), linked("/etc/passwd", "d/link")(folder)),
    },
}  # fmt: skip
LEAF = leaf({"w/.zarray": ZARRAY})
PACKED: dict[str, Change] = {
    "a node of a gigabyte": node(GIGABYTE, compression=1), "a node of an exabyte": node(EXABYTE, compression=1), "a node that is no zstd": node(b"abc", compression=1),
    "a manifest of a gigabyte": only(("manifest.ocdbt", framed(0x0CDB3A2A, GIGABYTE, 1))),
}  # fmt: skip


def reframed(version: int, compression: int) -> bytes:
    """A leaf whose frame says that it has another version, or another compression."""
    inside = varints(version, compression) + LEAF[14:-4]
    data = LEAF[:12] + inside
    return data + struct.pack("<I", crc32c(data))


def shared(folder: Path) -> None:
    """A tree of 25 levels, each of one node, which is twice in the one above: a leaf has 16 million keys."""
    (folder / "d").mkdir()
    data = leaf({"": b"x"})
    below = Reference("d/x", 0, len(data))
    for height in range(1, 25):
        made = inner({"a": below, "b": below}, height, common=1)
        below = Reference("d/x", len(data), len(made))
        data += made
    (folder / "d" / "x").write_bytes(data)
    (folder / "manifest.ocdbt").write_bytes(manifest(below, 24))


def packed_often(folder: Path) -> None:
    """A node of 100 MiB, in 5 kB, that is in a tree 26 times."""
    body = bytes([0]) + varints(0, 1, 0, 100 << 20) + bytes(1)
    blocks = struct.pack("<I", len(body) << 3)[:3] + body + bytes.fromhex("02001000") * 800 + bytes.fromhex("010000")
    one = framed(NODE, bytes.fromhex("28b52ffd0068") + blocks, 1)
    database(
        lambda _: inner(dict.fromkeys("abcdefghijklm", Reference("d/other", 0, len(one))), 1, common=1), 1, other=one
    )(folder)


COSTS = {"a node that is in a tree 2^24 times": shared, "a node of 100 MiB that is in a tree often": packed_often}


def made(change: Change) -> Callable[[], str]:
    def make() -> str:
        change(item("x", {"w": VALUES}))
        return "x"

    return make


def cases(names: dict[Refusal, dict[str, Change]], commands: Any = (LOOK, COPY)) -> list[Case]:
    return [
        Case(name, ORBAX, refusal, made(change), commands)
        for refusal, changes in names.items()
        for name, change in changes.items()
    ]


DAMAGED = broken("zarr chunk")


@each([*cases(LISTS), *cases(ZARR), *cases({DAMAGED: CHUNKS}, (COPY,))])
def test_a_broken_folder_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each(cases(OCDBT), costly=["keys that are long together"])
def test_a_broken_database_is_refused(case: Any, ckpt: Any) -> None:
    held(case, ckpt)


@each([*cases({DAMAGED: ZSTD}, (COPY,)), *cases({broken("ocdbt"): PACKED})])
def test_zstd_is_unpacked_only_to_what_is_expected(case: Any, ckpt: Any) -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    held(case, ckpt)


@each(cases({DAMAGED: BLOSC}, (COPY,)))
def test_blosc_that_is_broken_is_refused(case: Any, ckpt: Any) -> None:
    pytest.importorskip("blosc", reason="the extra orbax is not installed")
    held(case, ckpt)


@each(cases({unsafe("ocdbt"): COSTS}), COSTS)
def test_a_database_that_would_cost_too_much_is_refused(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zstandard", reason="the extra orbax is not installed")
    divide(("OCDBT_NUMBERS", "OCDBT_UNPACKED", "OCDBT_KEPT"), 4, monkeypatch)
    path = case.make()
    with nothing_changed():
        done = bounded("inspect", path, "--json", memory=1 << 30, share=4)
    assert done.returncode == 3, (done.returncode, done.err[-500:])
    assert json.loads(done.err)["rule"] == "ocdbt"
