"""Rows that go by place under another tokeniser, each for another token: an error, unless it was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ...errors import ConfigError, PlanError
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...planning.transplant.by_place import is_of_tokens
from ...util.text import brief_repr, escape, listing
from ...vocabulary.replacement import NewVocabulary
from .checks import vocabulary_fault
from .documents import BYTE_PAIRS
from .folder import ModelFolder

__all__ = [
    "ADAPTED", "AVERAGED", "COPIED", "EXTRACTED", "MERGED", "PLACE", "RECIPE", "check_place", "checked_lists",
    "checked_rows", "difference", "token_note",
]  # fmt: skip

PLACE = "place"
"""What ``--vocab`` says if rows are to go by place, whatever their tokens are."""
MERGED = "--vocab union (or base, or FILE) merges rows by token, --vocab place by place."
"""What to do in a merge."""
RECIPE = f"Write tokenizer_source: union (or base, or a model) into it; or {MERGED}"
AVERAGED = "ckpt merge -m linear --vocab union (or base, or FILE) averages rows by token, --vocab place by place."
COPIED = "--vocab SRC_TOKENS:DST_TOKENS maps rows by token, --vocab place copies them by place; or --exclude them."
EXTRACTED = "--save-modules saves rows whole, --exclude leaves them out, --vocab place subtracts them by place."
ADAPTED = "Save embedding and output layer with the adapter (modules_to_save); --vocab place takes rows by place."
BROKEN = "the tokeniser of "
"""How it begins that one is broken: nobody knows its rows."""
_BY_TOKEN = ("map", "init", "keep")
"""Steps that take no rows by place."""


def check_place(vocab: str | None, why: str, remedy: str) -> None:
    """Raise ConfigError for anything but place where rows cannot go by token."""
    if vocab not in (None, PLACE):
        raise ConfigError(f"vocab is {brief_repr(vocab, 40)}: {why}", hint=remedy)


def checked_rows(
    plan: Plan,
    folders: Sequence[ModelFolder],
    *,
    remedy: str,
    said: bool = False,
    declared: Mapping[str, int] | None = None,
) -> Plan:
    """Return a plan whose rows of a vocabulary are those of the tokens that its output's tokeniser gives them.

    ``folders`` are those of its sources; if the output has no tokeniser, the first that has one counts. Raises
    PlanError with the ``remedy`` if another has other tokens and its rows go by place, unless this was ``said``: then
    there is a note, as for tokenisers that cannot be compared. ``declared`` maps keys to the axis of the vocabulary.
    """
    made = ModelFolder("", tuple(Companion(one.name, one.path, one.text) for one in plan.target.companions))
    output = next((one for one in folders if one.tokenizer == made.tokenizer), made)  # which has been read
    names = [escape(one.name) for one in plan.sources]
    known = [pair for pair in zip((output, *folders), ("the output", *names), strict=False) if pair[0].vocabulary]
    notes = []
    for number, (folder, name) in enumerate(zip(folders, names, strict=False)):
        if not folder.vocabulary:
            continue
        size = (made if output.vocabulary else known[0][0]).rows
        rows = dict(_rows(_by_place(plan, number), size, known[0][0].tokens or (), declared or {}))
        told = difference((folder, name), known[0], max(rows.values())) if rows else ""
        if told.startswith(("row", BROKEN)) and not said:
            why = told if told.startswith(BROKEN) else f"the tokenisers differ ({told})"
            raise PlanError(
                f"{why}, and rows would go by place: {listing(list(rows), 3)}.",
                hint=remedy, details=list(rows),
            )  # fmt: skip
        notes += [f"rows go by place, and {told}"] if told else []
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def checked_lists(plan: Plan, folders: Sequence[ModelFolder], change: NewVocabulary | None) -> Plan:
    """Return a plan with a note where the source's list of ``--vocab`` is not the tokeniser beside a source.

    Raises PlanError if the two lists are named the other way round.
    """
    notes = []
    for source, folder in zip(plan.sources, folders, strict=False):
        theirs = folder.tokens if change is not None and folder.vocabulary and source.role == "source" else None
        if change is None or theirs is None or theirs == change.source.tokens:
            continue
        old, new = map(escape, change.paths)
        if theirs == change.new.tokens:
            raise PlanError(
                f"--vocab names {new} as the new list, and it is that of {escape(source.name)}.",
                hint=f"Name the source's first: --vocab {new}:{old}.",
            )
        pairs = enumerate(zip(change.source.tokens, theirs, strict=False))
        found = next(((row, ours, own) for row, (ours, own) in pairs if ours != own), None)
        if found is not None:
            row, ours, own = found
            told = f"row {row} is {_token(ours)} in {old} and {_token(own)} in the tokeniser of {escape(source.name)}"
            notes.append(f"{told}: the list counts")
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def token_note(tuned: ModelFolder, base: ModelFolder, names: tuple[str, str], *, whole: bool) -> list[str]:
    """Say that the tuned network of an adapter has other tokens than its base; ``whole`` if its rows go along."""
    if not tuned.vocabulary or not base.vocabulary or tuned.has_tokens_of(base):
        return []
    first, second = map(escape, names)
    if whole:
        return [f"the rows that go along are those of {first}'s tokens: its tokeniser belongs beside the adapter"]
    return [f"the tokenisers of {first} and {second} differ: the adapter is for the tokens of {second}"]


def difference(one: tuple[ModelFolder, str], other: tuple[ModelFolder, str], rows: int = sys.maxsize) -> str:
    """Say in what the tokenisers of two named folders differ, '' if in nothing."""
    (folder, name), (output, its_name) = one, other
    if folder.has_tokens_of(output):
        second = folder.other_list(output)
        return f"{second} of {name} and that of {its_name} differ" if second else ""
    for one_folder, its in ((folder, name), (output, its_name)):
        if why := vocabulary_fault(one_folder):
            return f"{BROKEN}{its} cannot be read: {why}"
    kinds = {folder.vocabulary, output.vocabulary}
    if output.tokens is None or folder.tokens is None or (len(kinds) > 1 and not kinds.isdisjoint(BYTE_PAIRS)):
        return f"the tokenisers of {name} and {its_name} cannot be compared"
    found = _first_other(output, folder, rows)
    if found:
        return f"row {found[0]} is {_token(found[2])} in {name} and {_token(found[1])} in {its_name}"
    number = len(folder.tokens)
    if number < min(len(output.tokens), rows):
        return f"{name} has no token from row {number} on, where {its_name} has {_token(output.tokens[number])}"
    return ""


def _by_place(plan: Plan, source: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield tensors of which rows of a source are taken by place; a policy for shapes says itself that it does.

    Those that are made of them have their key and shape; of factors, it is the tensors whose difference they are of.
    """
    for step in plan.steps:
        taken = step.op not in _BY_TOKEN and not step.policy
        key, shape = (step.key, step.shape) if step.factor is None else (step.source_key, step.source_shape)
        if taken and any(one.source == source and one.shape == shape for one in step.inputs):
            yield key, shape


def _rows(
    taken: Iterable[tuple[str, tuple[int, ...]]], size: int, tokens: Sequence[str], declared: Mapping[str, int]
) -> Iterator[tuple[str, int]]:
    """Yield tensors that have a row for each token of the output, and how many: as declared, or by name and length."""
    for key, shape in taken:
        axis = declared.get(key, 0)
        if axis < len(shape) and (key in declared or is_of_tokens(key, len(shape))):
            rows = shape[axis]
            if rows == size or rows >= len(tokens):
                yield key, rows


def _first_other(output: ModelFolder, folder: ModelFolder, rows: int) -> tuple[int, str, str] | None:
    """Return the first row whose token is another in a folder, and both tokens; '' for one that it does not have.

    Of the files of a tokeniser only ``tokenizer.json`` is known to have all tokens; a row beyond those of the output is
    that of no token there.
    """
    mine, theirs = output.tokens or (), folder.tokens or ()
    for place, (one, other) in enumerate(zip(mine[:rows], theirs, strict=False)):
        if one != other:
            return place, one, other
    if folder.has_all_tokens and len(theirs) < min(len(mine), rows):
        return len(theirs), mine[len(theirs)], ""
    return None


def _token(token: str) -> str:
    return escape(brief_repr(token, 24)) if token else "no token"
