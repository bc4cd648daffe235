"""Finds weights that are unquantised in one layer or in every layer, although the settings say that they are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..info import TensorInfo
from ._encoding import QuantisedTensors
from ._modules import BEFORE_NUMBER, GENERAL, SKIPPED, Expression, Modules, module_of, parts_of
from ._settings import QuantisationSettings, Settings
from ._unlike import WHOLE, is_number, method_of, targets_of, without_numbers

__all__ = ["HEADS", "PlainWeights", "PossibleExclusions", "by_kind", "plain_among_codes", "plain_kinds"]

_IN_LAYER = re.compile(r"(.*?)\.\d+\.")
_LINEAR = re.compile(
    r"\.(?:[qkvo]_proj|out_proj|qkv_proj|gate_proj|up_proj|down_proj|gate_up_proj|query_key_value|fc[12]|w[123]"
    r"|dense_h_to_4h|dense_4h_to_h)\.weight$"
)
"""Matches weights of layers whose class is Linear in every model; routers and gates may have other classes."""
_EXPERTS = re.compile(r"\.experts\.(?:gate_up_proj|down_proj)(?:\.weight)?$")
"""Matches tensors with the weights of all experts of a layer."""
_OF_EXPERTS = ("fp8", "mxfp4")
"""Methods that quantise all experts of a layer in one tensor; mxfp4 quantises nothing else."""


def by_kind(settings: Settings) -> bool:
    """Return whether the method quantises all linear layers except those that its settings exclude.

    This is false for compressed-tensors if there are other targets than "Linear".
    """
    method = method_of(settings)
    return method in WHOLE and (method != "compressed-tensors" or targets_of(settings) == {"Linear"})


class PlainWeights(NamedTuple):
    """Weights that are not quantised although the settings say that they are.

    ``names`` are those that the settings do not exclude. Whether they exclude the weights ``undecided`` is not known,
    as expressions in the settings were not evaluated.
    """

    names: list[str]
    undecided: list[str]


def plain_among_codes(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> PlainWeights:
    """Return the weights that are stored plainly, although the same module of another layer is quantised.

    Weights that the settings exclude, or may exclude, from quantisation are not returned.
    """
    method = method_of(settings)
    if method not in WHOLE or (method == "compressed-tensors" and targets_of(settings) - {"Linear"}):
        return PlainWeights([], [])
    named = {one.name for one in codes.tensors}
    plain = [key for key, info in tensors.items() if key not in codes.by_key and key not in named and is_number(info)]
    patterns = {key: without_numbers(key) for key in plain}
    ends = tuple({pattern.rpartition("#")[2] for pattern in patterns.values()})  # saves time: few codes have these ends
    forms = {without_numbers(one.name) for one in codes.tensors if one.codes and one.name.endswith(ends)}
    return _not_excluded([key for key in plain if patterns[key] in forms], codes, tensors, settings)


def plain_kinds(codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings) -> PlainWeights:
    """Return the plain weights of linear layers (such as ``q_proj``) that are not quantised in any layer of the model.

    They are returned only if other weights in the same stack of layers are quantised. Weights that the settings exclude
    from quantisation are not returned.
    """
    if not codes.tensors or not by_kind(settings):
        return PlainWeights([], [])
    plain = [key for key in _plain(tensors, QuantisationSettings(settings).method) if key not in codes.by_key]
    if not plain:
        return PlainWeights([], [])
    forms = {without_numbers(one.name) for one in codes.tensors}
    stacks = {match[1] for one in codes.tensors if one.codes and (match := _IN_LAYER.match(one.name))}
    found = [
        key
        for key in plain
        if (match := _IN_LAYER.match(key)) is not None and match[1] in stacks and without_numbers(key) not in forms
    ]
    return _not_excluded(found, codes, tensors, settings)


def _not_excluded(
    plain: Sequence[str], codes: QuantisedTensors, tensors: Mapping[str, TensorInfo], settings: Settings
) -> PlainWeights:
    """Return those of the keys ``plain`` that no setting may exclude."""
    if not plain:
        return PlainWeights([], [])
    quantised = [module_of(one.name) for one in codes.tensors if one.codes]
    exclusions = PossibleExclusions(settings, tensors, quantised)
    found = [key for key in plain if not any(map(exclusions.may_exclude, _modules_of(key)))]
    return PlainWeights([], found) if exclusions.unread or exclusions.is_spent else PlainWeights(found, [])


def _modules_of(key: str) -> list[str]:
    """Return the modules that settings may exclude for a weight: all experts of a layer are one module."""
    module = module_of(key)
    return [module, module.rpartition(".")[0]] if _EXPERTS.search(key) else [module]


def _plain(tensors: Mapping[str, TensorInfo], method: str) -> Iterator[str]:
    """Yield the keys of plain weights in layers of a class that ``method`` quantises."""
    for key, info in tensors.items():
        if is_number(info):
            is_linear = len(info.shape) == 2 and method != "mxfp4" and bool(_LINEAR.search(key))
            if is_linear or (len(info.shape) == 3 and method in _OF_EXPERTS and _EXPERTS.search(key)):
                yield key


# transformers, vLLM and AutoAWQ compare the entries of settings with other names of modules, and in other ways.

_TOGETHER = (
    (re.compile(r"\b[qkv]_proj$"), ("qkv_proj",)),
    (re.compile(r"\b(?:gate_proj|up_proj|w[13])$"), ("gate_up_proj",)),
    (re.compile(r"\b(?:q_a_proj|kv_a_proj_with_mqa)$"), ("fused_qkv_a_proj",)),
    (re.compile(r"\bin_proj_(?:qkv|z)$"), ("in_proj_qkvz",)),
    (re.compile(r"\bin_proj_[ab]$"), ("in_proj_ba",)),
    (re.compile(r"\bqkv_proj$"), ("q_proj", "k_proj", "v_proj")),
    (re.compile(r"\bgate_up_proj$"), ("gate_proj", "up_proj")),
)
"""Modules that vLLM joins, and the name of the joined module, or its parts: settings may contain either name."""
HEADS = ("", "model", "language_model", "model.language_model", "language_model.model")
"""What may precede ``layers`` in the names of a language model, alone or with an image encoder, in any version."""
_IN_MODEL = re.compile(r"(.*?)\.?\b(layers\.\d+\..*)")
_WITHOUT_CODES = 16
"""Weights of a section with so many bits are not quantised."""


class PossibleExclusions:
    """The modules that settings leave unquantised, or may leave unquantised by the rule of some loader.

    ``keys`` are the keys of the model, ``quantised`` the names of its quantised modules. By the rules of its loader an
    entry excludes none of these: a rule by which it would is not the one that the file was written for. An entry that
    names a module of the model stands for this module alone; any other entry may be a name from another version of the
    model, with another prefix. ``unread`` is true if the settings contain an expression that is not evaluated,
    ``is_spent`` if later expressions were not evaluated because the previous ones could have taken too long.
    """

    def __init__(self, settings: Settings, keys: Iterable[str] = (), quantised: Sequence[str] = ()) -> None:
        self._modules, self._quantised = Modules(settings), quantised
        self._expressions = self._modules.expressions
        self._by_end, self._refuted = dict[str, list[Expression]](), dict[Expression, bool]()
        skipped = [one for one in _texts(settings, *SKIPPED) if one.strip(".")]
        listed = (*skipped, *_texts(settings, "ignore"), *self._modules.names)
        entries = {one.strip(".") for one in listed} - {""}
        coded = "\n".join(("", *(f".{name}." for name in quantised), "")) if entries else "\n"
        every = "\n".join(f".{key}." for key in keys) if entries else ""
        self._entries = frozenset(one for one in entries if f".{one}." not in coded)
        self._ends = tuple(one for one in skipped if f"{one}.\n" not in coded)
        self._starts = tuple(one for one in skipped if f"\n.{one}" not in coded)
        is_awq = QuantisationSettings(settings).method == "awq"
        self._inside = tuple(one for one in skipped if one not in coded) if is_awq else ()
        self._tails = _tails([one for one in entries if f".{one}." not in every], coded)

    @property
    def unread(self) -> bool:
        """Whether an expression in the settings is not evaluated: it may exclude any module."""
        return bool(self._modules.unread)

    @property
    def is_spent(self) -> bool:
        """Whether expressions were not compared, because all comparisons together could have taken too long."""
        return self._modules.is_spent

    def may_exclude(self, module: str) -> bool:
        """Return whether the settings exclude a module, or may do so under another name of it."""
        names = _names(module)
        if self._modules.left_out(module) or any(map(self._is_plain, names)) or any(map(self._may_name, names)):
            return True
        ends = [end for name in names for end in _ends_of(name) if end != module]
        return any(not self._is_refuted(one) for end in ends for one in self._matching(end))

    def _is_plain(self, name: str) -> bool:
        """Return whether the settings have a section for a module with this name whose weights are not quantised."""
        place = self._modules.place(name)
        bits = self._modules.settings(place).get("bits") if place != GENERAL else None
        return isinstance(bits, int) and bits >= _WITHOUT_CODES

    def _matching(self, end: str) -> list[Expression]:
        """Return the expressions that match a name, the end of another: many names have this end."""
        if end not in self._by_end:
            self._by_end[end] = [one for one in self._expressions if self._meets(one, end)]
        return self._by_end[end]

    def _meets(self, expression: Expression, name: str) -> bool:
        """Return whether an expression matches a name."""
        pattern, whole = expression
        if not whole:
            return self._modules.meets(pattern, name)
        words = name.split(".")
        around = (".".join(words[:end]) for end in range(len(words), 0, -1))
        return any(self._modules.meets(pattern, one, whole=True) for part in around for one in (part, f"{part}."))

    def _is_refuted(self, expression: Expression) -> bool:
        """Return whether an expression matches another name of a quantised module, or the end of one of its names."""
        if expression not in self._refuted:
            ends = (end for module in self._quantised for name in _names(module) for end in _ends_of(name))
            self._refuted[expression] = any(self._meets(expression, end) for end in ends)
        return self._refuted[expression]

    def _may_name(self, name: str) -> bool:
        """Return whether an entry without wildcards may stand for a module with this name, or for a part of the name.

        transformers compares the end or, before version 5, the beginning of the name with an entry, AutoAWQ and vLLM's
        AWQ any part of it.
        """
        if name.endswith(self._ends) or name.startswith(self._starts) or any(one in name for one in self._inside):
            return True
        tail = BEFORE_NUMBER.sub("", name).split(".") if self._tails else []
        first = {".".join(tail[:end]) for end in range(1, len(tail) + 1)}
        if not first.isdisjoint(self._tails):
            return True
        return bool(self._entries) and not self._entries.isdisjoint(parts_of(name))


def _tails(entries: Sequence[str], coded: str) -> frozenset[str]:
    """Return the parts of entries from their first number on, by which they may name modules with another prefix.

    Entries with one prefix are taken or left together: one of them may be the part of a quantised module's name.
    ``coded`` has the names of the quantised modules.
    """
    found: dict[str, set[str]] = {}
    for entry in entries:
        tail = BEFORE_NUMBER.sub("", entry)
        found.setdefault(entry.removesuffix(tail), set()).add(tail)
    return frozenset().union(*(some for some in found.values() if not any(f".{one}." in coded for one in some)))


def _ends_of(name: str) -> Iterator[str]:
    """Yield a name and its ends: ``a.b.c``, ``b.c`` and ``c``."""
    words = name.split(".")
    yield from (".".join(words[start:]) for start in range(len(words)))


def _names(module: str) -> list[str]:
    """Return the names that a module may have in the settings: its own, that of the joined module, other prefixes."""
    names = [module]
    for joined, others in _TOGETHER:
        if joined.search(module):
            names += [joined.sub(one, module) for one in others]
    for name in list(names):
        if (match := _IN_MODEL.fullmatch(name)) is not None and match[1] in HEADS:
            names += [f"{head}.{match[2]}".lstrip(".") for head in HEADS if head != match[1]]
    return names


def _texts(settings: Settings, *fields: str) -> Iterator[str]:
    """Yield the strings in lists of the settings."""
    for field in fields:
        value = settings.get(field)
        yield from (one for one in value if isinstance(one, str) and one) if isinstance(value, list) else ()
