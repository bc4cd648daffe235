"""Compares a ``quantization_config`` with the quantised weights of its model, or with another model's settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from ...util.text import escape
from ..dtypes import DTYPES
from ..info import TensorInfo
from .autoround import AUTOROUND_NAMES
from .contradictions import (
    COLUMNS_FIRST,
    FORMATS,
    GROUPED,
    ROWS_FIRST,
    STORED_BY,
    TYPES,
    Contradiction,
    contradicted,
    is_of_fused,
)
from .encoding import QuantisedTensors
from .methods import KNOWN, METHODS, STORING, UNKNOWN, family, is_stored_by
from .modules import GENERAL, Modules, module_of
from .packings import PACKING, other_packings
from .parts import ALWAYS
from .settings import QuantisationSettings, Settings, StatedValues, basis_of, stated_by

__all__ = ["QuantisedModule", "contradictions", "disagreements", "left_out", "plain_heads", "stores_codes"]

ALONE = ("gptq", "awq", "bitsandbytes", "fp8", "fbgemm_fp8", "mxfp4")
"""Methods whose loaders accept no quantised weights of another method in the same model."""
HEAD = ".lm_head.weight"
"""The end of the keys of output layers in transformers, which are of the class Linear."""

Fact: TypeAlias = tuple[str, str, str]
"""(field of the settings, its value in one model's settings, its value in the other model's settings)."""


class QuantisedModule(NamedTuple):
    """A quantised module, and its names in two models whose settings are compared.

    ``kind`` is the family of its encoding, such as GPTQ. ``module`` is its name in the model with the quantised
    weights, ``here`` its name in the other model.
    """

    kind: str
    module: str
    here: str

    @classmethod
    def of(cls, method: str, name: str, here: str | None = None) -> QuantisedModule:
        """Return the module of a quantised tensor; ``here`` is the tensor's name in the other model (None: same)."""
        return cls(family(method), module_of(name), module_of(name if here is None else here))


def stores_codes(settings: Settings) -> str:
    """Return the quantisation method in the settings if files of this method always have quantised weights, else ""."""
    quantisation = QuantisationSettings(settings)
    if quantisation.method not in STORING or settings.get("format") == "dense":
        return ""
    if quantisation.method == "compressed-tensors" and not quantisation.sections("weights"):
        return ""
    return quantisation.method


def contradictions(
    codes: QuantisedTensors,
    tensors: Mapping[str, TensorInfo],
    settings: Settings,
    unfit: Collection[str] = (),
    elsewhere: Sequence[str] = (),
) -> dict[Contradiction, list[str]]:
    """Return the settings that contradict quantised tensors, each with the names of these tensors.

    The shapes of the tensors in ``unfit`` (names) are not compared, since their codes and scales do not fit each other.
    ``elsewhere`` are the keys in shards that are not read. A setting may need a tensor such as ``g_idx``. If a weight
    lacks it, the setting is contradicted only if no weight has such a tensor, in this file or in those shards;
    otherwise the file is damaged. For ``weight_g_idx`` and ``weight_zero_point`` of compressed-tensors, only the
    tensors in those shards count: in this file, perhaps only the weights of one config group need the tensor.
    """
    found = dict[Contradiction, list[str]]()
    if not settings:
        return found
    stated, of_module, forms = stated_by(settings), _StatedOfModules(settings), codes.by_form()
    known = {form: one for form, one in forms.items() if family(one.method) in KNOWN}
    others = {form for form, one in known.items() if stated.method in METHODS and not is_stored_by(stated.method, one)}
    is_another = stated.method in ALONE or len(others) == len(known)
    of_form: dict[tuple[int, int], list[Contradiction]] = {}
    for one in codes.tensors:
        facts = list[Contradiction]()
        if one.form in others and is_another:
            facts = [Contradiction("quant_method", stated.method, one.method)]
        elif one.codes and one.name not in unfit:
            own = of_module(one.name)
            asked = one.form, id(own)
            if asked not in of_form:
                parts = {end: tensors[key] for end, key in one.parts.items()}
                of_form[asked] = list(contradicted(family(one.method), one, parts, own))
            facts = [fact for fact in of_form[asked] if not is_of_fused(fact, one.name)]
        for fact in facts:
            found.setdefault(fact, []).append(one.name)
    stored = {end for one in forms.values() for end in one.parts}
    return {fact: names for fact, names in found.items() if not _is_there(fact, stored, elsewhere)}


class _StatedOfModules:
    """Returns the values that settings state for a module: from its section, or from the general settings."""

    def __init__(self, settings: Settings) -> None:
        self._modules, self._is_mixed = Modules(settings), len(_groups(settings)) > 1
        self._all = stated_by(settings)
        if self._modules.has_sections:  # then a module without its own section may have any mode
            self._all = replace(self._all, modes=())
        self._by_place: dict[int, StatedValues] = {}

    def __call__(self, name: str) -> StatedValues:
        if not self._modules.has_sections:
            return self._all
        place = self._modules.place(module_of(name)) if self._modules.is_exact else GENERAL
        if place == GENERAL:
            return self._all
        if place not in self._by_place:
            own = self._modules.settings(place)  # with several config groups, the general format may not apply
            own = {field: value for field, value in own.items() if not (self._is_mixed and field == "format")}
            self._by_place[place] = stated_by(own)
        return self._by_place[place]


def _groups(settings: Settings) -> Settings:
    groups = settings.get("config_groups")
    return groups if isinstance(groups, dict) else {}


def _is_there(fact: Contradiction, stored: Collection[str], elsewhere: Sequence[str]) -> bool:
    """Return whether ``fact`` says that a weight lacks a tensor, such as ``g_idx``, that other weights have.

    If so, the file is damaged, and the settings may be right. ``broken_partners`` finds missing tensors with an ending
    in ``ALWAYS``. ``stored`` are the endings of the keys in the file, ``elsewhere`` the keys in other shards.
    """
    part = fact.found.removeprefix("no ")
    lacks = fact.verb == "have" and part != fact.found
    is_found = f".{part}" in stored and f".{part}".endswith(ALWAYS)
    return lacks and (is_found or any(key.endswith(f".{part}") for key in elsewhere))


def left_out(codes: QuantisedTensors, settings: Settings) -> dict[str, list[str]]:
    """Return {entry of the settings: names of quantised tensors that the entry excludes from quantisation}."""
    found, modules, method = dict[str, list[str]](), Modules(settings), QuantisationSettings(settings).method
    for one in codes.tensors if modules.leave_out_any else ():
        if (
            one.codes
            and family(one.method) in METHODS.get(method, KNOWN)
            and (by := modules.left_out(module_of(one.name)))
        ):
            found.setdefault(by, []).append(one.name)
    return found


def plain_heads(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> dict[str, list[str]]:
    """Return {setting: output layers that are quantised according to this setting, but are plain in the file}.

    The setting is given as field and value, such as ``lm_head true``. Other layers are not checked, since their class
    may not be Linear.
    """
    ends = [key for key in tensors if key.endswith(HEAD[1:])] if codes else []
    heads = [key for key in ends if f".{key}".endswith(HEAD) and _is_number(tensors[key])]
    method, modules = QuantisationSettings(settings).method, Modules(settings)
    if method == "compressed-tensors" and not modules.unread and not _leaves_out(settings.get("ignore"), tensors):
        groups = settings.get("config_groups")
        targets = [one.get("targets") for one in groups.values()] if _is_of_groups(groups) else []
        said = "targets Linear" if targets and all(one == ["Linear"] for one in targets) else ""
    else:
        said = "lm_head true" if method == "gptq" and settings.get("lm_head") is True else ""
    names = {one.name for one in codes.tensors} if said and heads else set()
    found = [key for key in heads if said and key not in names and not modules.left_out(module_of(key))]
    return {said: found} if found else {}


def _leaves_out(ignore: object, keys: Iterable[str]) -> bool:
    """Return whether an entry of ``ignore`` may name an output layer of the model; ``keys`` are the model's keys."""
    entries = [one for one in ignore if isinstance(one, str)] if isinstance(ignore, list) else []
    named = [one for one in entries if "lm_head" in one]
    return any(one[:3] == "re:" or _is_known(one.rpartition("lm_head")[0], keys) for one in named)


def _is_known(module: str, keys: Iterable[str]) -> bool:
    return not module or any(module in key for key in keys)


def _is_of_groups(value: object) -> TypeGuard[dict[str, dict[str, Any]]]:
    return isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())


def _is_number(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and DTYPES[info.dtype].kind == "float" and DTYPES[info.dtype].bits > 8


def disagreements(coded: Iterable[QuantisedModule], theirs: Settings, ours: Settings) -> list[Fact]:
    """Return the fields that would make ``ours`` decode the quantised weights ``coded`` to wrong values.

    The weights were quantised with the settings ``theirs``. Each field comes with its value in ``theirs`` and in
    ``ours``. A field is compared if both settings have it, or if its default is known. If a field differs only for some
    modules, their names follow the name of the field.
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
    facts = [(_field(fact[0], list(names)), fact[1], fact[2]) for fact, names in found.items()]
    return [*facts, *_other_basis(theirs, ours)] if coded else facts


def _other_basis(theirs: Settings, ours: Settings) -> Iterator[Fact]:
    """Yield ``transform_config`` if the weights of two models were stored after different transforms."""
    bases = basis_of(theirs), basis_of(ours)
    if any(bases) and theirs.get("transform_config") != ours.get("transform_config"):
        here = bases[1] or "none"
        yield "transform_config", bases[0] or "none", f"another {here}" if here == bases[0] else here


def _field(field: str, modules: Sequence[str]) -> str:
    """Return ``field`` followed by ``modules``, shortened, as in ``bits of layers.0 and 3 more``."""
    more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
    return " of ".join(filter(None, (field, f"{escape(modules[0])}{more}" if modules else "")))


class _SettingsSide:
    """The settings of one of the two models that are compared; the values in each section are parsed only once."""

    def __init__(self, settings: Settings) -> None:
        self.modules, self.method = Modules(settings), QuantisationSettings(settings).method
        self._stated: dict[int, StatedValues] = {}

    def stated(self, place: int) -> StatedValues:
        """Return the values that the settings state for the modules of a section; ``place`` is the section's index."""
        if place not in self._stated:
            self._stated[place] = stated_by(self.modules.settings(place))
        return self._stated[place]


def _disagreements(kind: str, theirs: StatedValues, ours: StatedValues) -> Iterator[Fact]:
    methods = theirs.method, ours.method
    is_another = kind in KNOWN and ours.method in METHODS and kind not in METHODS[ours.method]
    if all(methods) and methods[0] != methods[1] and (is_another or kind == UNKNOWN):
        yield "quant_method", *methods
        return
    packings = theirs.packing, ours.packing
    if packings[0] != packings[1] and any(other_packings(kind, one) for one in packings):
        yield PACKING, packings[0] or "missing", packings[1] or "missing"  # nobody knows what the unknown one means
        return
    if kind == "GPTQ":
        former, later = theirs.format or FORMATS[0], ours.format or FORMATS[0]
        if former != later and {former, later} <= {*FORMATS} and {*methods} <= {"", "gptq", *AUTOROUND_NAMES}:
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
    if kind in TYPES:
        yield from _other_scheme(kind, theirs, ours)
    if kind == "packed":
        yield from _disjoint("symmetric", theirs.symmetric, ours.symmetric)
    if kind == "fp8":
        blocks = [[list(block) for _, block in one.blocks] for one in (theirs, ours)]
        yield from _disjoint("weight_block_size", *blocks)


def _other_scheme(kind: str, theirs: StatedValues, ours: StatedValues) -> Iterator[Fact]:
    """Yield the fields of compressed-tensors whose values in ``theirs`` and in ``ours`` have nothing in common.

    ``kind`` is the family of the encoding of the weights, such as ``packed``.
    """
    pair = theirs.schemes, ours.schemes
    formats = [[scheme.format for scheme in schemes if scheme.format in STORED_BY] for schemes in pair]
    stores = [[kind in STORED_BY[one] for one in each] for each in formats]
    if any(stores[0]) and formats[1] and len(formats[1]) == len(ours.schemes) and not any(stores[1]):
        yield "format", formats[0][stores[0].index(True)], formats[1][0]
        return
    yield from _disjoint("type", *([scheme.type for scheme in schemes if scheme.type] for schemes in pair))
    if kind in ("packed", "nvfp4", "mxfp4"):
        yield from _disjoint("num_bits", *([scheme.bits for scheme in schemes if scheme.bits] for schemes in pair))
        yield from _disjoint("group_size", *([scheme.size for scheme in schemes if scheme.size] for schemes in pair))
    if kind == "packed" and all(pair):
        orders = [["group" if scheme.actorder in GROUPED else "none" for scheme in schemes] for schemes in pair]
        yield from _disjoint("actorder", *orders)


def _lost(theirs: StatedValues, ours: StatedValues, field: str, *, value: bool) -> Iterator[Fact]:
    """Yield ``field`` if ``theirs`` says that a tensor (such as zero points) is stored, and ``ours`` that it is not.

    ``theirs`` and ``ours`` are settings. ``value`` is the value of the field if the tensor is stored.
    """
    if theirs.flags.get(field) is value and ours.flags.get(field) is (not value):
        yield field, str(value).lower(), str(not value).lower()


def _disjoint(field: str, theirs: Sequence[object], ours: Sequence[object]) -> Iterator[Fact]:
    """Yield ``field``, with the first value in ``theirs`` and in ``ours``, if the two have no value in common."""
    if theirs and ours and not any(one in ours for one in theirs):
        yield field, str(theirs[0]).lower(), str(ours[0]).lower()
