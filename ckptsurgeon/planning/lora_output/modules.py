"""The modules of a new adapter: how their factors are made, and the scales of their products. Opens no file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import frexp, prod

from ...errors import PlanError
from ...methods.lora.adapter import Adapter, AdapterModule
from ...methods.lora.composed import SIDES, composed_shape
from ...methods.lora.expert_stack import experts_of, is_stack, stack_kind
from ...methods.lora.matching import match_modules
from ...tensors.dtypes import DTYPES
from ...util.notes import with_prefix
from ...util.text import count, escape, listing, shape_text
from ..keys.pattern import OptionPattern
from ..keys.pattern_hints import matched
from ..keys.renaming import KeyMatcher
from ..lora_merge.fitting import AdapterView, check_names, misfit
from ..lora_merge.plan import named
from ..plan.compute import KNOTS, Factor, LoraTerm
from ..plan.files import SourceView
from ..plan.step import Input, Step

__all__ = [
    "FactorSource",
    "NamedModule",
    "NewModule",
    "base_weights",
    "chosen_modules",
    "common_dtype",
    "experts_in",
    "factor_step",
    "folded",
    "folding_notes",
    "is_exact",
    "most_common",
    "named_modules",
    "refuse_dora",
]

COMFY = "diffusion_model"
"""The first segment of ComfyUI's names; it stands for the diffusion model of a checkpoint."""


@dataclass(frozen=True)
class FactorSource:
    """How a factor of a new adapter is made: its inputs are multiplied by ``weights`` and concatenated.

    Empty ``weights`` are all 1. If ``factor`` is given, the result is instead a factor of lower rank. It is computed
    from the product of the inputs A and B, from several such products, or from the tensors of a LoHa or LoKr.
    """

    inputs: tuple[Input, ...]
    dtype: str
    weights: tuple[float, ...] = ()
    factor: Factor | None = None


@dataclass(frozen=True)
class NewModule:
    """A module of a new adapter: its name in the model, its rank, its two factors, and the scale of their product.

    ``component`` is the name that diffusers or kohya give to the model of the pipeline; '' if there is only one model.
    If ``joined``, the name has underscores instead of dots. ``origin`` is the key of the factor A that the module is
    made from. If it is a PEFT name, it shows the wrappers around the layer. If ``experts`` is not 0, the module is a
    stack of so many experts, and ``rank`` is the rank of each.
    """

    name: str
    rank: int
    scale: float
    a: FactorSource
    b: FactorSource
    component: str = ""
    embedding: bool = False
    joined: bool = False
    origin: str = ""
    experts: int = 0


@dataclass(frozen=True)
class NamedModule:
    """A module of an adapter, the pipeline's model that contains it (``component``), and its name in this model."""

    module: AdapterModule
    component: str
    name: str
    joined: bool = False


def chosen_modules(one: AdapterView, exclude: Sequence[OptionPattern]) -> tuple[list[AdapterModule], list[str]]:
    """Return the modules of an adapter that ``exclude`` does not match, and the keys of the tensors of all others."""
    matcher = KeyMatcher([flag.pattern for flag in exclude])
    chosen, left = [], [key for keys in one.adapter.left.values() for key in keys]
    for module in one.adapter.modules:
        if matcher.match(named(module)):
            left += [key for key in (*module.factors, module.bias, module.magnitude) if key]
        else:
            chosen.append(module)
    return chosen, left


def base_weights(adapter: Adapter) -> dict[str, str]:
    """Return {key in the base: key in the adapter} of the base's weights that PEFT saves next to a layer's factors.

    PEFT saves them (as ``base_layer``) if an adapter changes an embedding or an output layer, because the vocabulary
    may have grown before the training (``save_embedding_layers`` in peft/utils/save_and_load.py).
    """
    factored = {*(module.name for module in adapter.modules), *adapter.left}
    return {
        name: key
        for name, key in adapter.saved.items()
        if key.endswith(".base_layer.weight") and name.removesuffix(".weight") in factored
    }


def check_excluded(adapters: Sequence[AdapterView], exclude: Sequence[OptionPattern]) -> Sequence[str]:
    """Return notes on patterns in ``exclude`` that may match fewer modules than the user meant.

    Raises PatternError for a pattern that matches no module of any of the adapters.
    """
    every = [name for one in adapters for name in (*map(named, one.adapter.modules), *one.adapter.left)]
    return matched([(str(flag), flag.pattern) for flag in exclude], every, "module")[1]


def named_modules(
    one: AdapterView, modules: Sequence[AdapterModule], base: SourceView | None
) -> tuple[list[NamedModule], list[str]]:
    """Return the modules of an adapter with their components and names, and notes.

    If ``base`` is given, modules get the names that they have in the base: kohya's names have underscores instead of
    dots. Other names stay, as all names do without a base. Raises PlanError if ``base`` is given, but lacks a module
    that has a name of kohya, or that is a LoHa or LoKr.
    """
    joined = one.adapter.spelling == "kohya"
    checked = [module for module in modules if joined or (module.kind and not is_stack(module.kind))]
    if base is None or not checked:
        return [_named(module) for module in modules], []
    names = match_modules([(m.component, m.name, m.joined) for m in checked], base.tensors, one.adapter.saved)
    check_names(checked, names, one, base, merging=False)
    for module in checked:
        _check_shapes(one, module, names.weights[module.component, module.name], base)
    if not joined:
        return [_named(module) for module in modules], []
    found = []
    for module in modules:
        key = names.weights[module.component, module.name]
        on = names.shifts[module.component].on
        start = next((end for end in range(len(key) + 1) if key[:end].replace(".", "_") == on), 0) if on else 0
        found.append(NamedModule(module, module.component, _module_of(key[start:])))
    return found, [with_prefix(f"{escape(one.adapter.name)}: ", note) for note in names.notes]


def _check_shapes(one: AdapterView, module: AdapterModule, key: str, base: SourceView) -> None:
    """Raise PlanError if the factors of a module do not fit its weight ``key`` in the base.

    The factors must also have as many dimensions as the weight, because toolkits load factors by their shapes. A
    quantised weight is not checked.
    """
    weight = base.tensors[key]
    if DTYPES[weight.dtype].kind != "float" or key in base.codes.by_key:
        return
    if module.kind:
        _check_composed(one, module, key, base)
        return
    shapes = [one.view.tensors[each].shape for each in (module.a, module.b)]
    if not any(LoraTerm("product", transposed=way).fits(weight.shape, shapes) for way in (False, True)):
        raise misfit(one, module, key, base)
    if any(len(shape) != len(weight.shape) for shape in shapes):
        raise PlanError(
            f"the adapter {escape(one.adapter.name)} stores factors of {escape(module.name)} as "
            f"{shape_text(shapes[0])} and {shape_text(shapes[1])}, but the weight is {shape_text(weight.shape)}: "
            "factors of a convolution do not load into a linear layer, nor the reverse.",
            hint="Reshape the factors with ckpt rename --operations, or merge the adapter with ckpt lora merge.",
        )


def _check_composed(one: AdapterView, module: AdapterModule, key: str, base: SourceView) -> None:
    """Raise PlanError if the change of a LoHa or LoKr does not have the shape of the weight ``key`` in the base."""
    shape = base.tensors[key].shape
    found = composed_shape(module.kind, [one.view.tensors[each].shape for each in module.factors])
    assert found is not None  # ensured by read_adapter
    if (found.rows, found.columns) != shape:
        conv = len(shape) > 2 and (found.rows, found.columns) == (shape[0], prod(shape[1:]))
        raise PlanError(
            f"the change of {escape(module.name)} of the adapter {escape(one.adapter.name)} is {found.rows} x "
            f"{found.columns}, but the weight {escape(key)} is {shape_text(shape)}.",
            hint="Convolutions cannot be converted: leave them out with --exclude."
            if conv
            else "Use the model that the adapter was trained on.",
        )


def _module_of(key: str) -> str:
    return re.sub(r"\.weight$", "", key)


def _named(module: AdapterModule) -> NamedModule:
    if module.joined:
        return NamedModule(module, module.component, module.name, joined=True)
    head, _, rest = module.name.partition(".")
    component = module.component or (COMFY if head == COMFY and rest else "")
    return NamedModule(module, component, rest if component and head == component else module.name)


def experts_in(module: AdapterModule) -> int:
    """Return the number of experts if a module is a stack of experts; 0 for any other module."""
    return experts_of(module.kind) if is_stack(module.kind) else 0


def refuse_dora(one: Adapter, modules: Iterable[AdapterModule], why: str) -> None:
    """Raise PlanError if a module has DoRA's magnitudes; ``why`` is the end of the message."""
    magnified = [module for module in modules if module.magnitude]
    found = [module.name for module in magnified]
    merging = "LyCORIS, which trained it" if any(module.kind for module in magnified) else "ckpt lora merge"
    if found:
        raise PlanError(
            f"the adapter {escape(one.name)} is a DoRA ({count(len(found), 'module')} with magnitudes), {why}.",
            hint=f"Merge the adapter into its base with {merging}, and extract an adapter with ckpt lora extract.",
            details=found,
        )


def common_dtype(dtypes: Iterable[str]) -> str:
    """Return the dtype in which several factors are joined, from the dtypes of the factors.

    It is their own dtype if they all have the same, else float64 if a factor has it, else float32.
    """
    kinds = set(dtypes)
    return kinds.pop() if len(kinds) == 1 else "float64" if "float64" in kinds else "float32"


def is_exact(times: float, dtype: str) -> bool:
    """Return whether all numbers of ``dtype`` can be multiplied by ``times`` without rounding.

    This is possible if ``times`` is a power of two, unless products leave the range of the dtype, as often in float16.
    """
    return times == 1 or (dtype != "float16" and abs(frexp(times)[0]) == 0.5)


def folded(module: NewModule, scale: float) -> NewModule:
    """Return a module with another scale: its factor B is multiplied, so that scale times product stays the same.

    If B has 16 bits and cannot store the multiplied values without rounding, it becomes float32.
    """
    if module.scale == scale:  # both may be 0
        return module
    times, side = module.scale / scale, module.b
    if side.factor is not None:
        own = {part: replace(one, factor=_folded(module, one.factor, times)) for part, one in _sides(module)}
        return replace(module, scale=scale, a=own["A"], b=own["B"])
    dtype = side.dtype if is_exact(times, side.dtype) or side.dtype == "float64" else "float32"
    weights = tuple(times * weight for weight in side.weights or (1.0,) * len(side.inputs))
    return replace(module, scale=scale, b=replace(side, dtype=dtype, weights=weights))


def _sides(module: NewModule) -> Iterator[tuple[str, FactorSource]]:
    yield from (("A", module.a), ("B", module.b))


def _folded(module: NewModule, factor: Factor | None, times: float) -> Factor:
    assert factor is not None
    if not times:
        raise PlanError(
            f"the factors of {escape(module.name)} have the scale 0, so they cannot be written with another scale.",
            hint="Leave the module out with --exclude.",
        )
    return replace(factor, scale=factor.scale / times)


def folding_notes(before: Sequence[NewModule], after: Sequence[NewModule]) -> Iterator[str]:
    """Yield notes on scales that are multiplied into the factors B, and on factors that became float32 for this."""
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0].scale != pair[1].scale]
    if pairs:
        scales = sorted({f"{one.scale:g}" for one, _ in pairs})
        several = f"{len(scales)} scales, such as {scales[0]}, are" if len(scales) > 1 else f"the scale {scales[0]} is"
        into = "the factors" if pairs[0][0].b.factor else "B"
        number = count(len(pairs), "module")
        yield f"in {number}, {several} multiplied into {into}; the new scale is {pairs[0][1].scale:g}"
    wider = [new.name for old, new in pairs if old.b.dtype != new.b.dtype]
    if wider:
        why = "16 bits cannot store the scaled values exactly"
        yield f"the factor B of {count(len(wider), 'module')} becomes float32, as {why}: {listing(wider, where='')}"


def most_common(values: Iterable[float]) -> float:
    """Return the most common number; if several are equally common, the first of them."""
    return Counter(values).most_common(1)[0][0]


def factor_step(key: str, module: NewModule, part: str, *, rank: int = 0, transpose: bool = False) -> Step:
    """Return the step of a plan that makes one factor of ``module``: ``part`` is "A" or "B", ``key`` its output key.

    If ``rank`` is larger than the module's rank, the factor is filled with zeros up to this rank. If ``transpose``, the
    factor is stored as (in, rank) or (rank, out).
    """
    side = module.a if part == "A" else module.b
    first, axis = side.inputs[0], 0 if part == "A" else 1
    if side.factor is not None:
        shapes = [one.shape for one in side.inputs]
        found = composed_shape(side.factor.of, shapes) if side.factor.of in SIDES else None
        all_ranks = sum(one[0] for one in shapes[:: 2 if side.factor.of == KNOTS else len(shapes)])
        whole = found.rank if found else all_ranks // experts_of(side.factor.of)
        shape, rule = side.factor.shape_of(shapes), f"rank {side.factor.rank} of {whole}"
        return Step(key, "factor", side.dtype, shape, *first, rule=rule, more=side.inputs[1:], factor=side.factor)
    size = max(rank, sum(one.shape[axis] for one in side.inputs))
    shape = (*first.shape[:axis], size, *first.shape[axis + 1 :])
    if len(side.inputs) == 1 and not transpose and shape == first.shape and side.weights in ((), (1.0,)):
        return Step(key, "copy", side.dtype, shape, *first)
    weights = () if all(one == 1 for one in side.weights) else side.weights
    by_expert = stack_kind(module.experts, transposed=False) if module.experts and part == "A" else ""
    return Step(
        key, "concat", side.dtype, shape[::-1] if transpose else shape, *first, more=side.inputs[1:],
        policy="transpose" if transpose else by_expert, weights=weights, axis=1 - axis if transpose else axis,
    )  # fmt: skip


def inputs_by_key(one: AdapterView, source: int, keys: Iterable[str]) -> Mapping[str, Input]:
    """Return {key: input of a step} for ``keys``, tensors of an adapter that is the source ``source`` of the plan."""
    tensors = one.view.tensors
    return {key: Input(source, key, tensors[key].dtype, tensors[key].shape) for key in keys}
