"""How an adapter fits its base: names of modules, and which way round weights lie, (out, in) or (in, out)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import PlanError
from ...methods.lora.adapter import Adapter, Module
from ...methods.lora.conv1d import KnownModel, is_named_conv1d
from ...methods.lora.matching import Names
from ...util.text import count, escape, listing, shape_text
from ..plan.compute import Term
from ..plan.step import Input
from ..transplant.select import SourceView

__all__ = ["AdapterView", "Lying", "check_names", "input_of", "lying", "misfit"]


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


# Which way round the weights lie that an adapter is for, (out, in) or (in, out), and what is said of it. Pure.


@dataclass(frozen=True)
class Lying:
    """Whether each weight is (in, out), in the order of the modules, and what is to be said."""

    transposed: tuple[bool, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Placed:
    """The weight of a module, and which ways its factors fit it: transposed, or not, or either where it is square."""

    key: str
    ways: tuple[bool, ...]
    embedding: bool

    @property
    def shows(self) -> bool | None:
        """Which way a layer's shape shows that it lies, None where it does not."""
        return self.ways[0] if len(self.ways) == 1 and not self.embedding else None


def lying(modules: Sequence[tuple[Module, str]], one: AdapterView, base: SourceView, model: KnownModel | None) -> Lying:
    """Return how the weights of modules lie, each given with its key: as their shapes show.

    A square one lies as what is known of the model says, else as those that are not square, else as the adapter says,
    but in a model without any Conv1D. Raises PlanError for factors that fit neither way.
    """
    placed = [_placed(module, key, one, base) for module, key in modules]
    astray = [p.key for p in placed if model and model.conv1d and p.shows not in (None, model.has_conv1d(p.key))]
    known = model if model and model.conv1d and not astray else None
    seen = {named: _seen(placed, named) for named in (False, True)}
    linear = model if model and model.is_linear else None
    said = one.adapter.transposed and linear is None
    transposed = tuple(_lies(p, known, seen[is_named_conv1d(p.key)], said=said) for p in placed)
    told = [
        p for p in placed if p.shows is None and not p.embedding and not known and seen[is_named_conv1d(p.key)] is None
    ]
    notes = [*_astray(astray, model), *_otherwise(placed, transposed, one, known, told)]
    if one.adapter.transposed:
        notes += _told([p.key for p in told], linear)
    if model is None and not one.adapter.transposed:
        notes += _guessed([p.key for p in placed if is_named_conv1d(p.key) and p.shows is None], seen[True])
    return Lying(transposed, tuple(notes))


def _placed(module: Module, key: str, one: AdapterView, base: SourceView) -> Placed:
    shapes = [one.view.tensors[each].shape for each in (module.a, module.b)]
    fits = [Term("product", transposed=way).fits(base.tensors[key].shape, shapes) for way in (False, True)]
    if not any(fits):
        raise misfit(one, module, key, base)
    return Placed(key, tuple(way for way in (False, True) if fits[way]), module.embedding)


def _seen(placed: Sequence[Placed], named: bool) -> bool | None:
    """Return which way all lie whose shapes show it, and whose names are of Conv1D or not; None where they differ."""
    ways = {p.shows for p in placed if p.shows is not None and is_named_conv1d(p.key) == named}
    return ways.pop() if len(ways) == 1 else None


def _lies(placed: Placed, known: KnownModel | None, seen: bool | None, *, said: bool) -> bool:
    if len(placed.ways) == 1:
        return placed.ways[0]
    if placed.embedding:
        return True
    if known is not None:
        return known.has_conv1d(placed.key)
    return said if seen is None else seen


def _astray(keys: Sequence[str], model: KnownModel | None) -> Iterator[str]:
    if keys and model is not None:
        one = "does not lie" if len(keys) == 1 else "do not lie"
        yield f"config.json says {model.kind}, and {_count(keys)} {one} as in that: shapes are followed: {_list(keys)}"


def _otherwise(
    placed: Sequence[Placed],
    transposed: Sequence[bool],
    one: AdapterView,
    known: KnownModel | None,
    told: Sequence[Placed],
) -> Iterator[str]:
    """Yield which layers lie otherwise than the adapter says, but those of which it alone ``told``."""
    said, apart = one.adapter.transposed, {p.key for p in told}
    ways = zip(placed, transposed, strict=True)
    keys = [p.key for p, way in ways if way != said and not p.embedding and p.key not in apart]
    if not keys:
        return
    lead = f"fan_in_fan_out is {str(said).lower()}, and " if one.adapter.spelling == "PEFT" else ""
    way = "(out, in)" if said else "(in, out)"
    why = "as the shapes show"
    if known is not None:
        why = f"as PEFT does: config.json says {known.kind}, where they are {'no ' if said else ''}Conv1D"
    yield f"{lead}{_count(keys)} {'is' if len(keys) == 1 else 'are'} merged as {way}, {why}: {_list(keys)}"


def _told(keys: Sequence[str], linear: KnownModel | None) -> Iterator[str]:
    """Yield which square layers ``fan_in_fan_out`` alone says to be (in, out), and which a model without Conv1D has."""
    if keys:
        lead = f"fan_in_fan_out is true, and {_count(keys)} {'is' if len(keys) == 1 else 'are'} merged as"
        if linear is None:
            yield f"{lead} (in, out), as it says: nothing else tells: {_list(keys)}"
        else:
            yield f"{lead} (out, in), as PEFT does: config.json says {linear.kind}, which has no Conv1D: {_list(keys)}"


def _guessed(keys: Sequence[str], seen: bool | None) -> Iterator[str]:
    """Yield which square layers have GPT-2's names, where neither a config.json nor a shape tells what they are."""
    if keys and seen is None:
        yield (
            f"{_count(keys)} with names of GPT-2's merged as (out, in), which nothing tells; "
            f"a config.json beside the base would: {_list(keys)}"
        )


def _count(keys: Sequence[str]) -> str:
    return count(len(keys), "module")


def _list(keys: Sequence[str]) -> str:
    return listing([key.removesuffix(".weight") for key in keys], where="")
