"""Plans ``lora convert``: the same adapter with the names, the layout and the scales of another toolkit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...errors import ConfigError, PlanError
from ...methods.lora.adapter import AdapterModule
from ...methods.lora.composed import composed_shape
from ...methods.lora.expert_stack import is_stack
from ...util.notes import with_prefix
from ...util.text import count, escape, listing
from ..keys.pattern import OptionPattern
from ..lora_merge.fitting import AdapterView
from ..plan.compute import Factor
from ..plan.files import PlanSource, PlanTarget, SourceView
from ..plan.plan import Plan
from ..plan.step import Step
from .components import in_pipeline
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
    named_modules,
    refuse_dora,
)
from .peft import PREFIX
from .spellings import SPELLINGS, TITLES, AdapterFiles, written
from .stacked_experts import selected_fields

__all__ = ["adapter_plan", "check_spelling", "copied_settings", "is_composed", "plan_lora_convert", "whole_steps"]

FULL = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""Fields of PEFT's configuration that select modules; the output lists the full names of its modules instead."""


def check_spelling(to: str) -> None:
    """Raise ConfigError unless ``to`` is a toolkit whose names can be written."""
    if to not in SPELLINGS:
        raise ConfigError(f"--to {escape(to, 40)} is unknown.", hint=f"Use {', '.join(SPELLINGS)}.")


def plan_lora_convert(
    one: AdapterView,
    to: str,
    base: SourceView | None = None,
    *,
    component: str = "",
    exclude: Sequence[OptionPattern] = (),
    ranks: Mapping[str, int] | None = None,
    dtype: str = "",
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of the adapter ``one`` with the names of the toolkit ``to``.

    ``base`` is the model whose keys show where kohya's names with underscores have dots, ``component`` the model of a
    pipeline that the adapter is for. ``ranks`` is for modules of LoHa and LoKr: it maps the key of a module's first
    tensor to its new rank. ``dtype`` is the dtype of all factors; '' keeps the dtype of each. Raises PlanError for
    tensors that the toolkit cannot store, PatternError for a pattern that matches nothing.
    """
    overlooked = check_excluded([one], exclude)
    chosen, left = chosen_modules(one, exclude)
    if not one.adapter.modules and not left:
        raise PlanError(
            f"{escape(one.adapter.name)} has no factors, only tensors that it saves in full: there is nothing to "
            "convert.",
            hint="Merge it into its base with ckpt lora merge.",
        )
    if not chosen:
        raise PlanError(f"no module of {escape(one.adapter.name)} is left to convert.", hint="Leave an --exclude out.")
    refuse_dora(one.adapter, chosen, "whose magnitudes have other names and meanings in each toolkit")
    weights = base_weights(one.adapter)
    if to != "peft":
        _refuse_stacks(one, chosen, to)
        _refuse_whole(one, chosen, to, weights)
    placed, named = named_modules(one, chosen, base)
    if to == "mlx":
        _refuse_composed(one, chosen)
    modules = [
        _reduced(one, each, (ranks or {})[each.module.a], dtype)
        if is_composed(each.module)
        else _module(one, each, dtype)
        for each in placed
    ]
    settings = copied_settings(one, placed if left else None) if to == "peft" else {}
    modules, parts = in_pipeline(modules, to, component)
    made = written(modules, to, settings, component)
    names = {module.name for module in chosen}
    needed = {name: key for name, key in weights.items() if name.removesuffix(".weight") in names}
    lost = [key for name, key in weights.items() if to != "peft" or name not in needed]
    made.steps += whole_steps(one, chosen, lost) if to == "peft" else []
    kept = [*_kept_notes(modules), *(_weights_notes(list(needed), to) if to != "peft" else ())]
    every = [
        *notes,
        *overlooked,
        *(with_prefix(f"{escape(one.adapter.name)}: ", note) for note in (*named, *one.adapter.notes, *parts, *kept)),
    ]
    sources = (one.view.source, *((base.source,) if base is not None else ()))
    left_out = [(0, key) for key in (*left, *lost)]
    return adapter_plan("lora convert", sources, made, left=left_out, arguments=arguments, notes=every)


def adapter_plan(
    verb: str,
    sources: Sequence[PlanSource],
    made: AdapterFiles,
    *,
    left: Sequence[tuple[int, str]] = (),
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of the command ``verb`` that writes the adapter ``made``.

    ``left`` has (index of the source, key) for each tensor that is left out.
    """
    first, *others = sources
    first = replace(first, operations=(*first.operations, *made.operations))
    return Plan(
        verb=verb,
        sources=(first, *others),
        target=PlanTarget("edit", "an adapter", "", companions=made.companions, weights=made.weights),
        steps=tuple(made.steps),
        unexpected=tuple(left),
        excluded=len(left),
        arguments=arguments or {},
        metadata=made.metadata,
        notes=(*notes, *made.notes),
    )


def is_composed(module: AdapterModule) -> bool:
    """Return whether a module is a LoHa or LoKr, which becomes a LoRA."""
    return bool(module.kind) and not is_stack(module.kind)


def _refuse_stacks(one: AdapterView, modules: Sequence[AdapterModule], to: str) -> None:
    """Raise PlanError if the adapter changes stacked experts: only PEFT has names for such factors."""
    found = [module.name for module in modules if experts_in(module)]
    if found:
        raise PlanError(
            f"the adapter {escape(one.adapter.name)} changes {count(len(found), 'stack')} of experts "
            f"(target_parameters), and {TITLES[to]} has no adapters of these: {listing(found)}.",
            hint="Give the model with --base if its files have single experts. Otherwise leave the stacks out with "
            "--exclude, or merge the adapter into its base with ckpt lora merge.",
            details=found,
        )


def _refuse_whole(one: AdapterView, modules: Sequence[AdapterModule], to: str, weights: Mapping[str, str]) -> None:
    """Raise PlanError if the adapter has tensors that are not factors: only PEFT has names for such tensors.

    ``weights`` are the ``base_weights`` of the adapter, which are left out.
    """
    saved = [name for name in one.adapter.saved if name not in weights]
    found = [*saved, *(module.bias for module in modules if module.bias)]
    if found:
        raise PlanError(
            f"the adapter {escape(one.adapter.name)} has {count(len(found), 'tensor')} besides its factors "
            f"(modules_to_save, bias, lora_bias), which {TITLES[to]} cannot store: {listing(found)}.",
            hint="Merge the adapter into its base with ckpt lora merge.",
            details=found,
        )


def _weights_notes(weights: Sequence[str], to: str) -> Iterator[str]:
    """Yield a note if ``weights`` of the base, which the changed modules need, are left out."""
    if weights:
        yield (
            f"{count(len(weights), 'weight')} of the base that PEFT saved next to factors (base_layer), which "
            f"{TITLES[to]} cannot store, {'is' if len(weights) == 1 else 'are'} left out; the base must have the same "
            f"values: {listing(weights, where='')}"
        )


def _module(one: AdapterView, each: NamedModule, dtype: str) -> NewModule:
    module = each.module
    inputs = inputs_by_key(one, 0, (module.a, module.b))
    a, b = inputs[module.a], inputs[module.b]
    experts = experts_in(module)
    return NewModule(
        each.name, a.shape[0] // (experts or 1), module.scale, FactorSource((a,), dtype or a.dtype),
        FactorSource((b,), dtype or b.dtype), each.component, module.embedding, each.joined,
        module.a if one.adapter.spelling == "PEFT" else "", experts,
    )  # fmt: skip


def _reduced(one: AdapterView, each: NamedModule, wanted: int, dtype: str) -> NewModule:
    """Return a LoRA module for a LoHa or LoKr; its rank is ``wanted``, but at most the full rank."""
    module = each.module
    inputs = tuple(inputs_by_key(one, 0, module.factors).values())
    found = composed_shape(module.kind, [given.shape for given in inputs])
    assert found is not None  # ensured by read_adapter
    rank, kept = min(wanted, found.rank), dtype or common_dtype(given.dtype for given in inputs)
    a, b = (FactorSource(inputs, kept, factor=Factor(part, rank, of=module.kind)) for part in "AB")
    return NewModule(each.name, rank, module.scale, a, b, each.component, joined=each.joined)


def _kept_notes(modules: Sequence[NewModule]) -> Iterator[str]:
    """Yield a note if an adapter has modules of LoRA as well as of LoHa or LoKr."""
    kept = [module.rank for module in modules if module.a.factor is None]
    if not kept or len(kept) == len(modules):
        return
    ranks, resize = ", ".join(map(str, sorted(set(kept)))), "ckpt lora resize makes"
    if len(kept) == 1:
        yield f"1 module is a LoRA already and keeps its rank ({ranks}); {resize} it smaller"
    else:
        yield f"{len(kept)} modules are LoRA already and keep their ranks ({ranks}); {resize} them smaller"


def _refuse_composed(one: AdapterView, modules: Sequence[AdapterModule]) -> None:
    if any(map(is_composed, modules)):
        raise PlanError(
            f"{escape(one.adapter.name)} is a LoHa or LoKr, which mlx-lm does not know: ckpt must convert it to a LoRA "
            "first.",
            hint="Convert the adapter with --to peft, and then convert the new folder with --to mlx.",
        )


def copied_settings(one: AdapterView, kept: Sequence[NamedModule] | None = None) -> dict[str, Any]:
    """Return the fields of an adapter's configuration that do not follow from its modules; {} without a configuration.

    ``kept`` are the modules that the output still has; None if it has all.
    """
    if one.adapter.config is None:
        return {}
    given = dict(one.adapter.config.data)
    if kept is None:
        return given
    stacks = [each.name for each in kept if experts_in(each.module)]
    layers = [each.name for each in kept if not experts_in(each.module)]
    chosen = {field: value for field, value in given.items() if field not in FULL}
    return {**chosen, **selected_fields(layers, stacks, given)}


def whole_steps(one: AdapterView, modules: Sequence[AdapterModule], lost: Collection[str] = ()) -> list[Step]:
    """Return the steps that copy an adapter's tensors that are not factors, with PEFT's names.

    These are the tensors that the adapter saves in full, except ``lost``, and the biases of ``modules``.
    """
    saved = [key for key in one.adapter.saved.values() if key not in lost]
    keys = [*saved, *(module.bias for module in modules if module.bias)]
    inputs = inputs_by_key(one, 0, keys)
    return [
        Step(key if key.startswith(PREFIX) else f"{PREFIX}{key}", "copy", each.dtype, each.shape, *each)
        for key, each in inputs.items()
    ]
