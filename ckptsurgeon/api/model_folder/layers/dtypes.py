"""Notes on dtypes: tensors with another dtype than in other layers, and a ``dtype`` that no model computes in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ....tensors.dtypes import DTYPES
from ....tensors.find_codes import find_codes
from ....tensors.info import TensorInfo
from ....tensors.quantised.settings import quantisation_of
from ....util.note_kind import NoteKind
from ....util.notes import Note, notes_of
from ....util.text import count, escape
from ..weights.shape_checks import DescribedTensor
from .holes import pairs_in_layers

__all__ = ["dtype_notes"]

CASTS = "and transformers casts all weights to one dtype"
HALVES = ("float16", "bfloat16")
_LAYER = re.compile(r"(.*?)\.(\d+)\.")
"""Matches the beginning of a key up to the number of its layer."""
PLAIN = (*HALVES, "float32")
"""The dtypes of weights that are not quantised. (In a quantised model, scales may be float16 and weights bfloat16.)"""


def dtype_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[Note]:
    """Yield notes on tensors with another dtype than similar tensors, and on a ``dtype`` that no model computes in."""
    yield from _stated(config)
    if not config.get("quantization_config") and all(one.dtype in PLAIN for one in tensors if len(one.shape) > 1):
        yield from (*_half_notes(tensors), *_outside_layers(tensors), *_halves_in_layers(tensors))
    yield from _kind_notes(tensors, config)


@notes_of(NoteKind.QUANTISATION)
def _stated(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if the ``dtype`` of a quantised model is an 8-bit float: it must be a dtype for computations."""
    for field in ("dtype", "torch_dtype"):
        stated = config.get(field)
        if isinstance(stated, str) and stated.startswith("float8_") and quantisation_of(config):
            yield (
                f"config.json says {escape(stated)} ({field}), but this field is the dtype of computations, not of "
                "codes: transformers cannot load this model"
            )


@notes_of(NoteKind.MIXED_DTYPES)
def _half_notes(tensors: Sequence[DescribedTensor]) -> Iterator[str]:
    """Yield a note if a tensor has different dtypes in two layers: a shard may be from another copy of the model.

    Different modules of a model may have different dtypes (an image encoder, norms), but the same module has one dtype
    in all layers. The dtype to which codes decode is not stored, and is not compared.
    """
    dtypes = {one.key: one.dtype for one in tensors if len(one.shape) > 1 and not one.is_quantised}
    if len(set(dtypes.values())) < 2:
        return
    for first, other in pairs_in_layers(dtypes):
        if dtypes[first] != dtypes[other]:
            differ = f"{escape(first)} is {dtypes[first]}, but {escape(other)} is {dtypes[other]}"
            yield f"{differ}: some layers may be from another copy of the model, {CASTS}"
            return


@notes_of(NoteKind.MIXED_DTYPES)
def _outside_layers(tensors: Sequence[DescribedTensor]) -> Iterator[str]:
    """Yield a note if all layers are float16 and a tensor outside the layers is bfloat16, or the reverse."""
    inner, outside = dict[str, str](), list[DescribedTensor]()
    for one in tensors:
        if one.dtype in HALVES and any(map(str.isdecimal, one.key.split("."))):
            inner.setdefault(one.dtype, one.key)
        elif one.dtype in HALVES:
            outside.append(one)
    outer = [one for one in outside if one.dtype not in inner]
    if len(inner) == 1 and outer:
        (key,) = inner.values()
        more = f"; {count(len(outer) - 1, 'other tensor')} too" if len(outer) > 1 else ""
        differ = f"{escape(outer[0].key)} is {outer[0].dtype}, but {escape(key)} is {next(iter(inner))}"
        yield f"{differ}, like all layers: it may be from another copy of the model, {CASTS}{more}"


@notes_of(NoteKind.MIXED_DTYPES)
def _halves_in_layers(tensors: Sequence[DescribedTensor]) -> Iterator[str]:
    """Yield a note if all layers of a list have tensors in float16 and others in bfloat16, such as their norms.

    No program saves a model in this way. float32 together with one of the two dtypes is usual.
    """
    lists: dict[str, dict[str, dict[str, str]]] = {}
    for one in tensors:
        if one.dtype in HALVES and not one.is_quantised and (place := _LAYER.match(one.key)):
            lists.setdefault(place[1], {}).setdefault(place[2], {})[one.dtype] = one.key
    for layers in lists.values():
        if len(layers) > 1 and all(len(found) == 2 for found in layers.values()):
            keys = next(iter(layers.values()))
            differ = f"{escape(keys['float16'])} is float16, but {escape(keys['bfloat16'])} is bfloat16"
            yield f"{differ}, and so in all layers: some weights may be from another copy of the model, {CASTS}"
            return


@notes_of(NoteKind.QUANTISATION)
def _kind_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a tensor that is floating-point in other layers has integers, booleans, 8-bit floats or the like.

    A ``weight`` outside the layers gets this note if most weights are floating-point. Codes with scales are left out.
    """
    if not config or quantisation_of(config) or all(one.dtype in PLAIN for one in tensors):
        return
    coded = find_codes({one.key: TensorInfo(one.dtype, one.shape) for one in tensors})
    partnered = {key for one in coded.tensors if len(one.keys) > 1 for key in one.keys}
    dtypes = {one.key: one.dtype for one in tensors if one.key not in partnered}
    pairs = (one for pair in pairs_in_layers(dtypes) for one in (pair, pair[::-1]))
    in_layers = {key: other for key, other in pairs if _is_odd(key, other, dtypes)}
    odd = ({} if partnered else _outside(dtypes)) | in_layers
    for key, other in odd.items():
        more = f"; {count(len(odd) - 1, 'other tensor')} too" if len(odd) > 1 else ""
        differ = f"{escape(key)} is {dtypes[key]}, but {escape(other)} is {dtypes[other]}"
        is_eight = dtypes[key].startswith("float8")
        eight = ", and 8-bit floats without scales are read as numbers" if is_eight else ""
        yield (
            f"{differ}: the weights of a model that is not quantised are normally float16, bfloat16 or float32"
            f"{eight}{more}"
        )
        return


def _is_odd(key: str, other: str, dtypes: Mapping[str, str]) -> bool:
    """Return whether the tensor ``key`` has no usual floating-point dtype (``PLAIN``), but the tensor ``other`` has.

    ``other`` is the key of the same tensor in another layer. ``dtypes`` maps keys to dtypes.
    """
    return dtypes[other] in PLAIN and dtypes[key] not in PLAIN


def _outside(dtypes: Mapping[str, str]) -> dict[str, str]:
    """Return {key of a weight outside the layers that is not floating-point: key of a weight that is floating-point}.

    The result is empty if most weights are not floating-point. ``dtypes`` maps keys to dtypes.
    """
    weights = [key for key in dtypes if key.endswith(".weight")]
    floats = [key for key in weights if dtypes[key] in PLAIN]
    odd = [key for key in weights if DTYPES[dtypes[key]].kind != "float"]
    return dict.fromkeys(odd, floats[0]) if len(floats) > len(odd) else {}
