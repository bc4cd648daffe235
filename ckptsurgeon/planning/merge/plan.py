"""Plans a merge: each tensor of the output is merged, copied from one model, or left out. Opens no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import ConfigError, PlanError
from ...methods.merge._method import Method
from ...tensors.dtypes import DTYPES
from ...tensors.info import tied_keys
from ...tensors.quantised.encoding import QuantisedTensor
from ...util.text import count, escape
from ..computed_buffers import COMPUTED
from ..mismatch.policies import is_reshape
from ..opaque_tensor_errors import opaque_error
from ..plan.compute import OF_BASE, Merge
from ..plan.files import PlanTarget, SourceView
from ..plan.plan import Plan
from ..plan.step import Input, Step, with_vocabularies
from ..quantised import computing
from ..quantised_error import dequantise
from .differing_models import FITTED, FittedInputs, MergeNotes, MergeOptions, ShapeFitting
from .missing import layouts_hint, missing_error
from .pieces import MergePiece, SourceKey, check_matched, overlooked
from .statistics import StepStatistics
from .tied_tensors import ModelTies

__all__ = ["plan_merge"]


def plan_merge(
    views: Sequence[SourceView],
    pieces: Sequence[MergePiece],
    options: MergeOptions,
    *,
    target: PlanTarget | None = None,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a merge; ``pieces`` are the tensors of the output, each with the tensors that it merges.

    Raises ConfigError for a parameter that is missing or out of bounds; PatternError for a pattern that matches
    nothing; PlanError if keys, shapes or kinds of numbers differ and no option allows it; FormatError if the values of
    a tensor are not plain bytes.
    """
    check_matched((piece.values, piece.key, [one.key for one in piece.models]) for piece in pieces)
    keys = [piece.key for piece in pieces]
    owners = [tied_keys(view.tensors) for view in views]
    ties = ModelTies(views, owners) if any(owners) else None  # most models have no ties
    planner = _MergeSteps(views, options, keys, ties)
    steps = [step for piece in pieces for step in planner.steps(piece)]
    planner.check()
    if not steps:
        raise _nothing_merged(views, pieces, options)
    if not planner.merges and options.on_missing == "any":
        raise PlanError(
            "there is nothing to merge: no tensor is in two of the models.",
            hint=layouts_hint(views)
            or "Merge models of the same architecture; ckpt match proposes rules for other names.",
        )
    steps = steps if ties is None else ties.tied(steps)
    return Plan(
        verb="merge",
        sources=tuple(view.source for view in views),
        target=target or PlanTarget("edit", views[0].source.name, ""),
        steps=tuple(steps),
        vocabularies=options.vocabulary.rows if any(step.vocabularies for step in steps) and options.vocabulary else (),
        seed=seed,
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(
            *notes,
            *overlooked((one.values for one in pieces), keys),
            *planner.notes(),
            *(ties.apart(steps) if ties else ()),
        ),
    )


def _nothing_merged(views: Sequence[SourceView], pieces: Sequence[MergePiece], options: MergeOptions) -> PlanError:
    """Return the error for a merge without any tensor in its output."""
    if options.on_missing != "skip":
        return PlanError("there is nothing to merge: none of the models has a tensor of the output.")
    has_base = any(piece.base is not None for piece in pieces)
    return PlanError(
        f"there is nothing to merge: no tensor is in all models{' and the base' if has_base else ''}.",
        hint=layouts_hint(views) or f"Use --on-missing any{' or --on-missing base' if has_base else ''}.",
    )


class _MergeSteps:
    """Makes the steps of the output's tensors one by one, and collects problems, to report all of one kind at once."""

    def __init__(
        self, views: Sequence[SourceView], options: MergeOptions, keys: Sequence[str], ties: ModelTies | None = None
    ) -> None:
        self._views, self._options = views, options
        self._fitting = ShapeFitting(views, options, keys)
        self._ties = ties
        self.merges = False  # whether a tensor is made from two models, or should be made from one
        self._missing: list[tuple[SourceKey, str]] = []
        self._policies = ["base", "skip", "any"]  # the values of --on-missing that would settle all of ``_missing``
        self._checked: set[tuple[Any, ...]] = set()
        self._coded: list[tuple[str, QuantisedTensor, str]] = []
        self._merges: dict[tuple[Any, ...], Merge] = {}
        self._notes = MergeNotes()
        self._statistics = StepStatistics(views, options.statistics)

    def notes(self) -> Iterator[str]:
        """Yield the notes on the steps."""
        yield from self._fitting.notes()
        yield from self._notes.texts(self._options)
        if self._options.statistics:
            yield from self._statistics.notes()

    def steps(self, piece: MergePiece) -> Iterator[Step]:
        """Yield the step of the output tensor ``piece``, or nothing if it is left out or cannot be merged.

        A tensor that cannot be merged is recorded, and ``check`` reports it.
        """
        places = [self._place(place, piece.models) for place in piece.models]
        if self._is_coded(piece, [*places, *([piece.base] if piece.base is not None else [])]):
            return
        there = {number: place for number, place in enumerate(places) if self._has(place)}
        base = self._place(piece.base, piece.models) if piece.base is not None else None
        base = base if base is not None and self._has(base) else None
        self.merges = self.merges or len(there) + (base is not None) > 1 or len(places) + (piece.base is not None) == 1
        absent = [place for place in places if not self._has(place)]
        absent += [piece.base] if piece.base is not None and base is None else []
        if absent:
            if self._options.on_missing == "skip":
                self._notes.skipped.append(piece.key)
                return
            if self._options.on_missing == "base" and base is not None:
                there = {number: there.get(number, base) for number in range(len(piece.models))}
                self._notes.from_base.append(piece.key)
            elif self._options.on_missing != "any":
                self._missing += ((place, piece.key) for place in absent)
                helps = {
                    "base": base is not None,
                    "skip": True,
                    "any": base is not None or _can_lack_base(piece, len(there)),
                }
                self._policies = [policy for policy in self._policies if helps[policy]]
                return
        if not there and base is None:
            self._notes.nowhere.append(piece.key)
            return
        fitted = self._fitting.fitted(piece, there, base)
        if fitted.inputs or fitted.base is not None:
            yield self._step(piece, fitted)

    def _is_coded(self, piece: MergePiece, places: Sequence[SourceKey]) -> bool:
        """Return whether a merge would compute with the codes of quantised tensors; if so, ``check`` raises an error.

        If only one model is to be merged, without a base, its codes are copied, which is allowed.
        """
        views = [self._views[place.source] for place in places]
        pairs = zip(views, places, strict=True)
        found = [(view.source.name, coded) for view, place in pairs if (coded := view.codes.by_key.get(place.key))]
        self._coded += ((name, coded, f"the method {piece.method.name}") for name, coded in found if len(places) > 1)
        return bool(found) and len(places) > 1

    def _place(self, place: SourceKey, models: Sequence[SourceKey]) -> SourceKey:
        return place if self._ties is None else self._ties.place(place, models)

    def _has(self, place: SourceKey) -> bool:
        return place.key in self._views[place.source].tensors

    def check(self) -> None:
        """Raise PlanError if problems were recorded; the error lists all tensors with the first kind of problem."""
        if self._coded:
            raise computing(self._coded, dequantise("merge"))
        if self._missing:
            raise missing_error(self._views, self._missing, self._policies)
        self._fitting.check()
        if self._options.statistics:
            self._statistics.check()

    def _step(self, piece: MergePiece, fitted: FittedInputs) -> Step:
        inputs, base = list(fitted.inputs.values()), fitted.base
        if len(inputs) < len(piece.models):
            self._notes.fewer.append(piece.key)
        if not inputs or (len(inputs) < len(piece.models) and len(inputs) < piece.method.models[0]):
            return self._alone(piece, fitted, base if base is not None else inputs[0])
        self._check_values(piece, inputs)
        if COMPUTED.search(piece.key) and not fitted.policy:
            return _copy(piece, inputs[0], inputs[0].dtype)
        kind = DTYPES[inputs[0].dtype].kind
        if kind != "float":
            return self._integers(piece, fitted, kind)
        if piece.method.base == "required" and base is None:
            if len(inputs) == 1:
                self._notes.unbased.append(piece.key)
                return self._alone(piece, fitted, inputs[0])
            raise PlanError(
                f"the base lacks the tensor {escape(piece.key)}: the merge method {piece.method.name} needs it in the "
                "base.",
                hint="Leave the tensor out with --on-missing skip.",
            )
        merges_base = base is not None and piece.method.base in ("required", "optional")
        every = [*inputs, *([base] if merges_base and base is not None else [])]
        parameters = piece.values.of(piece.key, {number: one.key for number, one in fitted.inputs.items()}, piece.depth)
        self._check_parameters(piece, fitted.shape, parameters, number=len(inputs), has_base=merges_base)
        if piece.method.statistics:
            return self._by_statistics(piece, fitted, every, parameters)
        if _copies(piece.method, parameters) and not fitted.policy:
            return _copy(piece, every[0], self._dtype(piece, every))
        return self._merged(piece, fitted, every, Merge(piece.method.name, parameters, merges_base))

    def _by_statistics(
        self, piece: MergePiece, fitted: FittedInputs, every: list[Input], parameters: Mapping[str, Any]
    ) -> Step:
        """Return the step that merges the tensors ``every`` by statistics, such as Fisher information.

        Some methods (``measures_base``) need statistics of the base only; the base is then the last of ``every``. All
        other methods need statistics of each model. If statistics are missing, a method of the first kind adds the
        models' changes to the base, and any other method averages the models with the weights in ``parameters``.
        """
        weights, of_base = parameters["weight"], piece.method.measures_base
        measured = every[-1:] if of_base else every
        kind, found = self._statistics.of(piece.key, measured, parameters, fitted=bool(fitted.policy))
        if found:
            merge = Merge(piece.method.name, parameters, of_base, statistics=kind)
            return self._merged(piece, fitted, [*every, *found], merge)
        if of_base:
            given = {"weight": weights, "normalize": False, "lambda": parameters["lambda"], "int8_mask": False}
            return self._merged(piece, fitted, every, Merge("task_arithmetic", given, base=True))
        return self._merged(piece, fitted, every, Merge("linear", {"weight": weights, "normalize": True}))

    def _merged(self, piece: MergePiece, fitted: FittedInputs, every: Sequence[Input], merge: Merge) -> Step:
        models = every
        if fitted.policy in FITTED:
            self._notes.fitted.setdefault(fitted.policy, []).append(piece.key)
        if merge.statistics:
            models = every[:-1] if merge.statistics in OF_BASE else every[: len(every) // 2]
        wide = any(one.dtype == "float64" for one in models)
        compute = self._options.compute or ("float64" if wide else "float32")
        first, vocabulary = every[0], self._options.vocabulary
        step = Step(
            piece.key, "merge", self._dtype(piece, models), fitted.shape, first.source, first.key, first.dtype,
            first.shape, rule=f"--method {piece.method.name}", policy=fitted.policy, more=tuple(every[1:]),
            axis=fitted.axis, merge=self._shared(replace(merge, compute=compute, device=self._options.device)),
        )  # fmt: skip
        return with_vocabularies(step, vocabulary.rows if vocabulary is not None else ())

    def _shared(self, merge: Merge) -> Merge:
        """Return the first ``Merge`` object that is equal to this one: most are equal, so this saves memory."""
        merge_key = (merge.method, tuple(merge.parameters.items()), merge.base, merge.compute, merge.statistics)
        return self._merges.setdefault(merge_key, merge)

    def _alone(self, piece: MergePiece, fitted: FittedInputs, one: Input) -> Step:
        """Return the step of an output tensor that gets the values of one model, ``one``; its rows may be reordered."""
        if fitted.policy != "vocab":
            floating = DTYPES[one.dtype].kind == "float"
            return _copy(piece, one, self._dtype(piece, [one]) if floating else one.dtype)
        every = [*fitted.inputs.values(), *([fitted.base] if fitted.base is not None else [])]
        weights = tuple(float(other is one) for other in every)
        return self._merged(piece, fitted, every, Merge("linear", {"weight": weights, "normalize": False}))

    def _check_parameters(
        self, piece: MergePiece, shape: tuple[int, ...], parameters: Mapping[str, Any], *, number: int, has_base: bool
    ) -> None:
        """Raise ConfigError or PlanError if the merge method does not accept its parameters for a tensor of this shape.

        ``number`` is the number of models. The same parameters for the same kind of tensor are checked only once.
        """
        check_key = (piece.method.name, len(shape), number, has_base, *sorted(parameters.items()))
        if check_key not in self._checked:
            self._checked.add(check_key)
            try:
                piece.method.check(shape, number, parameters, has_base=has_base, key=piece.key)
            except PlanError as error:
                raise PlanError(f"{escape(piece.key)}: {error.message}", hint=error.hint) from error
            except ConfigError as error:
                if number == len(piece.models):
                    raise
                here = f"{escape(piece.key)}, which is merged from {number} of {count(len(piece.models), 'model')}"
                raise ConfigError(f"{here}: {error.message}", hint=error.hint) from error

    def _check_values(self, piece: MergePiece, inputs: Sequence[Input]) -> None:
        for one in inputs:
            info, name = self._views[one.source].tensors[one.key], escape(self._views[one.source].source.name)
            if info.opaque:
                raise opaque_error(
                    one.key, self._views[one.source].source.name, info, "cannot be merged", verb="merge",
                    leave=f"Leave the tensor out first: ckpt filter --exclude {escape(one.key)}.",
                )  # fmt: skip
            if DTYPES[one.dtype].is_floating and DTYPES[one.dtype].is_packed:
                raise PlanError(
                    f"the tensor {escape(one.key)} of {name} is {one.dtype}, which packs several numbers in a byte, "
                    "so it cannot be merged.",
                    hint=f"Leave the tensor out first: ckpt filter --exclude {escape(one.key)}.",
                )

    def _integers(self, piece: MergePiece, fitted: FittedInputs, kind: str) -> Step:
        """Return the step of a tensor of integers or booleans, which have no mean: --int-buffers decides its values.

        ``kind`` is the kind of the tensor's dtype, such as "uint" or "bool". Raises PlanError if it is "complex", or if
        the shapes differ and --int-buffers does not work with the policy of --on-mismatch.
        """
        inputs = list(fitted.inputs.values())
        if kind == "complex":
            raise PlanError(
                f"the tensor {escape(piece.key)} is {inputs[0].dtype}: there is no merge method for complex numbers.",
                hint="Average the models with ckpt average, or leave the tensor out first, with ckpt filter.",
            )
        if len(inputs) == 1 and inputs[0].shape == fitted.shape:
            return _copy(piece, inputs[0], inputs[0].dtype)
        self._notes.integers.append(piece.key)
        first, last = inputs[0], inputs[-1]
        rule = f"--int-buffers {self._options.int_buffers}"
        one = last if self._options.int_buffers == "last" else first
        if self._options.int_buffers == "max" and len(inputs) > 1:
            if not fitted.policy:
                return Step(
                    piece.key, "max", first.dtype, fitted.shape, first.source, first.key, first.dtype, first.shape,
                    rule=rule, more=tuple(inputs[1:]),
                )  # fmt: skip
        elif one.shape == fitted.shape or is_reshape(one.shape, fitted.shape):
            return replace(_copy(piece, one, one.dtype, rule=rule), shape=fitted.shape)
        elif fitted.policy == "slice":
            self._notes.sliced.append(piece.key)
            return Step(
                piece.key, "slice", one.dtype, fitted.shape, one.source, one.key, one.dtype, one.shape,
                rule=rule, policy="slice",
            )  # fmt: skip
        skip = (
            f"Merge this tensor without the models in which its shape differs: --on-mismatch {escape(piece.key)}=skip."
        )
        has_shape = first.shape == fitted.shape or is_reshape(first.shape, fitted.shape)
        raise PlanError(
            f"{escape(piece.key)} ({one.dtype}) has different shapes in the models: {rule} does not work with "
            f"--on-mismatch {fitted.policy}.",
            hint=f"{skip}{' Or take the values of the first model: --int-buffers first.' if has_shape else ''}",
        )

    def _dtype(self, piece: MergePiece, inputs: Sequence[Input]) -> str:
        """Return the dtype of an output tensor: --dtype, else the inputs' dtype, else one that holds all values."""
        views = self._views
        dtypes = {
            views[one.source].dtype_of(one.key) if views[one.source].decoded_dtype else one.dtype for one in inputs
        }
        if len(dtypes) == 1 or self._options.dtype:
            return self._options.dtype or dtypes.pop()
        bits = max(DTYPES[dtype].bits for dtype in dtypes)
        widest = [dtype for dtype in dtypes if DTYPES[dtype].bits == bits]
        made = widest[0] if len(widest) == 1 else "float32"
        if piece.key not in self._options.encoded:
            self._notes.mixed.setdefault(made, []).append(piece.key)
        return made


def _can_lack_base(piece: MergePiece, models: int) -> bool:
    """Return whether a tensor that only ``models`` of the models have, and not the base, can be in the output."""
    return piece.method.base != "required" or models < 2


def _copies(method: Method, parameters: Mapping[str, Any]) -> bool:
    """Return whether a merge only copies the values of a model: passthrough with parameters that change nothing."""
    return method.name == "passthrough" and all(value in (1.0, (1.0,), True) for value in parameters.values())


def _copy(piece: MergePiece, one: Input, dtype: str, rule: str = "") -> Step:
    rule = rule or f"--method {piece.method.name}"
    return Step(piece.key, "copy", dtype, one.shape, one.source, one.key, one.dtype, one.shape, rule=rule)
