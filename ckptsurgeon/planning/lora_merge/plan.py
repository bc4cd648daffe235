"""The planner of ``lora merge``: adds adapters to the tensors of a base that they change. Opens no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import FormatError
from ...methods.lora.conv1d import KnownModel
from ...util.text import escape
from ..edit import check_casts
from ..keys.hints import matched
from ..keys.pattern import OptionPattern
from ..plan.files import PlanTarget
from ..plan.plan import Plan
from ..transplant.select import SourceView
from .changes import BaseChanges, changed_steps, named
from .fitting import AdapterView

__all__ = ["plan_lora_merge"]


def plan_lora_merge(
    base: SourceView,
    adapters: Sequence[AdapterView],
    *,
    model: KnownModel | None = None,
    dtype: str = "",
    exclude: Sequence[OptionPattern] = (),
    tied: Mapping[str, str] | None = None,
    target: PlanTarget | None = None,
    arguments: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a base with adapters added: ``base`` is the first source, the adapters follow in their order.

    ``model`` has the facts known about the base; ``exclude`` leaves modules of the adapters out. ``tied`` maps an
    output layer that the base does not store, because it is the embedding, to that embedding. Raises PlanError if an
    adapter is for another model, PatternError for a pattern that matches no module, FormatError if a tensor has no
    plain values.
    """
    _check_plain(base)
    every = [named(module) for one in adapters for module in one.adapter.modules]
    overlooked = matched([(str(flag), flag.pattern) for flag in exclude], every, "module")[1]
    changes = BaseChanges(base, model, exclude, tied or {})
    for source, one in enumerate(adapters, 1):
        changes.add(source, one)
    steps = changed_steps(changes, dtype)
    check_casts(steps)
    return Plan(
        verb="lora merge",
        sources=(base.source, *(one.view.source for one in adapters)),
        target=target or PlanTarget("edit", base.source.name, ""),
        steps=tuple(steps),
        unexpected=tuple(changes.left_out),
        excluded=len(changes.left_out),
        arguments=arguments or {},
        metadata=metadata or {},
        notes=(*notes, *overlooked, *changes.notes),
    )


def _check_plain(base: SourceView) -> None:
    opaque = [key for key, info in base.tensors.items() if info.opaque]
    if opaque:
        raise FormatError(
            f"{escape(opaque[0])} of {escape(base.source.name)} cannot be copied: {base.tensors[opaque[0]].opaque}.",
            hint=f"Leave it out first: ckpt filter --exclude {escape(opaque[0])}.",
            details=opaque,
            rule="opaque",
        )
