"""general.file_type of a GGUF file is compared with the types of its matrices."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.gguf.file_types import TYPES, file_type_notes

from .test_layouts import model
from .test_types import file_type

FIELD = "general.file_type"


def said(number: int | str, types: Mapping[str, str], columns: int = 512, **metadata: str) -> list[str]:
    shapes = {**dict.fromkeys(types, (64, columns)), "output_norm.weight": (columns,)}
    return [*file_type_notes(shapes, {**types, "output_norm.weight": "float32"}, {FIELD: str(number), **metadata})]


def layers(*types: str) -> dict[str, str]:
    found = {f"blk.{number}.attn_q.weight": one for number, one in enumerate(types)}
    return {**found, "token_embd.weight": "q6_k", "output.weight": "q8_0"}


@pytest.mark.costly
@pytest.mark.parametrize("number", [0, 1, 14, 15, 2, 32])
@pytest.mark.parametrize("blocks", ["q8_0", "q4_0", None])
def test_a_type_that_no_matrix_has_is_said(number: int, blocks: str | None) -> None:
    model("llama")
    plan = cs.convert("model", layout="gguf", gguf_type=blocks)
    assert not [one for one in cs.apply(plan, "x.gguf").notes if FIELD in one]
    verbs = (
        lambda path: cs.inspect(path).notes,
        lambda path: cs.convert(path).notes,
        lambda path: cs.diff(path, "x.gguf").notes,
        lambda path: [one.what for one in cs.check(path).row("other-notes").found],
    )
    assert not [one for verb in verbs for one in verb("x.gguf") if FIELD in one]
    if str(number) == file_type("x.gguf"):
        return
    made = cs.apply(cs.convert("x.gguf", metadata={FIELD: str(number)}), "y.gguf")
    note = f"{FIELD} is {number} ({TYPES[number].name}), but no matrix of any block has the type {TYPES[number].types[0]}: all have"
    for notes in (made.notes, *(verb("y.gguf") for verb in verbs)):
        assert any(note in one for one in notes)


def test_what_llama_cpp_mixes_is_healthy() -> None:
    """A file of most types has tensors of others, too, and of matrices that blocks of 256 do not fit, only others."""
    assert not said(15, layers("q4_k", "q6_k", "q6_k", "q6_k"))
    assert not said(15, layers("q5_0", "q8_0"), columns=896)
    assert said(15, layers("q5_0", "q8_0"))
    assert not said(18, layers("q8_0", "q8_0"), columns=896)
    assert said(18, layers("q8_0", "q8_0"))
    assert not said(22, layers("iq3_xxs", "q4_k"))
    assert not said(1024 + 7, layers("q8_0", "float32"))
    assert said(1024 + 7, layers("q4_0", "float32"))
    assert not said(15, layers("mxfp4", "q8_0"), **{"general.architecture": "gpt-oss"})


def test_only_the_matrices_of_blocks_count() -> None:
    assert said(7, layers("q4_0", "q4_0", "q4_1")) == [
        f"{FIELD} is 7 (Q8_0), but no matrix of any block has the type q8_0: most have q4_0"
    ]
    assert not said(7, {"token_embd.weight": "q4_0", "v.blk.0.weight": "q4_0"})


@pytest.mark.parametrize("number", ["", "-1", "99", "many", "1" * 40])
def test_numbers_that_are_not_known_say_nothing(number: str) -> None:
    assert not said(number, layers("q8_0"))
    assert not said(number, {})
