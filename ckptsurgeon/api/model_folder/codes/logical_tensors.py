"""Describes each quantised tensor as the plain tensor that it would decode to, so that its size can be checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ....tensors.find_codes import find_codes
from ....tensors.info import TensorInfo
from ....tensors.quantised.encoding import QuantisedTensors
from ....tensors.quantised.methods import is_packed_in_floats
from ....tensors.quantised.settings import quantisation_of
from ....tensors.quantised.sizes import logical_shapes
from ..weights.family_checks import LLAMA
from ..weights.shape_checks import DescribedTensor, is_number

__all__ = ["codes_of", "columns_of", "logical_tensors", "plain_tensors", "shapes_of_codes", "whole_shape"]

_DTYPE = "float16"
_ROWS = re.compile(r"\d\.(?:self_attn\.[qkv]_proj|mlp\.(?:gate|up)_proj)\.weight$")
"""Matches the names of weights with ``hidden_size`` columns."""
_COLUMNS = re.compile(r"\d\.(?:self_attn\.o_proj|mlp\.down_proj)\.weight$")
"""Matches the names of weights with ``hidden_size`` rows."""

_WIDTHS = ((_ROWS, "hidden_size"), (re.compile(r"\blayers\.\d+\.mlp\.down_proj\.weight$"), "intermediate_size"))
"""(pattern of the names of weights, field of config.json with the number of columns of these weights)"""


def codes_of(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> QuantisedTensors:
    """Return the quantised tensors in ``tensors``. For an open checkpoint, use its attribute ``codes`` instead."""
    infos = {one.key: TensorInfo(one.dtype, one.shape) for one in tensors}
    return find_codes(infos, lambda: quantisation_of(config))


def shapes_of_codes(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return {key that a quantised tensor would have if stored plainly: shape of its decoded weight}.

    If the headers do not contain this shape, it is (n,), where n is the number of parameters.
    """
    return logical_shapes(codes_of(tensors, config))


def plain_tensors(
    tensors: Sequence[DescribedTensor], config: Mapping[str, Any], coded: QuantisedTensors
) -> tuple[Sequence[DescribedTensor], list[str]]:
    """Return (tensors that are not parts of quantised tensors, keys that all tensors would have if stored plainly).

    ``coded`` are the quantised tensors in ``tensors``. Without quantisation settings in ``config``, all tensors are
    plain.
    """
    if not quantisation_of(config):
        return tensors, [one.key for one in tensors]
    plain = [one for one in tensors if one.key not in coded.by_key]
    return plain, [*(one.key for one in plain), *(one.name for one in coded.tensors)]


def logical_tensors(
    tensors: Sequence[DescribedTensor], config: Mapping[str, Any], coded: QuantisedTensors | None = None
) -> Sequence[DescribedTensor]:
    """Return ``tensors``, in which each quantised tensor has the key and shape that it would have if stored plainly.

    Codes that already have that key and shape (fp8) are not changed. If nothing changes, ``tensors`` itself is
    returned. ``coded`` are the quantised tensors in ``tensors``; None to search for them.
    """
    found_codes = codes_of(tensors, config) if coded is None else coded
    shapes = logical_shapes(found_codes)
    if not shapes:
        return tensors
    plain = {
        one.key
        for one in tensors
        if is_number(one)
        and len(one.shape) > 1
        and not (one.shape[1:] == (1,) and is_packed_in_floats(one.key, found_codes))
    }
    found = [
        DescribedTensor(key, _DTYPE, whole_shape(key, shape, config), is_quantised=True)
        for key, shape in shapes.items()
        if key not in plain
    ]
    if not found:
        return tensors
    replaced = {one.key for one in found}
    return [*(one for one in tensors if one.key not in replaced), *found]


def columns_of(key: str, config: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of columns of a weight, and the field of ``config`` that determines it; (0, "") if unknown."""
    if config.get("model_type") in LLAMA:
        field = next((field for pattern, field in _WIDTHS if pattern.search(key)), "")
        width = config.get(field)
        if type(width) is int and width > 0:
            return width, field
    return 0, ""


def whole_shape(key: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a decoded weight, computed from the width if ``shape`` is only (number of parameters,).

    Headers contain only this number for 4-bit weights of bitsandbytes, which are stored flat. ``shape`` is returned if
    it is the real shape already, or if the real shape cannot be computed.
    """
    width = config.get("hidden_size")
    if (
        len(shape) > 1
        or type(width) is not int
        or width < 1
        or shape[0] % width
        or config.get("model_type") not in LLAMA
    ):
        return shape
    if _COLUMNS.search(key):
        return (width, shape[0] // width)
    return (shape[0] // width, width) if _ROWS.search(key) else shape
