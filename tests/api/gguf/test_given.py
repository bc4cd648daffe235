"""Entries that a user sets or that another format gives to GGUF, and those that formats cannot store."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_entries import entries
from .test_outputs import metadata, said

TEXT, UINT32 = 8, 4


def plain(path: str = "x.safetensors", **texts: str) -> None:
    save_file({"a": torch.ones(3)}, path, texts)


def long_list(value: int) -> str:
    """A list that is too long to be shown."""
    return "[" + ", ".join([str(value)] * 40) + "]"


@pytest.mark.parametrize("value", ["1.10", "0123", "1e-05", "true", "[a, b]", '[{"a": 1}]', "[1, 2]"])
def test_texts_of_another_format_stay_texts(value: str) -> None:
    plain(note=value)
    cs.apply(cs.convert("x.safetensors"), "x.gguf")
    assert entries("x.gguf") == {"note": (TEXT, struct.pack("<Q", len(value)) + value.encode())}


def test_what_is_llama_cpps_own_gets_its_type_from_its_text() -> None:
    save_file({"a": torch.ones(3)}, "x.safetensors", {"llama.block_count": "2", "tokenizer.ggml.odd": "[a, b]"})
    cs.apply(cs.convert("x.safetensors"), "x.gguf")
    found = entries("x.gguf")
    assert found["llama.block_count"] == (UINT32, struct.pack("<I", 2))
    assert found["tokenizer.ggml.odd"][0] == TEXT


@pytest.mark.parametrize("key", ["split.no", "split.count", "split.tensors.count", "ckptsurgeon.recipe"])
@pytest.mark.parametrize("verb", ["convert", "filter"])
def test_reserved_names_are_refused(key: str, verb: str, ckpt: Any) -> None:
    plain()
    plan = getattr(cs, verb)("x.safetensors", metadata={key: "2"})
    with pytest.raises(cs.ConfigError, match=f"the name {key} in metadata is reserved in GGUF"):
        cs.apply(plan, "x.gguf")
    told = ckpt("convert", "x.safetensors", "--set-metadata", f"{key}=2", "-o", "x.gguf")
    assert (told.code, Path("x.gguf").exists()) == (2, False)


def test_reserved_names_of_another_format_are_left_out() -> None:
    save_file({"a": torch.ones(3)}, "x.safetensors", {"split.count": "3", "note": "x"})
    cs.apply(cs.convert("x.safetensors"), "x.gguf")
    assert set(entries("x.gguf")) == {"note"}


@pytest.mark.parametrize("number", [2**21, 2**31, 48])
def test_an_alignment_that_cannot_be_read_is_refused(number: int) -> None:
    plain()
    with pytest.raises(cs.ConfigError, match="general.alignment must be a power of two up to 1048576"):
        cs.apply(cs.convert("x.safetensors", metadata={"general.alignment": str(number)}), "x.gguf")
    cs.apply(cs.convert("x.safetensors", metadata={"general.alignment": str(2**20)}), "x.gguf")
    assert cs.verify("x.gguf").ok


@pytest.mark.parametrize("verb", ["convert", "filter", "average"])
def test_a_format_without_metadata_says_that_it_does_not_store_it(verb: str) -> None:
    plain()
    plain("y.safetensors")
    source: Any = ["x.safetensors", "y.safetensors"] if verb == "average" else "x.safetensors"
    plan = getattr(cs, verb)(source, metadata={"who": "you", "format": ""})
    assert said(cs.apply(plan, "x.pth").notes, "metadata not written, since pth stores none: who")
    assert not said(cs.apply(plan, "z.safetensors").notes, "stores none")


def test_an_average_has_the_metadata_of_its_first_source() -> None:
    plain()
    for name, number in (("one", 1), ("two", 2)):
        given = {"general.name": name, "x.long": long_list(number), f"only.{name}": "1"}
        cs.apply(cs.convert("x.safetensors", metadata=given), f"{name}.gguf")
    cs.apply(cs.average(["one.gguf", "two.gguf"]), "out.gguf")
    assert entries("out.gguf") == entries("one.gguf")
    cs.apply(cs.average(["two.gguf", "one.gguf"], metadata={"general.name": "both"}), "both.gguf")
    assert metadata("both.gguf") == {**metadata("two.gguf"), "general.name": "both"}
    assert entries("both.gguf")["x.long"] == entries("two.gguf")["x.long"]


def test_a_transplant_of_two_files_has_the_metadata_of_the_first() -> None:
    for name, number in (("one", 1), ("two", 2)):
        save_file({name: torch.ones(3)}, f"{name}.safetensors")
        given = {"general.name": name, "x.long": long_list(number), f"only.{name}": "1"}
        cs.apply(cs.convert(f"{name}.safetensors", metadata=given), f"{name}.gguf")
    save_file({"one": torch.zeros(3), "two": torch.zeros(3)}, "target.safetensors")
    cs.apply(cs.transplant(["one.gguf", "two.gguf"], "target.safetensors", metadata={"a": "b"}), "out.gguf")
    found = entries("out.gguf")
    assert found.pop("a")[0] == TEXT
    assert found == entries("one.gguf")
