"""Plans ``lora resize``: an adapter with smaller ranks, whose products are as near as possible to the old ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from ...errors import ConfigError, PlanError
from ...methods.lora.adapter import AdapterModule
from ...methods.lora.expert_stack import stack_kind
from ...methods.lora.names import COMPONENTS
from ...util.notes import with_prefix
from ...util.text import count, escape, listing
from ..lora_merge.fitting import AdapterView
from ..plan.compute import PRODUCT, Factor
from ..plan.plan import Plan
from .convert import adapter_plan, copied_settings, whole_steps
from .modules import COMFY, FactorSource, NamedModule, NewModule, experts_in, inputs_by_key, named_modules, refuse_dora
from .spellings import TITLES, written

__all__ = ["check_sizes", "plan_lora_resize", "refuse_resizing"]

DIM, ALPHA = "ss_network_dim", "ss_network_alpha"
"""The metadata entries in which kohya's scripts record the rank and the alpha of an adapter."""
HASHES = "sshs_"
"""The beginning of the names of metadata entries that are hashes of the file."""


def check_sizes(rank: int | None, energy: float | None) -> None:
    """Raise ConfigError unless ``rank`` is 1 or more, or None, and ``energy`` is above 0 and up to 1, or None.

    At least one of them must be given.
    """
    if rank is None and energy is None:
        raise ConfigError("no size given.", hint="Give --rank 16, --energy 0.95, or both.")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} is not a valid rank.", hint="Use a whole number of 1 or more.")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"--energy {energy} is not a number above 0 and up to 1.", hint="Use a number such as 0.95.")


def refuse_resizing(one: AdapterView) -> None:
    """Raise PlanError if the adapter is a DoRA, or has no factors."""
    if not one.adapter.modules:
        raise PlanError(
            f"{escape(one.adapter.name)} has no factors, only tensors that it saves in full: there is nothing to "
            "resize."
        )
    refuse_dora(
        one.adapter,
        one.adapter.modules,
        "and its magnitudes were trained for the present factors, so they do not fit smaller ones",
    )


def plan_lora_resize(
    one: AdapterView,
    ranks: Mapping[str, int],
    *,
    dtype: str = "",
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of the adapter ``one`` with smaller ranks; ``ranks`` maps each module's factor A to its new rank.

    A module is copied if its rank is not larger than the new one. Scales do not change. The output has the names of the
    adapter's toolkit if this can store several ranks, else PEFT's. ``dtype`` is the dtype of all factors; '' keeps the
    dtype of each. ``metadata`` is the metadata of the adapter's file.
    """
    refuse_resizing(one)
    placed, _ = named_modules(one, one.adapter.modules, None)
    modules = [_resized(one, each, ranks[each.module.a], dtype) for each in placed]
    to = _spelling(one, placed)
    made = written(modules, to, copied_settings(one))
    made.steps += whole_steps(one, one.adapter.modules)
    made.metadata = {**_metadata(modules, metadata or {}), **made.metadata}
    every = [
        *notes,
        *(with_prefix(f"{escape(one.adapter.name)}: ", note) for note in one.adapter.notes),
        *_notes(one, modules, to),
    ]
    return adapter_plan("lora resize", [one.view.source], made, arguments=arguments, notes=every)


def _resized(one: AdapterView, each: NamedModule, wanted: int, dtype: str) -> NewModule:
    module = each.module
    inputs = inputs_by_key(one, 0, (module.a, module.b))
    a, b = inputs[module.a], inputs[module.b]
    rank, experts = min(wanted, full_rank(one, module)), experts_in(module)
    present = a.shape[0] // (experts or 1)
    origin = module.a if one.adapter.spelling == "PEFT" else ""
    of = stack_kind(experts, transposed=False) if experts else PRODUCT
    if rank >= present:
        first, second = FactorSource((a,), dtype or a.dtype), FactorSource((b,), dtype or b.dtype)
    else:
        first, second = (
            FactorSource((a, b), dtype or side.dtype, factor=Factor(part, rank, of=of))
            for part, side in (("A", a), ("B", b))
        )
    return NewModule(
        each.name, min(rank, present), module.scale, first, second, each.component, module.embedding, each.joined,
        origin, experts,
    )  # fmt: skip


def full_rank(one: AdapterView, module: AdapterModule) -> int:
    """Return the largest rank that the product of a module's factors can have."""
    a, b = (one.view.tensors[key].shape for key in (module.a, module.b))
    return min(a[0] // (experts_in(module) or 1), b[0], prod(a[1:]))


def _spelling(one: AdapterView, placed: Sequence[NamedModule]) -> str:
    """Return the toolkit whose names the output gets: the adapter's if it can store several ranks, else PEFT."""
    components = {each.component for each in placed}
    if one.adapter.spelling == "kohya":
        return "kohya"
    if one.adapter.spelling == "diffusers" and components == {COMFY}:
        return "comfy"
    return "diffusers" if one.adapter.spelling == "diffusers" and components <= {*COMPONENTS} else "peft"


def _metadata(modules: Sequence[NewModule], given: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of the output: ``given``, from the adapter's file, without the hashes of that file.

    If kohya's scripts recorded a rank and an alpha in the metadata, both get their new values.
    """
    kept = {name: value for name, value in given.items() if not name.startswith(HASHES)}
    for name, values in (
        (DIM, {module.rank for module in modules}),
        (ALPHA, {module.scale * module.rank for module in modules}),
    ):
        if name in kept:
            kept[name] = f"{values.pop():g}" if len(values) == 1 else "Dynamic"  # as kohya's own resizing writes
    return kept


def _notes(one: AdapterView, modules: Sequence[NewModule], to: str) -> Iterator[str]:
    same = [module.name for module in modules if module.a.factor is None]
    if same:
        number = count(len(same), "module")
        keep = "keeps its factors, because its" if len(same) == 1 else "keep their factors, because their"
        yield f"{number} {keep} rank does not become smaller: {listing(same, where='')}"
    if to == "peft" and one.adapter.spelling not in ("PEFT", TITLES[to]):
        yield (
            f"the output is a folder of PEFT, because the format of the adapter ({one.adapter.spelling}) cannot store "
            "different ranks for its modules, or needs a prefix in its names"
        )
