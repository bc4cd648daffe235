"""Cuts a tokenizer.json to the tokens that it needs to encode some texts as before.

https://huggingface.co/docs/tokenizers: the models BPE, WordPiece and Unigram.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..errors import ConfigError
from ..util.text import brief_repr
from .huggingface import BYTE, byte_letters

__all__ = ["KeptTokens", "added_in", "kept_tokens", "trimmed_tokenizer"]

_KINDS = ("BPE", "WordPiece", "Unigram")
_ENDS = ("BertProcessing", "RobertaProcessing")


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that are kept, in the order of their old ids, and {name of a group: number of its tokens}.

    A token is counted in the first of these groups that contains it: special and added tokens, bytes, tokens of the
    texts, and pieces and letters of the tokens of the texts.
    """

    tokens: tuple[str, ...]
    counts: Mapping[str, int]


def kept_tokens(
    document: Mapping[str, Any], tokens: Sequence[str], used: Collection[str], needed: Collection[str]
) -> KeptTokens:
    """Return the tokens that a tokenizer.json needs to encode texts as before.

    ``document`` is its content, and ``tokens`` are all its tokens in the order of their ids. ``used`` are the tokens of
    the texts, and ``needed`` are special, added and other tokens that are kept in any case. Raises ConfigError for a
    tokeniser of another kind, and for one that pads with, or adds to a text, a token that it does not have.
    """
    model = _model(document)
    known = set(tokens)
    listed = _listed(model)
    lost = next((token for token in _of_processors(document) if token not in known), None)
    if lost is not None:
        raise ConfigError(
            f"a section padding or post_processor of tokenizer.json has the token {brief_repr(lost, 30)}, which is not "
            "in its vocabulary.",
            hint="Correct this section, or set it to null.",
        )
    groups: dict[str, Iterable[str]] = {
        "special or added": (*needed, *_of_processors(document), *_unknown(model)),
        "bytes": _bytes(document, model, listed),
        "of the texts": used,
        "pieces and letters of these": _parts(model, used, listed),
    }
    kept: set[str] = set()
    counts = {}
    for name, found in groups.items():
        more = {token for token in found if token in known} - kept
        kept |= more
        counts[name] = len(more)
    return KeptTokens(tuple(token for token in tokens if token in kept), counts)


def _model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section ``model``; raises ConfigError if its type is not in ``_KINDS``, or if it has dropout."""
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in _KINDS:
        raise ConfigError(
            f"tokenizer.json has a model of the type {brief_repr(kind, 30)}, whose vocabulary cannot be cut.",
            hint=f"Only {', '.join(_KINDS)} can be cut. Make the smaller tokeniser yourself, and use --tokenizer.",
        )
    if model.get("dropout"):
        raise ConfigError(
            "tokenizer.json leaves out merges at random (dropout), so the same text gets different tokens each time.",
            hint='Set "dropout": null in the section model of the file.',
        )
    return model


def _listed(model: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the tokens of the section ``model`` with their ids or, for Unigram, their scores."""
    found = model.get("vocab")
    if isinstance(found, list):
        return {str(row[0]): float(row[1]) for row in found}
    return found if isinstance(found, dict) else {}


def added_in(document: Mapping[str, Any]) -> list[str]:
    """Return the added tokens of a tokenizer.json, including the special tokens."""
    rows = document.get("added_tokens")
    found = (row.get("content") for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict))
    return [one for one in found if isinstance(one, str)]


def _unknown(model: Mapping[str, Any]) -> Iterator[str]:
    token, place, rows = model.get("unk_token"), model.get("unk_id"), model.get("vocab")
    if isinstance(token, str):
        yield token
    if isinstance(rows, list) and type(place) is int and place < len(rows):
        yield str(rows[place][0])


def _of_processors(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tokens that post-processors add to a text, and the padding token."""
    padding = document.get("padding")
    if isinstance(padding, dict):
        yield str(padding.get("pad_token"))
    for one in _processors(document.get("post_processor")):
        for row in _rows(one):
            yield from map(str, row.get("tokens") or ())
        for name in ("sep", "cls") if one.get("type") in _ENDS else ():
            yield str(one[name][0])


def _processors(section: Any) -> Iterator[dict[str, Any]]:
    """Yield the post-processor ``section`` and, if it is a sequence, all post-processors in the sequence."""
    if isinstance(section, dict):
        yield section
        for one in section.get("processors") or ():
            yield from _processors(one)


def _rows(processor: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the special tokens of a template post-processor, as dicts with the keys ``ids`` and ``tokens``."""
    rows = processor.get("special_tokens")
    return [row for row in rows.values() if isinstance(row, dict)] if isinstance(rows, dict) else []


def _bytes(document: Mapping[str, Any], model: Mapping[str, Any], listed: Collection[str]) -> Iterator[str]:
    """Yield the tokens of single bytes: with them, every text can be encoded."""
    yield from (token for token in listed if BYTE.fullmatch(token))
    sections = str([document.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")])
    if "ByteLevel" in sections:
        for letter in byte_letters():
            yield from _written(model, letter)


def _written(model: Mapping[str, Any], letter: str) -> tuple[str, ...]:
    """Return the tokens of a letter: plain, with the prefix (inside a word), the suffix (at its end), or both."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return letter, f"{prefix}{letter}", f"{letter}{suffix}", f"{prefix}{letter}{suffix}"


def _parts(model: Mapping[str, Any], used: Collection[str], listed: Mapping[str, float]) -> Iterator[str]:
    """Yield the letters of the used tokens; for BPE, also every token from which merges make the used tokens.

    For Unigram, the piece with the lowest score is kept too: the score of an unknown letter depends on it.
    """
    for letter in {letter for token in used if token in listed for letter in token}:
        yield from _written(model, letter)
    if model["type"] == "BPE":
        merges = _Merges(model)
        for token in used:
            yield from merges.pieces(token) if token in listed else ()
    if model["type"] == "Unigram":
        yield min(listed, key=lambda token: listed[token])


class _Merges:
    """The merges of a BPE tokeniser: pairs of tokens. A merge that is earlier in the list is applied first."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""
        self._ranks = {pair: rank for rank, pair in enumerate(map(_pair, model.get("merges") or ()))}

    def tokens(self, pair: tuple[str, str]) -> tuple[str, str, str]:
        """Return the two tokens that a merge joins, and the token that the merge makes."""
        return *pair, pair[0] + pair[1][len(self._prefix) :]

    def pieces(self, token: str) -> Iterator[str]:
        """Yield the letters of a token, and then each token that the merges make while they join these letters."""
        parts = self._letters(token)
        yield from parts
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                return
            at = pairs.index(best)
            parts[at : at + 2] = [self.tokens(best)[2]]
            yield parts[at]

    def _letters(self, token: str) -> list[str]:
        suffix = self._suffix if self._suffix and token.endswith(self._suffix) else ""
        body = token.removesuffix(suffix)
        begins = not (self._prefix and body.startswith(self._prefix))
        letters = list(body if begins else body.removeprefix(self._prefix)) or [""]
        letters[-1] += suffix
        return [letter if begins and not at else f"{self._prefix}{letter}" for at, letter in enumerate(letters)]


def _pair(rule: Any) -> tuple[str, str]:
    first, second = rule.split(" ", 1) if isinstance(rule, str) else rule
    return str(first), str(second)


# Makes the smaller tokenizer.json.


def trimmed_tokenizer(document: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Return the content of a tokenizer.json that has only ``tokens``: the new id of a token is its index.

    ``tokens`` are in the order of their old ids, and include all tokens that the post-processors add.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    made = dict(document)
    made["model"] = _with_tokens(_model(document), ids)
    rows = document.get("added_tokens") or []
    made["added_tokens"] = [{**row, "id": ids[row["content"]]} for row in rows if row["content"] in ids]
    if isinstance(padding := document.get("padding"), dict):
        made["padding"] = {**padding, "pad_id": ids[padding["pad_token"]]}
    made["post_processor"] = _with_ids(document.get("post_processor"), ids)
    return made


def _with_tokens(model: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    found = model["vocab"]
    if isinstance(found, list):
        rows = [row for row in found if row[0] in ids]
        unknown = next(iter(_unknown(model)), None)
        return {**model, "vocab": rows, "unk_id": ids[unknown] if unknown is not None else None}
    listed = {token: number for token, number in ids.items() if token in found}
    made = {**model, "vocab": listed}
    if model["type"] == "BPE":
        merges = _Merges(model)
        made["merges"] = [
            rule for rule in model.get("merges") or () if all(token in listed for token in merges.tokens(_pair(rule)))
        ]
    return made


def _with_ids(section: Any, ids: Mapping[str, int]) -> Any:
    """Return the post-processor ``section`` with the new ids of its tokens."""
    if not isinstance(section, dict):
        return section
    made = dict(section)
    if section.get("processors"):
        made["processors"] = [_with_ids(one, ids) for one in section["processors"]]
    if _rows(section):
        made["special_tokens"] = {
            name: {**row, "ids": [ids[token] for token in row["tokens"]]}
            for name, row in section["special_tokens"].items()
        }
    for name in ("sep", "cls") if section.get("type") in _ENDS else ():
        made[name] = [section[name][0], ids[section[name][0]]]
    return made
