"""TensorFlow's checkpoints with something wrong in them: refused by name, wherever they are read."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptsurgeon as cs
from ckptsurgeon.formats.base.protobuf import varint as varint_at
from ckptsurgeon.storage.crc32c import crc32c

from ..helpers.tensorflow_files import BEST, GOLDEN, HEADER, block, entry, field, handle, index_of, refused, table


@pytest.mark.parametrize("verb", ["open", "convert", "derive", "average", "stats", "diff"])
def test_a_flipped_bit_of_a_tensor_is_an_error_wherever_it_is_read(stt: Path, verb: str) -> None:
    data = stt / f"{BEST}.data-00000-of-00001"
    with cs.open_checkpoint(stt) as checkpoint:
        storage = checkpoint["layer_5.weights"].storage
        assert storage is not None
        at = storage.offset + 17
    raw = bytearray(data.read_bytes())
    raw[at] ^= 1
    data.write_bytes(raw)
    act = {
        "open": lambda: cs.open_checkpoint(stt).tensor("layer_5.weights"),
        "convert": lambda: cs.apply(cs.convert(stt), "out.pth"),
        "derive": lambda: cs.apply(cs.rename(stt, operations=[{"transpose": "layer_5.weights"}]), "out.pth"),
        "average": lambda: cs.apply(cs.average([stt, GOLDEN / "stt"]), "out.pth"),
        "stats": lambda: cs.inspect(stt, stats=True),
        "diff": lambda: cs.diff(GOLDEN / "stt", stt, values=True),
    }[verb]
    with pytest.raises(cs.FormatError, match="layer_5/weights does not match its checksum"):
        act()
    assert not Path("out.pth").exists()


def test_a_data_file_cut_short_is_an_error_that_names_it(stt: Path) -> None:
    data = stt / f"{BEST}.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    said = refused(stt)
    assert f"{BEST}.data-00000-of-00001, which has 11044 bytes: this file is truncated" in said
    data.unlink()
    assert f"the data file {data.name} is missing" in refused(stt)


def test_an_index_cut_short_is_refused_at_every_length(stt: Path) -> None:
    index = stt / f"{BEST}.index"
    raw = index.read_bytes()
    for length in range(0, len(raw), 5):
        index.write_bytes(raw[:length])
        with pytest.raises(cs.CheckpointError):
            cs.open_checkpoint(index)
    index.write_bytes(raw[:100])
    assert "is not a checkpoint" in refused(index)
    index.write_bytes(raw[:600] + raw[700:])
    assert "truncated" in refused(index)


def test_no_flipped_bit_of_an_index_goes_unseen(stt: Path) -> None:
    index = stt / f"{BEST}.index"
    raw = index.read_bytes()
    footer = len(raw) - 60
    for at in (*range(0, footer, 5), *range(footer, len(raw))):
        changed = bytearray(raw)
        changed[at] ^= 4
        index.write_bytes(changed)
        with pytest.raises(cs.FormatError):
            cs.open_checkpoint(index)


ONE = {"w": entry([2], 8)}
BROKEN = {
    "a header that is not there": (table([(b"w", block([(b"w", entry([2], 8))]))]), "without TensorFlow's header"),
    "an empty table": (table([]), "an empty table"),
    "no message": (index_of({"w": b"\x0f"}), "entry of w in the index is malformed"),
    "a number without end": (index_of({"w": b"\x08" + b"\xff" * 11}), "entry of w in the index is malformed"),
    "a field that is cut short": (index_of({"w": b"\x12\x09"}), "entry of w in the index is malformed"),
    "no data files": (index_of(ONE, field(1, 0)), "the index says that there are 0 data files"),
    "a billion data files": (index_of(ONE, field(1, 10**9)), "there are 1000000000 data files"),
    "a later version": (index_of(ONE, field(1, 1) + field(3, field(2, 9))), "the version of the index is too new"),
    "bytes that do not fit the shape": (index_of({"w": entry([3], 8)}), "has 8 bytes"),
    "a shape beyond int64": (index_of({"w": entry([2**62, 4], 8)}), "has 8 bytes"),
    "a shape below zero": (index_of({"w": entry([2**64 - 1], 8)}), "negative"),
    "an offset below zero": (index_of({"w": entry([2], 8, offset=2**64 - 8)}), "negative"),
    "an offset beyond the end": (index_of({"w": entry([2], 8, offset=2**62)}), "truncated"),
    "another data file": (index_of({"w": entry([2], 8, shard=3)}), "data file 3, but there are only 1"),
    "a hundred dimensions": (index_of({"w": entry([1] * 100, 4)}), "over 64 dimensions"),
    "tensors that overlap": (index_of({"v": entry([2], 8), "w": entry([2], 8, offset=4)}), "overlap"),
    "a slice that is not there": (index_of({"w": entry([2], 0) + field(7, field(1, field(2, 1)))}), "slice of the variable w is missing"),
    "names that are one key": (index_of({"a.b": entry([1], 4), "a/b": entry([1], 4, offset=4)}), "and another variable would both get the key a.b"),
    "a name that is not text": (table([(b"\xff", block([(b"", HEADER), (b"\xff", entry([2], 8))]))]), "not UTF-8"),
    "keys out of order": (table([(b"w", block([(b"", HEADER), (b"w", entry([2], 8)), (b"v", entry([2], 8))]))]), "not in order"),
    "a key twice": (table([(b"w", block([(b"", HEADER), (b"w", entry([2], 8)), (b"w", entry([2], 8))]))]), "not in order"),
    "an index that contradicts its block": (table([(b"a", block([(b"", HEADER), (b"w", entry([2], 8))]))]), "contradicts"),
    "a restart point outside": (table([(b"", block([(b"", HEADER)], [0, 10**6]))]), "no entry begins"),
    "a restart point within an entry": (table([(b"", block([(b"", HEADER)], [0, 2]))]), "no entry begins"),
    "restart points without end": (table([(b"", block([(b"", HEADER)])[:-4] + b"\xff\xff\xff\x0f")]), "restart points"),
    "a shared prefix of nothing": (table([(b"", b"\x05\x00\x00" + struct.pack("<II", 0, 1))]), "reaches beyond the block"),
    "a value beyond the block": (table([(b"", b"\x00\x00\x7f" + struct.pack("<II", 0, 1))]), "reaches beyond the block"),
    "another compression": (table([(b"", block([(b"", HEADER)]))], kind=7), "the index cannot be read: the block at 0 has the unsupported compression 7"),
    "a block that is itself the index": (table([(b"", block([(b"", HEADER)]))], index=block([(b"", handle(40, 40))])), "a gap or an overlap between its blocks"),
    "a block beyond the end": (table([], index=block([(b"", handle(0, 2**40))])), "a gap or an overlap between its blocks"),
    "one block many times": (table([(b"", block([(b"", HEADER)]))], index=block([(bytes([i]), handle(0, 21)) for i in range(100)])), "a gap or an overlap between its blocks"),
    "an empty block": (table([(b"", b"")]), "restart points"),
    "a block of no entries": (table([(b"", block([(b"", HEADER)])), (b"w", block([]))]), "an empty block"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_an_index_that_breaks_a_rule_is_refused_by_name(name: str, ckpt: Any) -> None:
    raw, why = BROKEN[name]
    Path("x.index").write_bytes(raw)
    Path("x.data-00000-of-00001").write_bytes(bytes(16))
    done = ckpt("inspect", "x")
    said = " ".join(done.err.split())
    assert (done.code, done.out) == (3, "")
    assert said.startswith("error: x.index: "), said
    assert why in said


def test_an_entry_that_shares_its_key_with_the_one_before() -> None:
    """What TensorFlow writes, and the same with a length that is too long."""
    rows = b"\x00\x00" + bytes([len(HEADER)]) + HEADER
    one, two = entry([1], 4), entry([1], 4, offset=4, crc=crc32c(b"\0" * 4))
    rows += b"\x00\x02" + bytes([len(one)]) + b"ab" + one + b"\x01\x01" + bytes([len(two)]) + b"c" + two
    Path("x.data-00000-of-00001").write_bytes(bytes(8))
    Path("x.index").write_bytes(table([(b"ac", rows + struct.pack("<II", 0, 1))]))
    assert list(cs.open_checkpoint("x")) == ["ab", "ac"]


def test_a_wrong_checksum_of_a_block_is_an_error_of_its_own() -> None:
    raw = bytearray(index_of(ONE))
    raw[10] ^= 1
    Path("x.index").write_bytes(raw)
    assert "the block at 0 does not match its checksum" in refused("x")


@pytest.mark.long
def test_random_bytes_in_an_index_are_refused_or_read() -> None:
    """In a block whose checksum is right, so that what it holds is looked at."""
    raw = (GOLDEN / "stt" / f"{BEST}.index").read_bytes()
    shutil.copy(GOLDEN / "stt" / f"{BEST}.data-00000-of-00001", "x.data-00000-of-00001")
    size = varint_at(raw[-48:], 0)[0] - 5
    rng = np.random.default_rng(0)
    opened = 0
    for _ in range(300):
        content = bytearray(raw[:size])
        content[rng.integers(len(content))] = rng.integers(256)
        Path("x.index").write_bytes(table([(b"zz", bytes(content))]))
        try:
            cs.open_checkpoint("x").close()
            opened += 1  # another checksum, another letter of a name
        except cs.FormatError:
            continue
    assert 0 < opened < 150
