"""Matches the modules of an adapter with the weights of a base, by names that may differ in a common prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...util.text import escape

__all__ = ["MatchedModules", "match_modules"]

LOOKED_AT = 16
"""The largest number of modules that are compared with the base to find the prefix."""

WEIGHTS = (".weight", ".in_proj_weight", "")
"""The possible endings of a weight's key after the name of its module."""


@dataclass(frozen=True)
class PrefixChange:
    """How an adapter's names become names of the base: the prefix ``off`` is replaced by ``on``; both may be empty."""

    off: str = ""
    on: str = ""

    def apply(self, name: str) -> str:
        """Return the name in the base; '' if ``name`` does not begin with the prefix ``off``."""
        if self.off and not name.startswith(self.off):
            return ""
        return self.on + name[len(self.off) :]


@dataclass
class MatchedModules:
    """The weights of a base model that the modules of an adapter change.

    ``weights`` maps (component, module) of the adapter to the key of the weight in the base; a component is a model of
    a pipeline of diffusers. ``lacking`` are the modules that match no weight, ``several`` the modules that match more
    than one weight. ``shifts`` maps each component to the change of prefix of its names.
    """

    weights: dict[tuple[str, str], str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    shifts: dict[str, PrefixChange] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shift(self) -> PrefixChange:
        """The change of prefix that turns keys of an adapter for a single model into keys of the base model.

        An adapter for a pipeline has a separate change for each component, in ``shifts``.
        """
        return self.shifts.get("", PrefixChange())

    def saved(self, key: str) -> str:
        """Return the base's key of a tensor that the adapter saves in full under the key ``key``."""
        return self.shift.apply(key) or key


def match_modules(
    modules: Sequence[tuple[str, str, bool]], keys: Collection[str], saved: Collection[str] = ()
) -> MatchedModules:
    """Return the weights of a base model that the modules of an adapter change; ``keys`` are the base's keys.

    Each of ``modules`` is (component, name, whether underscores replace the dots of the name); a component is a model
    of a pipeline. All names of a component get the same change of prefix: the change with which most modules match. If
    there are no modules, the prefix is found with ``saved``, the keys of tensors that the adapter saves in full.
    """
    names = MatchedModules()
    dotted, joined = _index(keys, lambda name: name), _index(keys, lambda name: name.replace(".", "_"))
    for component in dict.fromkeys(component for component, _, _ in modules):
        group = [(name, flat) for of, name, flat in modules if of == component]
        index, sign = (joined, "_") if group[0][1] else (dotted, ".")
        shift = _best([name for name, _ in group], index, sign)
        names.shifts[component] = shift
        names.notes += _prefix_notes(shift)
        for name, _ in group:
            _put(names, component, name, index.get(shift.apply(name), ()))
    if not modules:
        tops = {name.rpartition(".")[0] for name in saved}
        names.shifts[""] = _best(sorted(tops), dotted, ".")
    return names


def _put(names: MatchedModules, component: str, name: str, weights: Sequence[str]) -> None:
    if len(weights) == 1:
        names.weights[component, name] = weights[0]
    elif weights:
        names.several.append(name)
    else:
        names.lacking.append(name)


def _index(keys: Collection[str], spelled: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    """Return {name of a module or of a single parameter: keys of the weights with this name}.

    ``spelled`` is called with each name, and returns the name in the form that adapters use.
    """
    index: dict[str, tuple[str, ...]] = {}
    for ending in WEIGHTS:
        named: dict[str, list[str]] = {}
        for key in keys:
            if key.endswith(ending):
                named.setdefault(spelled(key.removesuffix(ending)), []).append(key)
        for name, found in named.items():
            index.setdefault(name, tuple(found))
    return index


def _best(names: Sequence[str], index: Mapping[str, Sequence[str]], sign: str) -> PrefixChange:
    """Return the change of prefix after which most of ``names`` are in ``index``, which has the names of the base.

    If equally many names are in ``index`` without a change, the empty change is returned. ``sign`` separates the parts
    of a name.
    """
    shifts = [PrefixChange(), *dict.fromkeys(_shifts(names[:: max(1, len(names) // LOOKED_AT)], index, sign))]
    hits = Counter({shift: sum(shift.apply(name) in index for name in names) for shift in shifts})
    return max(shifts, key=lambda shift: (hits[shift], shift == PrefixChange(), -len(shift.off) - len(shift.on)))


def _shifts(names: Sequence[str], index: Mapping[str, Sequence[str]], sign: str) -> Iterator[PrefixChange]:
    for name in names:
        tail = sign + name
        yield from (PrefixChange(on=known[: -len(name)]) for known in index if known.endswith(tail))
        parts = name.split(sign)
        heads = (sign.join(parts[:size]) + sign for size in range(1, len(parts)))
        yield from (PrefixChange(off=head) for head in heads if name[len(head) :] in index)


def _prefix_notes(shift: PrefixChange) -> list[str]:
    if shift.off:
        return [f"names in the adapter begin with {escape(shift.off)}, names in the base do not"]
    return [f"names in the base begin with {escape(shift.on)}, names in the adapter do not"] if shift.on else []
