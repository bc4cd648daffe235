"""The planner of ``lora merge``: adapters are added to the tensors of a base that they are for. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import FormatError, PlanError
from ..keys import KeyMatcher, KeyPattern, unmatched
from ..lora import Adapter, Module, Names, matched
from ..plan import Input, Lora, Plan, PlanTarget, Step, Term, plain_shape
from ..policies import cast_fault
from ..tensors import DTYPES, TensorInfo, alias_groups
from ..text import count, escape, listing, shape_text
from .options import Flag
from .select import SourceView

__all__ = ["AdapterView", "plan_lora_merge"]


@dataclass(frozen=True)
class AdapterView:
    """An adapter as the planner sees it: its headers, what they mean, and what it counts."""

    view: SourceView
    adapter: Adapter
    weight: float = 1.0


@dataclass
class _Changes:
    """What becomes of one tensor of the base: terms, and their inputs."""

    terms: list[Term] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    by: list[str] = field(default_factory=list)


class _Planning:
    """The changes of all tensors, gathered from one adapter after the other."""

    def __init__(self, base: SourceView, exclude: Sequence[Flag]) -> None:
        self.base = base
        self.exclude = exclude
        self.changes: dict[str, _Changes] = {}
        self.fresh: dict[str, Input] = {}
        self.left_out: list[tuple[int, str]] = []
        self.notes: list[str] = []

    def add(self, source: int, one: AdapterView) -> None:
        """Take in an adapter, whose tensors are those of ``source``."""
        modules = self._chosen(source, one)
        names = matched([(m.component, m.name, m.joined) for m in modules], self.base.tensors, one.adapter.saved)
        self._check_names(modules, names, one)
        self.notes += [f"{escape(one.adapter.name)}: {note}" for note in names.notes]
        lies = self._lies(modules, names, one)
        for module in modules:
            self._add_module(source, one, module, names.weights[module.component, module.name], lies)
        for name, key in one.adapter.saved.items():
            self._add_saved(source, one, names.saved(name), key)

    def _chosen(self, source: int, one: AdapterView) -> list[Module]:
        """Return the modules that are not excluded, and remember the others."""
        matcher = KeyMatcher([flag.pattern for flag in self.exclude])
        chosen = []
        for module in one.adapter.modules:
            if not matcher.match(_named(module)):
                chosen.append(module)
                continue
            keys = (module.a, module.b, module.bias, module.magnitude)
            self.left_out += [(source, key) for key in keys if key]
        return chosen

    def _check_names(self, modules: Sequence[Module], names: Names, one: AdapterView) -> None:
        name, base = escape(one.adapter.name), escape(self.base.source.name)
        if modules and not names.weights and not names.several:
            raise PlanError(
                f"{name} is for another model: {base} has none of its {count(len(modules), 'module')}, "
                f"as in {escape(modules[0].name)}.",
                hint="Name the model that it was trained on; ckpt inspect --keys shows the names of both.",
                details=names.lacking,
            )
        if names.lacking:
            raise PlanError(
                f"{name} has {count(len(names.lacking), 'module')} that {base} lacks: {listing(names.lacking)}.",
                hint="Name the model that it was trained on, or leave them out with --exclude.",
                details=names.lacking,
            )
        if names.several:
            raise PlanError(
                f"{name} has {escape(names.several[0])}, which could be several tensors of {base}.",
                hint="Rename what its dots and underscores confuse: ckpt rename.",
                details=names.several,
            )

    def _lies(self, modules: Sequence[Module], names: Names, one: AdapterView) -> bool:
        """Return whether square weights are (in, out): as all that are not square lie, else as the adapter says."""
        seen = set()
        for module in modules:
            base = self.base.tensors[names.weights[module.component, module.name]]
            if not module.embedding and len(set(plain_shape(base.shape))) > 1:
                seen.add(self._orientation(one, module, base, False))
        return True in seen if len(seen - {None}) == 1 else one.adapter.transposed

    def _orientation(self, one: AdapterView, module: Module, base: TensorInfo, otherwise: bool) -> bool | None:
        """Return whether a weight is (in, out), None where it is neither that nor (out, in)."""
        shapes = [one.view.tensors[key].shape for key in (module.a, module.b)]
        first = module.embedding or otherwise
        kinds = [lies for lies in (first, not first) if Term("product", transposed=lies).fits(base.shape, shapes)]
        return kinds[0] if kinds else None

    def _add_module(self, source: int, one: AdapterView, module: Module, key: str, lies: bool) -> None:
        base = self.base.tensors[key]
        transposed = self._orientation(one, module, base, lies)
        if transposed is None:
            raise self._misfit(one, module, key)
        kind = "dora" if module.magnitude else "product"
        term = Term(kind, one.weight, module.scale, transposed)
        keys = [module.a, module.b, *([module.magnitude] if module.magnitude else [])]
        if not term.fits(base.shape, [one.view.tensors[each].shape for each in keys]):
            raise self._misfit(one, module, key)
        self._change(key, term, one, [_input(source, one, each) for each in keys])
        if module.bias:
            self._add_bias(source, one, module, key)

    def _misfit(self, one: AdapterView, module: Module, key: str) -> PlanError:
        a, b = (shape_text(one.view.tensors[each].shape) for each in (module.a, module.b))
        shape = shape_text(self.base.tensors[key].shape)
        return PlanError(
            f"{escape(one.adapter.name)} does not fit {escape(key)} of {escape(self.base.source.name)}, which is "
            f"{shape}: its factors are {a} and {b}.",
            hint="Name the model that it was trained on.",
        )

    def _add_bias(self, source: int, one: AdapterView, module: Module, key: str) -> None:
        bias = f"{key.removesuffix('weight')}bias"
        there = self.base.tensors.get(bias)
        if there is None or there.shape != one.view.tensors[module.bias].shape:
            raise PlanError(
                f"{escape(one.adapter.name)} adds {escape(module.bias)} to a bias, and "
                f"{escape(self.base.source.name)} has none like it for {escape(key)}.",
                hint="Name the model that it was trained on.",
            )
        self._change(bias, Term("added", one.weight, module.scale), one, [_input(source, one, module.bias)])

    def _add_saved(self, source: int, one: AdapterView, name: str, key: str) -> None:
        given, there = _input(source, one, key), self.base.tensors.get(name)
        if there is not None and there.shape == given.shape:
            self._change(name, Term("saved", one.weight), one, [given])
            return
        if one.weight != 1 or name in self.fresh:
            why = "has none such" if there is None else f"has it as {shape_text(there.shape)}"
            raise PlanError(
                f"{escape(one.adapter.name)} brings {escape(name)} {shape_text(given.shape)}, and "
                f"{escape(self.base.source.name)} {why}: only one adapter, with a weight of 1, can replace it.",
                hint="Merge that adapter alone.",
            )
        self.fresh[name] = given
        if there is not None:
            shapes = f"{shape_text(there.shape)} to {shape_text(given.shape)}"
            self.notes.append(f"{escape(one.adapter.name)} resizes {escape(name)} from {shapes}")

    def _change(self, key: str, term: Term, one: AdapterView, inputs: Sequence[Input]) -> None:
        kind = DTYPES[self.base.tensors[key].dtype]
        if kind.kind != "float" or kind.is_packed:
            raise PlanError(
                f"{escape(one.adapter.name)} is for {escape(key)}, which is {kind.name} in "
                f"{escape(self.base.source.name)}: nothing can be added to that.",
                hint="Merge into the model before it was quantised.",
            )
        changes = self.changes.setdefault(key, _Changes())
        changes.terms.append(term)
        changes.inputs += inputs
        changes.by.append(one.adapter.name)

    def steps(self, dtype: str) -> list[Step]:
        """Return what becomes of every tensor, in the order of the base; what it lacks comes last."""
        first: dict[tuple[str, str], str] = {}
        ties = alias_groups(self.base.tensors)
        made = []
        for key, info in self.base.tensors.items():
            step = self._step(key, info, dtype)
            alike = (ties.get(key, key), repr((step.op, step.lora, step.inputs[1:], step.source)))
            owner = first.setdefault(alike, key)
            if key in ties and owner == key:
                self.notes.append(
                    f"{escape(key)} and {escape(ties[key])} were one tensor, and adapters change them differently: "
                    "they are two now"
                )
            made.append(step if owner == key else replace(step, tied_to=owner))
        fresh = [name for name in self.fresh if name not in self.base.tensors]
        return [*made, *(_copied(name, self.fresh[name], self.fresh[name].dtype, dtype) for name in fresh)]

    def _step(self, key: str, info: TensorInfo, dtype: str) -> Step:
        if key in self.fresh:
            return _copied(key, self.fresh[key], info.dtype, dtype)
        own = Input(0, key, info.dtype, info.shape)
        changes = self.changes.get(key)
        if changes is None:
            return _copied(key, own, info.dtype, dtype)
        if [(term.kind, term.weight) for term in changes.terms] == [("saved", 1.0)]:
            return _copied(key, changes.inputs[0], info.dtype, dtype)
        return Step(
            key, "lora", _dtype(info.dtype, dtype), info.shape, 0, key, info.dtype, info.shape,
            rule=" + ".join(changes.by), more=tuple(changes.inputs), lora=Lora(tuple(changes.terms)),
        )  # fmt: skip


def plan_lora_merge(
    base: SourceView,
    adapters: Sequence[AdapterView],
    *,
    dtype: str = "",
    exclude: Sequence[Flag] = (),
    target: PlanTarget | None = None,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Plan a base with adapters added to it: ``base`` is the first source, the adapters follow in their order.

    ``exclude`` leaves modules of the adapters out. Raises PlanError where an adapter is for another model, PatternError
    for a pattern that matches no module, FormatError where a tensor is not plain values.
    """
    _check_plain(base)
    every = [_named(module) for one in adapters for module in one.adapter.modules]
    for flag in exclude:
        _check_exclude(flag.pattern, str(flag), every)
    planning = _Planning(base, exclude)
    for source, one in enumerate(adapters, 1):
        planning.add(source, one)
    steps = planning.steps(dtype)
    faults = [f"{s.key} is {s.source_dtype}: {why}" for s in steps if (why := cast_fault(s.source_dtype, s.dtype))]
    if faults:
        raise PlanError(f"--dtype does not fit: {listing(faults)}.", details=faults)
    return Plan(
        verb="lora merge",
        sources=(base.source, *(one.view.source for one in adapters)),
        target=target or PlanTarget("edit", base.source.name, ""),
        steps=tuple(steps),
        unexpected=tuple(planning.left_out),
        excluded=len(planning.left_out),
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(*notes, *planning.notes),
    )


def _check_exclude(pattern: KeyPattern, option: str, names: Sequence[str]) -> None:
    if not KeyMatcher([pattern]).hits(names)[0]:
        raise unmatched(option, pattern, names, "module")


def _named(module: Module) -> str:
    """Return the name of a module as patterns see it: what stands before kohya's is a part of it."""
    return f"{module.component}_{module.name}" if module.joined else module.name


def _check_plain(base: SourceView) -> None:
    opaque = [key for key, info in base.tensors.items() if info.opaque]
    if opaque:
        raise FormatError(
            f"{escape(opaque[0])} of {escape(base.source.name)} cannot be copied: {base.tensors[opaque[0]].opaque}.",
            hint=f"Leave it out first: ckpt filter --exclude {escape(opaque[0])}.",
            details=opaque,
            rule="opaque",
        )


def _input(source: int, one: AdapterView, key: str) -> Input:
    info = one.view.tensors[key]
    return Input(source, key, info.dtype, info.shape)


def _dtype(dtype: str, wanted: str) -> str:
    """Return the dtype of an output; only real floating tensors follow a wish."""
    return wanted if wanted not in ("", "keep") and DTYPES[dtype].kind == "float" else dtype


def _copied(key: str, one: Input, dtype: str, wanted: str) -> Step:
    made = _dtype(dtype, wanted)
    return Step(key, "copy", made, one.shape, one.source, one.key, one.dtype, one.shape)
