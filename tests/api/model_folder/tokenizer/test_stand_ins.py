"""A pointer of Git LFS, a page or an error message in place of a file of a tokeniser."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, PlanError

from ..test_model_folders import TOKENS, model, verbs_of
from .test_token_lists import notes, whole

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 9085657\n"
PAGE = "<!DOCTYPE html>\n<html><body>\nAccess to this model is restricted.\n</body></html>\n"
OLD_PAGE = '<html lang="en">\n<head><title>502</title></head><body></body></html>\n'
SHORT = {
    POINTER: "it is a Git LFS pointer, and git lfs pull fetches the file",
    PAGE: "it is an HTML page",
    OLD_PAGE: "it is an HTML page",
    '<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>\n': "it is an XML document",
}
ANSWER = {'{"error": "Access is restricted."}': "it is an error message: 'Access is restricted.'"}
NAMES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.txt", "merges.txt", "tokenizer.model")


@pytest.mark.parametrize("text", [*SHORT, *ANSWER, "Entry not found\n", '["a", "b"]'])
def test_one_in_place_of_a_tokenizer_is_said(text: str) -> None:
    whole("m")
    Path("m/tokenizer.json").write_text(text)
    (note,) = notes()
    known = {**SHORT, **ANSWER, '["a", "b"]': "it is not a JSON object"}
    assert note.startswith(f"tokenizer.json: {known.get(text, 'it is not valid JSON: Expecting value')}")


@pytest.mark.parametrize("name", NAMES)
def test_one_in_place_of_another_file_is_said(name: str) -> None:
    whole("m")
    Path("m", name).write_text(POINTER)
    assert notes() == [f"{name}: {SHORT[POINTER]}"]


@pytest.mark.parametrize("name", ["vocab.txt", "vocab.json", "tokenizer.model"])
def test_one_in_place_of_the_only_list_is_said(name: str) -> None:
    model("m", tokens=TOKENS)
    Path("m/vocab.json").unlink()
    Path("m", name).write_text(PAGE)
    assert notes() == [f"{name}: it is an HTML page"]


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    whole("sound"), whole("m", seed=1)
    Path("m/tokenizer.json").write_text(POINTER)
    if verb == "inspect":
        assert cs.inspect("m").notes == (f"tokenizer.json: {SHORT[POINTER]}",)
    else:
        with pytest.raises(PlanError, match="cannot be read: it is a Git LFS pointer"):
            verbs_of("m")[verb]()


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so_of_settings(verb: str) -> None:
    whole("sound"), whole("m", seed=1)
    Path("m/tokenizer_config.json").write_text(POINTER)
    assert any("tokenizer_config.json" in note and "Git LFS" in note for note in verbs_of("m")[verb]().notes)


@pytest.mark.parametrize("text", [POINTER, PAGE, "Entry not found\n", *ANSWER])
@pytest.mark.parametrize("vocab", ["base", "union"])
@pytest.mark.parametrize("order", [["m", "n"], ["n", "m"]])
def test_no_tokens_are_read_from_one(text: str, vocab: str, order: list[str]) -> None:
    whole("m"), whole("n")
    Path("m/tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a (list of tokens|vocabulary)"):
        cs.merge(order, method="linear", weights=[0.5, 0.5], vocab=vocab)


@pytest.mark.parametrize("order", [["m", "n"], ["n", "m"]])
def test_rows_are_not_merged_by_place(order: list[str]) -> None:
    whole("m"), whole("n")
    Path("m/tokenizer.json").write_text(PAGE)
    with pytest.raises(PlanError, match="cannot be read: it is an HTML page"):
        cs.merge(order, method="linear", weights=[0.5, 0.5])


def test_a_list_of_tags_is_none() -> None:
    model("m", tokens=TOKENS)
    Path("m/vocab.json").unlink()
    Path("m/vocab.txt").write_text("\n".join(["<html>", "<body>", "<?", "version", *"abcd"]) + "\n")
    assert notes() == []
