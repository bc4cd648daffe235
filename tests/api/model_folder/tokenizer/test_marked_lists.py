"""Token lists that libraries read otherwise: with a byte-order mark, with a token twice, with two tokens in a row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of

MARK = "\ufeff"
LINES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b"]
TWICE = [*LINES[:5], "a", "a", "b"]


def listed(path: str, tokens: list[str], mark: str = "", end: str = "\n", seed: int = 0) -> str:
    """A model whose tokeniser is a vocab.txt."""
    model(path, tokens=tokens, seed=seed)
    Path(path, "vocab.json").unlink()
    Path(path, "vocab.txt").write_bytes((mark + end.join([*tokens, ""])).encode())
    return path


def found(said: str, path: str = "m") -> list[str]:
    return [note for note in cs.inspect(path).notes if said in note]


MARKED = (
    "vocab.txt begins with a byte-order mark, which transformers does not skip: its first line is not read as '[PAD]'"
)
DOUBLED = "vocab.txt has tokens twice: 'a': transformers uses only the last id of such a token"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_with_a_mark_is_said_and_one_without_is_not(end: str) -> None:
    assert cs.inspect(listed("sound", LINES, end=end)).notes == ()
    assert cs.inspect(listed("m", LINES, MARK, end)).notes == (MARKED,)


@pytest.mark.parametrize("verb", verbs_of(""))
@pytest.mark.parametrize(("tokens", "mark", "said"), [(LINES, MARK, MARKED), (TWICE, "", DOUBLED), (LINES, "", "")])
def test_every_verb_says_it(tokens: list[str], mark: str, said: str, verb: str) -> None:
    listed("sound", LINES), listed("m", tokens, mark, seed=1)
    notes = [note for note in verbs_of("m")[verb]().notes if "byte-order" in note or "twice" in note]
    assert len(notes) == bool(said), notes
    assert all(said in note for note in notes)


@pytest.mark.costly
@pytest.mark.parametrize(("tokens", "mark", "said"), [(LINES, MARK, MARKED), (TWICE, "", DOUBLED), (LINES, "", "")])
def test_what_rewrites_or_checks_the_folder_says_it(tokens: list[str], mark: str, said: str) -> None:
    listed("m", tokens, mark)
    for plan in (cs.convert("m", dtype="bf16"), cs.rename("m", map=["model.norm=model.last"]), cs.filter("m")):
        assert [note for note in plan.notes if note == said] == [said] * bool(said)
    row = cs.check("m").row("vocabulary")
    assert row.status.value == ("WARN" if said else "PASS")
    assert [one.what for one in row.found] == [said] * bool(said)


def test_transformers_agrees() -> None:
    transformers = pytest.importorskip("transformers")
    listed("sound", LINES), listed("marked", LINES, MARK), listed("doubled", TWICE)
    number = {}
    for path in ("sound", "marked", "doubled"):
        tokeniser = transformers.BertTokenizer.from_pretrained(path)
        number[path] = len(tokeniser), *tokeniser.convert_tokens_to_ids(["[PAD]", "a"])
    assert number == {"sound": (8, 0, 5), "marked": (9, 8, 5), "doubled": (7, 0, 6)}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("merges.txt", "transformers does"),
        ("dict.txt", "fairseq and transformers do"),
        ("alphabet.txt", "Coqui STT does"),
    ],
)
@pytest.mark.parametrize("token", ["a</w>", "Ġ"])
def test_other_lists_in_text_files_are_said_too(name: str, reader: str, token: str) -> None:
    model("m", tokens=[*TOKENS, token])
    Path("m", name).write_text("#version: 0.2\na b\n")
    assert not found("byte-order")
    Path("m", name).write_text(f"{MARK}#version: 0.2\na b\n", encoding="utf-8")
    said = found(f"a byte-order mark, which {reader} not skip: its first line is not read as '#version: 0.2'")
    assert said[0] in [one.what for one in cs.check("m").row("vocabulary").found]


def test_a_list_that_is_not_read_is_not() -> None:
    listed("m", LINES, MARK)
    vocab = {token: row for row, token in enumerate(LINES)}
    Path("m/tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": vocab}}))
    assert cs.inspect("m").notes == ()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ', "a": 2}',
            "vocab.json: token a occurs twice, again on line 1: transformers uses only the last id",
        ),
        (
            ', "new": 2}',
            f"vocab.json has two tokens with the id 2: {TOKENS[2]!r} and 'new': they share one embedding row",
        ),
    ],
)
def test_a_list_in_json_with_doubles_is_said(more: str, said: str) -> None:
    assert cs.inspect(model("m")).notes == ()
    Path("m/vocab.json").write_text(Path("m/vocab.json").read_text().replace("}", more))
    assert found(said)


FILES = [
    "added_tokens.json", "generation_config.json", "normalizer.json", "preprocessor_config.json",
    "processor_config.json", "special_tokens_map.json", "target_vocab.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_json_that_begins_with_a_mark_is_not_valid(name: str) -> None:
    model("m")
    if not Path("m", name).exists():
        vocab = {token: row for row, token in enumerate(TOKENS)}
        whole = {"model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab}}
        Path("m", name).write_text(json.dumps(whole if name == "tokenizer.json" else {}))
    assert not found("JSON")
    text = Path("m", name).read_text()
    Path("m", name).write_text(text, encoding="utf-8-sig")
    assert found(f"{name}: it is not valid JSON: Unexpected UTF-8 BOM")
    assert any(note.startswith(f"{name} is copied unchanged: it is not valid JSON") for note in cs.convert("m").notes)
    Path("m", name).write_text(text, encoding="utf-16")
    assert found(f"{name}: it is not UTF-8")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_transformers_cannot_load_it(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    listed("m", LINES)
    text = '{"a": 5}' if name == "added_tokens.json" else '{"pad_token": "[PAD]"}'
    Path("m", name).write_text(text)
    assert len(transformers.BertTokenizer.from_pretrained("m")) == len(LINES)
    Path("m", name).write_text(text, encoding="utf-8-sig")
    with pytest.raises(json.JSONDecodeError, match="BOM"):
        transformers.BertTokenizer.from_pretrained("m")
