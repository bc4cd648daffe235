"""Finds the logical tensors among stored ones, by their keys, dtypes and shapes; never by values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import cast

from ...util.registry import discover
from ..info import TensorInfo
from ._codes import NO_CODES, CodedTensor, Codes
from ._encoding import Encoding
from ._lone import could_be_parts, could_be_words, lone_codes, lone_parts, part_endings
from ._settings import Said, Settings
from ._unknown import could_be_codes, unknown

__all__ = ["find_codes"]


def find_codes(
    tensors: Mapping[str, TensorInfo],
    settings: Callable[[], Settings] = dict,
    elsewhere: Callable[[], Iterable[str]] = tuple,
) -> Codes:
    """Return the logical tensors of a state dict that are stored as codes.

    ``settings`` gives the ``quantization_config`` of its folder, ``elsewhere`` the keys of a shard's other shards;
    they are asked only if some tensor could be codes, or what decodes them.
    Tensors that no known encoding explains, but that a scale of their name lies beside or that a folder with a
    ``quantization_config`` holds, are codes of an unknown encoding: they can be moved, and nothing else. So can what
    is called as parts of known encodings are there, although its codes are elsewhere.
    """
    long = _long_endings()
    keys = [key for key, info in tensors.items() if could_be_codes(info) or (key.endswith(long) and info.numel > 1)]
    parts = could_be_parts(tensors, _part_endings())
    if not keys and not parts and not could_be_words(tensors):
        return NO_CODES
    said, found, beside = Said(settings()), dict[str, CodedTensor](), _by_module(tensors)
    others = frozenset(elsewhere())
    for key in keys:
        if key not in found:
            coded = _known(key, tensors, beside, said)
            found.update(dict.fromkeys(coded.keys, coded) if coded is not None else {})
    for coded in lone_codes(tensors, found, others, _all_encodings()) if others else ():
        found.update(dict.fromkeys(coded.keys, coded))
    left = [key for key in keys if key not in found]
    for coded in unknown(left, tensors, beside, found, said) if left else ():
        found.update(dict.fromkeys(coded.keys, coded))
    for coded in lone_parts(parts, tensors, found, said, others, _all_encodings()):
        found.update(dict.fromkeys(coded.keys, coded))
    each = {id(coded): coded for coded in found.values()}
    return Codes(tuple(each.values()), found) if found else NO_CODES


def _by_module(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys that lie right in each module."""
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
    """Return how codes of 64 bits end: other integers of that size are indices and counters."""
    return tuple(one.telling[1:] for one in _all_encodings() if "int64" in one.dtypes)


@cache
def _encodings(dtype: str) -> tuple[Encoding, ...]:
    fitting = [one for one in _all_encodings() if dtype in one.dtypes]
    return tuple(sorted(fitting, key=lambda one: not one.telling))  # an ending tells more than none


def _known(
    key: str, tensors: Mapping[str, TensorInfo], beside: Mapping[str, Sequence[str]], said: Said
) -> CodedTensor | None:
    """Return the logical tensor that a key tells, None if it tells none; ``beside`` has the keys of each module."""
    dotted = f".{key}"  # so that ".weight" is the end of "weight" too
    for one in _encodings(tensors[key].dtype):
        if not dotted.endswith(one.telling):
            continue
        stem = dotted[: len(dotted) - len(one.telling)]
        parts = _parts(one, stem, tensors, beside)
        if one.marks and not any(mark in parts for mark in one.marks):
            continue
        logical = one.logical({end: tensors[part] for end, part in parts.items()}, said.of(stem[1:]))
        if logical is not None:
            codes = parts[one.telling if one.codes is None else one.codes]
            return CodedTensor(
                (stem + one.named)[1:], logical.method, codes, parts, logical.parameters, logical.shape,
                max(logical.at_least, logical.parameters or 0),
            )  # fmt: skip
    return None


def _parts(
    one: Encoding, stem: str, tensors: Mapping[str, TensorInfo], beside: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the stored parts behind a stem, by how they end; the one that tells the encoding comes first."""
    if not one.is_of_modules:
        return {end: key for end in one.places if (key := (stem + end)[1:]) in tensors}
    start = len(stem)  # a look at what there is, not at all that there could be
    found = {end: key for key in beside[stem[1:]] if (end := f".{key}"[start:]) in one.places}
    return {end: found[end] for end in sorted(found, key=one.places.__getitem__)} if len(found) > 1 else found
