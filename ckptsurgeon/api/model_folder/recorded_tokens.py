"""Notes on rows that are copied by position, although the source was made for other tokens than the destination."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ...checkpoint.checkpoint import Checkpoint
from ...errors import CheckpointError
from ...formats.base.header import FilePrint
from ...planning.plan.plan import Plan
from ...planning.recipe import Recipe, folder_of_recipe
from ...planning.recipe_text import parse_recipe
from ...planning.target import TargetSpec
from ...storage.small_files import read_file
from ...util.text import brief_repr, escape
from ...vocabulary.read import VOCABULARY_BYTES, read_vocabulary, vocabulary_of
from .rows_by_place import by_place

__all__ = ["other_tokens", "with_recorded_tokens_said"]


def with_recorded_tokens_said(plan: Plan, sources: Sequence[Checkpoint], target: TargetSpec) -> Plan:
    """Return the plan with a note on each source whose rows are copied by position, but were made for other tokens."""
    notes = []
    for number, one in enumerate(sources if _list_of(target) else ()):
        if one.recipe is None or not any(key in target.vocabulary for key, _ in by_place(plan, number)):
            continue
        with suppress(CheckpointError):  # ckpt verify reports a damaged recipe
            notes.append(other_tokens(parse_recipe(one.recipe), one.path, target))
    said = [f"rows are copied by position, but {note}" for note in notes if note]
    return replace(plan, notes=(*plan.notes, *said)) if said else plan


def other_tokens(recipe: Recipe, path: str, target: TargetSpec) -> str:
    """Return how the token list of a checkpoint differs from that of a destination, and a remedy; '' if it does not.

    ``recipe`` is the recipe of the checkpoint at ``path``. It records the SHA-256 of the token list, so the lists are
    compared even if the checkpoint's list no longer exists.
    """
    own, recorded = _list_of(target), _recorded_list(recipe)
    if not own or recorded is None or recipe.target.kind != target.kind:
        return ""
    try:
        data = read_file(own, VOCABULARY_BYTES)
        if hashlib.sha256(data).hexdigest() == recorded.sha256:
            return ""
        tokens = vocabulary_of(os.path.basename(own), data).tokens
        there = os.path.normpath(os.path.join(folder_of_recipe(path), recorded.name))
        theirs = read_vocabulary(there).tokens if _is_unchanged(there, recorded) else None
    except (CheckpointError, OSError):
        return ""
    return "" if theirs == tokens else _told((path, there, theirs), (own, tokens))


def _list_of(target: TargetSpec) -> str:
    """Return the path of a destination's token list; '' if it is not known, or if --vocab gives another list."""
    files = [file for file in target.files if file != target.config]
    return files[0] if len(files) == 1 and target.vocabulary and not target.lists else ""


def _recorded_list(recipe: Recipe) -> FilePrint | None:
    """Return name, size and SHA-256 of the token list for which a checkpoint was made; None if it is not recorded."""
    files = [file for file in recipe.target.files if file.name != recipe.target.config]
    if len(files) != 1:
        return None
    is_replaced = recipe.rows is not None and recipe.rows.destination != os.path.basename(files[0].name)
    return None if is_replaced else files[0]


def _is_unchanged(path: str, recorded: FilePrint) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) != recorded.size or recorded.size > VOCABULARY_BYTES:
        return False
    return hashlib.sha256(read_file(path, VOCABULARY_BYTES)).hexdigest() == recorded.sha256


def _told(source: tuple[str, str, Sequence[str] | None], own: tuple[str, Sequence[str]]) -> str:
    """Return the difference of two lists in words, with a remedy.

    ``source`` has the paths of the checkpoint and of its list, and the list's tokens (None if the file is gone).
    ``own`` has the path and the tokens of the destination's list.
    """
    (path, there, theirs), (here, tokens) = source, own
    name = escape(os.path.basename(path))
    lists = f"--vocab {escape(_short(there))}:{escape(_short(here))}"
    if theirs is None:
        return (
            f"{name} was made for the token list {escape(os.path.basename(there))}, which is missing or has changed, "
            f"not for {escape(os.path.basename(here))}: use --vocab SRC_TOKENS:DST_TOKENS"
        )
    row = next((at for at, (one, other) in enumerate(zip(tokens, theirs, strict=False)) if one != other), None)
    if row is None:
        return f"{name} was made for {len(theirs)} tokens, not {len(tokens)}: use {lists}"
    return (
        f"{name} was made for the token list {escape(os.path.basename(there))}, in which row {row} is "
        f"{_token(theirs[row])}, not {_token(tokens[row])} as in {escape(os.path.basename(here))}: use {lists}"
    )


def _short(path: str) -> str:
    """Return a path relative to the working directory if it is below that, else the path as it is."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def _token(token: str) -> str:
    return escape(brief_repr(token, 24))
