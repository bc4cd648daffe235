"""Turns changes of single tensors into a proposal with rules and operations, and checks it by headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ....errors import CheckpointError
from ....planning.keys.infer_rules import rules_for, unspelled
from ....planning.operations.operation import parse_operations
from ....planning.operations.perform import DerivedSource, perform
from ....tensors.info import TensorInfo
from ....util.text import count
from ..proposal import Match, Proposal, ProposedOperation, Tensors, Undecided
from ..set_aside import is_note, set_aside
from .collapse import Row, collapsed
from .places import shown
from .steps import STACK, Change, Step, after

__all__ = ["LEFT_OUT", "Answer", "assembled"]

MOST_COMPARED = 3_000_000
"""The largest number of comparisons of operations with keys; each pair (operation, key) is one comparison."""
LEFT_OUT = ("an operation is left out:", "no operations are proposed:")
"""The beginnings of the notes on operations that are left out."""
TRIES = 10
"""After this many operations that cannot be carried out, all operations are left out."""


class _RowError(Exception):
    """Raised for an operation that cannot be applied to the source.

    The message is a note; ``steps`` are the steps of the operation.
    """

    def __init__(self, message: str, steps: Iterable[Step]) -> None:
        super().__init__(message)
        self.steps = {*steps}


@dataclass(frozen=True)
class Answer:
    """The correspondence of two models: tensors that are only renamed, changed tensors, and undecided tensors.

    ``names`` maps source keys of renamed tensors to destination keys. ``evidence`` maps the same source keys to the
    kind of evidence.
    """

    names: Mapping[str, str]
    evidence: Mapping[str, str]
    changes: Sequence[Change] = ()
    open: Sequence[Undecided] = ()


Agrees = Callable[[TensorInfo, str], str]
"""A function of a new tensor and a destination key. It returns how they agree, such as "bits"; '' if they do not."""


def assembled(
    found: Proposal, answer: Answer, source: Tensors, destination: Tensors, *, agrees: Agrees | None = None
) -> Proposal:
    """Return the proposal ``found`` with the rules and operations of ``answer`` instead of its own.

    With ``agrees``, the values of each new tensor are compared with the destination's tensor, and tensors that differ
    are left out.
    """
    notes = [note for note in found.notes if not is_note(note)]
    order = {key: number for number, key in enumerate(source)}
    answer = replace(answer, changes=sorted(answer.changes, key=lambda one: min(order[key] for key in one.sources)))
    known: dict[str, str] = {}
    tries = TRIES
    while True:
        rows, keys = _rows(answer.changes, list(source))
        try:
            made = _performed(rows, source)
        except _RowError as error:
            notes.append(str(error))
            tries -= 1
            kept = [one for one in answer.changes if error.steps.isdisjoint(one.steps)]
            if kept and not tries:
                notes.append(f"{LEFT_OUT[1]} {TRIES} cannot be carried out, so the others are not tried.")
                kept = []
            answer = replace(answer, changes=kept)
            continue
        results = {name: key for change in answer.changes for name, key in change.results.items()}
        ends = {**answer.names, **results}
        for name, key in ends.items():
            if key not in known or name not in made:
                known[key] = _agreement(made.get(name), key, destination[key].shape, agrees)
        agreed = {key: known[key] for key in ends.values()}
        if all(agreed.values()):
            break
        answer = _without(answer, {key for key, said in agreed.items() if not said})
    wanted, moved = set_aside(keys, ends, destination)
    rules = rules_for(wanted)
    compared = agreed if agrees is not None else {}
    return _proposal(
        found, answer, (source, destination), rows, said=(rules, [*notes, *moved, *unspelled(wanted, rules)], compared)
    )


def _rows(changes: Sequence[Change], keys: list[str]) -> tuple[list[tuple[Row, str]], list[str]]:
    """Return a list of (operation, evidence), and the names of all tensors after the operations."""
    why = {step: change.why for change in changes for step in change.steps}
    found: list[tuple[Row, str]] = []
    for phase in range(STACK + 1):
        steps = [step for step in why if step.phase == phase]
        for part in _in_turns(steps):
            found += [(row, why[row.steps[0]]) for row in collapsed(part, keys)]
            keys = after(keys, part)
    return found, keys


def _in_turns(steps: Sequence[Step]) -> list[list[Step]]:
    """Return the steps of a phase, divided into lists; each list has at most one step on each tensor."""
    turns: list[list[Step]] = []
    seen: Counter[str] = Counter()
    for step in steps:
        turn = max(seen[key] for key in step.inputs)
        turns += [[]] if turn == len(turns) else []
        turns[turn].append(step)
        seen.update(step.inputs)
    return turns


def _performed(rows: Sequence[tuple[Row, str]], source: Tensors) -> Mapping[str, TensorInfo]:
    if not rows:
        return source
    if len(rows) * len(source) > MOST_COMPARED:
        raise _RowError(
            f"{LEFT_OUT[1]} {count(len(rows), 'operation')} on {len(source)} tensors would take too long.",
            [step for row, _ in rows for step in row.steps],
        )
    made = [DerivedSource(dict(source))]
    for row, _ in rows:
        try:
            made = perform([source], parse_operations([row.row]), after=made)
        except CheckpointError as error:
            raise _RowError(f"{LEFT_OUT[0]} {error.message}", row.steps) from error
    return made[0].tensors


def _agreement(made: TensorInfo | None, key: str, shape: tuple[int, ...], agrees: Agrees | None) -> str:
    """Return how a new tensor agrees with the destination's tensor ``key``; '' if they differ.

    Without ``agrees``, only the shapes are compared.
    """
    if made is None or made.shape != shape:
        return ""
    return agrees(made, key) if agrees is not None else "shape"


def _without(answer: Answer, wrong: set[str]) -> Answer:
    """Return the answer without the names and changes that make the destination keys ``wrong``."""
    return replace(
        answer,
        names={old: new for old, new in answer.names.items() if new not in wrong},
        changes=[change for change in answer.changes if wrong.isdisjoint(change.results.values())],
    )


def _proposal(
    found: Proposal,
    answer: Answer,
    sides: tuple[Tensors, Tensors],
    rows: Sequence[tuple[Row, str]],
    *,
    said: tuple[Sequence[str], Sequence[str], Mapping[str, str]],
) -> Proposal:
    """Return ``found`` with the correspondence ``answer`` and the operations ``rows`` in place of its own.

    ``sides`` are the source and the destination. ``said`` has the new rules, the notes, and {destination key: how the
    values agree}.
    """
    source, destination = sides
    made = {key: change.sources for change in answer.changes for key in change.results.values()}
    names = {key: answer.names[key] for key in source if key in answer.names}
    used = {*names, *(key for change in answer.changes for key in change.sources)}
    open_ = [one for one in answer.open if not made.keys() >= {*one.keys}]
    ambiguous = {module: keys for module, keys in found.ambiguous_keys.items() if not made.keys() & {*keys}}
    undecided = {key for keys in ambiguous.values() for key in keys} | {key for one in open_ for key in one.keys}
    undecided -= made.keys() | {*names.values()}
    known = {*names.values(), *made, *undecided}
    return replace(
        found,
        matches=_matches(names, answer.evidence) if names != found.names else found.matches,
        names=names,
        rules=tuple(said[0]),
        ambiguous={module: found.ambiguous[module] for module, keys in ambiguous.items() if undecided & {*keys}},
        unmatched={key: info for key, info in source.items() if key not in used},
        missing={key: info for key, info in destination.items() if key not in known},
        undecided=len(undecided),
        notes=tuple(said[1]),
        evidence={key: why for key, why in answer.evidence.items() if key in names},
        operations=tuple(
            ProposedOperation(row.row, sum(len(step.outputs) for step in row.steps), why) for row, why in rows
        ),
        made=made,
        open=tuple(open_),
        agreed=said[2],
    )


def _matches(names: Mapping[str, str], evidence: Mapping[str, str]) -> tuple[Match, ...]:
    found = Counter((*(shown(key).rpartition(".")[0] for key in pair), evidence[pair[0]]) for pair in names.items())
    return tuple(Match(old, new, number, why) for (old, new, why), number in found.items())
