"""TensorFlow's checkpoints as TensorFlow itself wrote them (``make oracle-tensorflow``), and broken ones."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats import crc32c
from ckptsurgeon.formats._crc32c import unmasked
from ckptsurgeon.formats._protobuf import varint as varint_at
from ckptsurgeon.formats._snappy import unsnapped
from ckptsurgeon.formats._tensor_slices import slice_key

from .tensorflow_files import HEADER, block, entry, field, handle, index_of, masked, table, varint, write

GOLDEN = Path(__file__).parents[2] / "fixtures/golden/tensorflow"
RECORD = json.loads((GOLDEN / "record.json").read_text())
BEST = "best_dev-1000"


@pytest.fixture
def stt() -> Path:
    """A copy of the folder that Coqui's training left, to be broken."""
    return Path(shutil.copytree(GOLDEN / "stt", "stt"))


def values_of(name: str) -> dict[str, Any]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def read_all(path: str | Path) -> None:
    with cs.open_checkpoint(path) as checkpoint:
        for key in checkpoint:
            checkpoint.tensor(key)


def refused(path: str | Path, kind: type[Exception] = cs.FormatError) -> str:
    with pytest.raises(kind) as error:
        read_all(path)
    return " ".join(str(error.value).split())


@pytest.mark.parametrize("name", ["best_dev", "train"])
@pytest.mark.parametrize("named", ["index", "prefix"])
def test_every_variable_has_the_values_that_tensorflow_says(name: str, named: str) -> None:
    expected = values_of(name)
    assert len(expected) == 40
    number = {"best_dev": 1000, "train": 1200}[name]
    path = GOLDEN / "stt" / f"{name}-{number}{'.index' if named == 'index' else ''}"
    found: dict[str, torch.Tensor] = {}
    for root, slot in (
        ("model", ""),
        ("optimizer.adam_m", ".Adam"),
        ("optimizer.adam_v", ".Adam_1"),
        ("optimizer", ""),
    ):
        with cs.open_checkpoint(path, root) as checkpoint:
            assert checkpoint.format == "tensorflow"
            found |= {f"{key}{slot}": checkpoint.tensor(key) for key in checkpoint}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key].numpy(), value), key
        assert str(found[key].dtype) == f"torch.{value.dtype}"


def test_model_variables_are_the_state_dict_and_the_rest_is_beside_it(ckpt: Any) -> None:
    shown = json.loads(ckpt("inspect", GOLDEN / "stt", "--json").out)
    assert (shown["root"], len(shown["tensors"]), shown["other_roots"]) == ("model", 12, [])
    extras = {extra["key"]: extra for extra in shown["extras"]}
    assert extras.keys() == {"optimizer", "flags.txt", "alphabet.txt"}
    assert extras["optimizer"]["type"] == "dict of 6, 28 tensors in it"
    assert extras["alphabet.txt"]["value"] == (GOLDEN / "stt/alphabet.txt").read_text()


def test_the_header_is_read_without_torch_or_numpy() -> None:
    code = (
        "import sys, ckptsurgeon as cs; c = cs.open_checkpoint(sys.argv[1]);"
        "assert len(c) == 12 and not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(GOLDEN / "stt")], check=True)


def test_the_best_checkpoint_of_a_folder_comes_before_the_last(stt: Path) -> None:
    """Its text names it by a path of the machine that trained it."""
    assert 'path: "/home/coqui/en/best_dev-1000"' in (stt / "best_dev_checkpoint").read_text()
    with cs.open_checkpoint(stt) as checkpoint:
        assert {file.name for file in checkpoint.files} == {f"{BEST}.index", f"{BEST}.data-00000-of-00001"}
        assert checkpoint.notes == (f"read {BEST}, as best_dev_checkpoint says; also in the folder: train-1200",)
    (stt / "best_dev_checkpoint").unlink()
    with cs.open_checkpoint(stt) as checkpoint:
        assert "read train-1200, as checkpoint says" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "path", ["best_dev-1000", "/a/b/best_dev-1000", "C:\\\\\\\\x\\\\\\\\best_dev-1000", "best\\\\137dev-1000"]
)
def test_what_a_text_names_is_taken_by_its_last_part(stt: Path, path: str) -> None:
    text = path.encode().decode("unicode_escape") if "\\" in path else path
    (stt / "best_dev_checkpoint").write_text(f'model_checkpoint_path: "{text}"\nall_model_checkpoint_paths: "x"\n')
    with cs.open_checkpoint(stt) as checkpoint:
        assert checkpoint.files[0].name == f"{BEST}.index"


def test_a_folder_with_neither_text_is_an_error_that_names_what_is_there(stt: Path) -> None:
    """Coqui's training would start from scratch, and say so in a line among hundreds."""
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    said = refused(stt)
    assert "stt has neither best_dev_checkpoint nor checkpoint" in said
    assert "Name the one you mean: stt/best_dev-1000, stt/train-1200." in said


def test_a_folder_without_a_checkpoint_is_an_error(stt: Path) -> None:
    for file in stt.glob("*-1*"):
        file.unlink()
    assert "best_dev_checkpoint names best_dev-1000, and there is no best_dev-1000.index" in refused(stt)
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    assert "stt has no checkpoint in it" in refused(stt)


def test_another_file_called_checkpoint_is_none_of_tensorflow_s() -> None:
    Path("run").mkdir()
    Path("run/checkpoint").write_text("epoch 3\n")
    torch.save({"w": torch.ones(2)}, "run/model.pth")
    with cs.open_checkpoint("run") as checkpoint:
        assert checkpoint.format != "tensorflow"


def test_an_index_beside_weights_of_torch_does_not_hide_them(stt: Path) -> None:
    """As in repositories that hold a model for both."""
    for name in ("best_dev_checkpoint", "checkpoint"):
        (stt / name).unlink()
    torch.save({"w": torch.ones(2)}, stt / "pytorch_model.bin")
    with cs.open_checkpoint(stt) as checkpoint:
        assert list(checkpoint) == ["w"]


def test_several_data_files() -> None:
    with cs.open_checkpoint(GOLDEN / "shards") as checkpoint:
        assert [file.name for file in checkpoint.files][1:] == [f"model.data-0000{i}-of-00002" for i in range(2)]
        for i in range(4):
            assert torch.equal(checkpoint.tensor(f"layer_{i}.weights"), torch.full((2, 3), float(i)))
    cs.apply(cs.convert(GOLDEN / "shards"), "out.safetensors")
    assert cs.verify("out.safetensors").ok


def test_slices_of_partitioned_variables_are_put_together() -> None:
    with cs.open_checkpoint(GOLDEN / "slices") as checkpoint:
        assert {key: info.shape for key, info in checkpoint.items()} == {"by_0": (5, 5), "by_1": (5, 200)}
        for key in checkpoint:
            assert checkpoint.tensor(key).numpy().tobytes().hex() == RECORD["slices"][key]
    cs.apply(cs.convert(GOLDEN / "slices"), "out.pth")
    assert torch.load("out.pth", weights_only=True)["by_1"].numpy().tobytes().hex() == RECORD["slices"]["by_1"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(0, "80"), (63, "bf"), (-1, "7f"), (-64, "40"), (64, "c040"), (-65, "3fbf"), (8191, "dfff"), (1 << 20, "f0100000"[:8]),
     (2**63 - 1, "ffc07fffffffffffffff"), (-(2**63), "003f8000000000000000")],
)  # fmt: skip
def test_slices_are_found_under_ordered_codes(number: int, code: str) -> None:
    """tensorflow/core/lib/strings/ordered_code_test.cc"""
    key = slice_key(b"a\x00\xff", ((number, -1),))
    assert key == b"\x00a\x00\xff\xff\x00\x00\x01\x01\x01" + bytes.fromhex(code) + b"\x7f"


def test_every_type_and_what_holds_no_numbers() -> None:
    with cs.open_checkpoint(GOLDEN / "kinds/kinds") as checkpoint:
        for key, info in checkpoint.items():
            plain = checkpoint.tensor(key).contiguous().reshape(-1).view(torch.uint8) if info.numel else torch.empty(0)
            assert bytes(plain.tolist()).hex() == RECORD["kinds"][key], key
            assert info.dtype == {"scalar": "float32", "empty": "float32"}.get(key, key)
        assert len(checkpoint) == len(RECORD["kinds"])
        assert [(extra.key, extra.type) for extra in checkpoint.extras] == [("text", "tensorflow.string")]


def test_object_graphs_of_tensorflow_2() -> None:
    with cs.open_checkpoint(GOLDEN / "objects") as checkpoint:
        assert list(checkpoint) == ["model.kernel", "model.layers.0"]
        assert torch.equal(checkpoint.tensor("model.kernel"), torch.ones(2, 3))
        assert [extra.key for extra in checkpoint.extras] == ["_CHECKPOINTABLE_OBJECT_GRAPH", "optimizer"]


def test_averages_of_weights_are_a_state_dict_of_their_own() -> None:
    ones = np.ones((2,), "f4")
    write("x", {"w": ones, "w/ExponentialMovingAverage": 2 * ones, "w/Adam": ones, "loss/Adam": ones})
    with cs.open_checkpoint("x") as checkpoint:
        assert list(checkpoint) == ["loss.Adam", "w"]
        assert checkpoint.passed == ("model_ema",)
    with cs.open_checkpoint("x", "model_ema") as checkpoint:
        assert torch.equal(checkpoint.tensor("w"), torch.full((2,), 2.0))


def test_moments_of_a_variable_that_is_saved_under_other_names_are_the_optimizer_s() -> None:
    """Coqui's releases were trained with cuDNN, whose LSTM is one opaque variable while it trains."""
    ones = np.ones((2,), "f4")
    write("x", {"w": ones, "cudnn_lstm/opaque_kernel/Adam": ones, "cudnn_lstm/opaque_kernel/Adam_1": ones})
    assert list(cs.open_checkpoint("x")) == ["w"]
    assert list(cs.open_checkpoint("x", "optimizer.adam_v")) == ["cudnn_lstm.opaque_kernel"]


def test_what_lies_beside_is_carried_when_it_is_asked_for(ckpt: Any) -> None:
    done = ckpt("convert", GOLDEN / "stt", "--keep-extras", "-o", "x.pth")
    assert "not carried: optimizer" in " ".join(done.err.split())
    carried = torch.load("x.pth", weights_only=True)
    assert carried.keys() == {"model", "flags.txt", "alphabet.txt"}
    assert carried["flags.txt"]["n_hidden"] == 8
    assert len(carried["model"]) == 12


def test_what_a_big_endian_machine_wrote() -> None:
    header = field(1, 1) + field(2, 1) + field(3, field(1, 1))
    write("x", {"w": np.arange(3, dtype=">f4")}, header)
    cs.apply(cs.convert("x"), "out.safetensors")
    with cs.open_checkpoint("out.safetensors") as checkpoint:
        assert checkpoint.tensor("w").tolist() == [0.0, 1.0, 2.0]


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
    with pytest.raises(cs.FormatError, match="layer_5/weights does not have the checksum it should"):
        act()
    assert not Path("out.pth").exists()


def test_a_data_file_cut_short_is_an_error_that_names_it(stt: Path) -> None:
    data = stt / f"{BEST}.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    said = refused(stt)
    assert f"{BEST}.data-00000-of-00001, which has 11044 bytes: it is cut short" in said
    data.unlink()
    assert f"its data file {data.name} is not there" in refused(stt)


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
    assert "it is cut short" in refused(index)


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
    "no message": (index_of({"w": b"\x0f"}), "of w is no message"),
    "a number without end": (index_of({"w": b"\x08" + b"\xff" * 11}), "of w is no message"),
    "a field that is cut short": (index_of({"w": b"\x12\x09"}), "of w is no message"),
    "no data files": (index_of(ONE, field(1, 0)), "there are 0 data files"),
    "a billion data files": (index_of(ONE, field(1, 10**9)), "1000000000 data files"),
    "a later version": (index_of(ONE, field(1, 1) + field(3, field(2, 9))), "later version"),
    "bytes that do not fit the shape": (index_of({"w": entry([3], 8)}), "has 8 bytes"),
    "a shape beyond int64": (index_of({"w": entry([2**62, 4], 8)}), "has 8 bytes"),
    "a shape below zero": (index_of({"w": entry([2**64 - 1], 8)}), "below zero"),
    "an offset below zero": (index_of({"w": entry([2], 8, offset=2**64 - 8)}), "below zero"),
    "an offset beyond the end": (index_of({"w": entry([2], 8, offset=2**62)}), "cut short"),
    "another data file": (index_of({"w": entry([2], 8, shard=3)}), "data file 3 of 1"),
    "a hundred dimensions": (index_of({"w": entry([1] * 100, 4)}), "over 64 dimensions"),
    "tensors that overlap": (index_of({"v": entry([2], 8), "w": entry([2], 8, offset=4)}), "overlap"),
    "a slice that is not there": (index_of({"w": entry([2], 0) + field(7, field(1, field(2, 1)))}), "slice of w is not there"),
    "names that are one key": (index_of({"a.b": entry([1], 4), "a/b": entry([1], 4, offset=4)}), "two of its variables would be a.b"),
    "a name that is no text": (table([(b"\xff", block([(b"", HEADER), (b"\xff", entry([2], 8))]))]), "no UTF-8"),
    "keys out of order": (table([(b"w", block([(b"", HEADER), (b"w", entry([2], 8)), (b"v", entry([2], 8))]))]), "not in order"),
    "a key twice": (table([(b"w", block([(b"", HEADER), (b"w", entry([2], 8)), (b"w", entry([2], 8))]))]), "not in order"),
    "an index that contradicts its block": (table([(b"a", block([(b"", HEADER), (b"w", entry([2], 8))]))]), "contradicts"),
    "a restart point outside": (table([(b"", block([(b"", HEADER)], [0, 10**6]))]), "no entry begins"),
    "a restart point within an entry": (table([(b"", block([(b"", HEADER)], [0, 2]))]), "no entry begins"),
    "restart points without end": (table([(b"", block([(b"", HEADER)])[:-4] + b"\xff\xff\xff\x0f")]), "restart points"),
    "a shared prefix of nothing": (table([(b"", b"\x05\x00\x00" + struct.pack("<II", 0, 1))]), "takes what is not there"),
    "a value beyond the block": (table([(b"", b"\x00\x00\x7f" + struct.pack("<II", 0, 1))]), "takes what is not there"),
    "another compression": (table([(b"", block([(b"", HEADER)]))], kind=7), "compressed in way 7"),
    "a block that is itself the index": (table([(b"", block([(b"", HEADER)]))], index=block([(b"", handle(40, 40))])), "one behind the other"),
    "a block beyond the end": (table([], index=block([(b"", handle(0, 2**40))])), "one behind the other"),
    "one block many times": (table([(b"", block([(b"", HEADER)]))], index=block([(bytes([i]), handle(0, 21)) for i in range(100)])), "one behind the other"),
    "an empty block": (table([(b"", b"")]), "restart points"),
    "a block of no entries": (table([(b"", block([(b"", HEADER)])), (b"w", block([]))]), "a block that holds nothing"),
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
    assert "the block at 0 does not have the checksum it should" in refused("x")


def test_checksums() -> None:
    """RFC 3720 B.4, and LevelDB's mask."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert unmasked(masked(0x12345678)) == 0x12345678


@pytest.mark.parametrize("length", [4095, 4096, 4097, 65535, 65536, 65541, (1 << 20) + 4099])
def test_a_long_checksum_is_that_of_its_bytes_one_by_one(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    pieces = 0
    for begin in range(0, length, 4000):  # too short for numpy
        pieces = crc32c(data[begin : begin + 4000], pieces)
    assert crc32c(data) == pieces
    assert crc32c(memoryview(data)[1:], crc32c(data[:1])) == pieces


def snappy(literal: bytes, *copies: tuple[int, int]) -> bytes:
    """A literal, then copies (offset, length) as the widest kind spells them."""
    body = b"\xf4" + struct.pack("<H", len(literal) - 1) + literal
    for offset, length in copies:
        body += bytes([(length - 1) << 2 | 3]) + struct.pack("<I", offset)
    return varint(len(literal) + sum(length for _, length in copies)) + body


def test_compressed_blocks() -> None:
    rows = block([(b"", HEADER), (b"v", entry([1], 4)), (b"w", entry([1], 4, offset=4))])
    Path("x.data-00000-of-00001").write_bytes(bytes(8))
    Path("x.index").write_bytes(table([(b"w", snappy(rows))], kind=1))
    assert list(cs.open_checkpoint("x")) == ["v", "w"]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"\x03\x08abc", b"abc"),
        (b"\x0a\x04ab\x11\x02", b"ab" * 5),
        (b"\x06\x00a\x12\x01\x00", b"aaaaaa"),
        (b"\x06\x00a\x13\x01\x00\x00\x00", b"aaaaaa"),
        (b"\x40\xf0\x3b" + b"x" * 60 + b"\x0cabcd", b"x" * 60 + b"abcd"),
    ],
)
def test_snappy_of_every_kind(raw: bytes, wanted: bytes) -> None:
    """google/snappy, format_description.txt"""
    assert unsnapped(raw, 1000) == wanted


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff" * 6, b"\x03\x08ab", b"\x04\x00a\x12\x02\x00", b"\x04\x00a\x12\x00\x00", b"\x09\x00a", b"\x01\x04ab",
     b"\x05\x00a\x01", b"\x05\x00a\x12\x01", b"\x05\xf8\xff"],
)  # fmt: skip
def test_snappy_that_is_malformed_is_refused(raw: bytes) -> None:
    with pytest.raises(cs.FormatError):
        unsnapped(raw, 1000)


def test_what_says_that_it_unpacks_to_gigabytes_is_refused_before_it_does() -> None:
    with pytest.raises(cs.FormatError, match="at most 8388608 are read"):
        unsnapped(b"\xff\xff\xff\xff\x0f\x00a", 8 << 20)
    with pytest.raises(cs.FormatError, match="said to unpack to 8000000"):
        unsnapped(varint(8_000_000) + b"\x00a", 8 << 20)


def test_an_output_is_never_one_of_its_files(stt: Path, ckpt: Any) -> None:
    for name in (f"{BEST}.index", f"{BEST}.data-00000-of-00001"):
        before = (stt / name).read_bytes()
        done = ckpt("convert", stt, "-o", stt / name, "--to", "safetensors", "--force")
        assert (done.code, (stt / name).read_bytes()) == (5, before)


def test_a_checkpoint_that_changed_since_the_plan_is_refused(stt: Path, ckpt: Any) -> None:
    Path("plan.json").write_text(ckpt("convert", stt, "-n", "--json").out)
    (stt / "best_dev_checkpoint").unlink()
    done = ckpt("apply", "plan.json", "-o", "out.pth")
    assert (done.code, "has changed since the plan" in done.err) == (4, True)


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
