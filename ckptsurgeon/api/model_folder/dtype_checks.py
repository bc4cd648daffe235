"""Notes on tensors of another dtype than those of other layers, in models that are not quantised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...planning.merge.layers import layers_of, numbered_lists
from ...tensors.dtypes import DTYPES
from ...tensors.encodings._find import find_codes
from ...tensors.encodings._settings import quantisation_of
from ...tensors.info import TensorInfo
from ...util.text import count, escape
from .layer_holes import is_stack
from .shape_checks import DescribedTensor

__all__ = ["dtype_notes", "kind_notes"]

HALF = ("float16", "bfloat16")
PLAIN = (*HALF, "float32")
"""Dtypes of models that are not quantised: scales of quantised weights are often float16 beside bfloat16."""


def dtype_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a tensor is float16 in one layer and bfloat16 in another, as if a shard were from another copy.

    Different modules of a model may have different dtypes (an image encoder, norms), but the same module has one dtype
    in all layers. There is no note for quantised models.
    """
    if config.get("quantization_config") or any(one.dtype not in PLAIN for one in tensors if len(one.shape) > 1):
        return
    dtypes = {one.key: one.dtype for one in tensors if one.dtype in HALF}
    if len(set(dtypes.values())) < len(HALF):
        return
    for first, other in _pairs(dtypes):
        if dtypes[first] != dtypes[other]:
            differ = f"{escape(first)} is {dtypes[first]}, but {escape(other)} is {dtypes[other]}"
            yield f"{differ}: some layers may be from another copy, and transformers casts all to one dtype"
            return


def kind_notes(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note if a tensor that is floating-point in other layers has integers, booleans or the like.

    Outside layers, this is noted of a ``weight``, if most weights are floating-point. Codes with scales are left out.
    """
    if not config or quantisation_of(config):
        return
    coded = find_codes({one.key: TensorInfo(one.dtype, one.shape) for one in tensors})
    partnered = {key for one in coded.tensors if len(one.keys) > 1 for key in one.keys}
    dtypes = {one.key: one.dtype for one in tensors if one.key not in partnered}
    pairs = (one for pair in _pairs(dtypes) for one in (pair, pair[::-1]))
    in_layers = {key: other for key, other in pairs if _is_odd(key, other, dtypes)}
    odd = ({} if partnered else _outside(dtypes)) | in_layers
    for key, other in odd.items():
        more = f"; {count(len(odd) - 1, 'other tensor')} too" if len(odd) > 1 else ""
        differ = f"{escape(key)} is {dtypes[key]}, but {escape(other)} is {dtypes[other]}"
        yield f"{differ}: weights of one model that is not quantised are of one kind{more}"
        return


def _is_odd(key: str, other: str, dtypes: Mapping[str, str]) -> bool:
    """Whether a tensor is neither in a dtype of models nor in 8-bit floats, but that of another layer is."""
    dtype = DTYPES[dtypes[key]]
    return dtypes[other] in PLAIN and (dtype.kind != "float" or dtype.name == "float64")


def _outside(dtypes: Mapping[str, str]) -> dict[str, str]:
    """Return the weights that have no floating-point numbers, each with one that has, if most weights have."""
    weights = [key for key in dtypes if key.endswith(".weight")]
    floats = [key for key in weights if dtypes[key] in PLAIN]
    odd = [key for key in weights if DTYPES[dtypes[key]].kind != "float"]
    return dict.fromkeys(odd, floats[0]) if len(floats) > len(odd) else {}


def _pairs(keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each tensor of a layer after the one with its name in the first layer that has it: (first, other)."""
    for one in numbered_lists(list(keys)):
        first: dict[str, str] = {}
        for number, rests in layers_of(one, keys).items() if is_stack(one.prefix) else ():
            for rest in rests:
                key = one.key(number, rest)
                other = first.setdefault(rest, key)
                if key != other:
                    yield other, key
