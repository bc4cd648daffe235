"""Finds the vocabulary axis of a destination's tensors; raises an error, instead of guessing, if several axes fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...util.text import LISTED, count, escape, listing, shape_text
from ..keys.pattern import OptionPattern
from ..keys.pattern_hints import matched
from ..keys.renaming import KeyMatcher
from ..plan.rows import VocabularyRows
from ..plan.step import Step
from ..target import TargetSpec
from .by_place import ShapeChange, vocabulary_keys

__all__ = ["VocabularyAxes", "VocabularyOptions"]

Shape = Sequence[int]


@dataclass(frozen=True)
class VocabularyOptions:
    """The options --vocab and --vocab-keys: ``rows`` has the source row for each row of the destination.

    ``keys`` are the patterns of --vocab-keys, each with its axis, or None if the user gave no axis. ``own`` has two
    booleans: whether the source's list is in the folder of its model, and whether the destination's is. If such a list
    is shorter than the model's embedding, the further rows are padding.
    """

    rows: VocabularyRows
    keys: tuple[tuple[OptionPattern, int | None], ...] = ()
    own: tuple[bool, bool] = (False, False)
    paths: tuple[str, str] = ("", "")
    """The files of the two lists, as the user gave them. Messages have them if both files have the same name."""

    def __str__(self) -> str:
        return f"--vocab {self.rows.source}:{self.rows.destination}"

    @property
    def names(self) -> tuple[str, str]:
        """How messages name the two lists: by file name, or by path if both file names are equal."""
        names = self.rows.source, self.rows.destination
        return self.paths if names[0] == names[1] and all(self.paths) else names

    @property
    def said(self) -> str:
        """The option --vocab for messages, with the names of the two lists: ``--vocab old.txt:new.txt``."""
        return f"--vocab {':'.join(map(escape, self.names))}"


class VocabularyAxes:
    """Finds the vocabulary axis of each tensor: the axis that has a row for each token.

    It is the axis that the user gave; else the axis that the destination declares; else the only axis with fitting
    sizes. If no axis fits and the lists are the models' own, it is the first axis of an embedding or output layer that
    has rows of padding; such layers are recognised by name.
    """

    def __init__(self, target: TargetSpec, options: VocabularyOptions, destination: Sequence[str]) -> None:
        self._options = options
        self._said = options.said
        self._old, self._new = map(escape, options.names)
        self._target = target
        self._passed: dict[str, list[int]] = {}
        self._padded: dict[tuple[int, int], tuple[VocabularyRows, list[str]]] = {}
        self._found: set[tuple[Shape, Shape]] = set()
        self._matcher = KeyMatcher([flag.pattern for flag, _ in options.keys])
        flags = [(str(flag), flag.pattern) for flag, _ in options.keys]
        self.notes = matched(flags, list(destination), "destination")[1]
        rows = options.rows
        if not options.keys and not target.vocabulary and rows.size == len(rows.rows) and not rows.is_identity:
            raise self._undecided(destination)

    def axis(self, key: str, names: Sequence[str], have: Shape, want: Shape) -> int | None:
        """Return the vocabulary axis of a tensor, None if it has no such axis.

        ``names`` are all its names, ``have`` and ``want`` its shapes in source and destination. Raises PlanError if
        sizes contradict the vocabularies or several axes fit.
        """
        hits = frozenset[int]().union(*(self._matcher.match(name) for name in names))
        declared = next((self._target.vocabulary[n] for n in names if n in self._target.vocabulary), None)
        if (hits or declared is not None) and self._options.rows.is_identity and have == want:
            return None  # no row moves, even if there are further rows of padding
        if hits:
            flag, asked = self._options.keys[max(hits)]
            axis = asked if asked is not None else self._only(key, have, want)
            if asked is not None:
                self._check_axis(flag, key, asked, have, want)
            return self._checked(key, axis, have, want, asked=True)
        if declared is not None:
            return self._checked(key, declared, have, want)
        fitting = self._fitting(have, want)
        if (
            not fitting
            and not self._options.keys
            and not self._target.vocabulary
            and self._is_padded(names, have, want)
        ):
            self._found.add(((have[0],), (want[0],)))
            return 0
        if self._options.keys or self._target.vocabulary:
            self._passed.update({key: fitting} if fitting else {})
            return None
        found = [axis for axis in fitting if _alike(have, want, axis)]
        if len(found) > 1:
            raise self._ambiguous(key, found, want)
        return found[0] if found else None

    def rows(self, key: str, axis: int, have: Shape, want: Shape) -> VocabularyRows:
        """Return the rows of a tensor whose vocabulary axis is ``axis``, including rows of padding.

        Raises PlanError if the tensor has another number of rows than the tensors before it.
        """
        rows, sizes = self._options.rows, (have[axis], want[axis])
        is_padded = sizes != (rows.size, len(rows.rows))
        found, keys = self._padded.setdefault(sizes, (rows.between(*sizes) if is_padded else rows, []))
        keys.append(key)
        for others, (_, named) in self._padded.items():
            if others != sizes:
                raise PlanError(
                    f"{self._said}: tensors with a row for each token differ in the number of rows: {escape(key)} "
                    f"has {sizes[0]} in the source and {sizes[1]} in {escape(self._target.name)}, {escape(named[0])} "
                    f"has {others[0]} and {others[1]}.",
                    hint=f"Initialise one of these tensors: --reinit {escape(key)}.",
                )
        return found

    def padding_notes(self) -> list[str]:
        """Return a note if mapped tensors have more rows than there are tokens: these rows are padding."""
        return [
            f"{listing(keys, 3)}: {'; '.join(self._padding_said(sizes, rows))}"
            for sizes, (rows, keys) in self._padded.items()
            if rows is not self._options.rows
        ]

    def _padding_said(self, sizes: tuple[int, int], rows: VocabularyRows) -> Iterator[str]:
        if rows.unlisted:
            of = f"{sizes[0]} rows in the source, of which the last {rows.unlisted} have no token in"
            yield f"{of} {self._old} and are not copied"
        if rows.padded:
            of = f"{sizes[1]} rows in {escape(self._target.name)}, of which the last {rows.padded} have no token in"
            yield f"{of} {self._new} and get the values of new tokens ({rows.new})"

    def _fitting(self, have: Shape, want: Shape) -> list[int]:
        rows = self._options.rows
        if len(have) != len(want):
            return []
        pairs = enumerate(zip(have, want, strict=True))
        return [axis for axis, pair in pairs if pair == (rows.size, len(rows.rows))]

    def _is_padded(self, names: Sequence[str], have: Shape, want: Shape) -> bool:
        """Return whether a tensor, by its names and its numbers of rows, has a row for each token, and rows of padding.

        If a model has more rows than its list has tokens, the list must be the model's own.
        """
        rows, own = self._options.rows, self._options.own
        if not have or not want or have[1:] != want[1:] or not vocabulary_keys(names):
            return False
        more = (have[0] - rows.size, want[0] - len(rows.rows))
        return all(one == 0 or (one > 0 and is_own) for one, is_own in zip(more, own, strict=True))

    def _only(self, key: str, have: Shape, want: Shape) -> int:
        found = self._fitting(have, want)
        if len(found) > 1:
            raise self._ambiguous(key, found, want)
        return found[0] if found else 0

    def _check_axis(self, flag: OptionPattern, key: str, axis: int, have: Shape, want: Shape) -> None:
        """Raise PlanError if a tensor lacks the axis that --vocab-keys names, or if only another axis fits the lists.

        An axis that is too long may have rows of padding, so another axis is proposed only if its mapping is possible.
        """
        fitting = [one for one in self._fitting(have, want) if _alike(have, want, one)]
        is_there = axis < min(len(have), len(want))
        if is_there and (not fitting or axis in fitting or _alike(have, want, axis)):
            return
        shapes = f"{escape(key)} is {shape_text(have)} in the source and {shape_text(want)} in"
        why = f"its axis {axis} is not the vocabulary's" if is_there else f"has no axis {axis}"
        use = f"{flag.option} {escape(flag.pattern.text)}"
        raise PlanError(
            f"{use}={axis}: {shapes} {escape(self._target.name)}, {'and' if is_there else 'so it'} {why}.",
            hint=f"Use {use}={fitting[0]}." if len(fitting) == 1 else "Axes are counted from 0.",
        )

    def _checked(self, key: str, axis: int, have: Shape, want: Shape, *, asked: bool = False) -> int:
        """Return ``axis``; raise PlanError if the size of this axis is not the number of tokens in the list.

        More rows than tokens are padding if the user named the tensor (``asked``), or the list is the model's own.
        """
        rows = self._options.rows
        for shape, size, name, where, own in (
            (have, rows.size, self._old, "the source", self._options.own[0]),
            (want, len(rows.rows), self._new, escape(self._target.name), self._options.own[1]),
        ):
            more = shape[axis] - size if axis < len(shape) else -1
            are_swapped = more != 0 and self._are_swapped(axis, have, want)
            if are_swapped or (more and not (more > 0 and (asked or own))):
                raise PlanError(
                    f"the vocabulary {name} has {count(size, 'token')}, but the tensor {escape(key)} is "
                    f"{shape_text(shape)} in {where}.",
                    hint=self._other_order if are_swapped else _remedy(key, axis, more),
                )
        return axis

    @property
    def _other_order(self) -> str:
        return f"The lists fit in the other order: put the source's list first, {self._new}."

    def _are_swapped(self, axis: int, have: Shape, want: Shape) -> bool:
        """Return whether the two lists seem to be swapped: each list is as long as the axis in the other model."""
        sizes = (len(self._options.rows.rows), self._options.rows.size)
        return axis < min(len(have), len(want)) and (have[axis], want[axis]) == sizes

    def _fit_swapped(self, pairs: Sequence[tuple[Shape, Shape]]) -> bool:
        """Return whether an axis fits the swapped lists in one of the (source, destination) shapes ``pairs``."""
        alike = [(have, want) for have, want in pairs if len(have) == len(want)]
        return any(self._are_swapped(axis, have, want) for have, want in alike for axis in range(len(have)))

    def _ambiguous(self, key: str, axes: Sequence[int], want: Shape) -> PlanError:
        return PlanError(
            f"{self._said}: axes {' and '.join(map(str, axes))} of {escape(key)} {shape_text(want)} both fit the "
            "vocabularies.",
            hint=f"Choose an axis, as in --vocab-keys {escape(key)}={axes[0]}, and select all other tensors with a row "
            "for each token, too.",
        )

    def _undecided(self, keys: Sequence[str]) -> PlanError:
        size = len(self._options.rows.rows)
        found = [key for key in keys if size in self._target.tensors[key].shape]
        if not found:
            return PlanError(
                f"{self._said}: the token lists of both models have {count(size, 'token')}, but no tensor of the "
                "destination has an axis of this length.",
                hint="Give the token lists that the two models were trained with.",
            )
        return PlanError(
            f"{self._said}: the token lists of both models have {count(size, 'token')}, so no shape shows which "
            f"tensors have a vocabulary axis. These have an axis of {size}: {listing(found)}.",
            hint="Select the tensors with a row for each token: --vocab-keys GLOB, or GLOB=AXIS.",
            details=found,
        )

    def passed_over(self, steps: Sequence[Step]) -> list[str]:
        """Return notes on tensors that have an axis as long as the vocabulary, but whose rows are not mapped."""
        rows = self._options.rows
        copied = [step for step in steps if step.op not in ("init", "keep")]
        axes = {step.key: self._passed[step.key] for step in copied if step.key in self._passed}
        if rows.is_identity:
            return []
        return [*self._passed_padding(copied), *(self._passed_axes(axes) if axes else [])]

    def _passed_padding(self, steps: Sequence[Step]) -> Iterator[str]:
        """Yield a note on tensors with as many rows as the embedding, padding included, whose rows are not mapped."""
        sizes = self._found
        keys = [
            step.key
            for step in steps
            if step.rows is None and step.shape and (step.source_shape[:1], step.shape[:1]) in sizes
        ]
        if keys:
            keep = "keeps its order" if len(keys) == 1 else "keep their order"
            yield (
                f"{count(len(keys), 'tensor')} with as many rows as the embedding, padding included, {keep}: "
                f"{listing(keys, 3)}; if these are rows of tokens, map all such tensors with --vocab-keys GLOB=AXIS"
            )

    def _passed_axes(self, axes: Mapping[str, Sequence[int]]) -> list[str]:
        rows = self._options.rows
        named = [f"--vocab-keys {escape(key)}={'|'.join(map(str, fits))}" for key, fits in axes.items()]
        size = f"of {rows.size}" if rows.size == len(rows.rows) else f"from {rows.size} to {len(rows.rows)}"
        keep = "keeps its order" if len(axes) == 1 else "keep their order"
        add = " ".join(named) if len(named) <= LISTED else "--vocab-keys GLOB=AXIS"
        return [
            f"{count(len(axes), 'tensor')} with an axis {size} {keep}; if the axis is a vocabulary, map it with {add}"
        ]

    def of_no_list(self, steps: Sequence[Step]) -> PlanError | None:
        """Return an error if no tensor changes from the old vocabulary's length to the new one's; else None.

        ``steps`` are the steps of tensors whose shapes differ.
        """
        rows = self._options.rows
        if self._options.keys or self._target.vocabulary or rows.size == len(rows.rows):
            return None
        if self._padded or any(self._fitting(step.source_shape, step.shape) for step in steps):
            return None
        shapes = [f"{s.key} from {shape_text(s.source_shape)} to {shape_text(s.shape)}" for s in steps]
        pairs = [(step.source_shape, step.shape) for step in steps]
        if self._fit_swapped(pairs):
            hint = self._other_order
        else:
            hint = (
                "Give the vocabularies of these models, with their blank and special tokens. If the tensors have "
                "further rows of padding, select them: --vocab-keys GLOB, or GLOB=AXIS."
            )
        return PlanError(
            f"{self._old} has {count(rows.size, 'token')} and {self._new} {len(rows.rows)}, "
            f"but no tensor changes from {rows.size} to {len(rows.rows)} rows. These differ: {listing(shapes)}.",
            hint=hint,
            details=shapes,
        )

    def none_found(self, changes: Sequence[ShapeChange]) -> PlanError:
        """Return the error for a --vocab that maps no tensor; ``changes`` are the tensors with another shape."""
        rows = self._options.rows
        return PlanError(
            f"{self._said}: no tensor that comes from a source changes from {rows.size} to {len(rows.rows)} rows.",
            hint=self._other_order
            if self._fit_swapped([(one.have, one.want) for one in changes])
            else "Select the tensors to map: --vocab-keys GLOB, or GLOB=AXIS. Padded embeddings, which have the same "
            "number of rows in both models, must also be selected.",
        )


def _remedy(key: str, axis: int, more: int) -> str:
    """Return the hint for a tensor that has more or fewer rows than its list has tokens.

    ``more`` is the number of rows that have no token. It is below 0 if there are too few rows, or if the tensor does
    not have the axis ``axis``.
    """
    padded = f"If its last {count(more, 'row')} are padding, name it: --vocab-keys {escape(key)}={axis}. Or g"
    given = "ive the vocabulary of this model, with its blank and special tokens, or initialise the tensor"
    return f"{padded if more > 0 else 'G'}{given}: --reinit {escape(key)}."


def _alike(have: Shape, want: Shape, axis: int) -> bool:
    return all(h == w for i, (h, w) in enumerate(zip(have, want, strict=True)) if i != axis)
