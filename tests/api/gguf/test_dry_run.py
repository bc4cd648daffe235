"""What ``-n`` says of an output in GGUF: the errors and notes that writing it would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from .test_layouts import model
from .test_tokenizer import splitter, tokenizer


@pytest.mark.costly
@pytest.mark.parametrize("key", ["split.count", "ckptsurgeon.recipe"])
def test_a_reserved_entry_is_refused(key: str, ckpt: Any) -> None:
    model("llama")
    given = ["convert", "model", "--set-metadata", f"{key}=2", "-o", "x.gguf"]
    dry, real = ckpt(*given, "-n"), ckpt(*given)
    assert dry.code == real.code == 2
    assert f"the name {key} in metadata is reserved in GGUF" in dry.err
    assert dry.err == real.err


def test_names_of_transformers_under_an_architecture_are_refused(ckpt: Any) -> None:
    tensors = model("llama")
    save_file(tensors, "model/model.safetensors", {"general.architecture": "llama"})
    given = ["convert", "model", "--layout", "keep", "-o", "x.gguf"]
    dry, real = ckpt(*given, "-n"), ckpt(*given)
    assert dry.code == real.code == 4
    assert "has llama.cpp's architecture llama, but the tensors have the names of transformers" in dry.err


@pytest.mark.costly
@pytest.mark.parametrize(
    ("document", "why"),
    [
        (None, "the folder has no tokenizer.json and no tokenizer.model"),
        ("{", "tokenizer.json cannot be read"),
        (tokenizer(splitter(r"\p{L}+")), "ckpt does not know llama.cpp's name for the pre-tokeniser of tokenizer.json"),
    ],
)
def test_the_tokeniser_is_read(document: Any, why: str, ckpt: Any) -> None:
    model("llama")
    if document is not None:
        Path("model/tokenizer.json").write_text(document if isinstance(document, str) else json.dumps(document))
    told = ckpt("convert", "model", "-o", "x.gguf", "-n")
    assert told.code == 0
    assert why in " ".join((told.err + told.out).split())
    assert any(
        why in note for note in json.loads(ckpt("convert", "model", "-o", "x.gguf", "-n", "--json").out)["notes"]
    )
    assert not Path("x.gguf").exists()
    assert why not in ckpt("convert", "model", "-n").err


def test_a_plan_that_was_shown_is_written(ckpt: Any) -> None:
    model("llama")
    Path("plan.json").write_text(ckpt("convert", "model", "-o", "x.gguf", "-n", "--json").out)
    told = ckpt("apply", "plan.json", "-o", "x.gguf")
    assert told.code == 0, told
    assert " ".join((told.err + told.out).split()).count("the folder has no tokenizer.json") == 1


def test_what_another_format_does_not_store_is_said(ckpt: Any) -> None:
    model("llama")
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer(splitter(r"\p{L}+"))))
    assert ckpt("convert", "model", "-o", "x.gguf").code == 0
    told = ckpt("convert", "x.gguf", "-o", "x.safetensors", "-n")
    assert "not written, since only GGUF stores them" in " ".join((told.err + told.out).split())
