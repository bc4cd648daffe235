"""Which tensor of a base each module of an adapter is for: the names, and what may stand before them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...util.text import escape

__all__ = ["Names", "matched"]

LOOKED_AT = 16
"""Modules whose names are held against the base's for what may stand before all of them."""

WEIGHTS = (".weight", ".in_proj_weight", "")
"""What stands behind a module's name in the key of its weight."""


@dataclass(frozen=True)
class Shift:
    """What an adapter's names have before those of the base, and the other way round."""

    off: str = ""
    on: str = ""

    def apply(self, name: str) -> str:
        """Return the name in the base; '' where it has not what is to be taken off."""
        if self.off and not name.startswith(self.off):
            return ""
        return self.on + name[len(self.off) :]


@dataclass
class Names:
    """The weights in the base, by component and module; who has none; how saved tensors are called; what to say."""

    weights: dict[tuple[str, str], str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    shifts: dict[str, Shift] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shift(self) -> Shift:
        """What stands before the names of an adapter that is for one model."""
        return self.shifts.get("", Shift())

    def saved(self, key: str) -> str:
        """Return the key in the base of a tensor that an adapter saves."""
        return self.shift.apply(key) or key


def matched(modules: Sequence[tuple[str, str, bool]], keys: Collection[str], saved: Collection[str] = ()) -> Names:
    """Match modules, as (component, name, whether it is joined by underscores), with the weights of a base.

    Within a component all names have the same before them: where it is not the same as in the base, what fits most.
    """
    names = Names()
    dotted, joined = _index(keys, lambda name: name), _index(keys, lambda name: name.replace(".", "_"))
    for component in dict.fromkeys(component for component, _, _ in modules):
        group = [(name, flat) for of, name, flat in modules if of == component]
        index, sign = (joined, "_") if group[0][1] else (dotted, ".")
        shift = _best([name for name, _ in group], index, sign)
        names.shifts[component] = shift
        names.notes += _said(shift)
        for name, _ in group:
            _put(names, component, name, index.get(shift.apply(name), ()))
    if not modules:
        tops = {name.rpartition(".")[0] for name in saved}
        names.shifts[""] = _best(sorted(tops), dotted, ".")
    return names


def _put(names: Names, component: str, name: str, weights: Sequence[str]) -> None:
    if len(weights) == 1:
        names.weights[component, name] = weights[0]
    elif weights:
        names.several.append(name)
    else:
        names.lacking.append(name)


def _index(keys: Collection[str], spelled: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Return the keys of weights by the names of their modules; the key itself comes last."""
    index: dict[str, tuple[str, ...]] = {}
    for ending in WEIGHTS:
        named: dict[str, list[str]] = {}
        for key in keys:
            if key.endswith(ending):
                named.setdefault(spelled(key.removesuffix(ending)), []).append(key)
        for name, found in named.items():
            index.setdefault(name, tuple(found))
    return index


def _best(names: Sequence[str], index: Mapping[str, Sequence[str]], sign: str) -> Shift:
    """Return the shift that brings most names into the base: none at all, if that is as good."""
    shifts = [Shift(), *dict.fromkeys(_shifts(names[:: max(1, len(names) // LOOKED_AT)], index, sign))]
    hits = Counter({shift: sum(shift.apply(name) in index for name in names) for shift in shifts})
    return max(shifts, key=lambda shift: (hits[shift], shift == Shift(), -len(shift.off) - len(shift.on)))


def _shifts(names: Sequence[str], index: Mapping[str, Sequence[str]], sign: str) -> Iterator[Shift]:
    for name in names:
        tail = sign + name
        yield from (Shift(on=known[: -len(name)]) for known in index if known.endswith(tail))
        parts = name.split(sign)
        heads = (sign.join(parts[:size]) + sign for size in range(1, len(parts)))
        yield from (Shift(off=head) for head in heads if name[len(head) :] in index)


def _said(shift: Shift) -> list[str]:
    if shift.off:
        return [f"the adapter's names have {escape(shift.off)} before those of the base"]
    return [f"the base's names have {escape(shift.on)} before those of the adapter"] if shift.on else []
