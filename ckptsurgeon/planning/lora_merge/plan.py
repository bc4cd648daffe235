"""Plans ``lora merge``: collects the changes of adapters to a base, and makes the steps. Opens no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import PlanError
from ...methods.lora.adapter import AdapterModule, base_notes
from ...methods.lora.conv1d import KnownModel
from ...methods.lora.matching import match_modules
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo, tied_keys
from ...util.notes import with_prefix
from ...util.text import escape, shape_text
from ..edit import check_casts
from ..keys.pattern import OptionPattern
from ..keys.pattern_hints import matched
from ..keys.renaming import KeyMatcher
from ..opaque_tensor_errors import is_uncopied, opaque_error
from ..plan.compute import Lora, LoraTerm
from ..plan.files import PlanTarget, SourceView
from ..plan.plan import Plan
from ..plan.step import Input, Step
from ..quantised import refuse_codes
from .fitting import AdapterView, check_names, input_of, misfit, weight_layout

__all__ = ["BaseChanges", "named", "output_steps", "plan_lora_merge"]

# Collects the changes that adapters make to a base, and makes the steps of the tensors that they change.


@dataclass
class TensorChanges:
    """The changes of one tensor of the base: the terms to add, their inputs, the adapters' names."""

    terms: list[LoraTerm] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    by: list[str] = field(default_factory=list)


class BaseChanges:
    """The changes of all tensors of the base, collected from one adapter after the other.

    ``tied`` is for output layers that the base does not store, because they are tied to the embedding: it maps the key
    of the output layer to the key of the embedding. An adapter may change only one of the two.
    """

    def __init__(
        self, base: SourceView, model: KnownModel | None, exclude: Sequence[OptionPattern], tied: Mapping[str, str]
    ) -> None:
        self.tied = tied
        self.base = replace(base, tensors={**base.tensors, **{one: base.tensors[of] for one, of in tied.items()}})
        self.model = model
        self.exclude = exclude
        self.changed: dict[str, TensorChanges] = {}
        self.fresh: dict[str, Input] = {}
        self.copies: dict[tuple[int, str], str] = {}
        """{(source, key of a matrix): key of an earlier one with equal values}, for matrices that adapters save."""
        self.left_out: list[tuple[int, str]] = []
        self.notes: list[str] = []

    def add(self, source: int, one: AdapterView) -> None:
        """Add the changes of an adapter; ``source`` is its index in the plan's sources."""
        modules = self._chosen(source, one)
        known = {**dict.fromkeys(self.base.tensors), **dict.fromkeys(coded.name for coded in self.base.codes.tensors)}
        names = match_modules([(m.component, m.name, m.joined) for m in modules], known, one.adapter.saved)
        check_names(modules, names, one, self.base)
        refuse_codes([self.base], "lora merge", set(names.weights.values()))
        self.notes += [
            with_prefix(f"{escape(one.adapter.name)}: ", note) for note in (*names.notes, *one.adapter.notes)
        ]
        weights = [names.weights[module.component, module.name] for module in modules]
        ways = weight_layout(list(zip(modules, weights, strict=True)), one, self.base, self.model)
        self.notes += [with_prefix(f"{escape(one.adapter.name)}: ", note) for note in ways.notes]
        for module, key, transposed in zip(modules, weights, ways.transposed, strict=True):
            self._add_module(source, one, module, key, transposed=transposed)
        self.copies |= {(source, key): first for key, first in one.copies.items()}
        for name, key in one.adapter.saved.items():
            self._add_saved(source, one, names.saved(name), key)
        self._check_fresh()
        every = dict(zip((module.name for module in modules), weights, strict=True))
        every |= {module.name: "" for module in one.adapter.modules if module.name not in every}  # excluded on purpose
        shift = names.shift
        stays = base_notes(one.adapter, every, self.base.tensors, on=shift.on, off=shift.off)
        self.notes += [with_prefix(f"{escape(one.adapter.name)}: ", note) for note in stays]

    def _check_fresh(self) -> None:
        """Raise PlanError if an adapter changes a tensor that another adapter resizes."""
        key = next((key for key in self.fresh if key in self.changed), "")
        if key:
            raise PlanError(
                f"an adapter resizes {escape(key)}, and {escape(self.changed[key].by[0])} also adds a change to it: "
                "the two cannot be merged at once.",
                hint="If these are two adapters, merge one after the other, if each fits the result of the merge "
                "before it; otherwise leave one of the two out of the adapter.",
            )

    def _chosen(self, source: int, one: AdapterView) -> list[AdapterModule]:
        """Return the modules of an adapter that are not excluded; add the tensors of all others to ``left_out``."""
        matcher = KeyMatcher([flag.pattern for flag in self.exclude])
        chosen = []
        for module in one.adapter.modules:
            if not matcher.match(named(module)):
                chosen.append(module)
                continue
            keys = (*module.factors, module.bias, module.magnitude)
            self.left_out += [(source, key) for key in keys if key]
        return chosen

    def _add_module(self, source: int, one: AdapterView, module: AdapterModule, key: str, *, transposed: bool) -> None:
        base = self.base.tensors[key]
        if module.kind and module.magnitude:
            raise _magnitude_error(one, module)
        kind = module.kind or ("dora" if module.magnitude else "product")
        term = LoraTerm(kind, one.weight, module.scale, transposed)
        keys = [*module.factors, *([module.magnitude] if module.magnitude else [])]
        if not term.fits(base.shape, [one.view.tensors[each].shape for each in keys]):
            raise misfit(one, module, key, self.base)
        self._change(key, term, one, [input_of(source, one, each) for each in keys])
        if module.bias:
            self._add_bias(source, one, module, key)

    def _add_bias(self, source: int, one: AdapterView, module: AdapterModule, key: str) -> None:
        bias = f"{key.removesuffix('weight')}bias"
        there = self.base.tensors.get(bias)
        if there is None or there.shape != one.view.tensors[module.bias].shape:
            raise PlanError(
                f"the adapter {escape(one.adapter.name)} adds {escape(module.bias)} to a bias, but "
                f"{escape(self.base.source.name)} has no bias of that shape for {escape(key)}.",
                hint="Use the model that the adapter was trained on.",
            )
        self._change(bias, LoraTerm("added", one.weight, module.scale), one, [input_of(source, one, module.bias)])

    def _add_saved(self, source: int, one: AdapterView, name: str, key: str) -> None:
        given, there = input_of(source, one, key), self.base.tensors.get(name)
        if there is not None and there.shape == given.shape:
            self._change(name, LoraTerm("saved", one.weight), one, [given])
            return
        if one.weight != 1 or name in self.fresh:
            why = "has no such tensor" if there is None else f"has it as {shape_text(there.shape)}"
            raise PlanError(
                f"the adapter {escape(one.adapter.name)} has the tensor {escape(name)} {shape_text(given.shape)}, and "
                f"{escape(self.base.source.name)} {why}: only a single adapter with the weight 1 can add or resize it.",
                hint="Merge that adapter alone, with the weight 1."
                if name in self.fresh
                else "Give that adapter the weight 1, or merge it alone.",
            )
        self.fresh[name] = given
        if there is not None:
            shapes = f"{shape_text(there.shape)} to {shape_text(given.shape)}"
            self.notes.append(f"{escape(one.adapter.name)} resizes {escape(name)} from {shapes}")

    def _change(self, key: str, term: LoraTerm, one: AdapterView, inputs: Sequence[Input]) -> None:
        kind = DTYPES[self.base.tensors[key].dtype]
        if kind.kind != "float" or kind.is_packed:
            raise PlanError(
                f"the adapter {escape(one.adapter.name)} changes {escape(key)}, which is {kind.name} in "
                f"{escape(self.base.source.name)}: only floating-point weights can be changed.",
                hint="Merge the adapter into the model as it was before quantisation.",
            )
        changes = self.changed.setdefault(key, TensorChanges())
        changes.terms.append(term)
        changes.inputs += inputs
        changes.by.append(one.adapter.name)


def _magnitude_error(one: AdapterView, module: AdapterModule) -> PlanError:
    return PlanError(
        f"the module {escape(module.name)} of {escape(one.adapter.name)} has DoRA's magnitudes, but its change is not "
        "the product of two factors (LoHa, LoKr, or a LoCon with a core), so it cannot be merged.",
        hint="Merge the adapter with LyCORIS, which trains such modules, or leave the module out with --exclude.",
    )


def named(module: AdapterModule) -> str:
    """Return the name of a module for the user's patterns; kohya's names have a prefix, such as lora_unet."""
    return f"{module.component}_{module.name}" if module.joined else module.name


# The steps of a base that adapters change.


def output_steps(changes: BaseChanges, dtype: str) -> list[Step]:
    """Return the steps of all output tensors: the base's tensors in their order, then those that only an adapter has.

    ``dtype`` is the dtype that the user asked for. If an output layer is tied to the embedding, the base may not store
    it. Then it gets a step only if the adapters make it differ from the embedding.
    """
    first: dict[tuple[str, str, str], str] = {}
    ties = tied_keys(changes.base.tensors)
    made = []
    for key, info in changes.base.tensors.items():
        if key in changes.tied and _is_resized(changes, changes.tied[key]) and key not in changes.fresh:
            changes.notes.append(
                f"{escape(changes.tied[key])} is resized, and so is the output layer, which is tied to it; "
                "in the output layer, PEFT uses the rows of the base"
            )
            continue
        step = _step(changes, key, info, _dtype(changes.base.dtype_of(key), dtype))
        values = ""
        if step.source:  # an adapter saves both: they may differ
            values = changes.copies.get((step.source, step.source_key), step.source_key)
        alike = (ties.get(key, key), values, repr((step.op, step.lora, step.inputs[1:], step.source)))
        owner = first.setdefault(alike, key)
        if key in ties and owner == key:
            changes.notes.append(
                f"{escape(key)} and {escape(ties[key])} were one tensor, but adapters change them differently: "
                "they become two"
            )
        if owner == key or key not in changes.tied:
            made.append(step if owner == key else replace(step, tied_to=owner))
    fresh = [name for name in changes.fresh if name not in changes.base.tensors]
    return [*made, *(_copied(name, changes.fresh[name], changes.fresh[name].dtype, dtype) for name in fresh)]


def _is_resized(changes: BaseChanges, key: str) -> bool:
    return key in changes.fresh and changes.fresh[key].shape != changes.base.tensors[key].shape


def _step(changes: BaseChanges, key: str, info: TensorInfo, dtype: str) -> Step:
    if key in changes.fresh:
        return _copied(key, changes.fresh[key], info.dtype, dtype)
    own = Input(0, changes.tied.get(key, key), info.dtype, info.shape)
    changed = changes.changed.get(key)
    if changed is None:
        return _copied(key, own, info.dtype, dtype)
    if [(term.kind, term.weight) for term in changed.terms] == [("saved", 1.0)]:
        return _copied(key, changed.inputs[0], info.dtype, dtype)
    return Step(
        key, "lora", _dtype(info.dtype, dtype), info.shape, *own,
        rule=" + ".join(changed.by), more=tuple(changed.inputs), lora=Lora(tuple(changed.terms)),
    )  # fmt: skip


def _dtype(dtype: str, wanted: str) -> str:
    """Return the dtype of an output tensor: ``wanted`` for real floating tensors, else the tensor's own."""
    return wanted if wanted not in ("", "keep") and DTYPES[dtype].kind == "float" else dtype


def _copied(key: str, one: Input, dtype: str, wanted: str) -> Step:
    made = _dtype(dtype, wanted)
    return Step(key, "copy", made, one.shape, one.source, one.key, one.dtype, one.shape)


def plan_lora_merge(
    base: SourceView,
    adapters: Sequence[AdapterView],
    *,
    model: KnownModel | None = None,
    dtype: str = "",
    exclude: Sequence[OptionPattern] = (),
    tied: Mapping[str, str] | None = None,
    target: PlanTarget | None = None,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a base with adapters added: ``base`` is the first source, the adapters follow in their order.

    ``model`` has the known facts about the base; ``exclude`` leaves modules of the adapters out. ``tied`` is for output
    layers that the base does not store, because they are tied to the embedding: it maps the key of the output layer to
    the key of the embedding.

    Raises PlanError if an adapter is for another model; PatternError for a pattern that matches no module; FormatError
    if the values of a tensor are not plain bytes.
    """
    _check_plain(base)
    every = [named(module) for one in adapters for module in one.adapter.modules]
    overlooked = matched([(str(flag), flag.pattern) for flag in exclude], every, "module")[1]
    changes = BaseChanges(base, model, exclude, tied or {})
    for source, one in enumerate(adapters, 1):
        changes.add(source, one)
    steps = output_steps(changes, dtype)
    check_casts(steps)
    return Plan(
        verb="lora merge",
        sources=(base.source, *(one.view.source for one in adapters)),
        target=target or PlanTarget("edit", base.source.name, ""),
        steps=tuple(steps),
        unexpected=tuple(changes.left_out),
        excluded=len(changes.left_out),
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(*notes, *overlooked, *changes.notes),
    )


def _check_plain(base: SourceView) -> None:
    opaque = [key for key, info in base.tensors.items() if is_uncopied(info)]
    if opaque:
        raise opaque_error(
            opaque[0], base.source.name, base.tensors[opaque[0]], "cannot be copied", verb="lora merge",
            leave=f"Leave it out first: ckpt filter --exclude {escape(opaque[0])}.", details=opaque,
        )  # fmt: skip
