"""Notes on mixtures of experts: missing tensors, and numbers of experts that contradict config.json or the router."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ....planning.resizing.fields import EXPERT_GROUPS
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape, listing, shape_text
from ..weights.shape_checks import UNLOADED, DescribedTensor, is_number

__all__ = ["INITIALISED", "NUMBERS", "expert_gap_notes", "expert_notes", "of_first_expert", "without_like_experts"]

INITIALISED = "transformers initialises what is missing"
_EXPERT = re.compile(r"(.*\.)?(\w*experts)\.(\d{1,9})\.(.*)")
_OF_EXPERT = re.compile(r"experts\.\d+\.")
_STACKED = re.compile(
    r"(.*\.)?(?:experts\.(?:gate_up|gate|up|down)_proj(?:_blocks|_scales|_bias)?|switch_mlp\.(?:gate|up|down)_proj\.weight)$"
)
"""Matches tensors in which all experts of a layer are stacked; the first dimension is the number of experts.

mlx-lm has them in ``switch_mlp``.
"""
_ROUTER = re.compile(r"(gate|router)(\.\w+)?\.weight$")
_OTHER_ROWS = ("inkling_text", "zaya")
"""Model types whose router does not have one row for each expert."""
_DIGIT = 9
"""The largest number with one digit. Numbers up to 9 are in numerical order even if they are sorted as text."""
NUMBERS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Fields of config.json with the number of experts in a layer."""


def without_like_experts(tensors: Sequence[DescribedTensor]) -> list[DescribedTensor]:
    """Return ``tensors`` without duplicates: of tensors that differ only in the index of the expert, one is kept.

    A layer may have 256 experts; a check of names or sizes needs only one of them.
    """
    found: dict[tuple[str, tuple[int, ...], str, str], DescribedTensor] = {}
    for one in tensors:
        found.setdefault((of_first_expert(one.key), one.shape, one.dtype, one.tied_to), one)
    return list(found.values())


def of_first_expert(key: str) -> str:
    """Return a key with the index of its expert replaced by 0; a key without an expert is not changed."""
    head, found, tail = key.partition("experts.")
    if not found:
        return key
    number, dot, rest = tail.partition(".")
    is_usual = dot and number.isdecimal() and "experts." not in rest  # twice as fast as a regular expression
    if is_usual:
        return f"{head}experts.0.{rest}"
    return _OF_EXPERT.sub("experts.0.", key)


def expert_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[Note]:
    """Yield notes if there are more or fewer experts than declared, or if layers lack experts or routers."""
    found: list[tuple[DescribedTensor, _Place]] = []
    others: list[DescribedTensor] = []
    sets: dict[str, dict[str, set[str]]] = {}
    for one in tensors:
        place = _place_of(one.key)
        if place is None:
            others.append(one)
            continue
        module, number, rest = place
        found.append((one, place))
        experts = sets.get(module)
        if experts is None:  # setdefault would make 90,000 dicts and sets that are thrown away
            experts = sets[module] = {}
        names = experts.get(number)
        if names is None:
            names = experts[number] = set()
        names.add(rest.partition(".")[0])
    yield from _too_many(config)
    yield from _unequal_groups(config)
    yield from _uneven(found)
    yield from _numbered(others, _by_number(sets), config) if sets else _together(tensors, config)


_Place: TypeAlias = tuple[str, str, str]
"""The parts of an expert's key: the text before ``experts.``, the index of the expert, and the text after the index."""


def _place_of(key: str) -> _Place | None:
    """Return the parts of the key of an expert's tensor; None for any other key."""
    head, name, tail = key.rpartition("experts.")
    if not name:
        return None
    number, dot, rest = tail.partition(".")
    if head[-1:] == "." and dot and number.isdecimal() and len(number) < 10:
        return head, number, rest
    match = _EXPERT.match(key)
    return (match[1], match[3], match[4]) if match is not None and match[1] else None


def _by_number(sets: Mapping[str, Mapping[str, set[str]]]) -> dict[str, dict[int, set[str]]]:
    """Return ``sets`` with the indices of experts as integers instead of text.

    ``sets`` is {prefix of the module with the experts: {index of an expert: names of its parts}}.
    """
    found: dict[str, dict[int, set[str]]] = {}
    for module, experts in sets.items():
        of_module = found[module] = dict[int, set[str]]()
        for number, names in experts.items():
            of_module.setdefault(int(number), set()).update(names)
    return found


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _too_many(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a configuration chooses more experts per token than there are: then no router can run."""
    field = next((name for name in NUMBERS if type(config.get(name)) is int), "")
    number, chosen = config.get(field, 0), config.get("num_experts_per_tok")
    if field and number and type(chosen) is int and chosen > number:
        yield f"config.json says {chosen} (num_experts_per_tok), but there are {count(number, 'expert')} ({field})"


@notes_of(NoteKind.CONFIGURATION)
def _unequal_groups(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a configuration has groups of experts of unequal sizes."""
    field = next((name for name in NUMBERS if type(config.get(name)) is int), "")
    number, stated = config.get(field, 0), next((name for name in EXPERT_GROUPS if type(config.get(name)) is int), "")
    groups = config.get(stated, 0)
    if field and number and groups > 0 and number % groups:
        yield f"config.json says {groups} ({stated}), into which {count(number, 'expert')} ({field}) cannot be divided"


def _declared(config: Mapping[str, Any]) -> tuple[str, set[int]]:
    """Return (field with the number of experts, or ''; set of the numbers of experts that the weights may have).

    For LongCat, two numbers are valid: some of its experts compute nothing, and have weights only in transformers 5.
    """
    field = next((name for name in NUMBERS if type(config.get(name)) is int), "")
    if not field:
        return "", set()
    zero = config.get("zero_expert_num")
    return field, {config[field], config[field] + (zero if type(zero) is int else 0)}


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _together(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note on the first tensor that stacks a layer's experts and has another number than config.json declares.

    If no number is declared, the numbers of such tensors are compared with the most frequent one. If all numbers are
    right, the notes of ``_routers`` are yielded, except for the model types ``_OTHER_ROWS``.
    """
    found = [(one, match[1] or "") for one in tensors if len(one.shape) > 1 and (match := _STACKED.match(one.key))]
    field, declared = _declared(config)
    if not found:
        return
    sizes = Counter(one.shape[0] for one, _ in found)
    has = next(((one, place) for one, place in found if field and one.shape[0] not in declared), None)
    if has is not None:
        number = count(has[0].shape[0], "expert")
        yield f"config.json says {config[field]} ({field}), but {escape(has[0].key)} has {number}: {UNLOADED}"
        return
    usual = sizes.most_common(1)[0][0]
    odd = next((one for one, _ in found if one.shape[0] != usual), None)
    if odd is not None and not field:
        has_other = f"{escape(odd.key)} has {count(odd.shape[0], 'expert')}"
        yield f"{has_other}, but other layers have {usual}: {UNLOADED}"
        return
    if config.get("model_type") not in _OTHER_ROWS:
        yield from _routers(tensors, {place for _, place in found}, usual, also=declared)


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _numbered(
    tensors: Sequence[DescribedTensor], sets: Mapping[str, Mapping[int, set[str]]], config: Mapping[str, Any]
) -> Iterator[str]:
    field, declared = _declared(config)
    number = max(len(one) for one in sets.values())
    if field and all(len(one) not in declared for one in sets.values()):
        place = next(name for name, one in sets.items() if len(one) == number)
        yield (
            f"config.json says {config[field]} ({field}), but {escape(place)}experts has {count(number, 'expert')}: "
            "transformers cannot load this model"
        )
        return
    if field and max(map(len, sets.values())) not in declared:
        place, most = max(sets.items(), key=lambda one: len(one[1]))
        yield (
            f"config.json says {config[field]} ({field}), but {escape(place)}experts has {count(len(most), 'expert')}, "
            "unlike the other layers: transformers cannot load this model"
        )
        return
    every = set[int]().union(*sets.values())
    short = {name: every - one.keys() for name, one in sets.items() if len(one) < len(every)}
    if field and short and len(short) < len(sets):
        place, lost = next(iter(short.items()))
        those = f"{'expert' if len(lost) == 1 else 'experts'} {listing([str(one) for one in sorted(lost)], 3)}"
        yield Note(
            NoteKind.MISSING_TENSORS,
            f"{escape(place)}experts lacks {those}, which the other layers have: {INITIALISED}",
        )
    if len(declared) < 2 and not short:
        yield from _with_gaps(sets)
    for place, experts in sets.items() if len(declared) < 2 else ():
        whole = set[str]().union(*experts.values())
        odd = next((one for one, own in experts.items() if own != whole), None)
        if odd is not None:
            parts = listing(sorted(whole - experts[odd]), 3)
            yield Note(
                NoteKind.MISSING_TENSORS,
                f"{escape(place)}experts.{odd} lacks {parts}, which the other experts have: {INITIALISED}",
            )
            return
    yield from _routers(tensors, sets, number, also=declared)


@notes_of(NoteKind.MISSING_TENSORS)
def _with_gaps(sets: Mapping[str, Collection[int]]) -> Iterator[str]:
    """Yield a note on the first module whose expert indices have gaps or do not begin at 0.

    ``sets`` maps the prefix of each module to the indices of its experts.
    """
    for place, numbers in sets.items():
        lost = max(numbers) + 1 - len(numbers)
        if lost:
            first = next(number for number in range(max(numbers)) if number not in numbers)
            lacks = f"lacks {count(lost, 'expert')} (the first is {first})"
            yield f"{escape(place)}experts has experts up to {max(numbers)} but {lacks}: {INITIALISED}"
            return


@notes_of(NoteKind.OTHER)
def expert_gap_notes(keys: Sequence[str]) -> Iterator[str]:
    """Yield a note if expert indices have gaps, for a checkpoint without a configuration.

    There is a note only if all modules lack the same experts. Otherwise the file may be a shard with only some experts
    of a module. The indices in a shard may have gaps, because keys are often sorted as text (1, 10, 2).
    """
    sets: dict[str, set[int]] = {}
    for module, number in dict.fromkeys(place[:2] for place in filter(None, map(_place_of, keys))):
        sets.setdefault(module, set()).add(int(number))
    numbers = next(iter(sets.values()), set[int]())
    if not numbers or any(one != numbers for one in sets.values()) or (len(sets) < 2 and max(numbers) > _DIGIT):
        return
    lost = [one for one in range(min(numbers), max(numbers)) if one not in numbers]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        has = f"{escape(next(iter(sets)))}experts has experts {min(numbers)} to {max(numbers)}"
        yield f"{has}, but no tensor of expert {lost[0]}{more}"


@notes_of(NoteKind.MISSING_TENSORS)
def _routers(
    tensors: Sequence[DescribedTensor], sets: Collection[str], number: int, *, also: Collection[int] = ()
) -> Iterator[str]:
    found: dict[str, DescribedTensor] = {}
    for one in filter(lambda one: _ROUTER.search(one.key), tensors):  # few of tens of thousands of tensors match
        for place in (place for place in sets if one.key.startswith(place)):
            if _ROUTER.match(one.key.removeprefix(place)):
                found.setdefault(place, one)
    without = [place for place in sets if place not in found]
    if found and without:
        name = next(iter(found.values())).key.removeprefix(next(iter(found)))
        yield f"{escape(without[0])}{escape(name)} is missing, although the other layers have it: {INITIALISED}"
    numbers = {number, *also}
    other = [one for one in found.values() if len(one.shape) == 2 and is_number(one) and numbers.isdisjoint(one.shape)]
    if other and len(other) == len(found):
        yield Note(
            NoteKind.VOCABULARY,
            f"{escape(other[0].key)} has {count(other[0].shape[0], 'row')}, but there are {count(number, 'expert')}",
        )


@notes_of(NoteKind.CONFIGURATION_REFUSED)
def _uneven(found: Sequence[tuple[DescribedTensor, _Place]]) -> Iterator[str]:
    """Yield a note on an expert's tensor whose shape differs from the shape in most other experts of its layer.

    ``found`` has the tensors of experts, each with the parts of its key.
    """
    first: dict[tuple[str, str], tuple[int, ...]] = {}
    if all(first.setdefault((module, rest), one.shape) == one.shape for one, (module, _, rest) in found):
        return
    sets: dict[tuple[str, str], dict[str, tuple[int, ...]]] = {}
    for one, (module, _, rest) in found:
        if len(one.shape) == 2 and one.key.endswith(".weight") and is_number(one):
            sets.setdefault((module, rest), {})[one.key] = one.shape
    for shapes in sets.values():
        if len(set(shapes.values())) == 1:
            continue
        (usual, number), *others = Counter(shapes.values()).most_common()
        odd = next((key for key, shape in shapes.items() if shape != usual), "")
        if others and number * 2 > len(shapes):
            is_, like = shape_text(shapes[odd]), shape_text(usual)
            yield f"{escape(odd)} is {is_}, but in the other experts it is {like}: {UNLOADED}"
            return
