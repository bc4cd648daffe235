"""Splits short texts as the pre-tokeniser in a tokenizer.json does, for the steps that published tokenisers use.

https://huggingface.co/docs/tokenizers/api/pre-tokenizers lists these steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

from .patterns import CONTRACTIONS, PUNCTUATION, SPACE_MARKS, translated

__all__ = ["BYTES", "PIECES", "Step", "kinds_in", "steps_of"]

BYTES, PIECES = "ByteLevel", "Metaspace"
"""The types of the steps that write a space as a mark, in byte-level BPE and in sentencepiece."""
DEEPEST = 8
"""The largest number of nested sequences of steps."""
Step: TypeAlias = Callable[[str], Sequence[str]]
"""A function that splits a text into pieces."""
_Part: TypeAlias = tuple[str, bool]
"""A part of a text, and whether the regular expression matches this part."""


def kinds_in(step: Any, depth: int = 0) -> Iterator[str]:
    """Yield the types of a pre-tokeniser's steps; '' for a step without a type."""
    if isinstance(step, Mapping) and step.get("type") == "Sequence" and depth < DEEPEST:
        inner = step.get("pretokenizers")
        for one in inner if isinstance(inner, list) else [None]:
            yield from kinds_in(one, depth + 1)
    else:
        yield str(step.get("type", "")) if isinstance(step, Mapping) else ""


def steps_of(step: Any, depth: int = 0) -> list[Step] | None:
    """Return a pre-tokeniser's steps as functions, in order; None if one of the steps is not known."""
    if not isinstance(step, Mapping) or depth > DEEPEST:
        return None
    if step.get("type") == "Sequence":
        inner = step.get("pretokenizers")
        found = [steps_of(one, depth + 1) for one in inner] if isinstance(inner, list) else [None]
        return None if any(one is None for one in found) else [step for one in found for step in one or ()]
    make = _MAKERS.get(str(step.get("type")))
    made = make(step) if make is not None else None
    return None if made is None else [made]


def _byte_level(fields: Mapping[str, Any]) -> Step | None:
    split = _by(CONTRACTIONS, "Isolated") if fields.get("use_regex", True) else None
    return lambda text: [one.replace(" ", SPACE_MARKS[0]) for one in (split(text) if split is not None else (text,))]


def _metaspace(fields: Mapping[str, Any]) -> Step | None:
    mark = fields.get("replacement", SPACE_MARKS[1])
    if mark != SPACE_MARKS[1]:
        return None
    is_begun = fields.get("prepend_scheme", "always") != "never" and fields.get("add_prefix_space", True)
    is_split = fields.get("split", True)

    def pieces(text: str) -> Sequence[str]:
        text = text.replace(" ", mark)
        text = mark + text if is_begun and not text.startswith(mark) else text
        return re.findall(f"{mark}?[^{mark}]*", text) if is_split else (text,)

    return pieces


def _split(fields: Mapping[str, Any]) -> Step | None:
    pattern = fields.get("pattern")
    text, expression = (
        (pattern.get(one) for one in ("String", "Regex")) if isinstance(pattern, Mapping) else (None, None)
    )
    if isinstance(text, str):
        expression = "".join(f"\\{one}" if not (one.isalnum() or one.isspace()) else one for one in text)
    if not isinstance(expression, str) or not expression:
        return None
    return _by(expression, str(fields.get("behavior")), is_inverted=fields.get("invert") is True)


def _digits(fields: Mapping[str, Any]) -> Step | None:
    return _by("[0-9]", "Isolated" if fields.get("individual_digits") else "Contiguous")


def _punctuation(fields: Mapping[str, Any]) -> Step | None:
    return _by(f"[{PUNCTUATION}]", str(fields.get("behavior", "Isolated")))


def _words(fields: Mapping[str, Any]) -> Step | None:
    return _by(r"\w+|[^\w\s]+", "Removed", is_inverted=True)


def _spaces(fields: Mapping[str, Any]) -> Step | None:
    return _by(r"\s", "Removed")


def _bert(fields: Mapping[str, Any]) -> Step | None:
    return _by(rf"[{PUNCTUATION}]|[^\s{PUNCTUATION}]+", "Removed", is_inverted=True)


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Step | None]] = {
    BYTES: _byte_level, PIECES: _metaspace, "Split": _split, "Digits": _digits, "Punctuation": _punctuation,
    "Whitespace": _words, "WhitespaceSplit": _spaces, "BertPreTokenizer": _bert,
}  # fmt: skip
"""{type of a step: function that makes the step from its fields}"""


def _by(expression: str, behaviour: str, *, is_inverted: bool = False) -> Step | None:
    pattern, joined = translated(expression), _BEHAVIOURS.get(behaviour)
    if pattern is None or joined is None:
        return None

    def pieces(text: str) -> Sequence[str]:
        return joined([(part, is_match != is_inverted) for part, is_match in _parts(pattern, text)])

    return pieces


def _parts(pattern: re.Pattern[str], text: str) -> Iterator[_Part]:
    end = 0
    for one in pattern.finditer(text):
        if one.end() > one.start():
            if one.start() > end:
                yield text[end : one.start()], False
            yield one.group(), True
            end = one.end()
    if end < len(text):
        yield text[end:], False


def _isolated(parts: Sequence[_Part]) -> list[str]:
    return [part for part, _ in parts]


def _removed(parts: Sequence[_Part]) -> list[str]:
    return [part for part, is_match in parts if not is_match]


def _contiguous(parts: Sequence[_Part]) -> list[str]:
    return ["".join(part for part, _ in run) for _, run in groupby(parts, lambda one: one[1])]


def _with_previous(parts: Sequence[_Part]) -> list[str]:
    found, was_match = list[str](), False
    for part, is_match in parts:
        if is_match and not was_match and found:
            found[-1] += part
        else:
            found.append(part)
        was_match = is_match
    return found


def _with_next(parts: Sequence[_Part]) -> list[str]:
    return [one[::-1] for one in _with_previous([(part[::-1], is_match) for part, is_match in reversed(parts)])][::-1]


_BEHAVIOURS: Mapping[str, Callable[[Sequence[_Part]], list[str]]] = {
    "Isolated": _isolated, "Removed": _removed, "Contiguous": _contiguous, "MergedWithPrevious": _with_previous,
    "MergedWithNext": _with_next,
}  # fmt: skip
