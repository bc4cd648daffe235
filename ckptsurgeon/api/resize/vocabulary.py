"""Gives a model another vocabulary: another tokeniser (rows move with their tokens), or another number of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...destinations.hf.files import CONFIG
from ...destinations.hf.resizable import Resizable
from ...errors import ConfigError, PlanError
from ...planning.plan.rows import VocabularyRows
from ...planning.resizing.change import Change
from ...planning.resizing.fields import role_of
from ...planning.transplant.vocabulary import VocabularyOptions
from ...util.text import brief_repr, count, escape
from ...vocabulary.read import tokens_beside
from ...vocabulary.renumbered_ids import Renumbering, moved_ids
from ...vocabulary.replacement import NewVocabulary, tokens_at
from ..inputs.argument_types import Rules
from ..model_folder.tokenizer.used_ids import AT_LARGEST, LARGEST
from ..transplant.donor.choice import DonorChoice, donor_choice
from ..transplant.vocabulary import new_vocabulary, vocabulary_options
from .arguments import at_path
from .trimming.trim import trimmed

__all__ = ["VocabularyChoices", "VocabularyStep", "read_at_largest", "vocabulary_step"]

FIELD = "vocab_size"
FILLED = ("init", "mean", "zero")
"""The ways to fill rows that have no token."""
KEPT = "the outputs for kept tokens"
"""In notes: the outputs that stay equal if rows of tokens are copied and all other rows are new or left out."""


@dataclass(frozen=True)
class VocabularyChoices:
    """What the user chose: the values of ``--tokenizer``, ``--pad-to``, ``--new-tokens`` and ``--token-map``.

    ``corpora`` are the files of ``--trim``; ``keeps_special`` is false with ``--no-keep-special``. ``donor`` and
    ``picks`` are the values of ``--donor`` and ``--omp-k``.
    """

    tokenizer: str = ""
    corpora: Sequence[str] = ()
    keeps_special: bool = True
    pad_to: int = 1
    new: str = "init"
    spelled: Rules = ()
    donor: str = ""
    picks: int | None = None


@dataclass(frozen=True)
class VocabularyStep:
    """The change of a vocabulary: new values of fields, options of the planner, and texts of notes.

    ``new`` is the vocabulary that replaces the source's; None if the tokens stay the same. ``lists`` are its files.
    ``donor`` is the model from which new rows are made, if one is.
    """

    fields: Mapping[str, Any]
    options: VocabularyOptions
    change: Change
    new: NewVocabulary | None = None
    lists: tuple[str, ...] = ()
    donor: DonorChoice | None = None


def vocabulary_step(base: Resizable, fields: Mapping[str, Any], choices: VocabularyChoices) -> VocabularyStep | None:
    """Return the change of the vocabulary that the user asks for; None if there is none.

    ``fields`` are the fields that the user sets. Raises ConfigError if options do not fit together or a token list
    cannot be read, PlanError if a token list is not the model's.
    """
    if choices.pad_to < 1:
        raise ConfigError(f"--pad-to {choices.pad_to} is not a number above 0.")
    if choices.tokenizer and choices.corpora:
        raise ConfigError("--tokenizer and --trim cannot be used together.", hint="Leave one of the two out.")
    if not (choices.corpora or choices.keeps_special):
        raise ConfigError("--no-keep-special has no effect without --trim.", hint="Leave it out.")
    if choices.corpora:
        return _by_corpus(base, fields, choices)
    donor = donor_choice(choices.new, choices.tokenizer, choices.donor, choices.picks)
    if choices.tokenizer:
        return replace(_by_token(base, fields, choices), donor=donor)
    path = next((name for name in fields if role_of(name) == "vocabulary"), "")
    if path and not (choices.pad_to > 1 or choices.spelled):
        return _by_place(base, fields, path, choices.new)
    if choices.pad_to > 1 or choices.new != "init" or choices.spelled:
        raise ConfigError(
            "--pad-to, --new-tokens and --token-map have no effect without another vocabulary.",
            hint="Name the new tokeniser with --tokenizer. --set vocab_size=N is the exact number of rows.",
        )
    return None


def _by_token(base: Resizable, fields: Mapping[str, Any], choices: VocabularyChoices) -> VocabularyStep:
    path, rows = _size(base, fields, "--tokenizer")
    lists = _own_list(base), _list_of(choices.tokenizer)
    new = new_vocabulary(lists, choices.spelled)
    assert new is not None
    _check_lists(new, rows)
    _check_ends(base, fields)
    found = vocabulary_options(new, keys=(), new=choices.new, spelled=choices.spelled)
    assert found is not None
    padded = _padded(len(new.new.tokens), choices.pad_to)
    kept = found.rows.kept
    said = f"{path} {rows} to {padded}: {count(kept, 'token')} of {len(new.source.tokens)} keep their rows"
    made = found.rows.composed + found.rows.fresh
    said += f", {made} are new" if made else ""
    return VocabularyStep({path: padded}, replace(found, own=(True, True)), Change(said, True, equal=KEPT), new, lists)


def _by_corpus(base: Resizable, fields: Mapping[str, Any], choices: VocabularyChoices) -> VocabularyStep:
    """Return the change to a smaller vocabulary: only the tokens that a corpus uses."""
    if choices.spelled or choices.new not in FILLED or choices.donor or choices.picks is not None:
        raise ConfigError(
            "--trim adds no tokens, so --token-map, --new-tokens subword and omp, --donor and --omp-k have no effect.",
            hint="Leave them out.",
        )
    path, rows = _size(base, fields, "--trim")
    ends = read_at_largest(base)
    new, kept = trimmed(base, _own_list(base), choices.corpora, keeps_special=choices.keeps_special, largest=bool(ends))
    _check_rows(new, rows)
    found = vocabulary_options(new, keys=(), new=choices.new, spelled=())
    assert found is not None
    padded = _padded(len(kept.tokens), choices.pad_to)
    groups = ", ".join(f"{number} {name}" for name, number in kept.counts.items() if number)
    said = (
        f"{path} {rows} to {padded}: {len(kept.tokens)} of {count(len(new.source.tokens), 'token')} are left ({groups})"
    )
    stays = {ends: 2} if ends and ends not in fields else {}  # the end token still has the largest id
    return VocabularyStep(
        {path: padded, **stays}, replace(found, own=(True, True)), Change(said, True, equal=KEPT), new,
        (new.paths[0], *choices.corpora),
    )  # fmt: skip


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _by_place(base: Resizable, fields: Mapping[str, Any], path: str, new: str) -> VocabularyStep:
    """Return the change to another number of rows: rows are added or removed at the end.

    ``path`` is the path of the field with the number of rows, and ``new`` says how added rows are filled.
    """
    own, old = _field(base)
    size = fields[path]
    if path != own:
        raise ConfigError(
            f"--set {escape(path)} does not set the number of embedding rows, which is in {own or 'no field'}."
        )
    if type(size) is not int or size < 1:
        raise ConfigError(f"--set {path}={brief_repr(size)} is not a number above 0.")
    if size == old:
        raise ConfigError(f"--set {path}={size}: it has this value already.", hint="Leave this field out.")
    if new not in FILLED:
        raise ConfigError(
            f"--new-tokens {escape(new)} cannot fill rows that have no token.", hint=f"Use {', '.join(FILLED)}."
        )
    tokens = tokens_at(base.folder)
    listed = len(tokens.tokens) if tokens is not None else 0
    _check_cut(base, fields, size, old, listed)
    more = max(0, size - old)
    name = tokens.name if tokens is not None else CONFIG
    rows = VocabularyRows(
        name,
        name,
        old,
        (*range(min(old, size)), *(None,) * more),
        new,
        padded=more,
        unlisted=max(0, old - listed) % old,
    )
    said = f"{path} {old} to {size}: {count(more, 'row')} added at the end ({new})"
    if not more:
        by = (
            f"none of them has a token: the tokeniser has {listed} tokens"
            if listed
            else "without regard to tokens, because there is no tokeniser"
        )
        said = f"{path} {old} to {size}: {count(old - size, 'row')} cut off the end ({by})"
    return VocabularyStep({}, VocabularyOptions(rows, own=(True, True)), Change(said, True, equal=KEPT))


def _check_cut(base: Resizable, fields: Mapping[str, Any], size: int, old: int, listed: int) -> None:
    """Raise PlanError if the row of a token would be cut, ConfigError for the row of an id in the configuration.

    ``size`` is the new number of rows, ``old`` the old one, and ``listed`` the number of tokens.
    """
    if size >= old:
        return
    if size < listed:
        raise PlanError(
            f"with {FIELD}={size}, {count(listed - size, 'token')} would lose their rows: the tokeniser has "
            f"{count(listed, 'token')}.",
            hint=f"Keep {listed} rows or more.",
        )
    given = frozenset(name.rpartition(".")[2] for name in fields)
    ids = moved_ids(base.fields(), Renumbering.first(size, old), fixed=given).lost
    if ids:
        raise ConfigError(
            f"{escape(ids[0].field)} is {ids[0].number}, a row that would be cut.",
            hint=f"Keep more rows, or set another id: --set {escape(ids[0].field)}=ID.",
        )


def _field(base: Resizable) -> tuple[str, int]:
    """Return the path of the field with the number of rows, and its value; ("", 0) if there is none."""
    given = base.fields()
    names = (f"text_config.{FIELD}", base.main_name(FIELD))  # with a text_config, PaliGemma's own field has no effect
    path = next((name for name in names if type(at_path(given, name)) is int), "")
    return path, at_path(given, path) if path else 0


def _size(base: Resizable, fields: Mapping[str, Any], option: str) -> tuple[str, int]:
    """Return the path of the field with the number of rows, and its value.

    Raises ConfigError, which names ``option``, if there is no such field, or if the user sets it.
    """
    path, rows = _field(base)
    if not path:
        raise ConfigError(f"config.json has no field {FIELD}, so {option} has no effect.", hint=f"Leave {option} out.")
    if path in fields:
        raise ConfigError(
            f"--set {path} and {option} both determine the number of rows.",
            hint="Leave --set out; --pad-to adds rows up to a multiple.",
        )
    return path, rows


def _own_list(base: Resizable) -> str:
    try:
        return tokens_beside(base.path)
    except ConfigError:
        raise ConfigError(
            f"there is no tokeniser next to {escape(base.path)}, so ckpt does not know which embedding row belongs to "
            "which token.",
            hint="Put the tokeniser of the model into its folder (tokenizer.json, vocab.txt, tokenizer.model ...).",
        ) from None


def _list_of(path: str) -> str:
    """Return the file with the tokens of a tokeniser; ``path`` is its folder, or this file."""
    if not os.path.isdir(path):
        return path
    try:
        return tokens_beside(path)
    except ConfigError:
        raise ConfigError(
            f"there is no token list in the folder {escape(path)} that can be read.",
            hint="Name the file: tokenizer.json, vocab.txt, vocab.json, tekken.json, *.model or *.tiktoken.",
        ) from None


def read_at_largest(base: Resizable) -> str:
    """Return the path of the field ``eos_token_id`` of a CLIP model if its value is 2; else ''.

    With the value 2, CLIP takes the features of a text at the token with the largest id, not at the end token.
    """
    given = base.fields()
    found = next((path for path in ("text_config.eos_token_id", "eos_token_id") if at_path(given, path) == LARGEST), "")
    return found if given.get("model_type") in AT_LARGEST else ""


def _check_ends(base: Resizable, fields: Mapping[str, Any]) -> None:
    path = read_at_largest(base)
    if path and path not in fields:
        raise ConfigError(
            f"{path} is 2: with this value, {base.fields()['model_type']} takes the features of a text at its largest "
            "token id. In the new tokeniser, the token that ends a text may not have the largest id.",
            hint=f"Set it to the new id of the token that ends a text: --set {path}=ID.",
        )


def _check_lists(new: NewVocabulary, rows: int) -> None:
    first, second = map(escape, new.paths)
    if new.source.tokens == new.new.tokens:
        raise ConfigError(
            f"{second} has the same tokens in the same order as the model's own {first}.",
            hint="Name another tokeniser. To add rows only, use --set vocab_size=N.",
        )
    _check_rows(new, rows)


def _check_rows(new: NewVocabulary, rows: int) -> None:
    """Raise PlanError if the model's own tokeniser has more tokens than the model has rows."""
    old = new.source.tokens
    if len(old) > rows:
        raise PlanError(
            f"{escape(new.paths[0])} has {count(len(old), 'token')}, but the model has {rows} rows, so it is not the "
            "model's tokeniser.",
            hint="Put the model's own tokeniser into its folder.",
        )
