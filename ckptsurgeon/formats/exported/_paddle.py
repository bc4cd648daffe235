"""Recognises pickles of PaddlePaddle (``.pdparams``, ``.pdopt``), and joins the tensors that PaddlePaddle splits.

Follows ``paddle/framework/io.py`` and ``io_utils.py``. A tensor is an array, or a call of ``tuple`` with its name and
its array. With protocols 2 and 3, an array of over 1 GB is split into flat slices, which an entry of the file lists.
PaddlePaddle has no uint16: it stores bfloat16 as numpy's uint16.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from ...errors import FormatError
from ...tensors.composition import join, reshape
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..base.untrusted import check_elements, check_sizes
from ..pickle.numpy import Array
from ..pickle.values import GlobalName, OpaqueResult

__all__ = ["NOTE", "is_of_paddle", "named_array", "with_slices_joined"]

_NAMES, _SPLIT = "StructuredToParameterName@@", "UnpackBigParamInfor@@"
NOTE = "PaddlePaddle stores the weights of linear layers as (inputs, outputs), torch as (outputs, inputs)"


def is_of_paddle(tree: Any) -> bool:
    """Return whether the content of a pickle has an entry that only PaddlePaddle writes."""
    return isinstance(tree, dict) and (_NAMES in tree or _SPLIT in tree)


def named_array(value: OpaqueResult) -> Array | None:
    """Return the array in the call ``value`` if PaddlePaddle pickles tensors as such calls; None for any other call.

    The calls are ``tuple((name, array))`` and, for tensors of a static graph, ``eval('data', {'data': array})``. They
    are never executed.
    """
    name, args = value.name, value.args
    if (
        not isinstance(name, GlobalName)
        or name.module not in ("builtins", "__builtin__")
        or not isinstance(args, tuple)
    ):
        return None
    found: Any = None
    if name.name == "tuple" and len(args) == 1 and isinstance(args[0], tuple) and len(args[0]) == 2:
        found = args[0][1] if isinstance(args[0][0], str) else None
    elif name.name == "eval" and len(args) == 2 and args[0] == "data" and isinstance(args[1], dict):
        found = args[1].get("data") if len(args[1]) == 1 else None
    return found if isinstance(found, Array) else None


def with_slices_joined(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the entries of a file with the slices of each tensor joined; raises FormatError if slices do not fit."""
    split = tree.get(_SPLIT, {})
    if not isinstance(split, dict):
        raise FormatError(f"the entry {_SPLIT} is not a dict.", rule="paddle slices")
    first: dict[str, tuple[Any, TensorInfo]] = {}
    used: set[str] = {_SPLIT}
    for key, said in split.items():
        names = said.get("slices") if isinstance(said, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise FormatError(f"the slices of {escape(str(key), 60)} are not a list of names.", rule="paddle slices")
        if len({*names}) < len(names) or used & {*names}:
            raise FormatError(f"a slice of {escape(str(key), 60)} is used twice.", rule="paddle slices")
        if key in tree:
            raise FormatError(
                f"the tensor {escape(str(key), 60)} is in the file whole and in slices.", rule="duplicate key"
            )
        used.update(names)
        first[names[0]] = key, _joined(key, said.get("OriginShape"), [tree.get(name) for name in names])
    found: dict[Any, Any] = {}
    for key, value in tree.items():
        if key in first:
            found[first[key][0]] = first[key][1]
        elif key not in used:
            found[key] = value
    return found


def _joined(key: Any, shape: Any, slices: list[Any]) -> TensorInfo:
    shape = tuple(shape) if isinstance(shape, list) else shape
    check_sizes(shape, "shape")
    check_elements(shape)
    parts = [one for one in slices if isinstance(one, TensorInfo) and len(one.shape) == 1]
    if len(parts) < len(slices) or len({one.dtype for one in parts}) != 1:
        raise FormatError(
            f"the slices of {escape(str(key), 60)} are missing, or are not flat arrays of one dtype.",
            rule="paddle slices",
        )
    if sum(one.numel for one in parts) != prod(shape):
        raise FormatError(
            f"the slices of {escape(str(key), 60)} have {sum(one.numel for one in parts):,} elements, but its shape is "
            f"{list(shape)}.",
            rule="tensor size",
        )
    return reshape(join(parts, 0), shape)
