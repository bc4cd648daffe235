"""What makes a transplant impossible: mismatches, casts and what cannot be drawn, gathered to be said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import PlanError
from ...util.text import count, escape, grouped, listing, shape_text
from ..mismatch.fitting import fitting_policies
from ..plan.step import Step
from ..quantised import computing
from .by_place import BY_TOKEN, ByPlace
from .select import Origin
from .vocabulary import Axes

__all__ = ["Faults", "raise_faults"]


@dataclass
class Faults:
    """Everything that is wrong, gathered so that it can be said at once."""

    mismatches: list[tuple[Step, Origin, str]] = field(default_factory=list)
    casts: list[tuple[str, str]] = field(default_factory=list)
    undrawable: list[str] = field(default_factory=list)
    coded: list[tuple[Origin, str]] = field(default_factory=list)


def raise_faults(faults: Faults, names: Sequence[str], target: str, axes: Axes | None, by_place: ByPlace) -> None:
    """Raise what was gathered: codes taken for numbers, mismatches with what would settle each, draws, casts."""
    if faults.coded:
        coded = [(names[origin.source], origin.coded, what) for origin, what in faults.coded if origin.coded]
        raise computing(coded, f"Leave it out (--exclude {escape(_module(faults.coded[0][0].key))})")
    if faults.mismatches:
        wrong = axes.of_no_list([step for step, _, _ in faults.mismatches]) if axes else None
        raise wrong or _mismatch_error(faults.mismatches, names, target, None if axes else by_place)
    if faults.undrawable:
        raise PlanError(
            f"{escape(target)} does not say how to initialise {listing(faults.undrawable)}, "
            "not taken whole from a source.",
            hint="Give each an init.",
            details=faults.undrawable,
        )
    if faults.casts:
        raise PlanError(
            f"dtype mismatch: {grouped(faults.casts, '{names} {are} {why}')}.",
            hint=f"Exclude {'it' if len(faults.casts) == 1 else 'them'}, or use --dtype keep.",
            details=[f"{key} is {why}" for key, why in faults.casts],
        )


def _mismatch_error(
    faults: Sequence[tuple[Step, Origin, str]], names: Sequence[str], target: str, by_place: ByPlace | None
) -> PlanError:
    details = []
    for step, origin, why in faults:
        fits = fitting_policies(step.source_shape, step.shape, step.source_dtype, step.key)
        details.append(
            f"{step.key} is {shape_text(step.source_shape)} in {names[origin.source]}, "
            f"{shape_text(step.shape)} in {target}: {f'{why}; ' if why else ''}"
            f"--on-mismatch {step.key}={'|'.join(fits)}"
        )
    first, origin, why = faults[0]
    shapes = (
        f"{escape(first.key)} is {shape_text(first.source_shape)} in {escape(names[origin.source])}, "
        f"{shape_text(first.shape)} in {escape(target)}"
    )
    others = listing([step.key for step, _, _ in faults[1:]], limit=4)
    also = f"; {count(len(faults) - 1, 'other')} too: {others}" if others else ""
    fits = fitting_policies(first.source_shape, first.shape, first.source_dtype, first.key)[1:]
    module, source_module = _module(first.key), _module(origin.key)
    hint = f"Use --on-mismatch {escape(module)}=init"
    hint += f" (or {', '.join(fits)})" if fits else ""
    if {_module(step.key) for step, _, _ in faults} != {module}:
        hint += " for one, --ignore-mismatch for all"
    hint += f", {BY_TOKEN} for rows by token" if by_place is not None and first.key in by_place else ""
    hint += f", or --exclude {escape(source_module)}."
    unfit = f" {escape(why, 600)}." if why else ""
    return PlanError(f"shape mismatch: {shapes}{also}.{unfit}", hint=hint, details=details)


def _module(key: str) -> str:
    return key.rpartition(".")[0] or key
