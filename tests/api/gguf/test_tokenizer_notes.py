"""Entries of a GGUF file that contradict its tokeniser, and entries that llama.cpp needs: all verbs note them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.gguf.contradictions import metadata_notes
from ckptsurgeon.api.gguf.tokenizer_notes import tokenizer_notes
from ckptsurgeon.formats.ggml.values import FLOAT32, INT32, TEXT, array

from .test_layouts import MODELS, model
from .test_more_models import KINDS, saved
from .test_tokenizer import splitter, tokenizer

CANNOT = "llama.cpp cannot load the file"
OWN = "tokenizer.ggml."
SPLITS = "llama.cpp splits texts into wrong tokens (--set-metadata tokenizer.ggml.model=gpt2 corrects it)"
WRONG = {
    "llama.vocab_size=77": "the file has 96 tokens, but llama.vocab_size is 77",
    f"{OWN}eos_token_id=3": f"{OWN}eos_token_id is 3, the id of the ordinary token ab: llama.cpp ends texts there",
    f"{OWN}padding_token_id=3": f"{OWN}padding_token_id is 3, the id of the ordinary token ab: programs that pad texts ignore this token",
    f"{OWN}bos_token_id=1": f"{OWN}bos_token_id is 1, the id of the ordinary token b: llama.cpp begins texts with it",
    f"{OWN}model=llama": f"{OWN}model is llama (sentencepiece), but there are {OWN}merges and no {OWN}scores, as in "
    f"byte-level BPE: {SPLITS}",
    f"{OWN}token_type={[1] * 96}": f"{OWN}token_type has no control token, but eos_token_id is 5 ('<s>'): "
    "llama.cpp writes such tokens into texts, and reads them in prompts as ordinary text",
    f"{OWN}merges=": f"{OWN}model is gpt2 (byte-level BPE), but there are no {OWN}merges: {CANNOT}",
    "llama.attention.layer_norm_rms_epsilon=": "the metadata lack llama.attention.layer_norm_rms_epsilon, which "
    f"llama.cpp needs: {CANNOT}",
    "llama.context_length=": f"the metadata lack llama.context_length, which llama.cpp needs: {CANNOT}",
}  # fmt: skip


def written() -> None:
    model("llama", bos_token_id=5, eos_token_id=5)
    Path("model/tokenizer.json").write_text(json.dumps(tokenizer(splitter(r"\p{L}+"))))
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")


@pytest.mark.costly
@pytest.mark.parametrize("change", WRONG)
def test_an_entry_that_is_wrong_is_said(change: str) -> None:
    written()
    key, _, value = change.partition("=")
    receipt = cs.apply(cs.convert("x.gguf", metadata={key: value}), "y.gguf")
    for notes in (receipt.notes, cs.inspect("y.gguf").notes, cs.filter("y.gguf", include="**").notes):
        assert WRONG[change] in notes
    assert WRONG[change] in [one.what for row in cs.check("y.gguf").rows for one in row.found]
    assert not [one.what for row in cs.check("x.gguf").rows for one in row.found if OWN in one.what]


def test_rows_without_a_token_are_said() -> None:
    written()
    none = {f"{OWN}{name}": "" for name in ("tokens", "model", "merges", "token_type")}
    receipt = cs.apply(cs.convert("x.gguf", metadata={**none, "llama.vocab_size": "77"}), "y.gguf")
    said = f"token_embd.weight has 96 rows, but llama.vocab_size is 77: {CANNOT}"
    for notes in (receipt.notes, cs.inspect("y.gguf").notes):
        assert said in notes


def test_another_number_of_rows_than_tokens_is_said() -> None:
    said = f"token_embd.weight has 96 rows, but the file has 90 tokens: {CANNOT}"
    assert said in metadata_notes({"token_embd.weight": (96, 64)}, {"general.architecture": "llama"}, 90)
    assert not metadata_notes({"token_embd.weight": (90, 64)}, {"general.architecture": "llama"}, 90)


@pytest.mark.costly
@pytest.mark.parametrize("name", [*MODELS, *KINDS])
def test_nothing_is_said_of_a_model_as_it_is(name: str) -> None:
    model(name) if name in MODELS else saved(name)
    receipt = cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert not [note for note in (*receipt.notes, *cs.inspect("x.gguf").notes) if OWN in note or " lack " in note]


def notes_on(tokens: list[str], **entries: Any) -> list[str]:
    """The notes on a tokeniser; ``entries`` are numbers, texts and lists."""
    lists = {f"{OWN}tokens": array(TEXT, [one.encode() for one in tokens])}
    for name, items in entries.items():
        if isinstance(items, list):
            is_text = bool(items) and isinstance(items[0], str)
            kind = TEXT if is_text else FLOAT32 if name == "scores" else INT32
            lists[f"{OWN}{name}"] = array(kind, [one.encode() for one in items] if is_text else items)
    said = {f"{OWN}{name}": str(value) for name, value in entries.items() if not isinstance(value, list)}
    metadata = {**dict.fromkeys(lists, ""), **said}
    return [*tokenizer_notes(metadata, len(tokens), lambda key, begin, size: lists[key][begin : begin + size])]


def test_letters_of_byte_level_bpe_are_said_without_merges_too() -> None:
    said = f"{OWN}model is llama (sentencepiece), but tokens begin with Ġ, as in byte-level BPE: {SPLITS}"
    assert notes_on(["a", "Ġ", "Ġa"], model="llama") == [said]
    assert not notes_on(["a", "▁", "▁a", "Ġ"], model="llama")


@pytest.mark.parametrize(
    ("entries", "role"),
    [
        ({"model": "gpt2", "merges": [0], "eot_token_id": 1}, "eot_token_id"),
        ({"model": "gpt2", "merges": [0], "bos_token_id": 1, "pre": "llama-bpe"}, "bos_token_id"),
        ({"model": "llama", "scores": [0.0] * 4, "bos_token_id": 1}, "bos_token_id"),
    ],
)
def test_ordinary_tokens_with_a_role_are_said(entries: dict[str, Any], role: str) -> None:
    (note,) = notes_on(["a", "b", "</s>", "<|im_end|>"], token_type=[1, 1, 3, 1], **entries)
    does = "ends texts there" if role == "eot_token_id" else "begins texts with it"
    assert note == f"{OWN}{role} is 1, the id of the ordinary token b: llama.cpp {does}"


@pytest.mark.parametrize(
    "entries",
    [
        {"model": "llama", "scores": [0.0] * 4, "merges": [0]},  # older files of sentencepiece have merges, too
        {"model": "bert"},
        {"model": "gpt2", "merges": [0], "eos_token_id": 1, "token_type": [1, 1, 1, 1]},  # no token is special
        {"model": "gpt2", "merges": [0], "eos_token_id": 2, "token_type": [1, 1, 3, 1]},
        {"model": "gpt2", "merges": [0], "eos_token_id": 3, "token_type": [1, 1, 3, 1]},  # <|im_end|>
        {"model": "gpt2", "merges": [0], "eos_token_id": 9, "token_type": [1, 1, 3, 1]},
        {"model": "gpt2", "merges": [0], "bos_token_id": 1, "add_bos_token": "false", "token_type": [1, 1, 3, 1]},
        {"model": "gpt2", "merges": [0], "eos_token_id": 1},
        {"model": "gpt2", "merges": [0], "bos_token_id": 1, "pre": "qwen2", "token_type": [1, 1, 3, 1]},
        {"model": "gpt2", "merges": [0], "bos_token_id": 2, "pre": "llama-bpe", "token_type": [1, 1, 3, 1]},
        {
            "model": "llama",
            "scores": [0.0] * 4,
            "bos_token_id": 1,
            "add_bos_token": "false",
            "token_type": [1, 1, 3, 1],
        },
    ],
)
def test_tokenisers_of_real_files_get_no_note(entries: dict[str, Any]) -> None:
    assert not notes_on(["a", "b", "</s>", "<|im_end|>"], **entries)


def test_a_list_of_kinds_that_is_too_short_is_no_error() -> None:
    assert not notes_on(["a", "b", "c"], model="gpt2", merges=[0], eos_token_id=2, token_type=[1])


# Merge rules that were lost, and kinds of tokens that were.


LETTERS = [chr(0x100 + at) for at in range(256)]
WORDS = [f"{one}{two}" for one in "Ġabcdefg" for two in "hijklmnopq"]
RULES = [f"{one[0]} {one[1]}" for one in WORDS]
ENDS = ["<s>", "</s>", "[PAD7]"]


def bpe(rules: list[str], words: list[str] = WORDS, model: str = "gpt2", **more: Any) -> list[str]:
    tokens = [*LETTERS, *words, *ENDS]
    kinds = [1] * (len(tokens) - len(ENDS)) + [3, 3, 5]
    return notes_on(tokens, **{"model": model, "merges": rules, "token_type": kinds, **more})


@pytest.mark.parametrize("left", [0, 27, 60])
def test_merge_rules_that_were_lost_are_named(left: int) -> None:
    said = f"{OWN}merges has {left} merge rules, but {80 - left} tokens of several characters are made by no rule"
    assert bpe(RULES[:left]) == [f"{said}: the tokeniser never produces them"]


def test_lists_without_kinds_and_of_other_types_are_no_error() -> None:
    tokens = [*LETTERS, *WORDS, *ENDS]
    assert len(notes_on(tokens, model="gpt2", merges=RULES[:27])) == 1
    notes_on(tokens, model="gpt2", merges=[1, 2], token_type=[1, 2], eos_token_id=1)


def test_merge_rules_are_not_missed_where_there_are_enough_or_other_kinds() -> None:
    assert not bpe(RULES)
    assert not bpe([*RULES, "Ġ a", "a Ġh"])  # other rules make the same tokens, too
    assert not bpe(RULES[:61])  # 19 tokens
    assert not bpe(RULES[:27], model="llama", scores=[0.0])  # sentencepiece goes by scores
    assert not bpe(RULES[:27], [one if at < 27 else f"<|{one}|>" for at, one in enumerate(WORDS)])
    kinds = [1] * 283 + [4] * 53 + [3, 3, 5]  # added by the user: found in texts as they are
    assert not bpe(RULES[:27], token_type=kinds)
    assert not bpe(RULES[:27], [one.replace("Ġ", "x") for one in WORDS])  # spaces are not those of bytes
    assert not bpe(RULES[:27], token_type=[1])  # a list that is too short


def test_a_list_without_control_tokens_is_named() -> None:
    tokens = ["a", "b", "<s>", "</s>", "<pad>"]
    says = f"{OWN}token_type has no control token, but"
    for kinds in ([1] * 5, [2, *[1] * 4], [6, 6, 1, 1, 4]):
        found = notes_on(tokens, model="llama", scores=[0.0], token_type=kinds, bos_token_id=2, eos_token_id=3)
        assert len(found) == 1
        assert found[0].startswith(f"{says} eos_token_id is 3 ('</s>'): llama.cpp writes such tokens into texts")
    found = notes_on(tokens, model="bert", token_type=[1] * 5, padding_token_id=4)
    assert found[0].startswith(f"{says} padding_token_id is 4")
    assert not notes_on(tokens, model="bert", token_type=[1, 1, 3, 1, 1], padding_token_id=4)
    assert not notes_on(tokens, model="bert", token_type=[1] * 5, padding_token_id=1)  # perhaps a model of letters
    assert not notes_on(tokens, model="bert", token_type=[1] * 5, padding_token_id=9)
    assert not notes_on(tokens, model="bert", padding_token_id=4)
    assert not notes_on(tokens, model="bert", token_type=[1, 1, 4, 4, 4], eos_token_id=3)  # added by the user


def test_lists_are_read_only_if_rules_may_be_missing() -> None:
    read: list[tuple[str, int]] = []
    lists = {"merges": RULES, "tokens": LETTERS}
    raw = {f"{OWN}{name}": array(TEXT, [one.encode() for one in items]) for name, items in lists.items()}
    metadata = {f"{OWN}model": "gpt2", f"{OWN}merges": "", f"{OWN}tokens": ""}

    def part(key: str, begin: int, size: int) -> bytes:
        read.append((key, size))
        return raw[key][begin : begin + size]

    assert not [*tokenizer_notes(metadata, 256 + 80, part)]
    first = [(f"{OWN}tokens", 1 << 16), (f"{OWN}merges", 1 << 16)]
    assert read == [(f"{OWN}merges", 8), *first]  # the number of rules, and the first of both lists
