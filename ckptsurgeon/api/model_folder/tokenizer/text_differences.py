"""Notes on differences in how two combined models normalise, split, encode or decode texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....errors import ConfigError, SourceError
from ....storage.read.uri import scheme_of
from ....util.differing_values import texts_apart
from ....util.text import brief_repr, escape
from ....vocabulary.vocabulary import Vocabulary
from ..documents import TOKENIZER
from ..embedded import other_template
from ..folder import ModelFolder
from .decoding import joins
from .spelling import spelling_of, steps_in, types_in
from .text_settings import OF_ENCODERS
from .tokenizer_files import WHOLE, brief_token

__all__ = ["FIELDS", "first_difference", "normalising_steps", "text_notes"]

FIELDS = (
    "add_prefix_space", "do_basic_tokenize", "do_lower_case", "keep_accents", "remove_space", "split_by_punct",
    "strip_accents", "tokenize_chinese_chars",
)  # fmt: skip
"""Fields of tokenizer_config.json on how a text is normalised before it is split into tokens."""
SAID_BY = {"lowercase": "do_lower_case", "add_prefix_space": "add_prefix_space"}
"""{setting in tokenizer.json (see ``normalising_steps``): the same setting in tokenizer_config.json}"""
OPTIONS = ("byte_fallback", "dropout", "ignore_merges")
"""Settings on bytes and merges in tokenizer.json. Missing, false, 0 and null mean the same."""
SECTIONS = {"normalizer": "normalise texts", "pre_tokenizer": "split texts"}
"""{section of tokenizer.json: what two tokenisers do differently if this section differs}"""
OFFSETS = "trim_offsets"
"""A field that changes the positions of tokens in a text, but not the tokens."""
MARKING = frozenset(("Metaspace", "Prepend", "Replace"))
"""Types of steps of a normaliser or pre-tokeniser that may write a space as a mark, such as ▁."""
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
"""The fields of tokenizer.json with the prefix and suffix for parts of words. Missing, "" and null mean the same."""
LONGEST = 60
"""The largest number of characters of a setting that a note shows."""


def text_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield notes on how the tokenisers of two models normalise, split, encode or decode texts differently.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``.
    """
    there, here = _settings(theirs), _settings(ours)
    fields = [field for field in FIELDS if all(isinstance(one.get(field), bool) for one in (there, here))]
    differing = [field for field in fields if there[field] != here[field]]
    yield from _note(TOKENIZER, differing, (other, there), (name, here))
    there, here = normalising_steps(theirs), normalising_steps(ours)
    steps = [step for step in here if step in there and here[step] != there[step]]
    said = list(_note(WHOLE, [one for one in steps if SAID_BY.get(one) not in differing], (other, there), (name, here)))
    yield from said
    if not said:
        yield from _section_notes(other, theirs, name, ours)
    around = _added_around(theirs), _added_around(ours)
    if None not in around and around[0] != around[1]:
        told = ", ".join(
            f"{escape(brief_repr(one))} in {escape(model)}" for one, model in zip(around, (other, name), strict=True)
        )
        yield f"the tokenisers add different special tokens to a text, according to {WHOLE}: {told}"
    yield from _model_notes(other, theirs, name, ours)
    yield from _template_notes(other, theirs, name, ours)


def _section_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield a note on the first difference in each section of two tokenizer.json files that changes or splits texts.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``. There
    is no note if a tokeniser writes spaces as a mark, because versions of transformers store this in different
    sections.
    """
    there, here = theirs.tokenizer_head, ours.tokenizer_head
    if not (there and here) or any(
        MARKING.intersection(types_in(one.get(at))) for one in (there, here) for at in SECTIONS
    ):
        return
    for section, what in SECTIONS.items():
        if found := _step_difference(section, there.get(section), here.get(section)):
            told = [(model, {found[0]: value}) for model, value in zip((other, name), found[1:], strict=True)]
            yield from _note(WHOLE, [found[0]], *told, what=what)


def _step_difference(section: str, one: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Return (path, one value, other value) of the first difference between a section's steps; None if there is none.

    A field that only one of two steps has is not compared: in the other step, it has its default.
    """
    steps = list(steps_in(one)), list(steps_in(other))
    if [step.get("type") for step in steps[0]] != [step.get("type") for step in steps[1]]:
        return first_difference(section, one, other)
    for mine, theirs in zip(*steps, strict=True):
        for field in mine:
            values = _effect(mine, field), _effect(theirs, field)
            if field in theirs and field not in (*SAID_BY, OFFSETS) and values[0] != values[1]:
                return f"{section}.{field} ({mine.get('type')})", *values
    return None


def _effect(step: Mapping[str, Any], field: str) -> Any:
    """Return the effective value of a field of a step: if ``strip_accents`` is not set, the value of ``lowercase``.

    BERT's normaliser strips accents by default if it lower-cases texts.
    """
    value = step.get(field)
    return step.get("lowercase") if field == "strip_accents" and value is None else value


def first_difference(path: str, one: Any, other: Any) -> tuple[str, Any, Any] | None:
    """Return (path, one value, other value) of the first difference between two JSON values; None if they are equal.

    ``path`` is the path of the two values that are compared; keys and indices are added to it after dots.
    """
    if one == other:
        return None
    if isinstance(one, list) and isinstance(other, list):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return path, one, other
    keys = dict.fromkeys((*one, *other))
    found = (first_difference(f"{path}.{key}", one.get(key), other.get(key)) for key in keys)
    return next((difference for difference in found if difference is not None), (path, len(one), len(other)))


def _added_around(folder: ModelFolder) -> str | None:
    """Return how a tokenizer.json puts special tokens around a text, for example "<s> TEXT </s>".

    Returns None if the file does not determine this: fast tokenisers of some classes use other fields for this step.
    """
    head = folder.tokenizer_head
    for one in steps_in(head.get("post_processor")):
        ends = [one.get(field) for field in ("cls", "sep")]
        if all(isinstance(pair, list) and pair and isinstance(pair[0], str) for pair in ends):
            return " TEXT ".join(pair[0] for pair in ends if pair)
        rows = one.get("single") if one.get("type") == "TemplateProcessing" else None
        if isinstance(rows, list):
            named = [next(iter(row.values()), None) for row in rows if isinstance(row, dict)]
            ids = [row.get("id") for row in named if isinstance(row, dict)]
            return " ".join("TEXT" if one in ("A", "B") else str(one) for one in ids)
    return "TEXT" if "post_processor" in head and _file_decides(folder) else None


def _file_decides(folder: ModelFolder) -> bool:
    """Return whether tokenizer.json alone determines which special tokens are added to a text.

    Some tokeniser classes, and some settings in tokenizer_config.json, add further special tokens.
    """
    said = _settings(folder)
    named = str(said.get("tokenizer_class")).startswith(("PreTrained", "Tokenizers"))
    is_plain = said.keys().isdisjoint(("add_bos_token", "add_eos_token", "auto_map"))
    return is_plain and (named or folder.config.get("model_type") in OF_ENCODERS)


def _model_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield notes if two tokenisers of the same kind look up tokens differently, or any two decode texts differently.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``.
    """
    there, here = (one.token_list if one.tokenizer_head else None for one in (theirs, ours))
    if there is None or here is None:
        return
    if there.kind == here.kind:
        values: list[dict[str, Any]] = [
            {field: one.model.get(field) or "" for field in AFFIXES}
            | {field: one.model.get(field) or None for field in OPTIONS}
            for one in (there, here)
        ]
        ids = [one.model.get("unk_id") for one in (there, here)]
        if there.kind == "Unigram" and all(type(one) is int for one in ids):
            values = [one | {"unk_id": number} for one, number in zip(values, ids, strict=True)]
        differing = [field for field in values[1] if values[0][field] != values[1][field]]
        yield from _note(WHOLE, differing, (other, values[0]), (name, values[1]), what="look up tokens")
        yield from _score_note(other, there, name, here)
        yield from _rule_note(other, there, name, here)
    mark = spelling_of(ours).mark
    decoders = [one.tokenizer_head.get("decoder", ...) for one in (theirs, ours)]
    if mark and ... not in decoders and joins(decoders[0], mark) != joins(decoders[1], mark):
        said = [{"decoder": ", ".join(types_in(one)) or None} for one in decoders]
        yield from _note(WHOLE, ["decoder"], (other, said[0]), (name, said[1]), what="decode texts")


def _score_note(other: str, theirs: Vocabulary, name: str, ours: Vocabulary) -> Iterator[str]:
    """Yield a note if two Unigram models split texts differently, because equal pieces have different scores.

    ``ours`` is the token list of the model called ``name``, and ``theirs`` that of the model called ``other``.
    """
    number = len(ours.piece_scores)
    if number != len(theirs.piece_scores) or theirs.tokens[:number] != ours.tokens[:number]:
        return
    rows = [row for row, pair in enumerate(zip(theirs.piece_scores, ours.piece_scores, strict=True)) if _differ(*pair)]
    if rows:
        scores = (
            f"{theirs.piece_scores[rows[0]]:g} in {escape(other)}, {ours.piece_scores[rows[0]]:g} in {escape(name)}"
        )
        first = f"that of {brief_token(ours.tokens[rows[0]])} is {scores}"
        many = f"the scores of {len(rows)} of {number} pieces differ"
        yield f"the tokenisers split texts differently, according to {WHOLE}: {many}, {first}"


def _rule_note(other: str, theirs: Vocabulary, name: str, ours: Vocabulary) -> Iterator[str]:
    """Yield a note if two BPE models have the same tokens, but other merge rules or another order of the rules.

    ``ours`` is the token list of the model called ``name``, and ``theirs`` that of the model called ``other``.
    """
    if ours.rules and theirs.rules and theirs.tokens == ours.tokens and theirs.rule_hash != ours.rule_hash:
        same = theirs.rules == ours.rules
        told = f"the {ours.rules} merge rules differ, or are in another order"
        counts = f"{theirs.rules} merge rules in {escape(other)}, {ours.rules} in {escape(name)}"
        yield f"the tokenisers split texts differently, according to {WHOLE}: {told if same else counts}"


def _differ(first: float, second: float) -> bool:
    """Return whether two scores differ by more than rounding."""
    return not (math.isclose(first, second, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(first) and math.isnan(second)))


def _template_notes(other: str, theirs: ModelFolder, name: str, ours: ModelFolder) -> Iterator[str]:
    """Yield a note if two models have different chat templates; white space at the ends is ignored.

    ``ours`` is the folder of the model called ``name``, and ``theirs`` the folder of the model called ``other``.
    """
    with suppress(ConfigError, SourceError):
        yield from other_template(theirs.chat_template, other, ours.chat_template, name)


def _note(
    file: str, differing: list[str], *models: tuple[str, Mapping[str, Any]], what: str = "normalise texts"
) -> Iterator[str]:
    lines = [
        f"{one} is "
        + ", ".join(
            f"{text} in {escape(name)}"
            for text, (name, _) in zip(_texts([values[one] for _, values in models]), models, strict=True)
        )
        for one in differing
    ]
    if lines:
        yield f"the tokenisers {what} differently, according to {file}: {'; '.join(lines)}"


def _texts(values: list[Any]) -> list[str]:
    """Return the texts of two values for a note, shortened if they are long.

    If both shortened texts are equal, the parts in which the values differ are returned instead.
    """
    texts = [_said(value) for value in values]
    return list(texts_apart(str(values[0]), str(values[1]))) if texts[0] == texts[1] else texts


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return escape(brief_repr(value, LONGEST))


def _settings(folder: ModelFolder) -> Mapping[str, Any]:
    if not any(one.name == TOKENIZER and not scheme_of(one.path) for one in folder.files):
        return {}
    with suppress(ConfigError, SourceError):
        return folder.document(TOKENIZER)
    return {}


def normalising_steps(folder: ModelFolder) -> dict[str, Any]:
    """Return {setting: value} for the settings with which a tokenizer.json changes or splits texts.

    They are ``lowercase`` and, if they exist, ``add_prefix_space`` and ``split pattern``. Settings that versions of
    transformers write in different ways are left out: Metaspace, for instance, is a normaliser in some versions and a
    pre-tokeniser in others.
    """
    head = folder.tokenizer_head
    if not head:
        return {}
    normalisers, splitters = list(steps_in(head.get("normalizer"))), list(steps_in(head.get("pre_tokenizer")))
    of_bert = [one for one in normalisers if one.get("type") == "BertNormalizer"]
    bytewise = [one.get("add_prefix_space") for one in splitters if one.get("type") == "ByteLevel"]
    patterns = [str(one["pattern"]) for one in splitters if one.get("type") == "Split" and "pattern" in one]
    found: dict[str, Any] = {
        "lowercase": any(one.get("type") == "Lowercase" for one in normalisers)
        or any(one.get("lowercase") is True for one in of_bert)
    }
    if len(bytewise) == 1 and isinstance(bytewise[0], bool):
        found["add_prefix_space"] = bytewise[0]
    return found | ({"split pattern": patterns[0]} if len(patterns) == 1 else {})
