"""Refuses to copy embedding rows by position from a model with another tokeniser, unless the user asks for it.

"By position" (``--vocab place``) means that row n of a source becomes row n of the output, even if its token differs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...errors import ConfigError, PlanError
from ...planning.encoding_checks import stored_sources
from ...planning.plan.plan import Plan
from ...planning.target import Companion
from ...planning.transplant.by_place import PLACE, is_of_tokens
from ...util.note_kind import NoteKind
from ...util.notes import Note, with_prefix
from ...util.text import brief_repr, escape, listing
from .documents import BYTE_PAIRS
from .embedded_folder import with_embedded_tokens
from .folder import ModelFolder
from .tokenizer.swapped_lists import swapped_lists_error
from .unreadable import vocabulary_fault

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = [
    "ADAPTED", "AVERAGED", "COPIED", "EXTRACTED", "MERGED", "RECIPE", "by_place", "check_place",
    "checked_lists", "checked_rows", "difference", "other_list_notes", "token_note", "with_new_list_checked",
]  # fmt: skip

MERGED = "Use --vocab union (or base, or FILE) to merge rows by token, or --vocab place to merge them by position."
"""Hint of ``ckpt merge``. The next constants are the hints of other commands."""
RECIPE = f"Write tokenizer_source: union (or base, or a model) into the recipe. Or u{MERGED[1:]}"
OF_GGUF = (
    "The tokens of a GGUF file are inside it. To merge rows by token, give them as lists, too: --vocab union (or base, "
    "or FILE) --vocab-keys '{token_embd,output}=0' --tokens MODEL=LIST for each model. Or use --vocab place to merge "
    "them by position."
)
AVERAGED = (
    "Average by token with ckpt merge -m linear --vocab union (or base, or FILE), or by position with --vocab place."
)
COPIED = (
    "Use --vocab SRC_TOKENS:DST_TOKENS to map rows by token, --vocab place to copy them by position, or --exclude them."
)
EXTRACTED = "Use --save-modules to save whole rows, --exclude to omit them, or --vocab place to subtract by position."
ADAPTED = (
    "Save embedding and output layer with the adapter (modules_to_save), or use --vocab place to take rows by position."
)
_BY_TOKEN = ("map", "init", "keep")
"""The operations (``op``) of steps that do not copy rows by position."""


def check_place(vocab: str | None, why: str, remedy: str) -> None:
    """Raise ConfigError if ``vocab`` is neither None nor "place".

    ``why`` is the reason why no other value is valid, and ``remedy`` is the hint.
    """
    if vocab not in (None, PLACE):
        raise ConfigError(f"--vocab is {brief_repr(vocab, 40)}, and only 'place' is valid here: {why}", hint=remedy)


def checked_rows(
    plan: Plan,
    folders: Sequence[ModelFolder],
    *,
    remedy: str,
    donor: int = 0,
    allowed: bool = False,
    declared: Mapping[str, int] | None = None,
) -> Plan:
    """Check that rows copied by position keep their tokens, and return the plan, with notes if necessary.

    ``folders`` are the folders of the sources. The output gets the tokeniser of the source at index ``donor``. The
    tokeniser of each source is compared with the output's tokeniser or, if the output has none, with the first
    tokeniser of a source. PlanError is raised if the two have different tokens for a row that is copied by position, or
    if one of them cannot be read. ``remedy`` is the hint; for merges with a GGUF file, the hint is ``OF_GGUF``. If the
    user asked for such copies (``allowed``), or if the tokenisers are of kinds that cannot be compared, the plan gets a
    note instead. ``declared`` maps keys of tensors to their vocabulary axis.
    """
    folders = [with_embedded_tokens(one) for one in folders]
    made = _made(plan)
    output = next(
        (one for one in (*folders[donor : donor + 1], *folders) if one.tokenizer == made.tokenizer), made
    )  # prefer a folder whose tokens have already been read
    names = [escape(one.name) for one in plan.sources]
    known = [pair for pair in zip((output, *folders), ("the output", *names), strict=False) if pair[0].vocabulary]
    notes = []
    for number, (folder, name) in enumerate(zip(folders, names, strict=False)):
        if not folder.vocabulary:
            continue
        size = (made if output.vocabulary else known[0][0]).rows
        rows = dict(_rows(by_place(plan, number), size, known[0][0].tokens or (), declared or {}))
        told = difference((folder, name), known[0], max(rows.values())) if rows else ""
        is_broken = isinstance(told, Note)
        if (told.startswith("row") or is_broken) and not allowed:
            why = told if is_broken else f"the tokenisers differ ({told})"
            inside = remedy in (MERGED, RECIPE) and any(one.embedded is not None for one in folders)
            raise PlanError(
                f"{why}, but rows would be copied by position, not by token: {listing(list(rows), 3)}.",
                hint=OF_GGUF if inside else remedy, details=list(rows),
            )  # fmt: skip
        notes += [with_prefix("rows are copied by position, but ", told)] if told else []
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def checked_lists(
    plan: Plan, folders: Sequence[ModelFolder], change: NewVocabulary | None, destination: ModelFolder | None = None
) -> Plan:
    """Return a plan with a note if the source's token list in ``--vocab`` differs from the tokeniser in its folder.

    If the folder has no tokeniser, the list is compared with the token ids in its configuration. ``change`` has the two
    token lists of ``--vocab``. ``destination`` is the folder of a destination that is a checkpoint. Raises PlanError if
    the source's list was given as the destination's list.
    """
    notes: list[str] = []
    for source, folder in zip(plan.sources, folders, strict=False):
        if change is None or source.role != "source":
            continue
        given = (change.source.tokens, change.paths[0])
        theirs = folder.tokens if folder.vocabulary else None
        if theirs is None or theirs == change.source.tokens:
            notes += _notes_on_given(folder, given, source.name) if theirs is None else ()
            continue
        if theirs == change.new.tokens:
            raise swapped_lists_error(plan, change, f"the token list of the source {escape(source.name)}", destination)
        notes += other_list_notes(given, theirs, source.name, "--vocab")
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def with_new_list_checked(plan: Plan, change: NewVocabulary) -> Plan:
    """Return a plan with a note if token ids in the output's configuration contradict the new token list.

    The plan is returned unchanged if the output gets a tokeniser: other checks compare the ids with this tokeniser.
    """
    made = _made(plan)
    given = (change.new.tokens, change.paths[1])
    notes = () if made.vocabulary else tuple(_notes_on_given(made, given, "the destination"))
    return replace(plan, notes=(*plan.notes, *notes)) if notes else plan


def _notes_on_given(folder: ModelFolder, given: tuple[Sequence[str], str], model: str) -> Iterator[str]:
    from .tokenizer.given_list import given_list_notes  # few plans need its imports

    return given_list_notes(folder, given, model)


def _made(plan: Plan) -> ModelFolder:
    """Return a folder that has the files that the output of a plan gets."""
    return ModelFolder("", tuple(Companion(one.name, one.path, one.text) for one in plan.target.companions))


def other_list_notes(given: tuple[Sequence[str], str], own: Sequence[str], model: str, option: str) -> Iterator[str]:
    """Yield a note on the first row in which the user's token list and a model's own tokeniser differ.

    ``given`` has the tokens and the path of the user's list, ``own`` the tokens of the model's tokeniser, ``model`` the
    name of the model, and ``option`` the option with the list.
    """
    tokens, path = given
    for row, (one, other) in enumerate(zip(tokens, own, strict=False)):
        if one != other:
            told = (
                f"row {row} is {_token(one)} in {escape(path)} and {_token(other)} in the tokeniser of {escape(model)}"
            )
            yield f"{told}: the list of {option} is used"
            return


def token_note(tuned: ModelFolder, base: ModelFolder, names: tuple[str, str], *, whole: bool) -> list[str]:
    """Return a note for ``lora extract`` if a fine-tuned model has other tokens than its base.

    ``names`` are the names of the two models. ``whole`` is true if the extracted adapter stores the complete fine-tuned
    embedding, not a low-rank difference.
    """
    if not tuned.vocabulary or not base.vocabulary or tuned.has_tokens_of(base):
        return []
    first, second = map(escape, names)
    if whole:
        rows = f"the embedding rows in the adapter belong to the tokens of {first}"
        return [f"{rows}: put the tokeniser of {first} into the adapter's folder"]
    return [f"the tokenisers of {first} and {second} differ: the adapter is for the tokens of {second}"]


def difference(one: tuple[ModelFolder, str], other: tuple[ModelFolder, str], rows: int = sys.maxsize) -> str:
    """Return text on the first row, among the first ``rows``, in which the tokenisers of two folders differ; else ''.

    ``one`` and ``other`` are the folders, each with its name. The text may also say that another token list differs, or
    that a tokeniser cannot be read or compared.
    """
    (folder, name), (output, its_name) = one, other
    if folder.has_tokens_of(output):
        second = folder.other_list(output)
        return f"{second} of {name} differs from that of {its_name}" if second else ""
    for one_folder, its in ((folder, name), (output, its_name)):
        if why := vocabulary_fault(one_folder):
            kind = why.kind if isinstance(why, Note) else NoteKind.OTHER
            return Note(kind, f"the tokeniser of {its} cannot be read: {why}")
    kinds = {folder.vocabulary, output.vocabulary}
    if output.tokens is None or folder.tokens is None or (len(kinds) > 1 and not kinds.isdisjoint(BYTE_PAIRS)):
        return f"the tokenisers of {name} and {its_name} cannot be compared"
    found = _first_other(output, folder, rows)
    if found:
        return f"row {found[0]} is {_token(found[2])} in {name} and {_token(found[1])} in {its_name}"
    lists = ((folder.tokens, name), (output.tokens, its_name))
    (short, its_short), (long, its_long) = sorted(lists, key=lambda one: len(one[0]))
    if len(short) < min(len(long), rows):
        return f"{its_short} has no tokens from row {len(short)} on, but {its_long} has {_token(long[len(short)])}"
    return ""


def by_place(plan: Plan, source: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (key, shape) of each tensor in which a plan copies row n of the source to row n of the output.

    Tensors that are resized because of ``on_mismatch`` are left out, because there is another note on them. For a
    factor of an adapter, the key and the shape of the adapted tensor are returned.
    """
    stored = stored_sources(plan)
    for step in (one.numbers for one in plan.steps):
        taken = step.op not in _BY_TOKEN and not step.policy
        key, shape = (step.key, step.shape) if step.factor is None else (step.source_key, step.source_shape)
        if taken and any(stored[one.source] == source and one.shape == shape for one in step.inputs):
            yield key, shape


def _rows(
    shapes: Iterable[tuple[str, tuple[int, ...]]], size: int, tokens: Sequence[str], declared: Mapping[str, int]
) -> Iterator[tuple[str, int]]:
    """Yield (key, number of rows) of each tensor in ``shapes`` that has a row for each token.

    ``shapes`` has pairs (key, shape). ``declared`` maps the keys of some of these tensors to their vocabulary axis.
    Other tensors are recognised by their name and their size. ``size`` is the vocabulary size, and ``tokens`` are the
    tokens of the tokeniser.
    """
    for key, shape in shapes:
        axis = declared.get(key, 0)
        if axis < len(shape) and (key in declared or is_of_tokens(key, len(shape))):
            rows = shape[axis]
            if rows == size or rows >= len(tokens):
                yield key, rows


def _first_other(output: ModelFolder, folder: ModelFolder, rows: int) -> tuple[int, str, str] | None:
    """Return (row, token in ``output``, token in ``folder``) for the first row whose token differs, else None.

    If one list is shorter, its token is ''. The end of a list counts as a difference only if the list is from
    ``tokenizer.json``: other files do not list added tokens.
    """
    mine, theirs = output.tokens or (), folder.tokens or ()
    for place, (one, other) in enumerate(zip(mine[:rows], theirs, strict=False)):
        if one != other:
            return place, one, other
    if folder.has_all_tokens and len(theirs) < min(len(mine), rows):
        return len(theirs), mine[len(theirs)], ""
    if output.has_all_tokens and len(mine) < min(len(theirs), rows):
        return len(mine), "", theirs[len(mine)]
    return None


def _token(token: str) -> str:
    return escape(brief_repr(token, 24)) if token else "no token"
