"""Decides how each destination tensor is made: copied, resized, mapped by token, initialised or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...errors import ConfigError, PlanError
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, shape_text
from ..keys.renaming import KeyMatcher
from ..mismatch.policies import cast_fault, fit, is_reshape
from ..opaque_tensor_errors import is_uncopied, opaque_error
from ..plan.files import PlanSource, TensorOrigin, operation_fields
from ..plan.plan import EqualKeys
from ..plan.step import Step
from ..target import InitialFile, TargetSpec
from .by_place import PositionalRows, ShapeChange
from .equal_tensors import are_known_equal, unequal_error
from .options import Options
from .plan_errors import PlanFaults, operations_option, raise_faults
from .plan_notes import transposed_notes
from .selection import Selection
from .vocabulary import VocabularyAxes

__all__ = ["Decisions", "InitialView", "decide", "dropped_layers", "origin_of"]

ABSENT = ("missing", "excluded")
"""The reasons of steps for tensors that are in no source, or whose sources are excluded."""

# ``--drop-last``: the last layers to initialise, in the order that the destination declares; names do not matter.


def dropped_layers(target: TargetSpec, number: int) -> tuple[str, ...]:
    """Return the last ``number`` layers of a destination, as prefixes of keys.

    Raises ConfigError if the destination has too few layers, or does not declare their order. The first layer is never
    dropped: otherwise no layer would be transplanted.
    """
    if not number:
        return ()
    layers = target.layers
    if not layers:
        raise ConfigError(
            f"--drop-last {number}: {escape(target.name)} does not declare the order of its layers.",
            hint="Select the layers to initialise: --reinit GLOB, once for each layer.",
        )
    if number >= len(layers):
        raise ConfigError(
            f"--drop-last {number}: {escape(target.name)} has {count(len(layers), 'layer')}, "
            f"{', '.join(map(escape, layers))}, and {escape(layers[0])} always stays.",
            hint=_layers_that_can_go(len(layers) - 1),
        )
    return layers[-number:]


def _layers_that_can_go(most: int) -> str:
    if not most:
        return "Leave --drop-last out."
    return f"Use 1 to {most}." if most > 1 else "Use 1."


# Finds the source tensor of a destination tensor. If the destination ties several names, their source tensors must be
# equal.


def origin_of(
    group: Sequence[str], selection: Selection, equal: list[EqualKeys], names: Sequence[str]
) -> TensorOrigin | None:
    """Return the source tensor for the destination tensor with the names ``group``; None if no source has it.

    The last source that has one of these names is used. If this source has several of these names, their values must
    be the same: raises PlanError if they are known to differ; pairs that are not known to be equal are added to
    ``equal``. ``names`` are the names of the sources in messages.
    """
    found = [origin for name in group for origin in selection.origins.get(name, ())]
    if not found:
        return None
    last = max(origin.source for origin in found)
    same = [origin for origin in found if origin.source == last]
    for other in same[1:]:
        _check_equal(same[0], other, equal, names)
    return same[0]


def _check_equal(first: TensorOrigin, other: TensorOrigin, equal: list[EqualKeys], names: Sequence[str]) -> None:
    """Raise PlanError if two source tensors that the destination ties differ in shape, dtype or checksum.

    If a checksum is not known, the pair is added to ``equal``: the values are compared later.
    """
    found = are_known_equal(first.info, other.info)
    if found is False:
        raise unequal_error(first.key, other.key, names[first.source])
    if found is None:
        equal.append(EqualKeys(first.source, first.key, other.key))


@dataclass(frozen=True)
class InitialView:
    """A file that contains initial values of some tensors: its entry in the plan's sources, and its tensors.

    ``file`` has the keys of the destination that it has values for.
    """

    source: PlanSource
    tensors: Mapping[str, TensorInfo]
    file: InitialFile


@dataclass
class Decisions:
    """The decisions on all destination tensors.

    ``steps`` are in state-dict order. ``equal`` are pairs of source keys whose values must be the same; they are
    compared before writing. ``used`` are the names of the destination tensors that a source has.
    """

    steps: list[Step] = field(default_factory=list)
    equal: list[EqualKeys] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class _Decider:
    def __init__(
        self,
        target: TargetSpec,
        selection: Selection,
        options: Options,
        names: Sequence[str],
        initial: Sequence[InitialView],
    ) -> None:
        self.target = target
        self.selection = selection
        self.options = options
        self.names = names
        self.faults = PlanFaults()
        self.changes: list[ShapeChange] = []
        self.keeper = len(names) if target.keeps else None
        self._given = {key: (place, view) for place, view in enumerate(initial, len(names)) for key in view.file.keys}
        self.aliases: dict[str, list[str]] = {}
        for alias, owner in target.ties.items():
            self.aliases.setdefault(owner, []).append(alias)
        self._dropped = dropped_layers(target, options.drop_last)
        self._reinit = KeyMatcher([flag.pattern for flag in options.reinit]) if options.reinit else None
        scoped = [flag.pattern for flag, _ in options.mismatch.scoped]
        self._scoped = KeyMatcher(scoped) if scoped else None
        self.axes = (
            VocabularyAxes(target, options.vocabulary, list(target.tensors)) if options.vocabulary is not None else None
        )

    def step(self, key: str, origin: TensorOrigin | None) -> Step:
        """Return the step of the tensor ``key``, which comes from ``origin``, or from no source if ``origin`` is None.

        The first of these that applies decides: --reinit, --drop-last, a missing source tensor, --vocab, --on-mismatch.
        Raises PlanError or FormatError if the source tensor cannot be copied.
        """
        info = self.target.tensors[key]
        hits = self._hits(self._reinit, key)
        if hits:
            return self._initial(key, info, reason="reinit", rule=str(self.options.reinit[min(hits)]))
        if self._drops(key):
            return self._initial(key, info, reason="reinit", rule=f"--drop-last {self.options.drop_last}")
        if origin is None:
            return self._absent(key, info)
        if origin.info.opaque and not self._is_copied(origin.info, info):
            raise opaque_error(
                origin.key, self.names[origin.source], origin.info, "cannot be copied", verb="transplant",
                leave=f"Use --exclude {escape(origin.key)}.",
            )  # fmt: skip
        if origin.is_description:  # a JSON text: its length depends on the numbers in it
            info = replace(info, shape=origin.info.shape)
        step = Step(
            key=key, op="copy", dtype=self._dtype(info, origin.dtype or origin.info.dtype), shape=info.shape,
            source=origin.source, source_key=origin.key, source_dtype=origin.info.dtype,
            source_shape=origin.info.shape, rule=origin.rule,
            **operation_fields(origin),
        )  # fmt: skip
        mapped = self._mapped(step) if self.axes is not None else None
        if mapped is not None:
            step = mapped
        elif origin.info.shape != info.shape and not is_reshape(origin.info.shape, info.shape):
            names = (step.key, *self.aliases.get(step.key, ()))
            self.changes.append(ShapeChange(names, step.source_shape, step.shape, origin.key))
            step = self._resized(step, origin)
        self._check_coded(step, origin)
        if step.op != "init" and step.dtype != step.source_dtype:
            fault = cast_fault(step.source_dtype, step.dtype)
            if fault:
                where = f"{step.source_dtype} in {self.names[origin.source]}, {step.dtype} in the destination"
                self.faults.casts.append((key, f"{where}: {fault}"))
        return step

    def _is_copied(self, have: TensorInfo, want: TensorInfo) -> bool:
        """Return whether a tensor that torch quantised can be copied: the destination must have such a tensor, too.

        Such a tensor is never copied into a live module: the module would keep its own scales.
        """
        is_alike = (have.dtype, have.shape) == (want.dtype, want.shape)
        return is_alike and not is_uncopied(have) and self.target.kind != "module"

    def _check_coded(self, step: Step, origin: TensorOrigin) -> None:
        """Record a fault if ``step`` would not copy a stored part of a quantised tensor unchanged."""
        if origin.coded is None:
            return
        if origin.info.shape != step.shape and not is_reshape(origin.info.shape, step.shape):
            self.faults.coded.append((origin, step.rule or f"a shape of {shape_text(step.shape)}"))
        elif step.op != "copy" or step.dtype != origin.info.dtype:
            self.faults.coded.append((origin, f"a cast to {step.dtype}" if step.op == "copy" else step.rule))

    def _drops(self, key: str) -> bool:
        """Return whether any of a tensor's names is in a dropped layer."""
        names = [key, *self.aliases.get(key, ())]
        return any(name == layer or name.startswith(f"{layer}.") for layer in self._dropped for name in names)

    def _hits(self, matcher: KeyMatcher | None, key: str) -> frozenset[int]:
        """Return the indices of the patterns that match any of a tensor's names; none if ``matcher`` is None."""
        if matcher is None:
            return frozenset()
        return matcher.match(key).union(*(matcher.match(alias) for alias in self.aliases.get(key, ())))

    def _absent(self, key: str, info: TensorInfo) -> Step:
        names = (key, *self.aliases.get(key, ()))
        excluded = next((found[0] for name in names if (found := self.selection.excluded.get(name))), None)
        if excluded is None:
            return self._initial(key, info, reason="missing", rule="")
        return self._initial(key, info, reason="excluded", rule=excluded.why)

    def _initial(self, key: str, info: TensorInfo, *, reason: str, rule: str, policy: str = "") -> Step:
        dtype = self._dtype(info, "")
        fault = cast_fault(info.dtype, dtype) if dtype != info.dtype else ""
        if fault:
            self.faults.casts.append((key, f"{info.dtype} in the destination, {dtype} as requested: {fault}"))
            self.faults.in_no_source.add(key)
        if self.keeper is None and key in self._given:
            return self._from_file(key, dtype, reason=reason, rule=rule, policy=policy)
        if self.keeper is None and key in self.target.undrawable:
            self._add_undrawable(key, asked=reason == "reinit")
        if self.keeper is None:
            return Step(key, "init", dtype, info.shape, rule=rule, policy=policy, reason=reason)
        return Step(
            key, "keep", dtype, info.shape, self.keeper, key, self.target.decoded.get(key, info.dtype), info.shape,
            rule=rule, policy=policy, reason=reason,
        )  # fmt: skip

    def _add_undrawable(self, key: str, *, asked: bool = False) -> None:
        """Record a fault if the initial values of a tensor cannot be used.

        It is no fault if --reinit selects the tensor (``asked``) and its values may be used with --reinit.
        """
        why = self.target.undrawable[key]
        if not (asked and why.allowed):
            self.faults.undrawable[key] = why

    def _from_file(self, key: str, dtype: str, *, reason: str, rule: str, policy: str) -> Step:
        """Return the step of a tensor whose initial values are in a file."""
        place, view = self._given[key]
        there = view.file.keys[key]
        info = view.tensors[there]
        return Step(
            key, view.file.op, dtype, info.shape, place, there, info.dtype, info.shape,
            rule=rule or view.file.rule, policy=policy, reason=reason,
        )  # fmt: skip

    def _mapped(self, step: Step) -> Step | None:
        """Return the step that maps the rows of a tensor by token.

        The result is None if the tensor has no vocabulary axis, or if other axes or their number differ, too. Raises
        PlanError if the rows of new tokens would be means, but the tensor does not have floating-point numbers.
        """
        assert self.axes is not None
        assert self.options.vocabulary is not None
        have, want = step.source_shape, step.shape
        axis = self.axes.axis(step.key, [step.key, *self.aliases.get(step.key, ())], have, want)
        if axis is None or (*have[:axis], *have[axis + 1 :]) != (*want[:axis], *want[axis + 1 :]):
            return None
        rows = self.axes.rows(step.key, axis, have, want)
        if (rows.composed or (rows.new == "mean" and rows.fresh)) and not DTYPES[step.source_dtype].is_floating:
            raise PlanError(
                f"the rows of new tokens in {escape(step.key)} cannot be a mean of other rows, because the tensor is "
                f"{step.source_dtype}.",
                hint="Use --new-tokens init or zero.",
            )
        rule = " ".join(filter(None, (step.rule, str(self.options.vocabulary))))
        made = replace(step, op="map", rows=rows, axis=axis, policy="vocab", rule=rule)
        if made.overlays and self.keeper is None and step.key in self.target.undrawable:
            self._add_undrawable(step.key)
        return replace(step, rule=rule) if rows.is_identity else made

    def check_mapped(self, steps: Sequence[Step]) -> list[str]:
        """Return notes on tensors that may have a row for each token, but that --vocab does not map.

        Raises PlanError if --vocab maps no tensor.
        """
        vocabulary = self.options.vocabulary
        if self.axes is None or vocabulary is None or vocabulary.rows.is_identity:
            return []
        passed = self.axes.passed_over(steps)
        if any(step.rows is not None for step in steps) or all(step.reason in ABSENT for step in steps):
            return passed  # if the sources have no tensor of the destination, another error says so
        anew = [step for step in steps if step.reason == "reinit" and step.key in self.target.vocabulary]
        if not anew:
            raise self.axes.none_found(self.changes)
        rules = ", ".join(dict.fromkeys(step.rule for step in anew))
        return [
            f"{vocabulary} maps no rows: {listing([step.key for step in anew])} are initialised by {rules}",
            *passed,
        ]

    def said_of_lists(self, steps: Sequence[Step], resized: Sequence[str]) -> str:
        """Return a clause for notes on tensors with rows of tokens in ``resized``, which --vocab does not map.

        It names the tensors that --vocab maps in the same layers. The result is '' without --vocab.
        """
        vocabulary = self.options.vocabulary
        if vocabulary is None:
            return ""
        layers = {key.rpartition(".")[0] for key in resized}
        mapped = [step.key for step in steps if step.rows is not None and step.key.rpartition(".")[0] in layers]
        but = f", but maps {listing(mapped, 3, where='')}, in the same layer" if mapped else ""
        tokens = f"{vocabulary.rows.size} and {len(vocabulary.rows.rows)} tokens"
        return f"{vocabulary.said} ({tokens}) does not map these rows{but}"

    def _resized(self, step: Step, origin: TensorOrigin) -> Step:
        policy, rule = self.options.mismatch.everywhere, "--on-mismatch " + self.options.mismatch.everywhere
        hits = self._hits(self._scoped, step.key)
        if hits:
            flag, policy = self.options.mismatch.scoped[max(hits)]
            rule = f"{flag}={policy}"
        found = fit(policy, step.source_shape, step.shape, step.source_dtype)
        if not found.op:
            why = f"{rule} does not fit: {found.why}" if policy != "error" else ""
            self.faults.mismatches.append((step, origin, why))
            return step
        if found.op == "init":
            info = self.target.tensors[step.key]
            return self._initial(step.key, info, reason="mismatch", rule=rule, policy=policy)
        if found.op in ("pad", "overlap") and self.keeper is None and step.key in self.target.undrawable:
            self._add_undrawable(step.key)
        return replace(step, op=found.op, policy=found.policy, rule=" ".join(filter(None, (step.rule, rule))))

    def _dtype(self, wanted: TensorInfo, have: str) -> str:
        """Return the dtype of an output tensor; ``have`` is the source's dtype, '' if the tensor is in no source."""
        choice = self.options.dtype
        if choice == "keep":
            return have or wanted.dtype
        return choice if choice and DTYPES[wanted.dtype].kind == "float" else wanted.dtype


def decide(
    target: TargetSpec,
    selection: Selection,
    options: Options,
    names: Sequence[str],
    initial: Sequence[InitialView] = (),
) -> Decisions:
    """Return the step of every destination tensor; ``names`` are the names of the sources in messages.

    ``selection`` has the source tensors by their names in the destination. ``initial`` are files that contain initial
    values; in the plan they come after the sources.

    Raises PlanError for mismatches that no policy settles and for casts that ``cast_fault`` refuses; FormatError if the
    values of a selected tensor are not plain bytes.
    """
    decider = _Decider(target, selection, options, names, initial)
    decisions = Decisions()
    owned: dict[str, Step] = {}
    for key in target.tensors:
        owner = target.ties.get(key)
        if owner is not None:
            decisions.steps.append(replace(owned[owner], key=key, tied_to=owner))
            continue
        group = [key, *decider.aliases.get(key, ())]
        decisions.used.update(name for name in group if name in selection.origins)
        origin = origin_of(group, selection, decisions.equal, names)
        owned[key] = decider.step(key, origin)
        decisions.steps.append(owned[key])
    resized = [key for key, step in owned.items() if step.kind == "resized"]
    asked = resized or (decider.faults.mismatches and decider.axes is None)
    # To find the vocabulary axes, the model is built again: so read ``target.vocabulary`` only if a message needs it.
    by_place = PositionalRows(decider.changes, target.vocabulary) if asked else None
    is_live = target.kind == "module"
    if any(vars(decider.faults).values()):
        raise_faults(decider.faults, names, target.name, decider.axes, by_place, is_live=is_live)
    decisions.notes += decider.axes.notes if decider.axes is not None else []
    decisions.notes += decider.check_mapped(decisions.steps)
    decisions.notes += decider.axes.padding_notes() if decider.axes is not None else []
    if by_place is not None:
        decisions.notes += by_place.resized(
            resized, decider.said_of_lists(decisions.steps, resized), has_vocab=not is_live
        )
    decisions.notes += (
        transposed_notes(decider.changes, owned.values(), operations_option(is_live=is_live)) if decider.changes else ()
    )
    return decisions
