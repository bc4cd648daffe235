"""Fits an adapter to its base: finds the weight of each module, and its layout, (out, in) or (in, out)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import PlanError
from ...methods.lora.adapter import Adapter, AdapterModule
from ...methods.lora.conv1d import KnownModel, is_named_conv1d
from ...methods.lora.matching import MatchedModules
from ...util.text import count, escape, listing, shape_text, together
from ..llama_cpp.names import layout_hint
from ..plan.compute import LoraTerm
from ..plan.files import SourceView
from ..plan.step import Input
from .other_layout import other_layout_hint

__all__ = ["AdapterView", "WeightLayout", "check_names", "input_of", "misfit", "weight_layout"]


@dataclass(frozen=True)
class AdapterView:
    """An adapter that is merged: the headers of its file (``view``), its modules, and its weight in the sum.

    ``copies`` maps the key of a matrix that the adapter saves in full to the key of an earlier one with equal values.
    """

    view: SourceView
    adapter: Adapter
    weight: float = 1.0
    copies: Mapping[str, str] = field(default_factory=dict)


def check_names(
    modules: Sequence[AdapterModule],
    names: MatchedModules,
    one: AdapterView,
    base: SourceView,
    *,
    merging: bool = True,
) -> None:
    """Raise PlanError if a module of an adapter matches no tensor of the base, or several.

    ``names`` says which modules match one tensor, several or none. ``merging`` says that the adapter is merged, for the
    hint; otherwise only the names of the base are needed.
    """
    name, theirs = escape(one.adapter.name), escape(base.source.name)
    layout = (
        other_layout_hint(names.lacking, one.view.source.in_commands, base, merging=merging) if names.lacking else ""
    )
    if modules and not names.weights and not names.several:
        raise PlanError(
            f"the adapter {name} {'has names of another layout' if layout else 'is for another model'}: {theirs} has "
            f"none of its {count(len(modules), 'module')}, such as {escape(modules[0].name)}.",
            hint=layout
            or layout_hint(
                [
                    (base.source.in_commands, base.tensors),
                    (one.adapter.name, [f"{module.name}." for module in modules]),
                ],
                convert=base.source.in_commands,
            )
            or "Use the model that the adapter was trained on; ckpt inspect --keys shows the names of both.",
            details=names.lacking,
        )
    if names.lacking:
        raise PlanError(
            f"the adapter {name} has {count(len(names.lacking), 'module')} that {theirs} lacks: "
            f"{listing(names.lacking)}.",
            hint=layout or "Use the model that the adapter was trained on, or leave these modules out with --exclude.",
            details=names.lacking,
        )
    if names.several:
        raise PlanError(
            f"the module {escape(names.several[0])} of the adapter {name} matches several tensors of {theirs}.",
            hint="Rename the module with ckpt rename: the dots and underscores of its name are ambiguous.",
            details=names.several,
        )


def misfit(one: AdapterView, module: AdapterModule, key: str, base: SourceView) -> PlanError:
    """Return the error for a module whose factors have shapes that do not fit the weight ``key``."""
    shapes = [shape_text(one.view.tensors[each].shape) for each in module.factors]
    factors = f"the factors are {together(shapes, len(shapes))}" if len(shapes) > 1 else f"the rotation is {shapes[0]}"
    shape = shape_text(base.tensors[key].shape)
    return PlanError(
        f"the adapter {escape(one.adapter.name)} does not fit {escape(key)} of {escape(base.source.name)}: the weight "
        f"is {shape}, {factors}.",
        hint="Use the model that the adapter was trained on.",
    )


def input_of(source: int, one: AdapterView, key: str) -> Input:
    """Return the tensor ``key`` of an adapter as an input of a step; ``source`` is the adapter's index in the plan."""
    info = one.view.tensors[key]
    return Input(source, key, info.dtype, info.shape)


# The layout of the weights that an adapter changes, (out, in) or (in, out), and the notes on it.


@dataclass(frozen=True)
class WeightLayout:
    """The layouts of the weights of an adapter's modules, and notes on them.

    ``transposed`` has True for each module whose weight is (in, out), and False for (out, in), in the modules' order.
    """

    transposed: tuple[bool, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModuleWeight:
    """The weight of a module: its key, whether it is an embedding, and the layouts that fit the adapter's factors.

    The layouts are in ``ways``: True is (in, out), False is (out, in). Both fit if the weight is square.
    """

    key: str
    ways: tuple[bool, ...]
    embedding: bool
    is_lora: bool = True

    @property
    def shows(self) -> bool | None:
        """Return the layout that the shape shows: True for (in, out), False for (out, in), None if it shows none.

        The shape of a square weight does not show its layout. The result is also None for an embedding, and for an
        adapter other than LoRA, which is only compared with one layout.
        """
        return self.ways[0] if len(self.ways) == 1 and not self.embedding and self.is_lora else None


def weight_layout(
    modules: Sequence[tuple[AdapterModule, str]], one: AdapterView, base: SourceView, model: KnownModel | None
) -> WeightLayout:
    """Return the layouts of the weights of an adapter's modules: (out, in) or (in, out).

    ``modules`` has each module with the key of its weight. If a weight is not square, its shape shows the layout. The
    layout of a square weight follows from the first of these that decides it: the model's config.json; the weights that
    are not square; the adapter's fan_in_fan_out (except in a model without any Conv1D). Raises PlanError for factors
    that fit neither layout.
    """
    placed = [_module_weight(module, key, one, base) for module, key in modules]
    astray = [p.key for p in placed if model and model.conv1d and p.shows not in (None, model.has_conv1d(p.key))]
    known = model if model and model.conv1d and not astray else None
    seen = {named: _shown_layout(placed, named) for named in (False, True)}
    linear = model if model and model.is_linear else None
    setting = one.adapter.transposed and linear is None
    transposed = tuple(_is_transposed(p, known, seen[is_named_conv1d(p.key)], setting=setting) for p in placed)
    undecided = [
        p for p in placed if p.shows is None and not p.embedding and not known and seen[is_named_conv1d(p.key)] is None
    ]
    notes = [*_conflict_notes(astray, model), *_override_notes(placed, transposed, one, known, undecided)]
    if one.adapter.transposed:
        notes += _setting_notes([p.key for p in undecided], linear)
    if model is None and not one.adapter.transposed:
        notes += _guess_notes([p.key for p in placed if is_named_conv1d(p.key) and p.shows is None], seen[True])
    return WeightLayout(transposed, tuple(notes))


def _module_weight(module: AdapterModule, key: str, one: AdapterView, base: SourceView) -> ModuleWeight:
    shapes = [one.view.tensors[each].shape for each in module.factors]
    if module.kind:
        if not LoraTerm(module.kind).fits(base.tensors[key].shape, shapes):
            raise misfit(one, module, key, base)
        return ModuleWeight(key, (module.embedding,), module.embedding, is_lora=False)
    fits = [LoraTerm("product", transposed=way).fits(base.tensors[key].shape, shapes) for way in (False, True)]
    if not any(fits):
        raise misfit(one, module, key, base)
    return ModuleWeight(key, tuple(way for way in (False, True) if fits[way]), module.embedding)


def _shown_layout(placed: Sequence[ModuleWeight], named: bool) -> bool | None:
    """Return the layout that the shapes of some weights agree on: True for (in, out), False for (out, in), or None.

    If ``named`` is true, only weights with the names of GPT-2's Conv1D layers are considered; if it is false, only
    weights with other names. The result is None if no shape shows a layout, or if different shapes show different
    layouts.
    """
    ways = {p.shows for p in placed if p.shows is not None and is_named_conv1d(p.key) == named}
    return ways.pop() if len(ways) == 1 else None


def _is_transposed(placed: ModuleWeight, known: KnownModel | None, seen: bool | None, *, setting: bool) -> bool:
    if len(placed.ways) == 1:
        return placed.ways[0]
    if placed.embedding:
        return True
    if known is not None:
        return known.has_conv1d(placed.key)
    return setting if seen is None else seen


def _conflict_notes(keys: Sequence[str], model: KnownModel | None) -> Iterator[str]:
    if keys and model is not None:
        one = (
            "has another layout, as its shape shows" if len(keys) == 1 else "have another layout, as their shapes show"
        )
        yield f"config.json has the model type {model.kind}, but {_count(keys)} {one}: {_list(keys)}"


def _override_notes(
    placed: Sequence[ModuleWeight],
    transposed: Sequence[bool],
    one: AdapterView,
    known: KnownModel | None,
    undecided: Sequence[ModuleWeight],
) -> Iterator[str]:
    """Yield a note on layers whose layout contradicts the adapter's fan_in_fan_out.

    ``transposed`` has the layout of each weight in ``placed``; True is (in, out). ``known`` is the model that
    config.json describes, None if config.json did not decide the layouts. There is no note on the layers in
    ``undecided``.
    """
    setting, apart = one.adapter.transposed, {p.key for p in undecided}
    ways = zip(placed, transposed, strict=True)
    keys = [p.key for p, way in ways if way != setting and not p.embedding and p.key not in apart]
    if not keys:
        return
    lead = f"fan_in_fan_out is {str(setting).lower()}, but " if one.adapter.spelling == "PEFT" else ""
    way = "(out, in)" if setting else "(in, out)"
    if known is not None:
        are = "are not" if setting else "are"
        why = f"as PEFT does: config.json has the model type {known.kind}, in which these modules {are} Conv1D"
        yield f"{lead}{_merged_as(keys, way)}, {why}: {_list(keys)}"
        return
    shown = {p.key for p in placed if len(p.ways) == 1}
    own, square = [key for key in keys if key in shown], [key for key in keys if key not in shown]
    if own:
        yield f"{lead}{_merged_as(own, way)}, as the shapes show: {_list(own)}"
    if square:
        yield f"{lead}{_merged_as(square, way)}, as others whose shapes show it (these are square): {_list(square)}"


def _merged_as(keys: Sequence[str], way: str) -> str:
    return f"{_count(keys)} {'is' if len(keys) == 1 else 'are'} merged as {way}"


def _setting_notes(keys: Sequence[str], linear: KnownModel | None) -> Iterator[str]:
    """Yield a note on the layers ``keys``, whose layout only the adapter's fan_in_fan_out shows, as they are square.

    ``linear`` is the model if its config.json shows that it has no Conv1D; then the layers are (out, in).
    """
    if keys:
        merged = f"{_count(keys)} {'is' if len(keys) == 1 else 'are'} merged as"
        if linear is None:
            yield f"{merged} (in, out), since fan_in_fan_out is true, and nothing else shows the layout: {_list(keys)}"
        else:
            why = f"since config.json has the model type {linear.kind}, which has no Conv1D"
            yield f"fan_in_fan_out is true, but {merged} (out, in), as PEFT does, {why}: {_list(keys)}"


def _guess_notes(keys: Sequence[str], seen: bool | None) -> Iterator[str]:
    """Yield a note on the layers ``keys`` if their layout is a guess: they are square, and have GPT-2's names.

    ``seen`` is the layout that the shapes of other layers with GPT-2's names show. If it is not None, the layout is not
    a guess, and there is no note.
    """
    if keys and seen is None:
        yield (
            f"{_count(keys)} {'is' if len(keys) == 1 else 'are'} named like GPT-2's Conv1D, but merged as (out, in) by "
            f"a guess (a config.json next to the base would show the layout): {_list(keys)}"
        )


def _count(keys: Sequence[str]) -> str:
    return count(len(keys), "module")


def _list(keys: Sequence[str]) -> str:
    return listing([key.removesuffix(".weight") for key in keys], where="")
