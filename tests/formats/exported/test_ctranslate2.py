"""CTranslate2's model.bin: what its converter wrote, and files that break a rule, which are refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits

from ...helpers.ctranslate2_files import FLOAT32, INT8, INT16, INT32, model, text, variable

FIXTURES = Path(__file__).parents[3] / "fixtures/golden"
GOLDEN = FIXTURES / "ctranslate2"
NETWORK = FIXTURES / "layouts/whisper.ctranslate2"
TYPES: list[str] = json.loads((GOLDEN / "recorded.json").read_text())["types"]
PROJECTION, EMBEDDING = "decoder/projection/weight", "decoder/embeddings/weight"


def test_the_variables_are_those_of_the_converter() -> None:
    wanted = load_file(NETWORK / "ctranslate2.safetensors")
    with cs.open_checkpoint(GOLDEN / "float32") as found:
        assert found.format == "ctranslate2"
        assert found.keys() == {*wanted, PROJECTION}
        for key, value in wanted.items():
            assert torch.equal(found.tensor(key), value), key
        assert found.ties == {PROJECTION: EMBEDDING}


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_floats_are_those_of_the_converter(name: str) -> None:
    wanted = load_file(NETWORK / "ctranslate2.safetensors")
    with cs.open_checkpoint(GOLDEN / name / "model.bin") as found:
        for key, value in wanted.items():
            assert torch.equal(found.tensor(key), value.to(getattr(torch, name))), key


def test_settings_are_metadata() -> None:
    with cs.open_checkpoint(GOLDEN / "int8") as found:
        said = dict(found.metadata)
    assert said["ctranslate2.version"] == "6"
    assert said["ctranslate2.spec"] == "WhisperSpec"
    assert said["encoder/num_heads"] == said["decoder/num_heads"] == "2"
    assert said["decoder/alignment_layer"] == "-1"


def test_settings_of_every_type_are_said() -> None:
    raw = struct.pack("<f", 0.1)[2:] + b"", struct.pack("<e", 0.5)
    numbers = [
        variable("a", [], FLOAT32, struct.pack("<f", 1e-5)), variable("b", [], INT32, struct.pack("<i", -7)),
        variable("c", [], 4, raw[1]), variable("d", [], 5, raw[0]), variable("e", [], FLOAT32, struct.pack("<f", float("nan"))),
        variable("w", [1], FLOAT32, bytes(4)),
    ]  # fmt: skip
    Path("x.bin").write_bytes(model(numbers, version=4))
    with cs.open_checkpoint("x.bin") as found:
        said = {key: value for key, value in found.metadata.items() if len(key) == 1}
        assert [*found] == ["w"]
    assert said == {"a": "1e-05", "b": "-7", "c": "0.5", "d": "0.099609375", "e": "nan"}


def test_an_alias_is_an_alias_of_the_scale_too() -> None:
    with cs.open_checkpoint(GOLDEN / "int8") as found:
        assert found.ties == {PROJECTION: EMBEDDING, f"{PROJECTION}_scale": f"{EMBEDDING}_scale"}
    told = cs.inspect(GOLDEN / "int8")
    assert told.codes.methods() == {"CTranslate2, 8 bits": 26}
    assert told.parameters == cs.inspect(GOLDEN / "float32").parameters


def test_a_weight_with_a_scale_of_its_own_under_the_alias_is_no_alias() -> None:
    one, other = (variable(f"{name}/weight_scale", [1], FLOAT32, struct.pack("<f", 2)) for name in "ab")
    raw = model([variable("a/weight", [1, 2], INT8, b"\1\2"), one, other], [("b/weight", "a/weight")])
    Path("x.bin").write_bytes(raw)
    with cs.open_checkpoint("x.bin") as found:
        assert found.ties == {"b/weight": "a/weight"}


def test_integers_without_a_scale_are_said() -> None:
    Path("x.bin").write_bytes(model([variable("a/weight", [1, 2], INT16, bytes(4))]))
    with cs.open_checkpoint("x.bin") as found:
        assert "1 weight of integers without a scale" in "\n".join(found.notes)


@pytest.mark.long
def test_a_folder_of_faster_whisper_is_read_and_not_written() -> None:
    with pytest.raises(cs.ConfigError, match="ctranslate2.* is unknown"):
        cs.apply(cs.convert(GOLDEN / "int8"), "model.bin", to="ctranslate2")
    cs.apply(cs.convert(GOLDEN / "int8"), "copy.safetensors")
    told = cs.diff(GOLDEN / "int8", "copy.safetensors", values=True)
    assert (told.identical, told.changed, told.added, told.removed) == (102, (), (), ())
    with cs.open_checkpoint("copy.safetensors") as found:
        assert found.metadata["encoder/num_heads"] == "2"
        assert found.codes.methods() == {"CTranslate2, 8 bits": 26}


@pytest.mark.long
def test_inspect_and_check_show_no_fault(ckpt: Any) -> None:
    for name in TYPES:
        told = ckpt("check", str(GOLDEN / name), "--skip", "model-card", "--strict")
        assert told.code == 0, told.out
    assert "tied  decoder/projection/weight = decoder/embeddings/weight" in ckpt("inspect", str(GOLDEN / "int8")).out


ONE = variable("a", [2], FLOAT32, bytes(8))
HOSTILE: dict[str, bytes] = {
    "version 2": model([ONE], version=2),
    "version 3": model([ONE], version=3),
    "version 7": model([ONE], version=7),
    "a name alone": model()[:18],
    "no number of variables": model()[:21],
    "cut in a name": model([ONE])[:27],
    "cut in the sizes": model([ONE])[:33],
    "cut in the values": model([ONE])[:44],
    "cut in the aliases": model([ONE], [("b", "a")])[:-2],
    "no aliases": model([ONE])[:-4],
    "more variables than bytes": model([ONE], number=1_000_000),
    "more aliases than bytes": model([ONE], aliased=1_000_000),
    "2^32 variables": model([ONE], number=2**32 - 1),
    "2^32 aliases": model([ONE], aliased=2**32 - 1),
    "a variable twice": model([ONE, ONE]),
    "a name of no bytes": model([variable(b"", [2], FLOAT32, bytes(8))]),
    "a name of a zero": model([variable(b"\0", [2], FLOAT32, bytes(8))]),
    "a name without a zero": model([variable(b"ab", [2], FLOAT32, bytes(8))]),
    "a name with two zeros": model([variable(b"a\0b\0", [2], FLOAT32, bytes(8))]),
    "a name that is not text": model([variable(b"\xff\xfe\0", [2], FLOAT32, bytes(8))]),
    "a name of 60,000 bytes": model([variable("a" * 60_000, [2], FLOAT32, bytes(8))]),
    "65 dimensions": model([variable("a", [1] * 65, FLOAT32, bytes(4))]),
    "2^64 elements": model([variable("a", [2**31, 2**31, 4], INT8, bytes(8), nbytes=0)]),
    "sizes that overflow in front of a 0": model([variable("a", [2**31] * 4 + [0], INT8, b"")]),
    "an unknown type": model([variable("a", [2], 6, bytes(8))]),
    "too few bytes": model([variable("a", [3], FLOAT32, bytes(8))]),
    "too many bytes": model([variable("a", [1], FLOAT32, bytes(8))]),
    "a setting of 5 bytes": model([variable("a", [], FLOAT32, bytes(5))]),
    "an alias of no variable": model([ONE], [("b", "c")]),
    "an alias of an alias": model([ONE], [("b", "a"), ("c", "b")]),
    "an alias of itself": model([ONE], [("a", "a")]),
    "an alias of a setting": model([ONE, variable("n", [], INT8, b"\1")], [("b", "n")]),
    "an alias twice": model([ONE], [("b", "a"), ("b", "a")]),
    "an alias that is a setting": model([ONE, variable("n", [], INT8, b"\1")], [("n", "a")]),
    "an alias that is the scale of another": model(
        [ONE, variable("a_scale", [2], FLOAT32, bytes(8))], [("b", "a"), ("b_scale", "a")]
    ),
    "bytes behind": model([ONE]) + b"\0",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_breaks_a_rule_is_refused(name: str) -> None:
    Path("x.bin").write_bytes(HOSTILE[name])
    with pytest.raises(cs.FormatError, match=r"^x\.bin: "):
        cs.open_checkpoint("x.bin")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("version 3", "the file has binary version 3 of CTranslate2, but versions 4 to 6 can be read"),
        ("version 7", "the file has binary version 7 of CTranslate2"),
        ("cut in the values", r"it ends inside the variable a\. Fetch or save this file again\."),
        ("too few bytes", r"the variable a is float32 \[3\], but has 8 bytes"),
        ("an unknown type", "the variable a is of unknown type 6"),
        ("an alias of an alias", "the alias c refers to b, which is not a tensor of the file"),
        ("bytes behind", "1 bytes follow the list of aliases"),
    ],
)
def test_an_error_says_what_is_wrong(name: str, why: str) -> None:
    Path("x.bin").write_bytes(HOSTILE[name])
    with pytest.raises(cs.FormatError, match=why):
        cs.open_checkpoint("x.bin")


@pytest.mark.parametrize("name", TYPES)
def test_a_file_that_is_cut_anywhere_is_refused(name: str) -> None:
    raw = (GOLDEN / name / "model.bin").read_bytes()
    for end in np.random.default_rng(0).integers(30, len(raw), 40):
        Path("x.bin").write_bytes(raw[:end])
        with pytest.raises(cs.FormatError, match="truncated"):
            cs.open_checkpoint("x.bin")


@pytest.mark.parametrize(
    "raw", [b"\6\0\0\0\x0c\0WhisperSpe", struct.pack("<I", 6) + text("a b"), struct.pack("<I", 256) + text("S")]
)
def test_what_does_not_begin_with_a_specification_is_another_file(raw: bytes) -> None:
    Path("x.bin").write_bytes(raw + bytes(40))
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.bin")
    assert "CTranslate2" not in str(caught.value)


def test_names_of_the_longest_length_are_read() -> None:
    name = "a" * (limits.KEY_CHARACTERS - 1)
    Path("x.bin").write_bytes(model([variable(name, [2], FLOAT32, bytes(8))]))
    with cs.open_checkpoint("x.bin") as found:
        assert [*found] == [name]
