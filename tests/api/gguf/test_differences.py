"""Two GGUF files with other tokens, or with entries that change what weights compute: as two such folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from .test_layouts import model
from .test_tokenizer import splitter, tokenizer

TOKENS = "the tokenisers differ"
COMPUTES = "equal weights compute different results, because the metadata of the GGUF files differ: "
VERBS: dict[str, Callable[[], Any]] = {
    "average": lambda: cs.average(["a.gguf", "b.gguf"]),
    "merge": lambda: cs.merge(["a.gguf", "b.gguf"], method="linear", weights=[1, 1]),
    "transplant": lambda: cs.transplant("a.gguf", "b.gguf"),
}
COMPARING: dict[str, Callable[[], Any]] = {
    "diff": lambda: cs.diff("a.gguf", "b.gguf"),
    "fits": lambda: cs.fits("a.gguf", "b.gguf"),
}


def document(*exchanged: str) -> dict[str, Any]:
    """A tokeniser of 96 tokens, as many as there are rows; two tokens may have each other's ids."""
    found = tokenizer(splitter(r"\p{L}+"), added_tokens=[{"id": 5, "content": "<s>", "special": True}])
    listed = found["model"]["vocab"]
    listed |= {f"t{number}": number for number in range(6, 96)}
    if exchanged:
        first, second = exchanged
        listed[first], listed[second] = listed[second], listed[first]
    return found


def written(name: str, *exchanged: str, blocks: str | None = "q8_0", **fields: Any) -> None:
    """Write NAME.gguf, and its folder NAME; ``exchanged`` as in ``document``."""
    model("llama", name, **fields)
    Path(name, "tokenizer.json").write_text(json.dumps(document(*exchanged)))
    cs.apply(cs.convert(name, layout="gguf", gguf_type=blocks), f"{name}.gguf")


@pytest.mark.costly
@pytest.mark.parametrize("blocks", [None, "q8_0"])
@pytest.mark.parametrize("verb", VERBS)
def test_rows_of_other_tokens_are_not_combined(verb: str, blocks: str | None) -> None:
    written("a", blocks=blocks)
    written("b", "a", "b", blocks=blocks)
    with pytest.raises(cs.PlanError, match="the tokenisers differ") as caught:
        VERBS[verb]()
    assert {"token_embd.weight", "output.weight"} <= set(caught.value.details)
    assert any("rows are copied by position" in note for note in cs.average(["a.gguf", "b.gguf"], vocab="place").notes)


@pytest.mark.costly
@pytest.mark.parametrize("verb", COMPARING)
def test_comparing_says_that_tokens_differ(verb: str) -> None:
    written("a")
    written("b", "a", "b")
    assert [note for note in COMPARING[verb]().notes if note.startswith(TOKENS)]


@pytest.mark.long
def test_folders_that_have_only_a_gguf_file_are_compared_by_its_tokens() -> None:
    written("a")
    written("b", "a", "b")
    for name in ("a", "b"):
        Path("of", name).mkdir(parents=True)
        Path(f"{name}.gguf").rename(Path("of", name, "model.gguf"))
    assert [note for note in cs.diff("of/a", "of/b").notes if note.startswith(TOKENS)]
    assert [note for note in cs.diff("of/a", "b").notes if note.startswith(TOKENS)]
    assert not [note for note in cs.diff("of/a", "a").notes if note.startswith(TOKENS)]


@pytest.mark.costly
@pytest.mark.parametrize("verb", [*VERBS, *COMPARING])
def test_another_rotary_base_is_said(verb: str) -> None:
    written("a")
    written("b", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    (said,) = [note for note in {**VERBS, **COMPARING}[verb]().notes if note.startswith(COMPUTES)]
    assert "rope.freq_base is " in said
    assert ";" not in said


@pytest.mark.costly
@pytest.mark.parametrize("verb", [*VERBS, *COMPARING])
def test_nothing_is_said_of_equal_metadata(verb: str) -> None:
    written("a")
    cs.apply(cs.convert("a.gguf", metadata={"general.name": "other", "llama.context_length": "64"}), "b.gguf")
    notes = {**VERBS, **COMPARING}[verb]().notes
    assert not [note for note in notes if "differ" in note or "position" in note]


def test_a_base_that_is_not_stated_is_the_default_of_llama_cpp() -> None:
    written("a", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    cs.apply(cs.convert("a.gguf", metadata={"llama.rope.freq_base": ""}), "b.gguf")
    assert not [note for note in VERBS["average"]().notes if note.startswith(COMPUTES)]


@pytest.mark.long
def test_another_way_to_split_texts_is_said() -> None:
    written("a")
    cs.apply(cs.convert("a.gguf", metadata={"tokenizer.ggml.pre": "qwen2"}), "b.gguf")
    cs.apply(cs.convert("a.gguf", metadata={"tokenizer.ggml.pre": "llama-bpe"}), "a2.gguf")
    notes = cs.average(["a2.gguf", "b.gguf"]).notes
    assert [note for note in notes if "tokenizer.ggml.pre is qwen2 in b.gguf, llama-bpe in a2.gguf" in note]


@pytest.mark.long
def test_quantised_folders_with_other_tokens_are_not_averaged() -> None:
    for name, exchanged in {"a": (), "b": ("a", "b")}.items():
        written(name, *exchanged, blocks=None)
        cs.apply(cs.convert(name, quantize="int8"), f"{name}8/")
    with pytest.raises(cs.PlanError, match="the tokenisers differ"):
        cs.average(["a8", "b8"])
