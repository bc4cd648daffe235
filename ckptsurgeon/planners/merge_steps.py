"""What is done with each tensor of a merge: merged, copied, taken, left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import FormatError, PlanError
from ..merges import Method
from ..plan import Input, Merge, Step
from ..tensors import DTYPES, TensorInfo
from ..text import count, escape, listing, shape_text
from .merge_options import MergeOptions, Piece, Place
from .select import SourceView

__all__ = ["MergeSteps"]


@dataclass
class _Notes:
    """What is to be said at the end, with the keys it is about."""

    integers: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    nowhere: list[str] = field(default_factory=list)
    from_base: list[str] = field(default_factory=list)
    fewer: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)

    def said(self, options: MergeOptions) -> Iterator[str]:
        """Yield a note on each kind."""
        for keys, what in (
            (self.integers, f"not merged but taken by --int-buffers {options.int_buffers}"),
            (self.skipped, "left out, since not all models have it (--on-missing skip)"),
            (self.nowhere, "left out, since no model that it would be merged of has it"),
            (self.from_base, "counted as the base's where a model lacks it (--on-missing base)"),
            (self.fewer, "merged of fewer models than there are"),
            (self.mixed, "of several dtypes: the output has the widest"),
        ):
            if keys:
                yield f"{count(len(keys), 'tensor')} {what}: {listing(keys)}"


class MergeSteps:
    """Decides one tensor after the other, and keeps what cannot be decided until all are known."""

    def __init__(self, views: Sequence[SourceView], options: MergeOptions) -> None:
        self._views, self._options = views, options
        self._lacking: dict[str, list[str]] = {}
        self._unlike: list[str] = []
        self._checked: set[tuple[Any, ...]] = set()
        self.notes = _Notes()

    def steps(self, piece: Piece) -> Iterator[Step]:
        """Yield the step of a tensor, or none where it is left out or cannot be."""
        there = {number: place for number, place in enumerate(piece.models) if self._info(place) is not None}
        base = piece.base if piece.base is not None and self._info(piece.base) is not None else None
        absent = [piece.models[number] for number in range(len(piece.models)) if number not in there]
        absent += [piece.base] if piece.base is not None and base is None else []
        if absent:
            if self._options.on_missing == "skip":
                self.notes.skipped.append(piece.key)
                return
            if self._options.on_missing == "base" and base is not None:
                there = {number: there.get(number, base) for number in range(len(piece.models))}
                self.notes.from_base.append(piece.key)
            elif self._options.on_missing != "any":
                for place in absent:
                    self._lacking.setdefault(self._name(place), []).append(piece.key)
                return
        there = self._alike(piece, there, base)
        if not there and base is None:
            self.notes.nowhere.append(piece.key)
        else:
            yield self._step(piece, there, base)

    def _info(self, place: Place) -> TensorInfo | None:
        return self._views[place.source].tensors.get(place.key)

    def _known(self, place: Place) -> TensorInfo:
        return self._views[place.source].tensors[place.key]

    def _name(self, place: Place) -> str:
        return self._views[place.source].source.name

    def _alike(self, piece: Piece, there: dict[int, Place], base: Place | None) -> dict[int, Place]:
        """Return the places whose tensors can be merged with the first, or the base's."""
        first = base or next(iter(there.values()), None)
        if first is None:
            return there
        one = self._known(first)
        fitting = {}
        for number, place in there.items():
            info = self._known(place)
            if info.shape == one.shape and DTYPES[info.dtype].kind == DTYPES[one.dtype].kind:
                fitting[number] = place
            elif self._options.on_mismatch != "skip":
                self._unlike.append(
                    f"{escape(piece.key)} is {one.dtype} {shape_text(one.shape)} in {escape(self._name(first))}, "
                    f"{info.dtype} {shape_text(info.shape)} in {escape(self._name(place))}"
                )
        return fitting

    def check(self) -> None:
        """Raise PlanError for what could not be decided: all of it at once."""
        if self._lacking:
            name, keys = next(iter(self._lacking.items()))
            more = f"; {listing([f'{escape(other)} lacks {len(k)}' for other, k in list(self._lacking.items())[1:]])}"
            raise PlanError(
                f"{escape(name)} lacks {listing(keys)}{more if len(self._lacking) > 1 else ''}.",
                hint="Merge models of one kind, or say --on-missing base, skip or any.",
                details=[f"{other}: {key}" for other, keys in self._lacking.items() for key in keys],
            )
        if self._unlike:
            raise PlanError(
                f"{listing(self._unlike)}.",
                hint="Merge models of one kind; --on-mismatch skip merges without those that differ.",
                details=self._unlike,
            )

    def _step(self, piece: Piece, there: Mapping[int, Place], base: Place | None) -> Step:
        if len(there) < len(piece.models):
            self.notes.fewer.append(piece.key)
        inputs = [self._input(place) for place in there.values()]
        if not inputs or (len(there) < len(piece.models) and len(there) < piece.method.models[0]):
            one = self._input(base) if base is not None else inputs[0]
            return _copy(piece, one, one.dtype)
        self._check_values(piece, inputs)
        kind = DTYPES[inputs[0].dtype].kind
        if kind != "float":
            return self._integers(piece, inputs, kind)
        if piece.method.base == "required" and base is None:
            if len(inputs) == 1:
                return _copy(piece, inputs[0], self._dtype(piece, inputs))
            raise PlanError(
                f"{escape(piece.key)} is not in the base, which {piece.method.name} needs.",
                hint="Leave it out with --on-missing skip.",
            )
        merges_base = base is not None and piece.method.base in ("required", "optional")
        every = [*inputs, *([self._input(base)] if merges_base and base is not None else [])]
        parameters = piece.values.of(piece.key, {number: place.key for number, place in there.items()}, piece.depth)
        self._check_parameters(piece, inputs[0].shape, parameters, number=len(inputs), has_base=merges_base)
        dtype = self._dtype(piece, every)
        if _copies(piece.method, parameters):
            return _copy(piece, every[0], dtype)
        compute = self._options.compute or ("float64" if any(one.dtype == "float64" for one in every) else "float32")
        merge = Merge(piece.method.name, parameters, merges_base, compute)
        first = every[0]
        return Step(
            piece.key, "merge", dtype, first.shape, first.source, first.key, first.dtype, first.shape,
            rule=f"--method {piece.method.name}", more=tuple(every[1:]), merge=merge,
        )  # fmt: skip

    def _check_parameters(
        self, piece: Piece, shape: tuple[int, ...], parameters: Mapping[str, Any], *, number: int, has_base: bool
    ) -> None:
        """Raise what the method has against its parameters; most tensors have the same."""
        said = (piece.method.name, len(shape), number, has_base, *sorted(parameters.items()))
        if said not in self._checked:
            self._checked.add(said)
            try:
                piece.method.check(shape, number, parameters, has_base=has_base)
            except PlanError as error:
                raise PlanError(f"{escape(piece.key)}: {error.message}", hint=error.hint) from error

    def _input(self, place: Place) -> Input:
        info = self._known(place)
        return Input(place.source, place.key, info.dtype, info.shape)

    def _check_values(self, piece: Piece, inputs: Sequence[Input]) -> None:
        for one in inputs:
            info, name = self._views[one.source].tensors[one.key], escape(self._views[one.source].source.name)
            if info.opaque:
                raise FormatError(f"{escape(one.key)} of {name} cannot be merged: {info.opaque}.", rule="opaque")
            if DTYPES[one.dtype].is_floating and DTYPES[one.dtype].is_packed:
                raise PlanError(
                    f"{escape(one.key)} of {name} is {one.dtype}, which packs several numbers in a byte.",
                    hint="Filter it out first.",
                )

    def _integers(self, piece: Piece, inputs: Sequence[Input], kind: str) -> Step:
        """Return the step of a tensor that has no mean: integers, truth values; complex numbers have no method."""
        if kind == "complex":
            raise PlanError(
                f"{escape(piece.key)} is {inputs[0].dtype}: there is no merge method for complex numbers.",
                hint="Average them, or filter them out first.",
            )
        self.notes.integers.append(piece.key)
        first, last = inputs[0], inputs[-1]
        rule = f"--int-buffers {self._options.int_buffers}"
        if self._options.int_buffers == "max" and len(inputs) > 1:
            return Step(
                piece.key, "max", first.dtype, first.shape, first.source, first.key, first.dtype, first.shape,
                rule=rule, more=tuple(inputs[1:]),
            )  # fmt: skip
        one = last if self._options.int_buffers == "last" else first
        return _copy(piece, one, one.dtype, rule=rule)

    def _dtype(self, piece: Piece, inputs: Sequence[Input]) -> str:
        """Return the dtype of an output: as asked, else that of all inputs, else one that holds them all."""
        dtypes = {one.dtype for one in inputs}
        if len(dtypes) == 1 or self._options.dtype:
            return self._options.dtype or inputs[0].dtype
        self.notes.mixed.append(piece.key)
        bits = max(DTYPES[dtype].bits for dtype in dtypes)
        widest = [dtype for dtype in dtypes if DTYPES[dtype].bits == bits]
        return widest[0] if len(widest) == 1 else "float32"


def _copies(method: Method, parameters: Mapping[str, Any]) -> bool:
    """Whether a method leaves the values of its one model as they are."""
    return method.name == "passthrough" and all(value in (1.0, (1.0,), True) for value in parameters.values())


def _copy(piece: Piece, one: Input, dtype: str, rule: str = "") -> Step:
    rule = rule or f"--method {piece.method.name}"
    return Step(piece.key, "copy", dtype, one.shape, one.source, one.key, one.dtype, one.shape, rule=rule)
