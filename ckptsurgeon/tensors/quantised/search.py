"""Finds the quantised tensors of a state dict by keys, dtypes and shapes, also those in unknown encodings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

from ...util.registry import discover
from ..info import TensorInfo
from ..torch_quantisers import pickled_torchao, stored_bytes
from .encoding import CODE_TYPES, NO_CODES, Encoding, LogicalTensor, Parts, QuantisedTensor, QuantisedTensors
from .parts import could_be_parts, could_be_words, lone_codes, lone_parts, part_endings
from .settings import QuantisationSettings, Settings
from .unknown import unknown

__all__ = ["search_codes"]


def search_codes(
    tensors: Mapping[str, TensorInfo], settings: Callable[[], Settings], elsewhere: Callable[[], Iterable[str]]
) -> QuantisedTensors:
    """Return the quantised tensors of a state dict; the arguments are the same as for ``find_codes``."""
    long = _long_endings()
    keys = [
        key
        for key, info in tensors.items()
        if info.dtype in CODE_TYPES or (key.endswith(long) and info.numel > 1) or pickled_torchao(info)[0]
    ]
    parts = could_be_parts(tensors, _part_endings())
    if not keys and not parts and not could_be_words(tensors):
        return NO_CODES
    quantisation, found, by_module = QuantisationSettings(settings()), dict[str, QuantisedTensor](), _by_module(tensors)
    others, forms = frozenset(elsewhere()), _Forms(quantisation)
    for key in keys:
        if key not in found and (known := _known(key, tensors, by_module, forms)) is not None:
            for part in known.parts.values():
                found[part] = known
    for coded in lone_codes(tensors, found, others, _all_encodings()) if others else ():
        found.update(dict.fromkeys(coded.keys, forms.alone(coded)))
    left = [key for key in keys if key not in found]
    for coded in unknown(left, tensors, by_module, found, quantisation) if left else ():
        found.update(dict.fromkeys(coded.keys, forms.alone(coded)))
    for coded in lone_parts(parts, tensors, found, quantisation, others, _all_encodings()):
        found.update(dict.fromkeys(coded.keys, forms.alone(coded)))
    each = {id(coded): coded for coded in found.values()}
    return QuantisedTensors(tuple(each.values()), found) if found else NO_CODES


class _Forms:
    """The logical tensors of known encodings, computed once for each form.

    ``settings`` are the quantisation settings of the folder. Two quantised tensors have the same form if they have the
    same encoding, no section of their own in the settings, and parts with equal endings, dtypes and shapes.
    """

    def __init__(self, settings: QuantisationSettings) -> None:
        self._settings = settings
        self._found: dict[Hashable, tuple[LogicalTensor | None, int]] = {}
        self._numbers = itertools.count()

    def logical(self, one: Encoding, stem: str, parts: Parts) -> tuple[LogicalTensor | None, int]:
        """Return the logical tensor of ``parts`` (None if they are not in the encoding ``one``), and their form.

        The form is an index, as in ``QuantisedTensor.form``. ``stem`` is the name of the module; the settings may have
        a section for it.
        """
        own = self._settings.of(stem)
        module = stem if own is not self._settings else None
        form = id(one), module, *[(end, info.dtype, info.shape, *_told(info)) for end, info in parts.items()]
        found = self._found.get(form)
        if found is None:
            found = self._found[form] = one.logical(parts, own), next(self._numbers)
        return found

    def alone(self, coded: QuantisedTensor) -> QuantisedTensor:
        """Return ``coded`` with a form that no other tensor has."""
        return replace(coded, form=next(self._numbers))


def _told(info: TensorInfo) -> tuple[str, int] | tuple[()]:
    """Return (``info.opaque``, size in bytes) for a tensor whose values are not plain bytes, as torchao's; else ().

    The result is a part of the form of a quantised tensor (see ``_Forms``), since dtype and shape do not suffice here.
    """
    return (info.opaque, stored_bytes(info)) if info.opaque else ()


def _by_module(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return {name of a module: keys of its tensors}; the tensors of its submodules are not included."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(key.rpartition(".")[0], []).append(key)
    return found


@cache
def _all_encodings() -> tuple[Encoding, ...]:
    groups = cast("Iterable[Sequence[Encoding]]", discover("ckptsurgeon.tensors.encodings", "ENCODINGS").values())
    return tuple(one for group in groups for one in group)


@cache
def _part_endings() -> tuple[str, ...]:
    return part_endings(_all_encodings())


@cache
def _long_endings() -> tuple[str, ...]:
    """Return the endings of keys whose 64-bit integers may be codes; other 64-bit integers are indices or counters."""
    return tuple(one.telling[1:] for one in _all_encodings() if "int64" in one.dtypes)


@cache
def _encodings(dtype: str) -> tuple[Encoding, ...]:
    fitting = [one for one in _all_encodings() if dtype in one.dtypes]
    # An encoding that requires an ending of the key is more specific than one that does not, and so comes first.
    return tuple(sorted(fitting, key=lambda one: not one.telling))


def _known(
    key: str,
    tensors: Mapping[str, TensorInfo],
    by_module: Mapping[str, Sequence[str]],
    forms: _Forms,
) -> QuantisedTensor | None:
    """Return the quantised tensor that the tensor ``key`` identifies, in a known encoding; None if it identifies none.

    ``by_module`` contains the keys of each module.
    """
    dotted = f".{key}"  # so that "weight" also ends with ".weight"
    for one in _encodings(tensors[key].dtype):
        if not dotted.endswith(one.telling):
            continue
        stem = dotted[: len(dotted) - len(one.telling)]
        parts = _parts(one, stem, tensors, by_module)
        if one.marks and parts.keys().isdisjoint(one.marks):
            continue
        logical, form = forms.logical(one, stem[1:], {end: tensors[part] for end, part in parts.items()})
        if logical is not None:
            codes = parts[one.telling if one.codes is None else one.codes]
            return QuantisedTensor(
                (stem + one.named)[1:], logical.method, codes, parts, logical.parameters, logical.shape,
                max(logical.at_least, logical.parameters or 0), form=form,
            )  # fmt: skip
    return None


def _parts(
    one: Encoding, stem: str, tensors: Mapping[str, TensorInfo], by_module: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return {ending: key} for the keys that are ``stem`` plus an ending of ``one``; ``one.telling`` is first."""
    if not one.is_of_modules:
        return {end: key for end in one.places if (key := (stem + end)[1:]) in tensors}
    start, places = len(stem), one.places  # faster: only keys that exist are compared with the endings
    found = {end: key for key in by_module[stem[1:]] if (end := f".{key}"[start:]) in places}
    order = [places[end] for end in found]
    return found if sorted(order) == order else {end: found[end] for end in sorted(found, key=places.__getitem__)}
