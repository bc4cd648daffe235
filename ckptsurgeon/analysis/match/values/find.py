"""Finds by content which tensors of two checkpoints of one network correspond, and proposes rules and operations.

Samples of all tensors are compared first. Only tensors without an equal sample are read for the fingerprints of their
rows and columns. What is proposed is compared as a whole, block by block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ....checkpoint.checkpoint import Checkpoint
from ....engine.prefetch import fetch_tensors, no_progress
from ....tensors.composition import cut, reshape
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....util.text import count
from ...compare.renames import paired
from ..operations.assemble import LEFT_OUT, Answer, assembled
from ..operations.propose import without_transposed_note
from ..operations.steps import JOIN, ORDER, Change, Step, free_name
from ..proposal import Proposal
from .biases import with_biases
from .lines import agreement, common_dtype, is_comparable, lines_of, sample_of
from .pool import Matrix
from .relations import WHY, relations
from .stacks import of_stacks

__all__ = ["with_values"]

EXPERTS = 1024
"""The most matrices of a stack that are compared one by one."""
LEAST = 4
"""The fewest rows and columns of a matrix in a stack; kernels of convolutions are smaller."""

Progress = Callable[[int, int], None]
Made = tuple[tuple[int, ...], bytes]


@dataclass
class _Side:
    """One of the two checkpoints: its tensors that can be compared, and ``left``, those without a partner yet."""

    checkpoint: Checkpoint
    dtype: str
    left: dict[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = {key: info for key, info in self.checkpoint.items() if is_comparable(info)}

    def matrices(self) -> Iterator[Matrix]:
        """Yield the matrices that are left, with their fingerprints, also those in stacks; none is quantised."""
        for key, info in self.left.items():
            shape = _flat(info.shape)
            if key in self.checkpoint.codes.by_key or 0 in shape:
                continue
            if len(shape) == 2:
                yield self._matrix(key, reshape(info, shape))
            elif len(shape) == 3 and shape[0] <= EXPERTS and min(shape[1:]) >= LEAST:
                for index in range(shape[0]):
                    one = reshape(cut(info, 0, index, 1), shape[1:])
                    yield replace(self._matrix(f"{key}.{index}", one), stack=key, index=index)

    def _matrix(self, name: str, info: TensorInfo) -> Matrix:
        return Matrix(name, info, lines_of(self.checkpoint, info, self.dtype))


def with_values(
    found: Proposal, source: Checkpoint, destination: Checkpoint, progress: Progress | None = None
) -> Proposal:
    """Return the proposal ``found`` with the rules and operations that values show, instead of those by names.

    Tensors whose values cannot be compared, such as blocks of GGUF, keep the partner that their names show.
    """
    both = (source, destination)
    fetch_tensors(
        ((one, info) for one in both for info in one.values() if is_comparable(info)), progress or no_progress
    )
    dtype = _common(both)
    here, there = _Side(source, dtype), _Side(destination, dtype)
    names: dict[str, str] = {}
    changes: list[Change] = []
    doubtful = _same(here, there, found.names, names, changes)
    changes += of_stacks(list(relations([*here.matrices()], [*there.matrices()], source)), source, destination)
    changes = with_biases(changes, source, destination, names)
    _constants(doubtful, names, changes, found.names)
    changes += _reshaped(names, source, destination)
    plain = {old: new for old, new in names.items() if source[old].shape == destination[new].shape}
    evidence = dict.fromkeys(plain, WHY)
    by_name = _not_comparable(found, both, {*plain.values()})
    answer = Answer({**plain, **by_name}, {**evidence, **{key: found.evidence[key] for key in by_name}}, changes)

    def agrees(info: TensorInfo, key: str) -> str:
        return "not compared" if key in named else agreement(source, info, destination, destination[key])

    named = {*by_name.values()}
    bare = replace(without_transposed_note(found, source), ambiguous_keys={}, ambiguous={}, open=())
    made = assembled(bare, answer, dict(source), dict(destination), agrees)
    return _judged(made, both, named)


def _common(both: Sequence[Checkpoint]) -> str:
    """Return the least precise floating-point type of both checkpoints, in which fingerprints are made."""
    dtype = "float64"
    for checkpoint in both:
        for key, info in checkpoint.items():
            if is_comparable(info) and key not in checkpoint.codes.by_key:
                dtype = common_dtype(dtype, info.dtype) or dtype
    return dtype


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without sizes of 1 at its end, as that of a 1x1 convolution; two dimensions stay."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


Groups = list[tuple[list[str], list[str]]]


def _same(
    here: _Side, there: _Side, expected: Mapping[str, str], names: dict[str, str], changes: list[Change]
) -> Groups:
    """Add the tensors with equal samples to ``names``; return those of which all elements of the sample are equal.

    If several have the same sample, names decide. A tensor that the destination has several times is copied.
    """
    samples: list[dict[tuple[object, ...], list[str]]] = []
    for side in (here, there):
        of_side: dict[tuple[object, ...], list[str]] = defaultdict(list)
        for key, info in side.left.items():
            digest, is_constant = sample_of(side.checkpoint, info, side.dtype)
            of_side[_flat(info.shape), digest, is_constant, DTYPES[info.dtype].is_floating].append(key)
        samples.append(of_side)
    doubtful: Groups = []
    for sample, old in samples[0].items():
        new = samples[1].get(sample, [])
        if sample[2]:
            doubtful += [(old, new)] if new else []
        else:
            pairs = _by_names(old, new, expected)
            changes += _copied(pairs, new, here.checkpoint) if len(old) < len(new) else []
            names.update(pairs)
    used = {*names, *(key for change in changes for key in change.sources)}
    made = {*names.values(), *(key for change in changes for key in change.results.values())}
    for number, (one, done) in enumerate(((here, used), (there, made))):
        done |= {key for pair in doubtful for key in pair[number] if _size(key, one) > 1}
        one.left = {key: info for key, info in one.left.items() if key not in done}
    return doubtful


def _copied(pairs: dict[str, str], new: Sequence[str], taken: Mapping[str, object]) -> Iterator[Change]:
    """Yield a copy of one of the tensors in ``pairs`` for those of ``new`` that have no partner; take it out."""
    if not pairs:
        return
    one = next(iter(pairs))
    others = {*pairs.values()} - {pairs.pop(one)}
    results = {free_name(key, taken): key for key in new if key not in others}
    yield Change((Step("copy", (one,), tuple(results), JOIN),), results, (one,), WHY)


def _size(key: str, side: _Side) -> int:
    return side.checkpoint[key].numel


def _by_names(old: Sequence[str], new: Sequence[str], expected: Mapping[str, str]) -> dict[str, str]:
    """Return which of several equal tensors are paired: those that names pair, then those with similar ends."""
    there = {*new}
    found = {key: expected[key] for key in old if expected.get(key) in there}
    taken = {*found.values()}
    rest = [key for key in old if key not in found], [key for key in new if key not in taken]
    return {**found, **paired(*rest)} if rest[0] and rest[1] else found


def _constants(doubtful: Groups, names: dict[str, str], changes: Sequence[Change], expected: Mapping[str, str]) -> None:
    """Add the tensors of equal elements, such as norms of ones, to ``names``, by their modules or names."""
    used = {*names, *(key for change in changes for key in change.sources)}
    made = {*names.values(), *(key for change in changes for key in change.results.values())}
    modules = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in names.items()}
    for old, new in doubtful:
        left = [key for key in old if key not in used], {key: None for key in new if key not in made}
        for key in left[0]:
            module, _, leaf = key.rpartition(".")
            near = f"{modules[module]}.{leaf}" if module in modules else ""
            options = [one for one in (expected.get(key), near) if one in left[1]]
            options += left[1] if len(left[0]) == len(left[1]) == 1 else []
            if options:
                names[key] = options[0] or ""
                used.add(key)
                made.add(names[key])
                left[1].pop(names[key])


def _reshaped(names: Mapping[str, str], source: Checkpoint, destination: Checkpoint) -> Iterator[Change]:
    for old, new in names.items():
        if source[old].shape != (shape := destination[new].shape):
            yield Change((Step("reshape", (old,), (old,), ORDER, (("shape", shape),)),), {old: new}, (old,), WHY)


def _not_comparable(found: Proposal, both: Sequence[Checkpoint], made: set[str]) -> dict[str, str]:
    """Return the pairs that names show of tensors of which one cannot be compared."""
    source, destination = both
    return {
        old: new
        for old, new in found.names.items()
        if new not in made and not (is_comparable(source[old]) and is_comparable(destination[new]))
    }


def _different(both: Sequence[Checkpoint]) -> str:
    """Return why nothing agrees."""
    dtypes = [{info.dtype for info in checkpoint.values()} for checkpoint in both]
    if any("float16" in dtypes[side] and "bfloat16" in dtypes[1 - side] for side in (0, 1)):
        return (
            "the two checkpoints hold different networks, or both were made from a more precise one: float16 and "
            "bfloat16 round differently, so compare each with that one; "
        )
    return "the two checkpoints hold different networks, and "


def _judged(found: Proposal, both: Sequence[Checkpoint], named: set[str]) -> Proposal:
    """Return a proposal with a note on what agrees; without rules and operations if nothing of importance agrees."""
    destination = both[1]
    agreed = {key: said for key, said in found.agreed.items() if key not in named}
    matrices = {key for key, info in destination.items() if len(info.shape) > 1 and info.numel > 1}
    of_weight = [key for key in agreed if key in matrices] if matrices else list(agreed)
    coded = [one for one in both if one.codes]
    notes = list(found.notes)
    notes += [
        f"{one.path} is quantised: its codes and scales are compared as stored, and operations do not use them; "
        "to compare decoded values, first run ckpt convert --dequantize"
        for one in coded
    ]
    if named:
        notes.append(
            f"{count(len(named), 'tensor')} cannot be compared: names alone pair {'it' if len(named) == 1 else 'them'}"
        )
    if not of_weight:
        tried = any(note.startswith(LEFT_OUT) for note in notes)
        why = "" if tried else _different(both)
        notes.insert(0, f"nothing agrees by value: {why}nothing is proposed")
        return replace(
            found, matches=(), names={}, rules=(), operations=(), made={}, agreed={}, evidence={}, undecided=0,
            unmatched=dict(both[0]), missing=dict(destination), notes=tuple(notes),
        )  # fmt: skip
    cast = sum(said == "cast" for said in agreed.values())
    exact = len(agreed) - cast
    said = f"{count(exact, 'tensor')} {'agrees' if exact == 1 else 'agree'} bit for bit"
    said += f", {cast} within the rounding of a cast to the less precise dtype" if cast else ""
    notes.insert(0, f"values were compared: {said}, of {len(destination)} in the destination")
    return replace(found, agreed=agreed, notes=tuple(notes))
