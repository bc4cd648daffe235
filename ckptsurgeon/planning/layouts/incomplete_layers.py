"""Finds tensors that are missing from a layer or module, although others of the same kind have them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import count, escape, listing, natural_key
from .changes import Fused, Keyed, Stacked, hits, parsed
from .layout import Family, Layout, Tensors
from .split_changes import Parted

__all__ = ["FEW", "LAYER", "check_complete", "check_experts"]

LAYER = "{n}"
"""The placeholder of the number of a layer in names."""
FEW = 16
"""Numbers in keys are not layer numbers if the largest is at least this constant plus twice how many there are."""
_SHOWN = 20
"""At most this many missing experts are named."""
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")


def check_complete(family: Family, layout: Layout, tensors: Tensors, label: str) -> None:
    """Raise PlanError if a layer or module lacks a tensor that other layers or modules of the same kind have.

    Tensors of a group in ``family.some`` may be missing from a layer or module, but only all together, and those in
    ``layout.aside`` may be missing anywhere. ``label`` is the name of the checkpoint in messages; '' if the message
    needs no name.
    """
    _check_stacks(layout, tensors, label)
    if layout.aside:
        left = {key for keys in hits([*layout.aside], tensors) for key in keys}
        tensors = {key: info for key, info in tensors.items() if key not in left}
    listed = {prefix: own for own, prefix in layout.beside_list.items()}
    if listed:
        tensors = {_begun(key, layout.beside_list): info for key, info in tensors.items()}
    for lost in (*_layers(family, layout, tensors), *_modules(family, layout, tensors)):
        missing = f"{escape(_begun(lost, listed))} is missing{_where('from', label)}"
        raise PlanError(
            f"{missing}, although other layers or modules of the same kind are complete.",
            hint="Complete the model first.",
        )


def _where(word: str, label: str) -> str:
    return f" {word} {escape(label)}" if label else ""


def check_experts(routed: Sequence[str], tensors: Tensors, label: str) -> None:
    """Raise PlanError if the experts of a layer do not correspond to the rows of its router, one row for each expert.

    ``routed`` has two patterns of keys: of a router's weight, and of a matrix of an expert.
    """
    router, expert = routed
    keys, matrices = hits([router, expert], tensors)
    experts: defaultdict[str, set[str]] = defaultdict(set)
    stacks: dict[str, int] = {}
    for key in matrices:
        named = _named(expert, key)
        if "i" in named:
            experts[named["n"]].add(named["i"])
        else:
            stacks[named["n"]] = _rows(tensors[key])
    for key in keys:
        layer, rows = _named(router, key)["n"], _rows(tensors[key])
        there = experts.get(layer, set())
        number = len(there) or stacks.get(layer, rows)
        lost = [*islice((str(one) for one in range(rows) if str(one) not in there), _SHOWN)] if there else []
        if lost or number != rows:
            said = f"there {'is' if number == 1 else 'are'} {number}"
            if lost:
                said = f"{'experts' if len(lost) > 1 else 'expert'} {listing(lost)} "
                said += f"{'have' if len(lost) > 1 else 'has'} no weights"
            raise PlanError(
                f"{escape(key)} of {escape(label)} is for {count(rows, 'expert')}, but {said}.",
                hint="Complete the model first.",
            )


def _named(pattern: str, key: str) -> Mapping[str, str]:
    found = parsed(pattern).captures(key)
    assert found is not None  # the pattern matched the key
    return found.named


def _rows(info: TensorInfo) -> int:
    return info.shape[0] if info.shape else 0


def _begun(key: str, prefixes: Mapping[str, str]) -> str:
    """Return a key with its prefix replaced; ``prefixes`` maps old prefixes to new ones. Other keys stay unchanged."""
    found = next((one for one in prefixes if key.startswith(one)), "")
    return f"{prefixes[found]}{key.removeprefix(found)}" if found else key


def _check_stacks(layout: Layout, tensors: Tensors, label: str) -> None:
    """Raise PlanError if two tensors that have one row for each layer do not have equally many rows."""
    stacks = [one.made for one in layout.changes if isinstance(one, Stacked) and one.of_layers and one.made in tensors]
    sizes = {key: tensors[key].shape[0] if tensors[key].shape else 0 for key in stacks}
    for key in stacks:
        if sizes[key] != sizes[stacks[0]]:
            raise PlanError(
                f"{escape(key)}{_where('of', label)} has {count(sizes[key], 'layer')}, but {escape(stacks[0])} has "
                f"{sizes[stacks[0]]}.",
                hint="Complete the model first.",
            )


def _layers(family: Family, layout: Layout, tensors: Tensors) -> Iterator[str]:
    """Yield the keys of tensors that a layer lacks, although other layers of the same list have them.

    If a layer lacks all tensors, the name of the layer is yielded.
    """
    layers: defaultdict[tuple[str, int, str], dict[str, str]] = defaultdict(dict)
    stacks: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    groups = {ours: place for place, group in enumerate(family.some) for ours in group}
    spelled = [(groups.get(ours, -1), theirs) for ours, theirs in layout.names.items() if LAYER in theirs]
    spelled += [(group, made) for made, group in _made(layout, groups).items() if LAYER in made]
    for (group, theirs), keys in zip(spelled, hits([theirs for _, theirs in spelled], tensors), strict=True):
        stack, _, rest = theirs.partition(LAYER)
        for key in keys:
            number, mark, name = key.removeprefix(stack).partition("/" if rest[:1] == "/" else ".")
            name = mark + name
            stacks[stack, group].add(number)
            layers[stack, group, name][number] = key
    yield from _gaps(stacks)
    single = _single(layout, groups)
    for (stack, group, name), found in layers.items():
        own = single.get((stack, group, name), {})
        have = found.keys() | {number for number, key in own.items() if key in tensors}
        for lost in sorted(stacks[stack, group] - have, key=natural_key):
            yield own.get(lost, f"{stack}{lost}{name}")


def _gaps(stacks: Mapping[tuple[str, int], Collection[str]]) -> Iterator[str]:
    """Yield the names of layers that have no tensors, although a later layer exists.

    ``stacks`` maps (prefix of the layers, index of a group of tensors) to the numbers of the layers that have the
    group.
    """
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for (stack, _), found in stacks.items():
        numbers[stack].update(int(number) for number in found if number.isdecimal() and len(number) < 8)
    for stack, known in numbers.items():
        if known and max(known) < 2 * len(known) + FEW:  # else they are not the numbers of layers
            yield from (f"{stack}{number}" for number in range(max(known)) if number not in known)


def _made(layout: Layout, groups: Mapping[str, int]) -> Mapping[str, int]:
    """Return {name of a tensor that a change makes: index of the group in ``Family.some`` that its parts belong to}.

    The index is -1 if its parts are in no group. The parts of a stack may themselves be made by an earlier change.
    """
    made: dict[str, int] = {}
    for one in layout.changes:
        if isinstance(one, (Fused, Keyed, Parted, Stacked)):
            first = one.name if isinstance(one, (Keyed, Parted)) else one.parts
            first = first if isinstance(first, str) else first[0]
            made[one.made] = made.get(first, _group(first, groups))
    return made


def _single(layout: Layout, groups: Mapping[str, int]) -> Mapping[tuple[str, int, str], Mapping[str, str]]:
    """Return the names of tensors in a single layer whose name in all other layers is formed in another way.

    The result maps (prefix of the other layers, index of the group in ``Family.some``, ending of the name in the other
    layers) to {number of the layer: name in this layer}.
    """
    keys: defaultdict[tuple[str, int, str], dict[str, str]] = defaultdict(dict)
    for ours, theirs in layout.names.items():
        number = _NUMBER.search(ours) if LAYER not in ours else None
        whole = f"{ours[: number.start()]}{LAYER}{ours[number.end() :]}" if number else ""
        if number and LAYER in layout.names.get(whole, ""):
            stack, _, rest = layout.names[whole].partition(LAYER)
            keys[stack, groups.get(whole, -1), rest][number[0]] = theirs
    return keys


def _group(name: str, groups: Mapping[str, int]) -> int:
    """Return the index of the group in ``Family.some`` that has a module, or a tensor's module; -1 if there is none."""
    while name and name not in groups:
        name = name.rpartition(".")[0]
    return groups.get(name, -1)


def _modules(family: Family, layout: Layout, tensors: Tensors) -> Iterator[str]:
    """Yield the keys of tensors that a module lacks, although other modules of the same kind have them.

    Modules of one kind are a group in the family's fields ``alike`` and ``some``.
    """
    if not family.alike:
        return
    left = {ours for group in family.some for ours in group}
    below = _below(tensors)
    for group in (*family.alike, *family.some):
        is_some = group in family.some
        spelled = [_spelled(module, layout.names, () if is_some else left) for module in group]
        parts = [{tail + key for tail, name in one.items() for key in below.get(name, ())} for one in spelled]
        every = {tail for found in parts for tail in found}
        for module, one, found in zip(group, spelled, parts, strict=True):
            for lost in sorted(every - found) if found or not is_some else ():
                tail = max((tail for tail in one if lost.startswith(tail)), key=len, default=None)
                yield f"{module}{lost}" if tail is None else f"{one[tail]}{lost.removeprefix(tail)}"


def _below(tensors: Tensors) -> Mapping[str, list[str]]:
    """Return {module: endings of the keys of its tensors after its name}: ``a.conv`` -> ``.weight``, ``.bias``.

    The map also has each whole key, with the ending ''.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key in tensors:
        end = len(key)
        while end > 0:
            found[key[:end]].append(key[end:])
            end = key.rfind(".", 0, end)
    return found


def _spelled(module: str, names: Mapping[str, str], left: Collection[str]) -> dict[str, str]:
    """Return a map from the family's names inside ``module``, such as ``.conv1``, to a layout's names.

    ``names`` maps the family's names to the layout's names. If the layout has no names inside ``module``, the result
    maps '' to the layout's name of ``module`` itself. The family's names in ``left`` are left out.
    """
    inner = {ours.removeprefix(module): theirs for ours, theirs in names.items() if ours.startswith(f"{module}.")}
    if inner:
        return {tail: theirs for tail, theirs in inner.items() if module + tail not in left}
    outer, rest = module, ""
    while outer and outer not in names:
        outer, dot, last = outer.rpartition(".")
        rest = f"{dot}{last}{rest}"
    return {"": f"{names[outer]}{rest}"} if outer else {}
