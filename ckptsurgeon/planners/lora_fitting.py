"""How an adapter lies over its base: whose names its modules have, and which way round its factors are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import PlanError
from ..lora import Adapter, Module, Names
from ..plan import Input, Term, plain_shape
from ..tensors import TensorInfo
from ..text import count, escape, listing, shape_text
from .select import SourceView

__all__ = ["AdapterView", "check_names", "input_of", "lies_transposed", "misfit", "orientation"]


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


def lies_transposed(modules: Sequence[Module], names: Names, one: AdapterView, base: SourceView) -> bool:
    """Return whether square weights are (in, out): as all that are not square lie, else as the adapter says."""
    seen = set()
    for module in modules:
        info = base.tensors[names.weights[module.component, module.name]]
        if not module.embedding and len(set(plain_shape(info.shape))) > 1:
            seen.add(orientation(one, module, info, False))
    return True in seen if len(seen - {None}) == 1 else one.adapter.transposed


def orientation(one: AdapterView, module: Module, base: TensorInfo, otherwise: bool) -> bool | None:
    """Return whether a weight is (in, out), None where it is neither that nor (out, in)."""
    shapes = [one.view.tensors[key].shape for key in (module.a, module.b)]
    first = module.embedding or otherwise
    kinds = [lies for lies in (first, not first) if Term("product", transposed=lies).fits(base.shape, shapes)]
    return kinds[0] if kinds else None


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
