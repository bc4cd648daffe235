"""Describes quantised tensors as the plain tensors that they stand for, so that their sizes can be checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...tensors.encodings._find import find_codes
from ...tensors.encodings._settings import quantisation_of
from ...tensors.encodings._sizes import logical_shapes
from ...tensors.info import TensorInfo
from .family_checks import LLAMA
from .shape_checks import DescribedTensor, is_number

__all__ = ["logical_tensors", "plain_keys", "shapes_of_codes"]

_DTYPE = "float16"
_ROWS = re.compile(r"\d\.(?:self_attn\.[qkv]_proj|mlp\.(?:gate|up)_proj)\.weight$")
"""Weights whose columns are the width of the model; the next are those whose rows are."""
_COLUMNS = re.compile(r"\d\.(?:self_attn\.o_proj|mlp\.down_proj)\.weight$")


def shapes_of_codes(tensors: Iterable[DescribedTensor], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the logical shape of each quantised tensor by its plain key, or its number of parameters if not known."""
    infos = {one.key: TensorInfo(one.dtype, one.shape) for one in tensors}
    return logical_shapes(find_codes(infos, lambda: quantisation_of(config)))


def plain_keys(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> list[str]:
    """Return the keys of all tensors, with the plain key of each quantised tensor in place of those of its parts."""
    if not quantisation_of(config):
        return [one.key for one in tensors]
    coded = find_codes({one.key: TensorInfo(one.dtype, one.shape) for one in tensors}, lambda: quantisation_of(config))
    return [*(one.key for one in tensors if one.key not in coded.by_key), *(one.name for one in coded.tensors)]


def logical_tensors(tensors: Sequence[DescribedTensor], config: Mapping[str, Any]) -> list[DescribedTensor]:
    """Return all tensors, with the logical ones in place of codes; codes that have their shapes (fp8) stay."""
    shapes = shapes_of_codes(tensors, config)
    plain = {one.key for one in tensors if is_number(one) and len(one.shape) > 1}
    found = [
        DescribedTensor(key, _DTYPE, _whole(key, shape, config), is_quantised=True)
        for key, shape in shapes.items()
        if key not in plain
    ]
    replaced = {one.key for one in found}
    return [*(one for one in tensors if one.key not in replaced), *found]


def _whole(key: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape; for a number of parameters (bitsandbytes), the one that follows from the model's width."""
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
