"""Gives a model another vocabulary: another tokeniser (rows move with their tokens), or another number of rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...errors import ConfigError, PlanError
from ...planning.resizing.change import Change
from ...planning.resizing.fields import role_of
from ...util.text import count, escape
from ...vocabulary.beside_model import tokens_beside
from ...vocabulary.replacement import NewVocabulary
from ..model_folder.tokenizer.used_ids import AT_LARGEST, LARGEST
from ..transplant.donor.choice import donor_choice
from ..transplant.vocabulary import new_vocabulary, vocabulary_options
from .arguments import at_path
from .number_limits import MOST
from .rows_by_place import by_place
from .trimming.trim import trimmed
from .vocabulary_choices import FIELD, FILLED, KEPT, VocabularyChoices, VocabularyStep, field_of

__all__ = ["read_at_largest", "vocabulary_step"]


def vocabulary_step(base: Resizable, fields: Mapping[str, Any], choices: VocabularyChoices) -> VocabularyStep | None:
    """Return the change of the vocabulary that the user asks for; None if there is none.

    ``fields`` are the fields that the user sets. Raises ConfigError if options do not fit together or a token list
    cannot be read, PlanError if a token list is not the model's.
    """
    if choices.pad_to < 1:
        raise ConfigError(f"--pad-to {choices.pad_to} is not a number above 0.")
    if choices.pad_to > MOST["vocabulary"]:
        raise ConfigError(
            f"--pad-to is too large: ckpt makes at most {MOST['vocabulary']:,} rows.",
            hint="Use a smaller number, such as 64.",
        )
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
        return by_place(base, fields, path, choices.new)
    if choices.pad_to > 1 or choices.new != "init" or choices.spelled:
        raise ConfigError(
            "--pad-to, --new-tokens and --token-map have no effect without another vocabulary.",
            hint="Give a new tokeniser with --tokenizer. If you use --set vocab_size=N, leave out --pad-to and "
            "--token-map: N is the exact number of rows.",
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
    said += f", {made} {'is' if made == 1 else 'are'} new" if made else ""
    return VocabularyStep({path: padded}, replace(found, own=(True, True)), Change(said, True, equal=KEPT), new, lists)


def _by_corpus(base: Resizable, fields: Mapping[str, Any], choices: VocabularyChoices) -> VocabularyStep:
    """Return the change to a smaller vocabulary: only the tokens that a corpus uses.

    Raises ConfigError for options that add tokens, and the errors of ``trimmed``.
    """
    if choices.spelled or choices.new not in FILLED or choices.donor or choices.picks is not None:
        raise ConfigError(
            "--trim adds no tokens, so --token-map, --donor, --omp-k, and --new-tokens subword or omp have no effect.",
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


def _size(base: Resizable, fields: Mapping[str, Any], option: str) -> tuple[str, int]:
    """Return the path of the field with the number of rows, and its value.

    Raises ConfigError, which names ``option``, if there is no such field, or if the user sets it.
    """
    path, rows = field_of(base)
    if not path:
        raise ConfigError(f"config.json has no field {FIELD}, so {option} has no effect.", hint=f"Leave {option} out.")
    if path in fields:
        raise ConfigError(
            f"--set {path} and {option} both determine the number of rows.",
            hint="Leave --set out: --pad-to rounds the number of rows up to a multiple.",
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
    """Return the file with the tokens of a tokeniser; ``path`` is its folder, or this file.

    Raises ConfigError if the folder has no token list that can be read.
    """
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
            f"{path} is 2: with this value, {base.fields()['model_type']} reads the features of a text at the token "
            "with the largest id. In the new tokeniser, this may not be the token that ends a text.",
            hint=f"Set the field to the new id of the token that ends a text: --set {path}=ID.",
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
