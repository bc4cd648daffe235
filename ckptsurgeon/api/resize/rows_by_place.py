"""Gives a model another number of embedding rows: rows are added or removed at the end, and no token moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...destinations.hf.files import CONFIG
from ...destinations.hf.resizable import Resizable
from ...errors import ConfigError, PlanError
from ...planning.plan.rows import VocabularyRows
from ...planning.resizing.change import Change
from ...planning.transplant.vocabulary import VocabularyOptions
from ...util.text import brief_repr, count, escape
from ...vocabulary.renumbered_ids import moved_ids
from ...vocabulary.renumbering import Renumbering
from ...vocabulary.replacement import tokens_at
from .number_limits import check_size
from .vocabulary_choices import FIELD, FILLED, KEPT, VocabularyStep, field_of

__all__ = ["by_place"]


def by_place(base: Resizable, fields: Mapping[str, Any], path: str, new: str) -> VocabularyStep:
    """Return the change to another number of rows: rows are added or removed at the end.

    ``path`` is the path of the field with the number of rows, and ``new`` says how added rows are filled. Raises
    ConfigError if the new number or ``new`` is not valid, PlanError if the row of a token would be cut.
    """
    own, old = field_of(base)
    size = fields[path]
    if path != own:
        raise ConfigError(
            f"--set {escape(path)} does not set the number of embedding rows: "
            f"{f'the field {own} does' if own else 'no field does'}."
        )
    if type(size) is not int or size < 1:
        raise ConfigError(f"--set {path}={brief_repr(size)} is not a whole number above 0.")
    check_size(path, size)
    if size == old:
        raise ConfigError(f"--set {path}={size}: this field has this value already.", hint="Leave this field out.")
    if new not in FILLED:
        raise ConfigError(
            f"--new-tokens {escape(new)} fills the rows of new tokens, but the rows that are added here have no "
            "tokens.",
            hint=f"Use {', '.join(FILLED)}.",
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
