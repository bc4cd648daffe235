"""How an adapter fits its base: whose names its modules have, and what to say of one that does not. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...methods.lora.adapter import Adapter, Module
from ...methods.lora.matching import Names
from ...util.text import count, escape, listing, shape_text
from ..plan.step import Input
from ..transplant.select import SourceView

__all__ = ["AdapterView", "check_names", "input_of", "misfit"]


@dataclass(frozen=True)
class AdapterView:
    """An adapter as the planner sees it: its headers, what they mean, and what it counts."""

    view: SourceView
    adapter: Adapter
    weight: float = 1.0


def check_names(modules: Sequence[Module], names: Names, one: AdapterView, base: SourceView) -> None:
    """Raise PlanError for modules whose weights the base lacks, or that could be several of its tensors."""
    name, theirs = escape(one.adapter.name), escape(base.source.name)
    if modules and not names.weights and not names.several:
        raise PlanError(
            f"{name} is for another model: {theirs} has none of its {count(len(modules), 'module')}, "
            f"as in {escape(modules[0].name)}.",
            hint="Name the model that it was trained on; ckpt inspect --keys shows the names of both.",
            details=names.lacking,
        )
    if names.lacking:
        raise PlanError(
            f"{name} has {count(len(names.lacking), 'module')} that {theirs} lacks: {listing(names.lacking)}.",
            hint="Name the model that it was trained on, or leave them out with --exclude.",
            details=names.lacking,
        )
    if names.several:
        raise PlanError(
            f"{name} has {escape(names.several[0])}, which could be several tensors of {theirs}.",
            hint="Rename what its dots and underscores confuse: ckpt rename.",
            details=names.several,
        )


def misfit(one: AdapterView, module: Module, key: str, base: SourceView) -> PlanError:
    """Return what to raise for factors that are of another shape than the weight they are for."""
    a, b = (shape_text(one.view.tensors[each].shape) for each in (module.a, module.b))
    shape = shape_text(base.tensors[key].shape)
    return PlanError(
        f"{escape(one.adapter.name)} does not fit {escape(key)} of {escape(base.source.name)}, which is "
        f"{shape}: its factors are {a} and {b}.",
        hint="Name the model that it was trained on.",
    )


def input_of(source: int, one: AdapterView, key: str) -> Input:
    """Return a tensor of an adapter as an input of a step; ``source`` is the number of the adapter's."""
    info = one.view.tensors[key]
    return Input(source, key, info.dtype, info.shape)
