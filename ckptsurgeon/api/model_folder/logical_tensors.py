"""Describes quantised tensors as the plain tensors that they stand for, so that their sizes can be checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...tensors.encodings._encoding import QuantisedTensors
from ...tensors.encodings._find import find_codes
from ...tensors.encodings._settings import quantisation_of
from ...tensors.encodings._sizes import logical_shapes
from ...tensors.info import TensorInfo
from .family_checks import LLAMA
from .shape_checks import DescribedTensor, is_number

__all__ = ["codes_of", "logical_tensors", "plain_tensors", "shapes_of_codes"]

_DTYPE = "float16"
_ROWS = re.compile(r"\d\.(?:self_attn\.[qkv]_proj|mlp\.(?:gate|up)_proj)\.weight$")
"""Weights whose columns are the width of the model; the next are those whose rows are."""
_COLUMNS = re.compile(r"\d\.(?:self_attn\.o_proj|mlp\.down_proj)\.weight$")


def codes_of(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> QuantisedTensors:
    """Return the quantised tensors among described ones; an open checkpoint has its own in ``codes``."""
    infos = {one.key: TensorInfo(one.dtype, one.shape) for one in tensors}
    return find_codes(infos, lambda: quantisation_of(config))


def shapes_of_codes(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the logical shape of each quantised tensor, by the key of the plain tensor that it stands for.

    If headers do not give the shape, it is replaced by a single number, that of the parameters.
    """
    return logical_shapes(codes_of(tensors, config))


def plain_tensors(
    tensors: Sequence[DescribedTensor], config: Mapping[str, Any], coded: QuantisedTensors
) -> tuple[Sequence[DescribedTensor], list[str]]:
    """Return the tensors that are not parts of quantised ones, and the keys of all as if they were plain."""
    if not quantisation_of(config):
        return tensors, [one.key for one in tensors]
    plain = [one for one in tensors if one.key not in coded.by_key]
    return plain, [*(one.key for one in plain), *(one.name for one in coded.tensors)]


def logical_tensors(
    tensors: Sequence[DescribedTensor], config: Mapping[str, Any], coded: QuantisedTensors | None = None
) -> Sequence[DescribedTensor]:
    """Return all tensors, but quantised ones with the key and shape of the plain tensors that they stand for.

    Codes that have the shape of the plain tensor already (fp8) stay; with no others, ``tensors`` itself is returned.
    Pass ``coded``, the quantised tensors among them, if they are known.
    """
    shapes = logical_shapes(codes_of(tensors, config) if coded is None else coded)
    if not shapes:
        return tensors
    plain = {one.key for one in tensors if is_number(one) and len(one.shape) > 1}
    found = [
        DescribedTensor(key, _DTYPE, _whole(key, shape, config), is_quantised=True)
        for key, shape in shapes.items()
        if key not in plain
    ]
    if not found:
        return tensors
    replaced = {one.key for one in found}
    return [*(one for one in tensors if one.key not in replaced), *found]


def _whole(key: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a tensor; if only its number of parameters is known, the shape by the model's width.

    bitsandbytes stores 4-bit weights flat, so that headers give only this number.
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
