"""Compares token lists with the list in a source's recipe, or in the lineage.json of the source's training run.

The list of a copy or a mean of such checkpoints is found through the sources in its recipe.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...destinations._document import read_document
from ...errors import CheckpointError
from ...formats.base.header import FilePrint
from ...planning.plan.files import PlanSource, given_sources
from ...planning.plan.plan import Plan
from ...planning.recipe import Recipe
from ...planning.recipe_text import folder_of_recipe
from ...planning.target import TargetSpec
from ...storage.json_text import read_json
from ...storage.read.uri import scheme_of
from ...storage.small_files import read_file
from ...util.text import brief_repr, escape
from ...vocabulary.vocabulary import VOCABULARY_BYTES, digest_of_tokens, read_vocabulary, vocabulary_of
from ..inputs.stored_recipes import COPIES, MIXES, stored_recipe
from .folder import ModelFolder
from .rows_by_place import by_place
from .tokenizer.swapped_lists import swapped_lists_error

if TYPE_CHECKING:
    from ...vocabulary.replacement import NewVocabulary

__all__ = [
    "TrainedList", "lists_for_vocab", "other_tokens", "run_of", "trained_list", "with_other_lists_said",
    "with_recorded_tokens_said",
]  # fmt: skip


@dataclass(frozen=True)
class RecordedList:
    """The token list for which a checkpoint was made, or with which it was trained.

    ``model`` is the checkpoint's name; ``path`` is the list's path, or '' if unknown. If the list is missing or has
    changed, ``tokens`` is None, and ``digest`` is compared: the SHA-256 of the file or, if ``trained`` is true, of the
    tokens. ``kind`` is the ``TargetSpec.kind`` of the checkpoint's destination.
    """

    model: str
    path: str
    tokens: Sequence[str] | None
    digest: str
    kind: str
    trained: bool = False

    def is_list(self, path: str, tokens: Sequence[str]) -> bool:
        """Return whether the list with these ``tokens`` in the file at ``path`` is the recorded list."""
        if self.tokens is not None or self.trained:
            return self.tokens == tokens or (self.trained and self.digest == digest_of_tokens(tokens))
        with suppress(CheckpointError, OSError):
            return hashlib.sha256(read_file(path, VOCABULARY_BYTES)).hexdigest() == self.digest
        return False


def with_recorded_tokens_said(
    plan: Plan,
    sources: Sequence[Checkpoint],
    target: TargetSpec,
    folders: Sequence[ModelFolder] = (),
    change: NewVocabulary | None = None,
    destination: ModelFolder | None = None,
) -> Plan:
    """Return the plan with a note on each source whose rows get other tokens than it was made or trained for.

    Without ``change`` (``--vocab``), there is a note on rows that are copied by position to a destination with another
    token list. With ``change``, the source's list in ``--vocab`` is compared with the recorded list. It is not compared
    if the source's folder has a tokeniser, which has already been compared with the lists in ``--vocab``.
    ``destination`` is the folder of a destination that is a checkpoint. Raises PlanError if the source's list was given
    as the destination's list.
    """
    notes = []
    for number, one in enumerate(sources):
        if one.in_memory:
            continue
        if change is not None:
            beside = number < len(folders) and folders[number].tokens is not None
            notes.append(
                ""
                if beside
                else _other_list(plan, _recorded(stored_recipe(one), one.path), change, target, destination)
            )
        elif _list_of(target) and any(key in target.vocabulary for key, _ in by_place(plan, number)):
            told = other_tokens(stored_recipe(one), one.path, target)
            notes.append(told and f"rows are copied by position, but {told}")
    said = tuple(note for note in notes if note)
    return replace(plan, notes=(*plan.notes, *said)) if said else plan


def with_other_lists_said(plan: Plan, sources: Sequence[Checkpoint]) -> Plan:
    """Return the plan of an average or merge by position, with notes on models that were made for other tokens.

    The models are compared with the first of ``sources`` whose list is recorded.
    """
    known = [
        replace(found, model=one.path)
        for one in sources
        if not one.in_memory and (found := _recorded(stored_recipe(one), one.path)) is not None
    ]
    if len(known) < 2:
        return plan
    notes = [
        f"rows are combined by position, but {_apart(known[0], one)}" for one in known[1:] if not _alike(known[0], one)
    ]
    return replace(plan, notes=tuple(dict.fromkeys((*plan.notes, *notes)))) if notes else plan


def _alike(one: RecordedList, other: RecordedList) -> bool:
    """Return whether two lists have the same tokens; also true if that is not known."""
    if one.tokens is not None and other.tokens is not None:
        return one.tokens == other.tokens
    digests = [digest_of_tokens(found) if (found := each.tokens) else each.digest for each in (one, other)]
    known = all(each.trained or each.tokens for each in (one, other))
    return digests[0] == digests[1] or not known


def _apart(one: RecordedList, other: RecordedList) -> str:
    told = f"{escape(one.model)} and {escape(other.model)} have different token lists"
    pairs = enumerate(zip(one.tokens or (), other.tokens or (), strict=False))
    row = next((f"row {at} is {_token(a)} and {_token(b)}" for at, (a, b) in pairs if a != b), "")
    return f"{told}: {row}" if row else told


def _other_list(
    plan: Plan,
    recorded: RecordedList | None,
    change: NewVocabulary,
    target: TargetSpec,
    destination: ModelFolder | None,
) -> str:
    """Return a note if the source's list in ``--vocab`` is not the recorded list; otherwise ''.

    '' is also returned if no list is recorded, or if the recorded file may not be a token list. Raises PlanError if the
    destination's list in ``--vocab`` is the recorded list and the source's list is not: the user swapped them.
    """
    old, new = zip(change.paths, (change.source.tokens, change.new.tokens), strict=True)
    if recorded is None or any(recorded.is_list(*one) for one in _lists_at(*old)):
        return ""
    if any(recorded.is_list(*one) for one in _lists_at(*new)):
        raise swapped_lists_error(plan, change, f"the token list {_for(recorded)}", destination)
    if recorded.tokens is None and not recorded.trained and recorded.kind != target.kind:
        return ""  # the recorded file may not be a token list
    told = _told(recorded, old)
    return f"{told}: the list of --vocab is used"


def _lists_at(path: str, tokens: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield (path, tokens) twice for the list at ``path``: with the tokens that other files add, then without them.

    ``tokens`` has the added tokens, too.
    """
    yield path, tokens
    with suppress(CheckpointError, OSError):
        yield path, read_vocabulary(path).tokens


def other_tokens(recipe: Recipe | None, path: str, target: TargetSpec) -> str:
    """Return how a checkpoint's token list differs from a destination's list, and what to do; '' if they are equal.

    ``recipe`` is the recipe of the checkpoint at ``path``. It records the SHA-256 of the token list, as does the
    lineage.json of a run of ``ckpt train``. So the lists are compared even if the checkpoint's list no longer exists.
    """
    own, recorded = _list_of(target), _recorded(recipe, path)
    if not own or recorded is None or recorded.kind != target.kind:
        return ""
    try:
        tokens = vocabulary_of(os.path.basename(own), read_file(own, VOCABULARY_BYTES)).tokens
    except (CheckpointError, OSError):
        return ""
    if recorded.is_list(own, tokens):
        return ""
    lists = "SRC_TOKENS:DST_TOKENS" if recorded.tokens is None else f"{_short(recorded.path)}:{_short(own)}"
    return f"{_told(recorded, (own, tokens))}: use --vocab {escape(lists)}"


def lists_for_vocab(recipe: Recipe | None, path: str, target: TargetSpec) -> str:
    """Return the token lists of a checkpoint and of a destination, as SRC:DST for ``--vocab``; '' if one is unknown."""
    own, recorded = _list_of(target), _recorded(recipe, path)
    known = own and recorded is not None and recorded.tokens is not None and recorded.kind == target.kind
    return f"{_short(recorded.path)}:{_short(own)}" if known and recorded is not None else ""


def _list_of(target: TargetSpec) -> str:
    """Return the path of a destination's token list; '' if it is not known, or if --vocab names another list."""
    files = [file for file in target.files if file != target.config]
    return files[0] if len(files) == 1 and target.vocabulary and not target.lists else ""


def _recorded(recipe: Recipe | None, path: str, outputs: tuple[str, ...] = ()) -> RecordedList | None:
    """Return the token list that is recorded for the checkpoint at ``path``; None if no list is.

    It is in the recipe of the checkpoint, in the lineage.json of its run or, if the recipe says that the checkpoint has
    the rows of its sources, in the records of a source. ``outputs`` are the paths of the checkpoints that have
    ``path`` among their sources: they are not looked at again, and the search ends after ``GENERATIONS`` of them.
    """
    name = os.path.basename(path)
    if recipe is None:
        run = trained_list(path)
        return None if run is None else RecordedList(name, run.path, run.tokens, run.digest, run.kind, trained=True)
    listed = _list_of_recipe(recipe)
    if listed is None:
        of_sources = _lists_of_sources(recipe, path, outputs)
        is_one = of_sources and all(_alike(of_sources[0], one) for one in of_sources[1:])
        return replace(of_sources[0], model=name) if is_one else None
    there = os.path.normpath(os.path.join(folder_of_recipe(path, [listed.name]), listed.name))
    tokens: Sequence[str] | None = None
    with suppress(CheckpointError, OSError):
        tokens = read_vocabulary(there).tokens if _is_unchanged(there, listed) else None
    return RecordedList(name, there, tokens, listed.sha256, recipe.target.kind)


def _list_of_recipe(recipe: Recipe) -> FilePrint | None:
    """Return name, size and SHA-256 of the token list for which a checkpoint was made; None if none is recorded."""
    files = [file for file in recipe.target.files if file.name != recipe.target.config]
    if len(files) != 1:
        return None
    is_replaced = recipe.rows is not None and recipe.rows.destination != os.path.basename(files[0].name)
    return None if is_replaced else files[0]


GENERATIONS = 8
"""A token list is searched through this many outputs, each made from the one before."""

ROWS_KEPT = (*COPIES, *MIXES, "lora merge")
"""Verbs whose output has the rows of its sources in the same order, unless rows are mapped by token."""


def _lists_of_sources(recipe: Recipe, path: str, outputs: tuple[str, ...]) -> list[RecordedList]:
    """Return the known token lists of the sources whose rows the checkpoint at ``path`` has, in the same order.

    The list is empty if rows were mapped by token, or if operations may have moved them.
    """
    sources = given_sources(recipe.sources)[: 1 if recipe.verb == "lora merge" else None]
    is_mapped = recipe.rows is not None or recipe.vocabularies or any(one.operations for one in sources)
    outputs = (*outputs, os.path.realpath(path))
    if recipe.verb not in ROWS_KEPT or is_mapped or len(outputs) > GENERATIONS:
        return []
    folder = folder_of_recipe(path, [one.path for one in sources])
    local = [one for one in sources if one.path and not scheme_of(one.path)]
    found = (_list_of_source(os.path.normpath(os.path.join(folder, one.path)), one, outputs) for one in local)
    return [one for one in found if one is not None]


def _list_of_source(path: str, source: PlanSource, outputs: tuple[str, ...]) -> RecordedList | None:
    """Return the recorded token list of ``source``, an entry of a recipe; None if no list is.

    A run's records are valid for all checkpoints of the run, also for those that it has removed or replaced. A recipe
    is valid only for a file with the recorded header.
    """
    known = _recorded(None, path)
    if known is not None:
        return known
    if os.path.realpath(path) in outputs:  # an output that has replaced its own source
        return None
    with suppress(CheckpointError, OSError), open_checkpoint(path, source.root or None) as one:
        recipe, files = stored_recipe(one), [(file.name, file.size, file.sha256) for file in one.files]
        if recipe is not None and files == [(file.name, file.size, file.sha256) for file in source.files]:
            return _recorded(recipe, path, outputs)
    return None


def _is_unchanged(path: str, recorded: FilePrint) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) != recorded.size or recorded.size > VOCABULARY_BYTES:
        return False
    return hashlib.sha256(read_file(path, VOCABULARY_BYTES)).hexdigest() == recorded.sha256


def _for(recorded: RecordedList) -> str:
    """Return a phrase that follows the name of a list: "with which X was trained" or "for which X was made"."""
    name = escape(recorded.model)
    return f"with which {name} was trained" if recorded.trained else f"for which {name} was made"


def _told(recorded: RecordedList, given: tuple[str, Sequence[str]]) -> str:
    """Return a clause that says how the recorded list differs from a ``given`` list: (path, tokens)."""
    names, tokens = [os.path.basename(one) for one in (recorded.path, given[0])], given[1]
    there, here = map(escape, names if names[0] != names[1] else map(_short, (recorded.path, given[0])))
    name = escape(recorded.model)
    theirs, made = recorded.tokens, "was trained with" if recorded.trained else "was made for"
    if theirs is None and there:
        return f"{name} {made} the token list {there}, which is missing or has changed, not {made.split()[-1]} {here}"
    if theirs is None:
        return f"{name} {made} another token list than {here}"
    row = next((at for at, (one, other) in enumerate(zip(tokens, theirs, strict=False)) if one != other), None)
    if row is None:
        return f"{name} {made} {len(theirs)} tokens, not {len(tokens)}"
    differ = f"in which row {row} is {_token(theirs[row])}, not {_token(tokens[row])} as in {here}"
    return f"{name} {made} the token list {there}, {differ}"


def _short(path: str) -> str:
    """Return a path relative to the working directory; a path outside this directory is returned unchanged."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def _token(token: str) -> str:
    return escape(brief_repr(token, 24))


LINEAGE, CONFIG = "lineage.json", "config.yaml"
OF_RUN = re.compile(r"\.|best\.safetensors|(adapter|last|steps/\d+)(/.*)?")
"""Matches the paths of checkpoints that a run writes, relative to the run's folder."""
DEEPEST = 3
"""The number of folders that are searched for the records of a run: the checkpoint's folder, and folders above it."""


@dataclass(frozen=True)
class TrainedList:
    """The token list with which a run trained: SHA-256 of its tokens, and its path ('' if the configuration has none).

    ``tokens`` is None if the list is missing or has changed since. ``kind`` is the kind of destination that the run
    trained.
    """

    digest: str
    path: str
    tokens: tuple[str, ...] | None
    kind: str


def trained_list(path: str) -> TrainedList | None:
    """Return the token list of the run that wrote the checkpoint at ``path``; None if no run recorded a list for it."""
    folder, lineage = run_of(path)
    data, target = (found if isinstance(found := lineage.get(name), dict) else {} for name in ("data", "target"))
    digest = data.get("tokens")
    if not isinstance(digest, str):
        return None
    list_path = _list_in(os.path.join(folder, CONFIG))
    with suppress(CheckpointError, OSError):
        tokens = read_vocabulary(list_path).tokens if list_path else ()
        if digest_of_tokens(tokens) == digest:
            return TrainedList(digest, list_path, tokens, str(target.get("kind")))
    return TrainedList(digest, list_path, None, str(target.get("kind")))


def run_of(path: str) -> tuple[str, Mapping[str, Any]]:
    """Return the folder and lineage of the run that wrote the checkpoint at ``path``; '' and {} if there is none."""
    for folder in _folders(path):
        lineage = _lineage(os.path.join(folder, LINEAGE))
        if lineage and OF_RUN.fullmatch(os.path.relpath(path, folder)):
            return folder, lineage
    return "", {}


def _folders(path: str) -> Iterator[str]:
    """Yield the local folders in which the records of a checkpoint's run may be, the nearest first."""
    if scheme_of(path):
        return
    folder = os.path.abspath(path)
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder)
    for _ in range(DEEPEST):
        yield folder
        folder = os.path.dirname(folder)


def _lineage(path: str) -> Mapping[str, Any]:
    with suppress(CheckpointError, OSError, ValueError):
        found = read_json(read_file(path))
        if isinstance(found, dict) and found.get("kind") == "ckpt.lineage":
            return found
    return {}


def _list_in(config: str) -> str:
    """Return the path of the token list that a run's configuration names; '' if it names none or cannot be read."""
    with suppress(CheckpointError, OSError, ValueError):
        document = read_document(config)
        data = document.train.get("data")
        named = data.get("tokens") if isinstance(data, dict) else None
        named = named or document.model.get("tokens", document.model.get("alphabet"))
        return document.resolve(named) if isinstance(named, str) else ""
    return ""
