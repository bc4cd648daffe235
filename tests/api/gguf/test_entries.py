"""The metadata of GGUF outputs: carried with its types, changed by the user, and lost by other formats with a note."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.dtypes import ROUNDED

from ...helpers.gguf_files import UINT32, gguf, tensor_info

GOLDEN = Path(__file__).parents[3] / "fixtures/golden/gguf"
TYPES = str(GOLDEN / "types.gguf")


def entries(path: str) -> dict[str, tuple[int, bytes]]:
    """The entries of a file as they are stored."""
    with cs.open_checkpoint(path) as found:
        file = found.open_files()[""]
        return {key: (one.kind, file.read(one.offset, one.nbytes)) for key, one in found.header.stored.items()}


def test_every_entry_is_carried_with_its_type() -> None:
    cs.apply(cs.filter(TYPES, exclude=["float64"]), "out.gguf")
    assert entries("out.gguf") == entries(TYPES)
    assert cs.verify("out.gguf").ok


def test_entries_are_set_in_their_type_and_removed() -> None:
    given = {
        "test.uint16": "7",
        "test.float32": "0.5",
        "test.numbers": "[4, 5]",
        "test.bool": "false",
        "test.texts": "",
    }
    cs.apply(cs.convert(TYPES, metadata={**given, "tokenizer.ggml.tokens": ""}), "out.gguf")
    found, before = entries("out.gguf"), entries(TYPES)
    assert found["test.uint16"] == (2, struct.pack("<H", 7))
    assert found["test.float32"] == (6, struct.pack("<f", 0.5))
    assert found["test.numbers"] == (9, struct.pack("<IQ2i", 5, 2, 4, 5))
    assert found["test.bool"] == (7, b"\0")
    assert set(before) - set(found) == {"test.texts", "tokenizer.ggml.tokens"}
    assert all(found[key] == before[key] for key in found if key not in given)


@pytest.mark.parametrize(("key", "value"), [("test.uint8", "256"), ("test.int32", "many"), ("test.bool", "2")])
def test_a_value_that_does_not_fit_its_type_is_an_error(key: str, value: str) -> None:
    with pytest.raises(cs.ConfigError, match=f"{key} = {value} in the metadata is not a value of the type"):
        cs.apply(cs.convert(TYPES, metadata={key: value}), "out.gguf")
    assert not Path("out.gguf").exists()


def test_new_entries_get_the_type_of_their_text() -> None:
    given = {"a.count": "5", "a.less": "-5", "a.more": str(2**40), "a.part": "0.25", "a.is": "true", "a.name": "x y"}
    cs.apply(cs.convert(TYPES, metadata={**given, "general.version": "1", "a.list": "[1, 2]"}), "out.gguf")
    found = entries("out.gguf")
    assert {key: found[key][0] for key in given} == {
        "a.count": 4, "a.less": 5, "a.more": 10, "a.part": 6, "a.is": 7, "a.name": 8,
    }  # fmt: skip
    assert found["general.version"][0] == 8
    assert found["a.list"] == (9, struct.pack("<IQ2i", 5, 2, 1, 2))


def test_another_format_gets_the_short_entries_and_a_note_on_the_others() -> None:
    receipt = cs.apply(cs.filter(TYPES, include=["float32"]), "out.safetensors")
    assert (
        "metadata not written, since only GGUF stores them: tokenizer.ggml.tokens, tokenizer.ggml.scores"
        in receipt.notes
    )
    with cs.open_checkpoint("out.safetensors") as found:
        assert found.metadata["general.name"] == "One of each type"
        assert found.metadata["test.numbers"] == "[1, 2, 3]"


def test_texts_of_safetensors_become_texts_of_gguf() -> None:
    save_file({"a": torch.ones(3)}, "x.safetensors", {"format": "pt", "note": "hello"})
    cs.apply(cs.convert("x.safetensors"), "out.gguf")
    assert entries("out.gguf") == {"note": (8, struct.pack("<Q", 5) + b"hello")}


def test_the_type_of_a_file_follows_its_tensors() -> None:
    raw = gguf([tensor_info("a", [32, 2], 8, 0)], {"general.file_type": (UINT32, struct.pack("<I", 7))}, bytes(68 + 28))
    Path("x.gguf").write_bytes(raw)
    cs.apply(cs.convert("x.gguf", dequantize=True, dtype="float16"), "half.gguf")
    assert entries("half.gguf")["general.file_type"] == (UINT32, struct.pack("<I", 1))
    cs.apply(cs.convert("half.gguf", gguf_type="q4_0"), "codes.gguf")
    assert entries("codes.gguf")["general.file_type"] == (UINT32, struct.pack("<I", 2))
    assert entries("codes.gguf")["general.quantization_version"] == (UINT32, struct.pack("<I", 2))


def test_the_bytes_of_a_file_are_those_of_gguf() -> None:
    """Version 3; each tensor begins at a multiple of 32; sizes are in the order of the file."""
    save_file({"b": torch.arange(3.0), "a.c": torch.ones(2, 3).half()}, "x.safetensors")
    cs.apply(cs.filter("x.safetensors"), "out.gguf")
    raw = Path("out.gguf").read_bytes()
    assert raw[:24] == b"GGUF" + struct.pack("<IQQ", 3, 2, 1)
    infos = tensor_info("b", [3], 0, 0) + tensor_info("a.c", [3, 2], 1, 32)
    start = raw.index(infos) + len(infos)
    assert set(raw[start : start + -start % 32]) <= {0}
    start += -start % 32
    data = struct.pack("<3f", 0, 1, 2).ljust(32, b"\0") + np.ones(6, "<f2").tobytes().ljust(32, b"\0")
    assert raw[start:] == data


@pytest.mark.parametrize("kind", ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_blocks_are_those_of_gguf_py(kind: str) -> None:
    """Bit for bit, on a weight with an outlier, a row of zeros, and values halfway between two codes."""
    with np.load(GOLDEN / "types.npz") as found:
        save_file({"w": torch.from_numpy(found["source"])}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type=kind), "out.gguf")
    assert cs.verify("out.gguf").ok
    with cs.open_checkpoint("out.gguf") as made, cs.open_checkpoint(TYPES) as golden:
        assert torch.equal(made.tensor("w"), golden.tensor(kind))
        assert made["w"].dtype == kind


def test_rows_that_are_no_whole_blocks_stay_with_a_note() -> None:
    save_file({"w": torch.ones(2, 32), "odd": torch.ones(2, 31), "norm": torch.ones(32)}, "x.safetensors")
    plan = cs.convert("x.safetensors", gguf_type="q8_0")
    assert "1 tensor is not rounded to q8_0, as the row length is not a multiple of 32: odd" in plan.notes
    cs.apply(plan, "out.gguf")
    with cs.open_checkpoint("out.gguf") as found:
        assert {key: info.dtype for key, info in found.items()} == {"w": "q8_0", "odd": "float32", "norm": "float32"}
    save_file({"odd": torch.ones(2, 31)}, "y.safetensors")
    with pytest.raises(
        cs.PlanError, match="no matching tensor is a floating-point matrix whose row length is a multiple of 32"
    ):
        cs.convert("y.safetensors", gguf_type="q8_0")


@pytest.mark.parametrize("kind", [one for one in ROUNDED if one != "mxfp4"])
@pytest.mark.parametrize(
    ("value", "why"),
    [(float("nan"), "is NaN or infinite"), (1e10, "has values too large for"), (-3e38, "has values too large for")],
)
def test_values_that_blocks_cannot_hold_are_an_error(value: float, why: str, kind: str) -> None:
    weight = torch.ones(2, 256)
    weight[1, 5] = value
    save_file({"w": weight}, "x.safetensors")
    with pytest.raises(cs.PlanError, match=why):
        cs.apply(cs.convert("x.safetensors", gguf_type=kind), "out.gguf")
    assert not Path("out.gguf").exists()


def test_what_gguf_cannot_hold_is_an_error() -> None:
    for tensors, why in (
        ({"a": torch.ones(1, dtype=torch.uint8)}, "gguf does not support uint8"),
        ({"a" * 64: torch.ones(1)}, "is too long for GGUF"),
        ({"a": torch.ones(1, 1, 1, 1, 1)}, "has 5 dimensions"),
    ):
        save_file(tensors, "x.safetensors")
        with pytest.raises(cs.OutputError, match=why):
            cs.apply(cs.convert("x.safetensors"), "out.gguf")
    torch.save({"a\ud800": torch.ones(1)}, "odd.pth")
    with pytest.raises(cs.OutputError, match=r"GGUF cannot store the name a\\ud800: it is not valid Unicode"):
        cs.apply(cs.convert("odd.pth"), "out.gguf")
    save_file({"a": torch.ones(1)}, "x.safetensors")
    for options in ({"to": "gguf"}, {"max_shard_size": "1GB", "to": "gguf"}):
        with pytest.raises(cs.ConfigError, match="gguf can only be written as one file"):
            cs.apply(cs.convert("x.safetensors"), "folder", **options)  # type: ignore[arg-type]
    with pytest.raises(cs.ConfigError, match="gguf_type=.iq4_xs. is unknown"):
        cs.convert("x.safetensors", gguf_type="iq4_xs")
    torch.save({"epoch": 3, "model": {"a": torch.ones(1)}}, "x.pth")
    with pytest.raises(cs.ConfigError, match="GGUF cannot store entries other than tensors"):
        cs.apply(cs.convert("x.pth", keep_extras=True), "out.gguf")


def test_gguf_py_reads_the_file() -> None:
    """Run where gguf is installed."""
    reader = pytest.importorskip("gguf").GGUFReader
    cs.apply(cs.filter(TYPES, exclude=["int8"]), "out.gguf")
    one, two = reader(TYPES), reader("out.gguf")
    said: dict[str, Any] = json.loads((GOLDEN / "types.json").read_text())["metadata"]
    assert {key: two.fields[key].contents() for key in said} == said
    kept = [tensor for tensor in one.tensors if tensor.name != "int8"]
    for ours, theirs in zip(two.tensors, kept, strict=True):
        assert (ours.name, ours.tensor_type, list(ours.shape)) == (theirs.name, theirs.tensor_type, list(theirs.shape))
        assert ours.data.tobytes() == theirs.data.tobytes()


def test_blocks_that_another_format_cannot_store_are_not_to_be_decoded_but_left_out() -> None:
    save_file({"a.weight": torch.ones(2, 32)}, "plain.safetensors")
    with pytest.raises(cs.OutputError, match="Or leave gguf_type out"):
        cs.apply(cs.convert("plain.safetensors", gguf_type="q8_0"), "x.safetensors")
