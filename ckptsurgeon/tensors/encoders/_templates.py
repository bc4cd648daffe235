"""Finds how to encode new values like an existing quantised tensor: the encoder, the group sizes and its facts.

They are determined from the ``Decoded`` that describes how the existing tensor is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..decoders._decoder import Request
from ..dtypes import BLOCKS, ROUNDED
from ..info import Decoded
from ..ops.regions import Array
from ..quantised.settings import values_called
from . import bitsandbytes
from ._scale_dtypes import EXPONENTS
from .fp8 import LARGEST
from .nvfp4 import LARGEST_SCALE

__all__ = ["Template", "UnencodableError", "template_of"]


class UnencodableError(Exception):
    """The error if new values cannot be stored in the encoding of a quantised tensor; its message is the reason."""


@dataclass(frozen=True)
class Template:
    """How the stored tensors of a quantised tensor are computed from a weight; ``Encoded`` describes the fields."""

    encoding: str
    steps: tuple[int, ...]
    facts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Asked:
    """A quantised tensor (``request``), how it is decoded (``made``), and the shape of its decoded weight."""

    request: Request
    made: Decoded
    shape: tuple[int, ...]

    @property
    def parts(self) -> Mapping[str, str]:
        """The dtypes of the tensor's stored parts, by role."""
        return {role: info.dtype for role, info in self.made.parts}

    @property
    def facts(self) -> Mapping[str, float]:
        """The numbers in ``Decoded.facts``, by name."""
        return dict(self.made.facts)

    @property
    def along_rows(self) -> tuple[int, ...]:
        """The size of a group along each dimension, for an encoding whose groups run along the last dimension."""
        return (*(1 for _ in self.shape[1:]), int(self.facts.get("group", self.facts.get("block", 0))))

    @property
    def zero(self) -> tuple[tuple[str, float], ...]:
        """The entry ``asymmetric`` for ``Encoded.facts`` if the tensor has zero points, else ()."""
        return (("asymmetric", 1.0),) if "zero" in self.parts else ()


def template_of(request: Request, made: Decoded, shape: tuple[int, ...]) -> Template:
    """Return how the stored tensors of a quantised tensor are computed; raises UnencodableError if that is impossible.

    ``shape`` is the shape of the decoded weight.
    """
    asked = _Asked(request, made, shape)
    found = _FAMILIES[made.encoding](asked) if made.encoding in _FAMILIES else None
    if found is None:
        raise UnencodableError(f"no encoder writes {request.coded.method} in the layout that this tensor has")
    return found


def _scaled(asked: _Asked) -> Template | None:
    codes, scale = asked.request.codes.dtype, asked.parts["scale"]
    if ".SCB" in asked.request.parts:
        if scale != "float32":
            raise UnencodableError(f"the SCB is {scale}, not float32")
        return Template("int8_rows", (*(1 for _ in asked.shape[1:]), asked.shape[-1]))
    if "times" in asked.facts or "times" in asked.parts:
        return None
    steps = tuple(max(int(asked.facts[f"step{dim}"]), 1) for dim in range(len(asked.shape)))
    if codes in LARGEST and not asked.zero:
        # Scales of DeepSeek's blocks are computed in the same way as in transformers.
        one = dict(asked.made.parts)["scale"].numel == 1
        blocks = any(end.endswith("_scale_inv") for end in asked.request.parts) and scale == "float32" and not one
        if scale == "float32" and str(asked.request.settings.fields.get("scale_fmt")).lower() == "ue8m0":
            return Template("fp8", steps, (("top", LARGEST[codes]), ("powers", 1.0)))
        return Template("fp8", steps, (("top", LARGEST[codes]), *((("reciprocal", 1.0),) if blocks else ())))
    if codes == "int8" and scale != EXPONENTS:
        return Template("int8", steps, (("bits", 8.0), *asked.zero))
    return None


def _packed(asked: _Asked) -> Template | None:
    ordered: tuple[tuple[str, float], ...] = ()
    if "order" in asked.parts and not _is_unset(asked):
        group, ordered = _group_by_order(asked, ".weight_g_idx")
        if group != asked.along_rows[-1]:
            raise UnencodableError(f"the weight_g_idx has groups of {group} columns, not of {asked.along_rows[-1]}")
    if "bias" in asked.parts:
        if asked.parts["bias"] != asked.parts["scale"]:
            raise UnencodableError(f"the scales are {asked.parts['scale']}, but the biases are {asked.parts['bias']}")
        if asked.facts["bits"] < 2:
            raise UnencodableError("no encoder rounds to 1 bit")
        return Template("affine", asked.along_rows, (("bits", asked.facts["bits"]), ("without_zero", 1.0)))
    zeros = (*asked.zero, ("zeros_packed", 2.0)) if asked.zero else ()
    return Template("packed", asked.along_rows, (("bits", asked.facts["bits"]), *zeros, *ordered))


def _fp4(asked: _Asked) -> Template | None:
    steps, scale, parts = asked.along_rows, asked.parts["scale"], asked.request.parts
    if asked.request.codes.itemsize > 1:  # MLX, which packs codes in words, computes scales in another way
        return None
    if scale == "float8_e4m3fn" and ("over" in asked.parts) != ("times" in asked.parts):
        times = (("times", 1.0),) if "times" in asked.parts else ()
        return Template("nvfp4", steps, (("over", float(LARGEST_SCALE) * 6), *times))
    if scale != EXPONENTS or steps[-1] != 32 or {"over", "times"} & set(asked.parts):
        return None
    if "_blocks" in parts or ".blocks" in parts:
        across = (("across", 1.0),) if asked.facts["turned"] else ()
        return Template("mxfp4", steps, (("rounds_up", 1.0), *across))
    return Template("mxfp4", steps)


def _bitsandbytes(asked: _Asked) -> Template:
    facts, stored = asked.facts, asked.request.stored
    table = np.frombuffer(stored(".quant_map"), "<f4")
    kinds = {"normal": bitsandbytes.NF4, "fp4": bitsandbytes.FP4}
    kind = next((name for name, values in kinds.items() if np.array_equal(values, table)), "")
    if not kind:
        raise UnencodableError("the values in the quant_map are not those of nf4 or fp4")
    width = asked.request.codes.itemsize
    found = [("normal", float(kind == "normal")), ("flat", 1.0), ("width", float(width))]
    if "nested" in facts:
        if not np.array_equal(np.frombuffer(stored(".nested_quant_map"), "<f4"), bitsandbytes.dynamic_map()):
            raise UnencodableError("the values in the nested_quant_map are not those that bitsandbytes computes")
        found += [("nested", facts["nested"]), ("offset", facts["offset"])]
    elif asked.parts["scale"] != "float32":
        raise UnencodableError(f"the absmax is {asked.parts['scale']}, not float32")
    return Template("bitsandbytes", asked.along_rows, tuple(found))


def _gptq(asked: _Asked) -> Template:
    facts, fields, columns = asked.facts, asked.request.settings.fields, asked.shape[-1]
    group, ordered = _group_by_order(asked, ".g_idx") if "order" in asked.parts else (int(facts["group"]), ())
    if -(-columns // group) != dict(asked.made.parts)["scale"].shape[0]:
        raise UnencodableError(f"the number of scales of a row does not fit {columns} columns in groups of {group}")
    # If no setting says sym=false, loaders use kernels for symmetric codes, which do not read zero points.
    asymmetric = asked.zero if set(values_called(fields, "sym")) == {False} else ()
    zeros = (("zeros_packed", 2.0),) if asked.zero else ()
    found = (("bits", facts["bits"]), ("turned", 1.0), ("plus", facts["plus"]), *asymmetric, *zeros, *ordered)
    return Template("gptq", (1, group), found)


def _order(asked: _Asked, end: str) -> Array:
    """Return the index of the group of each column, as stored in the tensor with the key ending ``end``.

    Raises UnencodableError if it cannot be read.
    """
    order, stored = dict(asked.made.parts)["order"], asked.request.stored(end)
    if order.dtype not in ("int32", "int64") or len(stored) != order.nbytes:
        raise UnencodableError(f"its {end[1:]} is incomplete, or its dtype is neither int32 nor int64")
    return np.frombuffer(stored, "<i4" if order.dtype == "int32" else "<i8")


def _is_unset(asked: _Asked) -> bool:
    """Return whether a ``weight_g_idx`` of compressed-tensors was never set: all its numbers are -1."""
    return bool((_order(asked, ".weight_g_idx") == -1).all())


def _group_by_order(asked: _Asked, end: str) -> tuple[int, tuple[tuple[str, float], ...]]:
    """Return (number of columns in a group, entries for ``Encoded.facts``), from the group of each column.

    The stored tensor with the key ending ``end``, ``g_idx``, has the index of the group of each column. If the columns
    of a group are not adjacent, the entry ``ordered`` is returned, else no entry. Raises UnencodableError if an index
    has no group, if groups have different numbers of columns (only the last group may have fewer), or if columns would
    have to be sorted in a tensor that is not a matrix.
    """
    numbers, groups = _order(asked, end), dict(asked.made.parts)["scale"].shape[0 if end == ".g_idx" else 1]
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= groups:
        raise UnencodableError(f"the order of the columns ({end[1:]}) contains a group index outside 0 to {groups - 1}")
    group = max(1, int(np.count_nonzero(numbers == 0)))
    adjacent = np.arange(asked.shape[-1]) // group
    if np.array_equal(numbers, adjacent):
        return group, ()
    if not np.array_equal(np.sort(numbers), adjacent):
        raise UnencodableError(f"the groups of columns ({end[1:]}) have different sizes")
    if len(asked.shape) != 2:
        raise UnencodableError(f"the tensor has an order of columns ({end[1:]}), but is not a matrix")
    return group, (("ordered", 1.0),)


def _awq(asked: _Asked) -> Template:
    fields, group = asked.request.settings.fields, int(asked.facts["group"])
    asymmetric = asked.zero if fields.get("zero_point") is not False else ()
    zeros = (("zeros_packed", 1.0),) if asked.zero else ()
    return Template("awq", (group, 1), (("bits", 4.0), ("across", 1.0), *asymmetric, *zeros))


def _gguf(asked: _Asked) -> Template:
    dtype = asked.request.codes.dtype  # there is an encoder for each type that can be decoded
    return Template("gguf", (*(1 for _ in asked.shape[1:]), BLOCKS[dtype][0]), (("type", float(ROUNDED[dtype])),))


_FAMILIES: Mapping[str, Callable[[_Asked], Template | None]] = {
    "awq": _awq, "bitsandbytes": _bitsandbytes, "fp4": _fp4, "gguf": _gguf, "gptq": _gptq, "packed": _packed,
    "scaled": _scaled,
}  # fmt: skip
"""{name of a decoder: function that finds the template}; the function returns None if there is no encoder."""
