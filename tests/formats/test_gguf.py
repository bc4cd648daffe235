"""GGUF: what gguf-py wrote is read as gguf-py reads it, and files that break a rule are refused by name."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ..helpers.gguf_files import ARRAY, STRING, UINT32, array, gguf, tensor_info, text

GOLDEN = Path(__file__).parents[2] / "fixtures/golden/gguf"
TYPES = str(GOLDEN / "types.gguf")
COPIED = ("iq4_xs", "tq2_0")
"""Types that are not decoded."""


def said() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / "types.json").read_text())
    return found


def expected() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(GOLDEN / "types.npz") as found:
        return dict(found)


def decoded(*options: str, **arguments: Any) -> dict[str, np.ndarray[Any, Any]]:
    plan = cs.filter(TYPES, exclude=list(COPIED))
    cs.apply(plan, "known.gguf", force=True)
    cs.apply(cs.convert("known.gguf", dequantize=True, **arguments), "out.safetensors", force=True)
    return load_file("out.safetensors")


def test_headers_are_those_that_gguf_py_reads() -> None:
    with cs.open_checkpoint(TYPES) as found:
        shapes = {key: list(info.meant_shape) for key, info in found.items()}
        assert found.format == "gguf"
        assert found["q4_0"].shape == (4, 512 // 32 * 18)
        assert {key: info.dtype for key, info in found.items()} == {key: key for key in shapes}
    assert {key: sizes for key, sizes in said()["shapes"].items() if key not in COPIED} == {
        key: sizes for key, sizes in shapes.items() if key not in COPIED
    }


def test_metadata_are_those_that_gguf_py_reads() -> None:
    with cs.open_checkpoint(TYPES) as found:
        texts = dict(found.metadata)
        kept = {key: one.said for key, one in found.header.stored.items()}
    for key, value in said()["metadata"].items():
        if isinstance(value, list) and len(value) > 16:
            assert key not in texts
            assert kept[key].startswith("40 ")
        elif key == "test.float32":
            assert texts[key] == "1e-05"
        elif isinstance(value, str):
            assert texts[key] == value
        else:
            assert json.loads(texts[key]) == value


def test_every_type_is_decoded_as_gguf_py_does() -> None:
    """Bit for bit, in float32."""
    found = decoded(dtype="float32")
    for key, value in expected().items():
        if key in found and value.dtype == np.float32:
            assert found[key].view("u4").tolist() == value.view("u4").tolist(), key
    assert len(found) == len(said()["shapes"]) - len(COPIED)


@pytest.mark.parametrize("key", ["q4_0", "q5_1", "mxfp4", "q3_k", "q6_k"])
@pytest.mark.parametrize("columns", [(0, 1), (31, 33), (100, 300), (255, 257), (511, 512)])
def test_a_part_of_a_weight_is_decoded_from_its_blocks_alone(key: str, columns: tuple[int, int]) -> None:
    from ckptsurgeon.api.inputs.operations import operate
    from ckptsurgeon.engine.compute.reading import read_part

    with cs.open_checkpoint(TYPES) as opened:
        file = opened.open_files()[""]
        made = operate([opened], [{"dequantize": key}])[0].checkpoint
        read = []
        real = file.readinto
        file.readinto = lambda at, view: read.append(len(view)) or real(at, view)  # type: ignore[method-assign,func-returns-value]
        part = read_part(made, made[key], ((1, 2), columns))
        assert part.tolist() == expected()[key][1:2, slice(*columns)].tolist()
        row = opened[key].shape[1]
        numbers = 32 if row > 512 // 256 * 210 or key in ("q4_0", "q5_1", "mxfp4") else 256
        blocks = -(-columns[1] // numbers) - columns[0] // numbers
        assert sum(read) <= max(blocks * row * numbers // 512, row)


def test_types_without_a_decoder_are_copied_and_named() -> None:
    cs.apply(cs.filter(TYPES, include=["iq4_xs", "q8_0"]), "out.gguf")
    with cs.open_checkpoint("out.gguf") as copied, cs.open_checkpoint(TYPES) as source:
        for key in copied:
            info = source[key]
            assert copied[key].dtype == key
            assert copied.file(copied[key]).read(copied[key].storage.offset + copied[key].offset, info.nbytes) == (  # type: ignore[union-attr]
                source.file(info).read(info.storage.offset + info.offset, info.nbytes)  # type: ignore[union-attr]
            )
    with pytest.raises(cs.PlanError, match=r"iq4_xs .* is quantised \(GGUF iq4_xs\) and cannot be decoded"):
        cs.convert("out.gguf", dequantize=True)


ROUNDED = ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "mxfp4", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]

TRIPLED: list[tuple[str, dict[str, Any]]] = [("dequantize", {}), ("scale", {"by": 3})]


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["average", "merge"])
def test_weights_are_rounded_to_blocks_of_the_type_that_the_first_file_has(verb: str) -> None:
    known = expected()
    cs.apply(cs.filter(TYPES, include=[*ROUNDED, "float32"]), "a.gguf")
    cs.apply(
        cs.rename(
            "a.gguf",
            operations=[{operation: one, **fields} for one in ROUNDED for operation, fields in TRIPLED],
        ),
        "b.gguf",
    )
    plan = (
        cs.average(["a.gguf", "b.gguf"])
        if verb == "average"
        else cs.merge(["a.gguf", "b.gguf"], method="linear", weight=0.5)
    )
    receipt = cs.apply(plan, "out.gguf")
    assert cs.verify("out.gguf").ok
    assert {one.key for one in receipt.rounded} == set(ROUNDED)
    with cs.open_checkpoint("out.gguf") as found, cs.open_checkpoint("a.gguf") as first:
        assert {key: (one.dtype, one.shape) for key, one in found.items()} == {
            key: (one.dtype, one.shape) for key, one in first.items()
        }
    cs.apply(cs.convert("out.gguf", dequantize=True, dtype="float32"), "out.safetensors")
    for key, values in load_file("out.safetensors").items():
        wanted = known[key].reshape(values.shape) * (2 if key in ROUNDED else 1)
        size = float(np.linalg.norm(wanted))
        assert np.linalg.norm(values - wanted) <= 0.2 * size
    for one in receipt.rounded:
        assert one.error < 0.2


@pytest.mark.parametrize(
    "change",
    [
        {"facts": (("type", 7.0),)}, {"facts": (("type", 8.5),)}, {"scale_dtype": "float32"}, {"role": "scale"},
        {"shape": (4, 500)}, {"facts": (("type", 2.0),)}, {"encoding": "fp8", "facts": (("top", 448.0),)},
    ],
)  # fmt: skip
def test_an_edited_plan_of_blocks_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    cs.apply(cs.filter(TYPES, include=["q8_0", "float32"]), "a.gguf")
    plan = cs.average(["a.gguf", "a.gguf"])
    steps = [replace(one, coded=replace(one.coded, **change)) if one.coded is not None else one for one in plan.steps]
    assert steps != list(plan.steps)
    with pytest.raises(cs.PlanError, match="the plan is not possible"):
        cs.apply(replace(plan, steps=tuple(steps)), "out.gguf")


def test_codes_are_no_numbers_to_other_verbs() -> None:
    cs.apply(cs.filter(TYPES, include=["q8_0", "float32"]), "a.gguf")
    with pytest.raises(cs.OutputError, match="safetensors does not support q8_0"):
        cs.apply(cs.convert("a.gguf"), "a.safetensors")
    with pytest.raises(cs.ConfigError, match="'q8_0' is a way to quantise, not a dtype"):
        cs.convert("a.gguf", dtype="q8_0")


def test_parameters_are_those_of_the_weights() -> None:
    found = cs.inspect(TYPES, include=["q4_0", "q6_k", "float32"])
    assert found.parameters == 4 * 512 + 2 * 512 + 6
    assert found.codes.methods() == {"GGUF q4_0": 1, "GGUF q6_k": 1}


def test_inspect_shows_shapes_types_and_bits(ckpt: Any) -> None:
    told = ckpt("inspect", TYPES, "-v", "--include", "q4_0", "--include", "q6_k")
    lines = [line.split() for line in told.out.splitlines() if line.strip()]
    assert ["q4_0", "(4,", "512)", "q4_0", "1.2", "kB"] in lines
    assert "quantised  1 tensor GGUF q4_0; 1 tensor GGUF q6_k" in told.out
    assert "general.architecture = llama" in told.out
    bits = 8 * (4 * 512 * 18 / 32 + 2 * 512 * 210 / 256) / (6 * 512)
    assert f"3.1 k parameters  2.0 kB  {bits:.2f} bits per weight" in told.out


def test_a_version_2_file_is_read() -> None:
    Path("x.gguf").write_bytes(gguf([tensor_info("a", [2, 3], 0, 0)], data=struct.pack("<6f", *range(6)), version=2))
    with cs.open_checkpoint("x.gguf") as found:
        assert found["a"].shape == (3, 2)
        assert found.tensor("a").tolist() == [[0, 1], [2, 3], [4, 5]]


def test_the_alignment_of_the_file_is_used() -> None:
    entries = {"general.alignment": (UINT32, struct.pack("<I", 256))}
    data = struct.pack("<f", 7).ljust(256, b"\0") + struct.pack("<f", 8)
    raw = gguf([tensor_info("a", [1], 0, 0), tensor_info("b", [1], 0, 256)], entries, data, alignment=256)
    Path("x.gguf").write_bytes(raw)
    with cs.open_checkpoint("x.gguf") as found:
        assert [found.tensor(key).tolist() for key in found] == [[7.0], [8.0]]


def test_numbers_are_read_after_more_text_than_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """They say how to read the file; with more text than the limit before it, the alignment was a KeyError."""
    monkeypatch.setattr(limits, "GGUF_SHOWN", 10)
    entries = {"a.text": (STRING, text("12345678901")), "a.list": (ARRAY, array(UINT32, 1, bytes(4)))}
    entries["general.alignment"] = (UINT32, struct.pack("<I", 256))
    Path("x.gguf").write_bytes(gguf([tensor_info("a", [1], 0, 0)], entries, struct.pack("<f", 7), alignment=256))
    with cs.open_checkpoint("x.gguf") as found:
        assert found.tensor("a").tolist() == [7.0]
        assert dict(found.metadata) == {"general.alignment": "256"}
    split = {**entries, "split.no": (2, struct.pack("<H", 0)), "split.count": (2, struct.pack("<H", 2))}
    Path("y.gguf").write_bytes(gguf([tensor_info("a", [1], 0, 0)], split, struct.pack("<f", 7), alignment=256))
    with pytest.raises(cs.FormatError, match="00001-of-00002"):
        cs.open_checkpoint("y.gguf")


def test_the_largest_alignment_is_named() -> None:
    Path("x.gguf").write_bytes(gguf([], {"general.alignment": (UINT32, struct.pack("<I", 1 << 21))}))
    with pytest.raises(cs.FormatError, match="is 2097152, not a power of two up to 1048576 of the type uint32"):
        cs.open_checkpoint("x.gguf")


def test_a_folder_with_one_gguf_file_is_read() -> None:
    Path("model").mkdir()
    Path("model/x-q4_0.gguf").write_bytes(Path(TYPES).read_bytes())
    with cs.open_checkpoint("model") as found:
        assert found.format == "gguf"


def part(number: int, names: str, *, of: int = 2, total: int = 3, **more: Any) -> bytes:
    """A file of a split model with tensors of 4 floats, all of the number of the file, and more metadata."""
    entries = {"split.no": (2, struct.pack("<H", number)), "split.count": (2, struct.pack("<H", of))}
    entries["split.tensors.count"] = (5, struct.pack("<i", total))
    if not number:
        entries["general.architecture"] = (STRING, text("llama"))
    entries |= {name.replace("_", "."): value for name, value in more.items()}
    infos = [tensor_info(name, [4], 0, 32 * place) for place, name in enumerate(names)]
    data = struct.pack("<4f", *[number] * 4).ljust(32, b"\0") * len(names)
    return gguf(infos, entries, data)


FIRST, SECOND = "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"


def test_a_split_model_is_read_by_its_first_file() -> None:
    Path(FIRST).write_bytes(part(0, "ab"))
    Path(SECOND).write_bytes(part(1, "c"))
    with cs.open_checkpoint(FIRST) as found:
        assert list(found) == ["a", "b", "c"]
        assert [found.tensor(key)[0].item() for key in found] == [0, 0, 1]
        assert [file.name for file in found.files] == [FIRST, SECOND]
        assert not found.notes
    Path("model").mkdir()
    for name in (FIRST, SECOND):
        Path("model", name).write_bytes(Path(name).read_bytes())
    with cs.open_checkpoint("model") as found:
        assert list(found) == ["a", "b", "c"]
        assert not found.notes
    cs.apply(cs.convert(FIRST), "whole.gguf")
    assert cs.verify("whole.gguf").ok
    with cs.open_checkpoint("whole.gguf") as found:
        assert dict(found.metadata) == {"general.architecture": "llama"}
        assert found.tensor("c").tolist() == [1] * 4


def test_the_advice_on_a_split_model_can_be_followed() -> None:
    Path(SECOND).write_bytes(part(1, "c"))
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint(SECOND)
    assert caught.value.hint == "Pass the first file, whose name ends with -00001-of-00002.gguf."
    os.rename(SECOND, FIRST)
    with pytest.raises(cs.FormatError, match="but not the first: its entry") as caught:
        cs.open_checkpoint(FIRST)
    assert caught.value.hint.startswith("Fetch the files of the model again")


def test_metadata_of_later_files_of_a_split_model_is_said() -> None:
    Path(FIRST).write_bytes(part(0, "ab"))
    same = (STRING, text("llama"))
    Path(SECOND).write_bytes(part(1, "c", general_architecture=same))
    assert not any("later files" in note for note in cs.inspect(FIRST).notes)
    Path(SECOND).write_bytes(part(1, "c", general_architecture=same, general_name=(STRING, text("x"))))
    said = "the metadata of later files of the split model is not used: general.name"
    assert any(note.startswith(said) for note in cs.convert(FIRST).notes)


@pytest.mark.parametrize(
    ("files", "read", "why"),
    [
        ({FIRST: part(0, "ab")}, FIRST, f"{SECOND} cannot be read: .*does not exist"),
        ({SECOND: part(1, "c")}, SECOND, "but not the first: its name does not end with -00001-of-00002.gguf"),
        ({"m.gguf": part(0, "ab")}, "m.gguf", "the file is the first of 2 files of a split model, but its name does not end with -0000"),
        ({FIRST: part(1, "ab")}, FIRST, "but not the first: its entry split.no is 1, but 0 in the first file"),
        ({FIRST: part(0, "ab"), SECOND: part(0, "c")}, FIRST, f"{SECOND}: the name says that this is file 1, counted from 0, but the entry split.no is 0"),
        ({FIRST: part(0, "ab"), SECOND: part(1, "b")}, FIRST, f"{SECOND} has the tensor b, which an earlier file has, too"),
        ({FIRST: part(0, "ab", total=4), SECOND: part(1, "c")}, FIRST, "says that the model has 4 tensors"),
        ({FIRST: part(0, "ab", of=60_000)}, FIRST, "the model is split into 60000 files, more than"),
    ],
)  # fmt: skip
def test_a_split_model_that_does_not_fit_is_refused(files: dict[str, bytes], read: str, why: str) -> None:
    for name, raw in files.items():
        Path(name).write_bytes(raw)
    with pytest.raises(cs.FormatError, match=why):
        cs.open_checkpoint(read)


ONE = tensor_info("a", [4], 0, 0)
DATA = bytes(32)
LONG = struct.pack("<Q", 2**60)
HOSTILE: dict[str, bytes] = {
    "version 1": b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(64),
    "version 4": gguf([ONE], data=DATA, version=4),
    "version 0": gguf([ONE], data=DATA, version=0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64),
    "magic alone": b"GGUF",
    "no counts": b"GGUF" + struct.pack("<IQ", 3, 1),
    "cut in the metadata": gguf([ONE], {"a.b": (STRING, text("x" * 100))})[:80],
    "cut in a tensor's header": gguf([ONE], data=DATA)[:40],
    "cut in the tensors": gguf([ONE], data=bytes(12)),
    "2^60 tensors": gguf([ONE], data=DATA, counts=(2**60, 0)),
    "2^60 entries": gguf([ONE], data=DATA, counts=(1, 2**60)),
    "more tensors than bytes": gguf([ONE], data=DATA, counts=(900_000, 0)),
    "a name of 2^60 bytes": gguf([LONG + b"a"], data=DATA),
    "a key of 2^60 bytes": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + LONG + bytes(64),
    "a text of 2^60 bytes": gguf([ONE], {"a": (STRING, LONG)}, DATA),
    "an array of 2^60 numbers": gguf([ONE], {"a": (ARRAY, array(UINT32, 2**60, b""))}, DATA),
    "an array of 2^60 texts": gguf([ONE], {"a": (ARRAY, array(STRING, 2**60, b""))}, DATA),
    "an array whose size overflows": gguf([ONE], {"a": (ARRAY, array(10, 2**61 + 1, bytes(8)))}, DATA),
    "a text in an array of 2^60 bytes": gguf([ONE], {"a": (ARRAY, array(STRING, 20, text("x") * 19 + LONG))}, DATA),
    "an array of arrays": gguf([ONE], {"a": (ARRAY, array(ARRAY, 1, array(UINT32, 0, b"")))}, DATA),
    "an array of an unknown type": gguf([ONE], {"a": (ARRAY, array(99, 1, bytes(8)))}, DATA),
    "an entry of an unknown type": gguf([ONE], {"a": (13, bytes(8))}, DATA),
    "a bool of 2": gguf([ONE], {"a": (7, b"\2")}, DATA),
    "an entry twice": gguf([ONE], [("a", (UINT32, bytes(4)))] * 2, DATA),
    "a tensor twice": gguf([ONE, tensor_info("a", [4], 0, 32)], data=bytes(64)),
    "a name that is not text": gguf([tensor_info(b"\xff\xfe", [4], 0, 0)], data=DATA),
    "a name of 100,000 bytes": gguf([tensor_info("a" * 100_000, [4], 0, 0)], data=DATA),
    "five dimensions": gguf([tensor_info("a", [1] * 5, 0, 0)], data=DATA),
    "2^31 dimensions": gguf([text("a") + struct.pack("<I", 2**31) + bytes(64)], data=DATA),
    "2^60 elements": gguf([tensor_info("a", [2**60], 0, 0)], data=DATA),
    "sizes whose product overflows": gguf([tensor_info("a", [2**32, 2**32], 0, 0)], data=DATA),
    "sizes that overflow in front of a 0": gguf([tensor_info("a", [2**40, 2**40, 0], 0, 0)], data=DATA),
    "a row that is not a whole block": gguf([tensor_info("a", [31], 2, 0)], data=DATA),
    "blocks without dimensions": gguf([tensor_info("a", [], 2, 0)], data=DATA),
    "an unknown type": gguf([tensor_info("a", [4], 99, 0)], data=DATA),
    "a type that was dropped": gguf([tensor_info("a", [32], 31, 0)], data=DATA),
    "an offset that is not aligned": gguf([tensor_info("a", [4], 0, 8)], data=bytes(64)),
    "an offset of 2^63": gguf([tensor_info("a", [4], 0, 2**63)], data=DATA),
    "tensors that overlap": gguf([tensor_info("a", [16], 0, 0), tensor_info("b", [4], 0, 32)], data=bytes(64)),
    "tensors at one place": gguf([ONE, tensor_info("b", [4], 0, 0)], data=DATA),
    "an alignment of 0": gguf([ONE], {"general.alignment": (UINT32, bytes(4))}, DATA),
    "an alignment of 24": gguf([ONE], {"general.alignment": (UINT32, struct.pack("<I", 24))}, DATA),
    "an alignment that is a text": gguf([ONE], {"general.alignment": (STRING, text("32"))}, DATA),
    "one of three files": gguf([ONE], {"split.count": (2, struct.pack("<H", 3))}, DATA),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_breaks_a_rule_is_refused(name: str) -> None:
    Path("x.gguf").write_bytes(HOSTILE[name])
    with pytest.raises(cs.FormatError, match=r"^x\.gguf|x\.gguf:"):
        cs.open_checkpoint("x.gguf")


WORDED: dict[str, bytes] = {
    **HOSTILE,
    "an alignment that is a list": gguf([ONE], {"general.alignment": (ARRAY, array(UINT32, 99, bytes(396)))}, DATA),
    "tensors around an empty one": gguf(
        [tensor_info("a", [24], 0, 0), tensor_info("b", [0], 0, 32), tensor_info("c", [4], 0, 64)], data=bytes(96)
    ),
}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("version 1", "it has version 1.*a newer llama.cpp"), ("big-endian", "its numbers are big-endian"),
        ("cut in the tensors", r"it ends inside the tensor a\. Fetch or save this file again\."), ("2^60 elements", r"the tensor a of shape \[\d+\]"),
        ("an unknown type", r"the tensor a is of unknown type \(99\)"), ("a type that was dropped", "Q4_0_4_4"),
        ("an offset that is not aligned", "the tensor a begins at offset 8, which is not a multiple of 32"),
        ("tensors that overlap", "the tensors a and b overlap"), ("one of three files", "one of 3 files"),
        ("version 4", "a llama.cpp that writes one of them"), ("tensors around an empty one", "the tensors a and c overlap"),
        ("an alignment that is a list", "is 99 values of the type uint32, not a power of two"),
        ("an array of 2^60 texts", "it ends inside the entry a of its metadata|more than the limit"),
    ],
)  # fmt: skip
def test_the_error_says_what_is_wrong(name: str, why: str) -> None:
    Path("x.gguf").write_bytes(WORDED[name])
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.gguf")
    assert re.search(why, f"{caught.value.message} {caught.value.hint}")


def test_a_header_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = gguf([ONE], {"a": (ARRAY, array(UINT32, 100_000, bytes(400_000)))}, DATA)
    Path("x.gguf").write_bytes(raw)
    monkeypatch.setattr(limits, "GGUF_HEADER_BYTES", len(raw) - 32)
    cs.open_checkpoint("x.gguf").close()
    monkeypatch.setattr(limits, "GGUF_HEADER_BYTES", 400_000)
    with pytest.raises(cs.UnsafeError, match="too large"):
        cs.open_checkpoint("x.gguf")


@pytest.mark.long
def test_a_long_array_of_texts_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    words = b"".join(text(f"token {place}") for place in range(200_000))
    Path("x.gguf").write_bytes(gguf([ONE], {"a": (ARRAY, array(STRING, 200_000, words))}, DATA))
    cs.open_checkpoint("x.gguf").close()
    tracemalloc.start()
    try:
        with cs.open_checkpoint("x.gguf") as found:
            assert found.header.stored["a"].said == "200,000 strings"
            assert found.header.stored["a"].nbytes == len(words) + 12
        assert tracemalloc.get_traced_memory()[1] < len(words)
    finally:
        tracemalloc.stop()
