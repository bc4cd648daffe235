"""Reads ``vocab.json`` (token to id) and ``tokenizer.json`` of transformers and tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import lt
from typing import Any

from ..errors import ConfigError
from ..storage.json_text import read_json
from ..util.text import brief_repr, count, escape, listing
from .rule_order import rule_order
from .vocabulary import ALL, GAP, INSIDE, MOST, Marks, Vocabulary, checked, marked

__all__ = ["BYTE", "VOCABULARY", "byte_letters", "doubled_number", "of_language", "read_added", "read_decoder"]


_NESTED = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*\{')
"""Matches the beginning of a JSON object whose first value is an object."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token for a byte, as sentencepiece writes it."""


@cache
def byte_letters() -> frozenset[str]:
    """Return the 256 letters that byte-level BPE writes for bytes: visible characters, and letters from Ā on.

    They are from the table of GPT-2: https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return frozenset(map(chr, (*visible, *range(256, 512 - len(visible)))))


class _HuggingFace:
    marks = (Marks(r"(?i:.*\.json)", ((re.compile(rb"\A\s*\{"), ALL),)),)

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the tokens sorted by id; raises ConfigError if an id is missing."""
        try:
            document = read_json(data)
        except ValueError as error:
            raise ConfigError(f"{name} is not valid JSON: {error}.") from None
        model = document.get("model")
        if not isinstance(model, dict):
            return marked(_in_order(name, document))
        found = model.get("vocab")
        if isinstance(found, list):  # a unigram model: [token, log-probability]
            return replace(_unigram(name, document, found), kind="Unigram", model=_single(model))
        numbers = dict(found) if isinstance(found, dict) else {}
        vocabulary = _in_order(name, {**numbers, **_added(document)})
        inside = model.get("continuing_subword_prefix", INSIDE) if model.get("type") == "WordPiece" else ""
        rules = _rules(model.get("merges")) if _has_rules(model) else []
        unlisted = tuple(_unlisted(rules, numbers, model.get("continuing_subword_prefix")))
        kind = model.get("type")
        results = [f"{one}{two}" for one, two in rules]
        joined = frozenset(results)
        places = [numbers[one] for one in results if one in numbers]
        longer = [token for token in numbers if isinstance(token, str) and len(token) > 1 and not is_byte(token)]
        return replace(
            vocabulary, inside=inside if isinstance(inside, str) else "", rules=len(rules), unlisted=unlisted,
            unmade=sum(token not in joined for token in longer) if _has_rules(model) else 0,
            kind=kind if isinstance(kind, str) else "", model=_single(model),
            rule_hash=hash(tuple(rules)), order=rule_order(places),
            lacks_unknown=isinstance(unknown := model.get("unk_token"), str) and unknown not in numbers,
        )  # fmt: skip


def _single(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the section ``model`` whose value is a string, number, boolean or null.

    The vocabulary and the merge rules, which are lists and dicts, are left out.
    """
    return {name: value for name, value in model.items() if value is None or isinstance(value, (str, int, float))}


def is_byte(token: str) -> bool:
    """Return whether a token is in angle brackets, as byte tokens (``<0x0A>``) and special tokens are."""
    return token[0] == "<" and token[-1] == ">"


def _has_rules(model: Mapping[str, Any]) -> bool:
    """Return whether the library tokenizers reads the section ``model`` of a tokenizer.json as BPE, with merge rules.

    A section without a type is read as BPE unless it has an unknown token; then tokenizers tries other types.
    """
    return bool(model.get("type", None if isinstance(model.get("unk_token"), str) else "BPE") == "BPE")


def _rules(merges: Any) -> list[tuple[str, str]]:
    """Return the pairs of tokens that the merge rules ``merges`` join.

    A rule is a string of two tokens with a space between them, or a list of two strings; other entries are left out.
    """
    rows = merges if isinstance(merges, list) else []
    pairs = (one.split(" ") if isinstance(one, str) else one for one in rows if not _is_version(one))
    return [
        (one[0], one[1])
        for one in pairs
        if isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], str)
    ]


def _is_version(row: Any) -> bool:
    return isinstance(row, str) and row.startswith("#version")


def _unlisted(rules: Sequence[tuple[str, str]], listed: Container[str], prefix: Any) -> Iterator[str]:
    """Yield, for each merge rule that needs a token missing in ``listed``, the first such token.

    A rule needs its two tokens, and the token that is made by joining them; ``prefix`` is removed from the second token
    before they are joined. Added tokens are not in ``listed``: the library tokenizers does not find them for a rule.
    """
    cut = len(prefix.encode()) if isinstance(prefix, str) else 0
    for one, two in rules:
        joined = one + (two.encode()[cut:].decode(errors="replace") if cut else two)
        if joined not in listed or one not in listed or two not in listed:
            yield next(token for token in (one, two, joined) if token not in listed)


def _added(document: dict[str, Any]) -> dict[Any, Any]:
    rows = document.get("added_tokens")
    rows = rows if isinstance(rows, list) else []
    named = [row for row in rows if isinstance(row, dict) and not isinstance(row.get("content"), (list, dict))]
    return {row.get("content"): row.get("id") for row in named}


def _unigram(name: str, document: dict[str, Any], rows: list[Any]) -> Vocabulary:
    if not all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in rows):
        raise ConfigError(f"the vocabulary in {name} is not a list of pairs [token, log-probability].")
    tokens = [row[0] for row in rows]
    scores = [
        float(row[1]) for row in rows if isinstance(row[1], float) or (type(row[1]) is int and abs(row[1]) < MOST)
    ]
    beyond = {token: i for token, i in _added(document).items() if type(i) is int and i >= len(tokens)}
    added = _by_id(name, {token: i for token, i in beyond.items() if isinstance(token, str)}, len(tokens))
    scores = scores if len(scores) == len(tokens) else []
    found = checked(name, [*tokens, *added], () if added else scores)
    by_score = [place for place, score in enumerate(scores) if score]
    falling = [scores[place] for place in by_score]
    if any(map(lt, falling, falling[1:])):  # as in few lists
        by_score.sort(key=lambda place: -scores[place])
    return replace(found, piece_scores=tuple(scores), order=rule_order(by_score))


def _in_order(name: str, numbers: dict[Any, Any]) -> Vocabulary:
    """Return the tokens sorted by id; raises ConfigError if an id is missing or occurs twice."""
    if not numbers or not all(isinstance(t, str) and type(i) is int and 0 <= i < MOST for t, i in numbers.items()):
        raise ConfigError(f"{name} is not a vocabulary: it does not map tokens to ids.")
    return checked(name, _by_id(name, numbers))


def _by_id(name: str, numbers: dict[str, int], begin: int = 0) -> list[str]:
    """Return the tokens sorted by id, from ``begin`` on; raises ConfigError if an id is missing or occurs twice."""
    tokens = {number: token for token, number in numbers.items()}
    if len(tokens) < len(numbers):
        raise ConfigError(f"{name} {number_twice(numbers)}.")
    end = begin + len(tokens)
    absent = next((i for i in range(begin, end) if i not in tokens), None)
    if absent is not None:
        raise ConfigError(
            f"{name} has {end} tokens, {GAP} {absent}.",
            hint=f"Add a token for each id without one, such as <unused{absent}> for {absent}; or, if no model uses "
            "these ids yet, number the tokens from 0 without a gap.",
        )
    return [tokens[i] for i in range(begin, end)]


def number_twice(numbers: dict[str, int]) -> str:
    """Return the end of a message about the first two tokens that have the same id; "" if all ids are different."""
    tokens = dict[int, str]()
    for token, number in numbers.items():
        if tokens.setdefault(number, token) != token:
            both = f"{brief_repr(tokens[number], 24)} and {brief_repr(token, 24)}"
            return f"has two tokens with the id {number}: {escape(both)}"
    return ""


def doubled_number(data: bytes) -> str:
    """Return the end of a message about two tokens of a tokenizer.json with the same id.

    Returns "" if all ids are different, or if the file cannot be read.
    """
    try:
        document = read_json(data)
        vocabulary = document["model"]["vocab"]
        return number_twice({**vocabulary, **_added(document)}) if isinstance(vocabulary, dict) else ""
    except (ValueError, TypeError, KeyError):
        return ""


def of_language(name: str, data: bytes, language: object) -> bytes:
    """Return the token list for ``language`` in a ``vocab.json``, as JSON.

    Some models, such as MMS (https://huggingface.co/docs/transformers/model_doc/mms), have a ``vocab.json`` with a list
    for each language. For any other file, its content ``data`` is returned. ``language`` is the ``target_lang`` in
    tokenizer_config.json. Raises ConfigError if there are lists for languages, but none for this language.
    """
    if not _NESTED.match(data):
        return data
    try:
        document = read_json(data)
    except ValueError:
        return data
    if not isinstance(document, dict) or not document or not all(isinstance(one, dict) for one in document.values()):
        return data
    if "model" in document:  # a tokenizer.json under this name
        return data
    if not isinstance(language, str) or not language:
        raise ConfigError(
            f"{name} has a token list for each of {count(len(document), 'language')}, but tokenizer_config.json does "
            "not choose one (target_lang).",
            hint="Set target_lang in tokenizer_config.json to one of them.",
        )
    if language not in document:
        known = listing(sorted(document), 4, where="")
        raise ConfigError(f"{name} has no token list for {escape(language, 20)} (target_lang), only for {known}.")
    return json.dumps(document[language]).encode()


def read_added(name: str, data: bytes, known: Collection[str]) -> list[str]:
    """Return the tokens of an added_tokens.json that are not ``known``, sorted by id.

    Raises ConfigError if their ids do not continue the ids of the known tokens without a gap.
    """
    try:
        document = read_json(data)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON: {error}.") from None
    if not isinstance(document, dict) or not all(type(number) is int for number in document.values()):
        raise ConfigError(f"{name} does not map tokens to ids.")
    found = {number: token for token, number in document.items() if token not in known}
    numbers = sorted(number for token, number in document.items() if token not in known)
    expected = range(len(known), len(known) + len(numbers))
    if numbers != list(expected):
        raise ConfigError(
            f"the ids in {name} do not continue the ids of the vocabulary, which has {len(known)} tokens."
        )
    return [found[number] for number in expected]


def read_decoder(data: bytes, known: Collection[str]) -> list[str]:
    """Return the tokens of a tokenizer_config.json whose ids continue the ids of the ``known`` tokens; may be empty.

    https://huggingface.co/docs/transformers/main_classes/tokenizer: ``added_tokens_decoder`` maps ids to tokens.
    """
    try:
        document = read_json(data)
    except ValueError:  # then it has no tokens that can be read
        return []
    rows = document.get("added_tokens_decoder") if isinstance(document, dict) else None
    found = {
        key: row.get("content")
        for key, row in (rows.items() if isinstance(rows, dict) else ())
        if isinstance(row, dict)
    }
    more: list[str] = []
    while isinstance(token := found.get(str(len(known) + len(more))), str) and token not in known and token not in more:
        more.append(token)
    return more


VOCABULARY = _HuggingFace()
