"""What adapters change of a base, gathered from one adapter after the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...errors import PlanError
from ...methods.lora.adapter import Module
from ...methods.lora.agreement import base_notes
from ...methods.lora.conv1d import KnownModel
from ...methods.lora.matching import matched
from ...tensors.dtypes import DTYPES
from ...util.text import escape, shape_text
from ..keys.matcher import KeyMatcher
from ..plan.lora import Term
from ..plan.step import Input
from ..quantised import refuse_codes
from ..transplant.options import Flag
from ..transplant.select import SourceView
from .fitting import AdapterView, check_names, input_of, misfit
from .weight_layout import lying

__all__ = ["Changes", "named"]


@dataclass
class Changed:
    """What becomes of one tensor of the base: terms, and their inputs."""

    terms: list[Term] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    by: list[str] = field(default_factory=list)


class Changes:
    """The changes of all tensors, gathered from one adapter after the other.

    ``tied`` names tensors that the base computes with and does not store, with what it stores in their place: an
    output layer that is the embedding. An adapter may change one of the two alone.
    """

    def __init__(
        self, base: SourceView, model: KnownModel | None, exclude: Sequence[Flag], tied: Mapping[str, str]
    ) -> None:
        self.tied = tied
        self.base = replace(base, tensors={**base.tensors, **{one: base.tensors[of] for one, of in tied.items()}})
        self.model = model
        self.exclude = exclude
        self.changed: dict[str, Changed] = {}
        self.fresh: dict[str, Input] = {}
        self.left_out: list[tuple[int, str]] = []
        self.notes: list[str] = []

    def add(self, source: int, one: AdapterView) -> None:
        """Take in an adapter, whose tensors are those of ``source``."""
        modules = self._chosen(source, one)
        known = {**dict.fromkeys(self.base.tensors), **dict.fromkeys(coded.name for coded in self.base.codes.tensors)}
        names = matched([(m.component, m.name, m.joined) for m in modules], known, one.adapter.saved)
        check_names(modules, names, one, self.base)
        refuse_codes([self.base], "lora merge", set(names.weights.values()))
        self.notes += [f"{escape(one.adapter.name)}: {note}" for note in (*names.notes, *one.adapter.notes)]
        weights = [names.weights[module.component, module.name] for module in modules]
        ways = lying(list(zip(modules, weights, strict=True)), one, self.base, self.model)
        self.notes += [f"{escape(one.adapter.name)}: {note}" for note in ways.notes]
        for module, key, transposed in zip(modules, weights, ways.transposed, strict=True):
            self._add_module(source, one, module, key, transposed=transposed)
        for name, key in one.adapter.saved.items():
            self._add_saved(source, one, names.saved(name), key)
        every = dict(zip((module.name for module in modules), weights, strict=True))
        every |= {module.name: "" for module in one.adapter.modules if module.name not in every}  # excluded: no loss
        shift = names.shift
        stays = base_notes(one.adapter, every, self.base.tensors, on=shift.on, off=shift.off)
        self.notes += [f"{escape(one.adapter.name)}: {note}" for note in stays]

    def _chosen(self, source: int, one: AdapterView) -> list[Module]:
        """Return the modules that are not excluded, and remember the others."""
        matcher = KeyMatcher([flag.pattern for flag in self.exclude])
        chosen = []
        for module in one.adapter.modules:
            if not matcher.match(named(module)):
                chosen.append(module)
                continue
            keys = (module.a, module.b, module.bias, module.magnitude)
            self.left_out += [(source, key) for key in keys if key]
        return chosen

    def _add_module(self, source: int, one: AdapterView, module: Module, key: str, *, transposed: bool) -> None:
        base = self.base.tensors[key]
        kind = "dora" if module.magnitude else "product"
        term = Term(kind, one.weight, module.scale, transposed)
        keys = [module.a, module.b, *([module.magnitude] if module.magnitude else [])]
        if not term.fits(base.shape, [one.view.tensors[each].shape for each in keys]):
            raise misfit(one, module, key, self.base)
        self._change(key, term, one, [input_of(source, one, each) for each in keys])
        if module.bias:
            self._add_bias(source, one, module, key)

    def _add_bias(self, source: int, one: AdapterView, module: Module, key: str) -> None:
        bias = f"{key.removesuffix('weight')}bias"
        there = self.base.tensors.get(bias)
        if there is None or there.shape != one.view.tensors[module.bias].shape:
            raise PlanError(
                f"{escape(one.adapter.name)} adds {escape(module.bias)} to a bias, and "
                f"{escape(self.base.source.name)} has none like it for {escape(key)}.",
                hint="Name the model that it was trained on.",
            )
        self._change(bias, Term("added", one.weight, module.scale), one, [input_of(source, one, module.bias)])

    def _add_saved(self, source: int, one: AdapterView, name: str, key: str) -> None:
        given, there = input_of(source, one, key), self.base.tensors.get(name)
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
        changes = self.changed.setdefault(key, Changed())
        changes.terms.append(term)
        changes.inputs += inputs
        changes.by.append(one.adapter.name)


def named(module: Module) -> str:
    """Return the name of a module as patterns see it: what stands before kohya's is a part of it."""
    return f"{module.component}_{module.name}" if module.joined else module.name
