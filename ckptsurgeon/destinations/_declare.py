"""Declares the tensors of a checkpoint as a destination, each with the initialiser that its name suggests."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

from ..storage.yaml_text import InlineMapping
from ..tensors.dtypes import DTYPES
from ..tensors.info import TensorInfo
from ._initial_values import LIKE
from .declared import unfit

__all__ = ["declare"]

TORCH_SLOPE = 2.23607
"""The square root of 5: the ``a`` with which torch's linear and convolution layers call ``kaiming_uniform_``."""
_MATRIX = re.compile(r"(.*_)?(weight|kernel)|weight_v|weight_[ih]h_l\d+(_reverse)?|original1")
_SCALE = re.compile(r"(.*_)?(weight|gamma|scale)|weight_g|original0|running_var")
_SHIFT = re.compile(r"(.*_)?(bias|beta)|bias_[ih]h_l\d+(_reverse)?|bias_[kv]|running_mean")
"""Usual names of tensors that start with random values (``_MATRIX``), ones (``_SCALE``) and zeros (``_SHIFT``)."""


def _suggested_init(key: str, info: TensorInfo) -> str | dict[str, Any]:
    """Return the initialiser that a tensor's name and shape suggest, in the form of the field ``init``.

    This function knows the weights, biases and running statistics of torch's layers, counters and position ids. For all
    other tensors, such as most buffers, the result is "like": start with the values of a checkpoint.
    """
    leaf, dtype, dims = re.split(r"[./]", key)[-1], DTYPES[info.dtype], len(info.shape)
    if leaf == "position_ids" and not unfit(info, "arange"):
        return "arange"
    if leaf == "num_batches_tracked":
        return "zeros"
    if dtype.kind != "float" or dtype.values > 1 or dtype.bits % 8:
        return LIKE
    if dims >= 2 and _MATRIX.fullmatch(leaf):
        return {"kaiming_uniform": {"a": TORCH_SLOPE}}
    if _SCALE.fullmatch(leaf) and (dims == 1 or leaf in ("weight_g", "original0")):
        return "ones"
    return "zeros" if dims == 1 and _SHIFT.fullmatch(leaf) else LIKE


def declare(
    tensors: Mapping[str, TensorInfo], ties: Mapping[str, str], coded: Container[str], like: Mapping[str, str]
) -> dict[str, Any]:
    """Return the ``model:`` section that lists ``tensors``, each with the initialiser that its name and shape suggest.

    Weights of two or more dimensions get torch's default for linear and convolution layers. One-dimensional weights,
    scales and variances get ones; biases get zeros. All other tensors, such as buffers, get ``init: like``: they start
    with the values of a checkpoint. Tensors with keys in ``coded``, which are parts of quantised tensors, also get
    ``init: like``.

    ``like`` has the fields of the section that name this checkpoint: ``values`` (its path) and, if the checkpoint has
    several state dicts, ``root``. If ``like`` is empty, tensors that would get ``init: like`` get no initialiser.
    """
    rows = {}
    for key, info in tensors.items():
        init = LIKE if key in coded else _suggested_init(key, info)
        fields = {} if init == LIKE and not like else {"init": init}
        rows[key] = InlineMapping(shape=list(info.shape), dtype=info.dtype, **fields)
    groups: dict[str, list[str]] = {}
    for alias, owner in ties.items():
        groups.setdefault(owner, [owner]).append(alias)
        rows[alias].update({name: init for name, init in rows[owner].items() if name == "init"})
    kept = any(row.get("init") == LIKE for row in rows.values())
    model: dict[str, Any] = {**(like if kept else {}), "tensors": rows}
    if groups:
        model["tied"] = list(groups.values())
    return model
