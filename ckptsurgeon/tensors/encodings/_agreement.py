"""Compares settings of quantisation with the shapes of the quantised weights, and two models' settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple, TypeAlias

from ...util.text import escape
from ..info import TensorInfo
from ._encoding import CodedTensor, Codes, Parts
from ._methods import KNOWN, METHODS, STORING, family
from ._modules import GENERAL, Modules, module_of
from ._settings import QuantisationSettings, Settings, StatedValues, stated_by

__all__ = ["Decoded", "contradictions", "disagreements", "left_out", "stores_codes"]

ROWS_FIRST, COLUMNS_FIRST = ("gemm", "exllama", "ipex"), ("gemv", "gemv_fast")
"""Versions of AWQ, by the order in which they pack codes."""
FORMATS = ("gptq", "gptq_v2")
"""Formats of GPTQ: the first stores zero points minus one, the second as they are."""
FUSED = re.compile(r"qkv|gate_up|up_gate|in_proj|w13", re.IGNORECASE)
"""Names of modules that fuse several weights, each with blocks of its own."""
ALONE = ("gptq", "awq", "bitsandbytes")
"""Methods whose loaders accept no quantised weights of another method in the same model."""
UNKNOWN = "an"
"""The family name of quantised weights with an unknown encoding."""

Fact: TypeAlias = tuple[str, str, str]
"""A field of the settings, its value, and the value that the codes show."""


class Decoded(NamedTuple):
    """A quantised module and its family; ``module`` is its name in its own settings, ``here`` in the other settings."""

    kind: str
    module: str
    here: str

    @classmethod
    def of(cls, method: str, name: str, here: str | None = None) -> Decoded:
        """Return the module of the quantised tensor ``name``; ``here`` is the tensor's name in the other settings."""
        return cls(family(method), module_of(name), module_of(name if here is None else here))


def stores_codes(settings: Settings) -> str:
    """Return the method in the settings if it always stores weights quantised, else ""."""
    quantisation = QuantisationSettings(settings)
    if quantisation.method not in STORING or settings.get("format") == "dense":
        return ""
    if quantisation.method == "compressed-tensors" and not quantisation.sections("weights"):
        return ""
    return quantisation.method


def contradictions(codes: Codes, tensors: Mapping[str, TensorInfo], settings: Settings) -> dict[Fact, list[str]]:
    """Return the settings that the shapes of quantised tensors contradict, with the names of these tensors."""
    found = dict[Fact, list[str]]()
    if not settings:
        return found
    stated = stated_by(settings)
    present = {family(one.method) for one in codes.tensors} & KNOWN
    is_another = stated.method in METHODS and present and present.isdisjoint(METHODS[stated.method])
    for one in codes.tensors:
        kind = family(one.method)
        if is_another or (stated.method in ALONE and kind in KNOWN and kind not in METHODS[stated.method]):
            facts: Iterable[Fact] = [("quant_method", stated.method, one.method)] if kind in present else ()
        else:
            facts = (
                _facts(kind, one, {end: tensors[key] for end, key in one.parts.items()}, stated) if one.codes else ()
            )
        for fact in facts:
            found.setdefault(fact, []).append(one.name)
    return found


def left_out(codes: Codes, settings: Settings) -> dict[str, list[str]]:
    """Return the quantised tensors that the settings exclude from quantisation, by the entry that excludes them."""
    found, modules, method = dict[str, list[str]](), Modules(settings), QuantisationSettings(settings).method
    for one in codes.tensors if settings else ():
        if (
            one.codes
            and family(one.method) in METHODS.get(method, KNOWN)
            and (by := modules.left_out(module_of(one.name)))
        ):
            found.setdefault(by, []).append(one.name)
    return found


def _facts(kind: str, one: CodedTensor, parts: Parts, stated: StatedValues) -> Iterator[Fact]:
    if kind == "GPTQ" and stated.format in ("", *FORMATS):
        yield from _bits(one, parts[".qweight"], stated)
        yield from _groups(one, parts[".scales"].shape[0], stated)
    elif kind == "AWQ":
        yield from _awq(one, parts, stated)
    elif kind == "MLX":
        yield from _mlx(one, parts, stated)
    elif kind == "bitsandbytes":
        asked = [name for name in ("load_in_4bit", "load_in_8bit") if stated.flags.get(name)]
        if asked and ("load_in_8bit" if one.method.endswith("int8") else "load_in_4bit") not in asked:
            yield asked[0], "true", one.method
    elif kind == "fp8":
        yield from _blocks(one, parts, stated)
    elif kind == "packed" and {".weight_packed", ".weight_scale"} <= {*parts}:
        yield from _packed(one, parts, stated)


def _bits(one: CodedTensor, codes: TensorInfo, stated: StatedValues) -> Iterator[Fact]:
    bits = codes.numel * 32 // one.parameters if one.parameters else 0
    if stated.bits and bits and bits not in stated.bits:
        yield "bits", str(stated.bits[0]), str(bits)


def _groups(one: CodedTensor, groups: int, stated: StatedValues) -> Iterator[Fact]:
    columns = one.shape[-1] if one.shape else 0
    possible = [-(-columns // size) if size > 0 else 1 for size in stated.sizes]
    if possible and columns and groups and groups not in possible:
        size = str(columns // groups) if columns % groups == 0 else f"{groups} for {columns}"
        yield "group_size", str(stated.sizes[0]), size


def _awq(one: CodedTensor, parts: Parts, stated: StatedValues) -> Iterator[Fact]:
    codes, scales = parts[".qweight"].shape, parts[".scales"].shape
    if scales[0] == codes[0]:
        if stated.version in ROWS_FIRST:
            yield "version", stated.version, "gemv"
        elif len(codes) == len(scales) == 2:
            yield from _gemv(codes[1] * 8, scales[1], stated)
        return
    if stated.version in COLUMNS_FIRST:
        yield "version", stated.version, "gemm"
    yield from _bits(one, parts[".qweight"], stated)
    yield from _groups(one, scales[0], stated)


def _gemv(columns: int, groups: int, stated: StatedValues) -> Iterator[Fact]:
    """Compare the groups of AWQ's gemv version, which are padded since eight share a word of zero points.

    https://github.com/casper-hansen/AutoAWQ/blob/main/awq/modules/linear/gemv.py (calculate_zeros_width)
    """
    sizes = [size for size in stated.sizes if size > 0]
    words = [-(-columns // size // 8) for size in sizes]
    padded = {-(-number // multiple) * multiple * 8 for number in words for multiple in (1, 2, 4)}
    if sizes and groups not in {*padded, *(columns // size for size in sizes)}:
        yield "group_size", str(sizes[0]), f"{groups} scales for {columns}"


def _mlx(one: CodedTensor, parts: Parts, stated: StatedValues) -> Iterator[Fact]:
    words, groups = parts[".weight"].shape[-1], parts[".scales"].shape[-1]
    if one.shape:
        yield from _bits(one, parts[".weight"], stated)
        yield from _groups(one, groups, stated)
    elif (
        stated.bits
        and stated.sizes
        and not any(b * g * groups == words * 32 for b in stated.bits for g in stated.sizes)
    ):
        yield "group_size", str(stated.sizes[0]), f"{groups} scales for {words} words of 32 bits"


def _blocks(one: CodedTensor, parts: Parts, stated: StatedValues) -> Iterator[Fact]:
    name, blocks = next(iter(stated.blocks), ("", (1, 1)))
    scale = next((info for end, info in parts.items() if end.endswith("_scale_inv")), None)
    if scale is None and name == "block_structure" and one.method.endswith("block scales"):
        scale = parts.get(".weight_scale")
    shape = one.shape or ()
    if not name or scale is None or len(shape) < 2 or FUSED.search(one.name):
        return
    wanted = -(-shape[-2] // blocks[0]), -(-shape[-1] // blocks[1])
    if scale.numel != prod(wanted) * prod(shape[:-2]) or (len(scale.shape) > 1 and scale.shape[-2:] != wanted):
        yield name, str(list(blocks)), f"{scale.shape} scales for {shape}"


def _packed(one: CodedTensor, parts: Parts, stated: StatedValues) -> Iterator[Fact]:
    """Compare a tensor with the schemes of all config groups, since any scheme could be the tensor's."""
    bits = [number for number, _ in stated.schemes if number]
    told = re.match(r"int(\d+) ", one.method)
    if told and bits and int(told[1]) not in bits:
        yield "num_bits", str(bits[0]), told[1]
        return
    words, scale = parts[".weight_packed"].shape[-1], parts[".weight_scale"]
    groups = scale.shape[-1] if len(scale.shape) > 1 else 1
    is_told = bool(stated.schemes) and all(map(all, stated.schemes))
    if is_told and not any(_could_be(words, groups, *scheme) for scheme in stated.schemes):
        yield "group_size", str(stated.schemes[0][1]), f"{groups} groups in {words} words"


def _could_be(words: int, groups: int, bits: int, size: int) -> bool:
    """Return whether ``groups`` groups of ``size`` fill ``words`` words of 32 bits; the last word may be padded."""
    least, most = (words - 1) * 32 // bits + 1, words * 32 // bits
    return -(-least // size) <= groups <= -(-most // size)


def disagreements(coded: Iterable[Decoded], theirs: Settings, ours: Settings) -> list[Fact]:
    """Return the fields that make codes mean other numbers under the settings ``ours`` than under ``theirs``.

    A field is compared if both settings have it, or its default is known. If a field differs only for single modules,
    their names are added to it.
    """
    coded = list(dict.fromkeys(coded))
    if not theirs or not ours or (theirs == ours and all(one.module == one.here for one in coded)):
        return []
    sides, found = (_SettingsSide(theirs), _SettingsSide(ours)), dict[Fact, dict[str, None]]()
    compared: dict[tuple[str, int, int], list[Fact]] = {}
    for one in coded:
        places = sides[0].modules.place(one.module), sides[1].modules.place(one.here)
        asked = one.kind, *places
        if asked not in compared:
            compared[asked] = list(_disagreements(one.kind, sides[0].stated(places[0]), sides[1].stated(places[1])))
        facts = compared[asked]
        if not facts and one.kind in METHODS.get(sides[1].method, (one.kind,)):
            here = sides[1].modules.left_out(one.here)
            facts = (
                [("", "quantised", f"left out by {here}")] if here and not sides[0].modules.left_out(one.module) else []
            )
        is_of_all = not any(name for name, *_ in facts) or {*places} == {GENERAL}
        for fact in facts:
            found.setdefault(fact, {}).update({} if fact[0] and is_of_all else {one.module: None})
    return [(_field(fact[0], list(names)), fact[1], fact[2]) for fact, names in found.items()]


def _field(field: str, modules: Sequence[str]) -> str:
    """Return text that names a field and its modules; without modules it is for all."""
    more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    return " of ".join(filter(None, (field, f"{escape(modules[0])}{more}" if modules else "")))


class _SettingsSide:
    """The settings of one side of a comparison; the values of each section are read once."""

    def __init__(self, settings: Settings) -> None:
        self.modules, self.method = Modules(settings), QuantisationSettings(settings).method
        self._stated: dict[int, StatedValues] = {}

    def stated(self, place: int) -> StatedValues:
        """Return the values that the settings state for the modules of a section."""
        if place not in self._stated:
            self._stated[place] = stated_by(self.modules.settings(place))
        return self._stated[place]


def _disagreements(kind: str, theirs: StatedValues, ours: StatedValues) -> Iterator[Fact]:
    methods = theirs.method, ours.method
    is_another = kind in KNOWN and ours.method in METHODS and kind not in METHODS[ours.method]
    if all(methods) and methods[0] != methods[1] and (is_another or kind == UNKNOWN):
        yield "quant_method", *methods
        return
    if kind == "GPTQ":
        former, later = theirs.format or FORMATS[0], ours.format or FORMATS[0]
        if former != later and {former, later} <= {*FORMATS} and {*methods} <= {"", "gptq"}:
            yield "checkpoint_format", former, later
        yield from _lost(theirs, ours, "sym", value=False)
        yield from _lost(theirs, ours, "desc_act", value=True)
    if kind == "AWQ":
        former, later = theirs.version or ROWS_FIRST[0], ours.version or ROWS_FIRST[0]
        known = {former, later} <= {*ROWS_FIRST, *COLUMNS_FIRST}
        if known and (former in COLUMNS_FIRST) != (later in COLUMNS_FIRST):
            yield "version", former, later
        yield from _lost(theirs, ours, "zero_point", value=True)
    if kind in ("GPTQ", "AWQ", "MLX"):
        yield from _disjoint("bits", theirs.bits, ours.bits)
        yield from _disjoint("group_size", theirs.sizes, ours.sizes)
    if kind == "MLX":
        yield from _disjoint("mode", theirs.modes, ours.modes)
    if kind == "packed":
        for place, name in enumerate(("num_bits", "group_size")):
            sizes = [[scheme[place] for scheme in one.schemes if scheme[place]] for one in (theirs, ours)]
            yield from _disjoint(name, *sizes)
        yield from _disjoint("symmetric", theirs.symmetric, ours.symmetric)
    if kind == "fp8":
        blocks = [[list(block) for _, block in one.blocks] for one in (theirs, ours)]
        yield from _disjoint("weight_block_size", *blocks)


def _lost(theirs: StatedValues, ours: StatedValues, field: str, *, value: bool) -> Iterator[Fact]:
    """Yield a field if their settings say that a tensor (such as zero points) is stored, and ours that it is not."""
    if theirs.flags.get(field) is value and ours.flags.get(field) is (not value):
        yield field, str(value).lower(), str(not value).lower()


def _disjoint(field: str, theirs: Sequence[object], ours: Sequence[object]) -> Iterator[Fact]:
    """Yield a field if the two sides have no value in common, for any module."""
    if theirs and ours and not any(one in ours for one in theirs):
        yield field, str(theirs[0]).lower(), str(ours[0]).lower()
