"""Plans ``lora concat``: one adapter whose change is the weighted sum of the changes of several adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from ...errors import PlanError
from ...tensors.dtypes import DTYPES
from ...util.notes import with_prefix
from ...util.text import count, escape, listing, shape_text
from ..keys.pattern import OptionPattern
from ..keys.pattern_hints import nothing_left
from ..lora_merge.fitting import AdapterView
from ..plan.compute import plain_shape
from ..plan.files import SourceView
from ..plan.plan import Plan
from ..plan.step import Input, Step
from .convert import adapter_plan
from .knots import Knots
from .modules import (
    FactorSource,
    NamedModule,
    NewModule,
    base_weights,
    check_excluded,
    chosen_modules,
    common_dtype,
    experts_in,
    inputs_by_key,
    is_exact,
    named_modules,
    refuse_dora,
)
from .peft import PREFIX, TWICE
from .spellings import written

__all__ = ["plan_lora_concat"]


@dataclass(frozen=True)
class _Part:
    """A module of one of the adapters: the adapter (``one``), its index in the plan's sources, and the named module."""

    source: int
    one: AdapterView
    named: NamedModule


@dataclass
class _Collected:
    """The parts of all adapters: modules by name, tensors to leave out, biases to copy, models of a pipeline, notes."""

    parts: dict[str, list[_Part]] = field(default_factory=dict)
    left: list[tuple[int, str]] = field(default_factory=list)
    saved: dict[str, Step] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def plan_lora_concat(
    adapters: Sequence[AdapterView],
    base: SourceView | None = None,
    *,
    knots: Knots | None = None,
    exclude: Sequence[OptionPattern] = (),
    dtype: str = "",
    alike: Callable[[str], str] = str,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of an adapter of PEFT with the change ``sum of weight * scale * B A`` of all ``adapters``.

    The factors A are stacked, and the factors B, times weight and scale, are put side by side, so that the new scale is
    1. With ``knots``, KnOTS merges the changes of the adapters instead. ``base`` is the model whose keys show where
    kohya's names with underscores have dots. ``alike`` returns the same value for two names of one base model.
    ``dtype`` is the dtype of all factors; '' keeps the dtypes of the adapters.

    Raises PlanError if the adapters cannot be joined exactly, PatternError for a pattern that matches nothing.
    """
    overlooked = check_excluded(adapters, exclude)
    found = _Collected()
    for source, one in enumerate(adapters):
        _collect(found, source, one, base, exclude)
    _check_one_model(found, adapters)
    settings = _settings(adapters, alike, is_whole=not found.left)
    modules = [_joined(name, parts, dtype) for name, parts in found.parts.items()]
    if knots is not None:
        _refuse_stacks(modules)
        modules = [knots.made(module) for module in modules]
    if not modules:
        raise nothing_left("all modules are", "to join", may_widen=False)
    biases = [step for name, parts in found.parts.items() for step in _biases(name, parts, dtype)]
    settings["lora_bias"] = bool(biases)
    made = written(modules, "peft", settings)
    made.steps += [*biases, *found.saved.values()]
    sources = [one.view.source for one in adapters] + ([base.source] if base is not None else [])
    shared = knots.notes(modules, len(adapters)) if knots is not None else _notes(modules, is_cast=bool(dtype))
    every = [*notes, *overlooked, *found.notes, *shared]
    return adapter_plan("lora concat", sources, made, left=found.left, arguments=arguments, notes=every)


def _collect(
    found: _Collected, source: int, one: AdapterView, base: SourceView | None, exclude: Sequence[OptionPattern]
) -> None:
    """Add the modules of an adapter to ``found``.

    Raises PlanError for a DoRA, if the names need a base, or if two modules have the same name.
    """
    adapter, name = one.adapter, escape(one.adapter.name)
    modules, left = chosen_modules(one, exclude)
    refuse_dora(adapter, modules, "whose change is not a product of factors, so it cannot be joined to another")
    if adapter.spelling == "kohya" and modules and base is None:
        raise PlanError(
            f"the names of the adapter {name} have underscores where the names of its model have dots: the names of "
            "the model are needed.",
            hint="Give the model with --base; only its keys are read.",
        )
    placed, notes = named_modules(one, modules, base)
    found.left += [(source, key) for key in left]
    found.notes += [*notes, *(with_prefix(f"{name}: ", note) for note in adapter.notes)]
    for each in placed:
        parts = found.parts.setdefault(each.name, [])
        if any(part.source == source and part.named.component == each.component for part in parts):
            raise PlanError(f"the adapter {name} has two modules with the name {escape(each.name)}.")
        parts.append(_Part(source, one, each))
        if each.component:
            found.components[each.component] = adapter.name
    _collect_saved(found, source, one)
    _collect_weights(found, source, one, {f"{module.name}.weight" for module in modules})


def _collect_saved(found: _Collected, source: int, one: AdapterView) -> None:
    """Add the biases that an adapter saves.

    Raises PlanError for other saved tensors, and for biases of an adapter whose weight is not 1.
    """
    name, weights = escape(one.adapter.name), base_weights(one.adapter)
    saved = {name: key for name, key in one.adapter.saved.items() if name not in weights}
    whole = [key for key in saved if not key.endswith("bias")]
    if whole:
        raise PlanError(
            f"the adapter {name} has {count(len(whole), 'tensor')} of modules_to_save, which replace those of the base "
            f"and cannot be added: {listing(whole)}.",
            hint="Merge the adapters into their base with ckpt lora merge.",
            details=whole,
        )
    inputs = inputs_by_key(one, source, saved.values())
    if inputs and one.weight != 1:
        raise PlanError(
            f"the adapter {name} has biases that replace those of the base. With the weight {one.weight:g}, the "
            f"result would depend on the base: {listing(list(saved))}.",
            hint="Give this adapter the weight 1, or merge with ckpt lora merge.",
        )
    for key, given in inputs.items():
        target = _target(key)
        if target in found.saved:
            raise PlanError(
                f"two adapters have the bias {escape(target)}, which replaces the base's bias: these cannot be added.",
                hint="Merge the adapters into their base with ckpt lora merge.",
            )
        found.saved[target] = Step(target, "copy", given.dtype, given.shape, *given)


def _collect_weights(found: _Collected, source: int, one: AdapterView, wanted: Set[str]) -> None:
    """Add the weights of the base that an adapter saves, if no earlier adapter has them; add a note if one has.

    All adapters must be of one base, so each has the same weights. Weights of modules that are excluded, which are not
    in ``wanted``, are left out.
    """
    weights, doubled = base_weights(one.adapter), []
    inputs = inputs_by_key(one, source, weights.values())
    for name, key in weights.items():
        target, given = _target(key), inputs[key]
        if name in wanted and target not in found.saved:
            found.saved[target] = Step(target, "copy", given.dtype, given.shape, *given)
            continue
        found.left.append((source, key))
        doubled += [name] if name in wanted else []
    if doubled:
        number, are = count(len(doubled), "weight"), "is" if len(doubled) == 1 else "are"
        saved = f"{number} of the base that PEFT saved next to factors (base_layer)"
        found.notes.append(
            f"{escape(one.adapter.name)}: {saved} {are} taken from an earlier adapter, so both adapters must be of one "
            f"base: {listing(doubled, where='')}"
        )


def _target(key: str) -> str:
    return key if key.startswith(PREFIX) else f"{PREFIX}{key}"


def _check_one_model(found: _Collected, adapters: Sequence[AdapterView]) -> None:
    if len(found.components) > 1:
        several = ", ".join(f"{escape(one)} in {escape(name)}" for one, name in found.components.items())
        raise PlanError(
            f"the adapters are for several models of a pipeline ({several}), but a folder of PEFT is for one model.",
            hint="Leave the other models out, as in --exclude 'text_encoder.*' or --exclude 'lora_te_*'.",
        )
    plain = [one for one in adapters if one.adapter.spelling == "PEFT"]
    configs = {one.adapter.transposed: one.adapter.name for one in plain}
    if len(configs) > 1:
        raise PlanError(
            f"fan_in_fan_out is true in {escape(configs[True])} and false in {escape(configs[False])}: the adapters "
            "are for models whose weights have different layouts.",
            hint="If both adapters are for one model, give fan_in_fan_out the same value in both adapter_config.json.",
        )


def _settings(adapters: Sequence[AdapterView], alike: Callable[[str], str], *, is_whole: bool) -> dict[str, Any]:
    """Return the fields of the new configuration that do not follow from its modules.

    If not ``is_whole``, modules are left out. Raises PlanError if two adapters name different bases.
    """
    given = [(one.adapter.name, one.adapter.config.data) for one in adapters if one.adapter.config is not None]
    bases: dict[str, tuple[str, str]] = {}
    for name, data in given:
        base = data.get("base_model_name_or_path")
        if isinstance(base, str) and base:
            bases.setdefault(alike(base), (name, base))
    if len(bases) > 1:
        (first, one), (second, other) = list(bases.values())[:2]
        raise PlanError(
            f"the base of {escape(first)} is {escape(one)}, that of {escape(second)} is {escape(other)} "
            "(base_model_name_or_path): adapters of different bases cannot be joined.",
            hint="If both names are of one model, write the same name into both files adapter_config.json.",
        )
    tasks = {data.get("task_type") for _, data in given if isinstance(data.get("task_type"), str)}
    biases = [str(data.get("bias") or "none") for _, data in given]
    bias = next((one for one in ("all", "lora_only") if one in biases), "none")
    parameters = list(dict.fromkeys(one for _, data in given for one in data.get("target_parameters") or ()))
    targets = _targets([data for _, data in given]) if len(given) == len(adapters) else None
    if parameters and not is_whole:  # a parameter without factors would nest the wrappers of another in another way
        targets = None
    return {
        "base_model_name_or_path": next((one for _, one in bases.values()), None),
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "fan_in_fan_out": any(one.adapter.transposed for one in adapters),
        "bias": bias,
        **({"target_modules": targets} if targets is not None else {}),
        **({"target_parameters": parameters} if parameters else {}),
    }


def _targets(given: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Return the ``target_modules`` of all configurations in one list; None if they are not plain lists of names.

    Each module that the joined list selects is also selected by one of the given lists, so it has factors.
    """
    lists = [data.get("target_modules") or ([] if data.get("target_parameters") else None) for data in given]
    limits = ("exclude_modules", "layers_to_transform")
    if any(data.get(name) for data in given for name in limits) or not all(isinstance(one, list) for one in lists):
        return None
    names = [name for one in lists for name in one or ()]
    return list(dict.fromkeys(names)) if all(isinstance(name, str) for name in names) else None


def _joined(name: str, parts: Sequence[_Part], dtype: str) -> NewModule:
    """Return the module that joins ``parts``, the modules of several adapters: its rank is the sum of their ranks.

    Raises PlanError if the shapes of the factors do not fit each other.
    """
    pairs = [_pair(part) for part in parts]
    first = parts[0]
    for part, (a, b) in zip(parts, pairs, strict=True):
        alike = (a.shape[1:], b.shape[:1], b.shape[2:]) == (
            pairs[0][0].shape[1:],
            pairs[0][1].shape[:1],
            pairs[0][1].shape[2:],
        )
        _check_experts(name, first, part)
        if not alike or part.named.module.embedding != first.named.module.embedding:
            raise PlanError(
                f"the adapters are for different models: the factors of {escape(name)} are "
                f"{shape_text(pairs[0][0].shape)} and {shape_text(pairs[0][1].shape)} in "
                f"{escape(first.one.adapter.name)}, {shape_text(a.shape)} and {shape_text(b.shape)} in "
                f"{escape(part.one.adapter.name)}.",
                hint="Join only adapters of one base.",
            )
    twice = 2 if TWICE in first.named.module.a else 1
    times = tuple(part.one.weight * part.named.module.scale / twice for part in parts)
    a_dtype, b_dtype = (common_dtype(pair[side].dtype for pair in pairs) for side in (0, 1))
    if not all(is_exact(one, b_dtype) for one in times) and DTYPES[b_dtype].bits < 32:
        b_dtype = "float32"
    experts = experts_in(first.named.module)
    return NewModule(
        name,
        sum(a.shape[0] for a, _ in pairs) // (experts or 1),
        float(twice),
        FactorSource(tuple(a for a, _ in pairs), dtype or a_dtype),
        FactorSource(tuple(b for _, b in pairs), dtype or b_dtype, times),
        embedding=first.named.module.embedding,
        origin=first.named.module.a if first.one.adapter.spelling == "PEFT" else "",
        experts=experts,
    )


def _refuse_stacks(modules: Sequence[NewModule]) -> None:
    """Raise PlanError for stacks of experts that KnOTS would have to merge."""
    found = [module.name for module in modules if module.experts]
    if found:
        raise PlanError(
            f"KnOTS cannot merge stacks of experts (target_parameters): {listing(found)}.",
            hint="Give the model with --base if its files have single experts. Otherwise leave --method knots out, or "
            "leave the stacks out with --exclude.",
            details=found,
        )


def _check_experts(name: str, first: _Part, other: _Part) -> None:
    one, two = (experts_in(part.named.module) for part in (first, other))
    if one != two:
        raise PlanError(
            f"the adapters are for different models: {escape(name)} has {one} experts in "
            f"{escape(first.one.adapter.name)}, {two} in {escape(other.one.adapter.name)}.",
            hint="Join only adapters of one base. If they have one base, the rank in an adapter_config.json is wrong.",
        )


def _pair(part: _Part) -> tuple[Input, Input]:
    module = part.named.module
    inputs = inputs_by_key(part.one, part.source, (module.a, module.b))
    return inputs[module.a], inputs[module.b]


def _biases(name: str, parts: Sequence[_Part], dtype: str) -> Iterator[Step]:
    """Yield the step for the bias of a module's factor B (``lora_bias``), if an adapter has one.

    The bias is multiplied by weight and scale. Raises PlanError if several adapters have such a bias.
    """
    having = [part for part in parts if part.named.module.bias]
    if len(having) > 1:
        raise PlanError(
            f"{escape(having[0].one.adapter.name)} and {escape(having[1].one.adapter.name)} both have a bias for the "
            f"factors of {escape(name)} (lora_bias), and two biases cannot be joined.",
            hint="Merge the adapters into their base with ckpt lora merge.",
        )
    for part in having:
        module, key = part.named.module, part.named.module.bias
        (given,) = inputs_by_key(part.one, part.source, [key]).values()
        times = part.one.weight * module.scale
        own = given.dtype if is_exact(times, given.dtype) or DTYPES[given.dtype].bits >= 32 else "float32"
        weights = (times,) if times != 1 else ()
        step = Step(f"{PREFIX}{name}.lora_B.bias", "concat", dtype or own, given.shape, *given, weights=weights)
        yield step if weights or step.dtype != given.dtype else replace(step, op="copy")


_SCALED = "weight and scale are multiplied into it, and fewer bits would round the products"


def _notes(modules: Sequence[NewModule], *, is_cast: bool) -> Iterator[str]:
    """Yield notes on factors that got a wider dtype, and on ranks larger than a side of the weight.

    If ``is_cast`` is true, the user chose the dtype, and there is no note on it.
    """
    wider: dict[str, list[NewModule]] = {}
    for one in modules:
        if not is_cast and any(each.dtype != one.b.dtype for each in one.b.inputs):
            is_common = one.b.dtype == common_dtype(each.dtype for each in one.b.inputs)
            why = "the adapters have different dtypes" if is_common else _SCALED
            wider.setdefault(f"{one.b.dtype}: {why}", []).append(one)
    for why, some in wider.items():
        names = listing([one.name for one in some], where="")
        yield f"the factor B of {count(len(some), 'module')} becomes {why}: {names}"
    full = [
        one.name for one in modules
        if one.rank > min(plain_shape(one.b.inputs[0].shape)[0], prod(one.a.inputs[0].shape[1:]))
    ]  # fmt: skip
    if full:
        yield (
            f"the rank of {count(len(full), 'module')} is larger than a side of the weight; ckpt lora resize makes it "
            f"smaller without a loss: {listing(full, where='')}"
        )
