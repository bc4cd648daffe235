"""Mamba 2: transformers, and MLX, in whose layout the convolution has the channels last.

https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/mamba2.py
"""

from __future__ import annotations

from ..changes import Transposed
from ..layout import Family, Layout, Tensors
from ..parts.mlx import MLX, MLX_TESTED

__all__ = ["FAMILY"]

_MIXER = "backbone.layers.{n}.mixer"
_NAMES = {
    name: name
    for name in (
        "backbone.embeddings",
        *(f"{_MIXER}.{one}" for one in ("A_log", "D", "dt_bias", "norm.weight", "conv1d", "in_proj", "out_proj")),
        "backbone.layers.{n}.norm.weight",
        "backbone.norm_f.weight",
        "lm_head",
    )
}
_CONVOLUTION = f"{_MIXER}.conv1d.weight"
_FIRST = _CONVOLUTION.format(n=0)
_MARKS = (_FIRST, f"{_MIXER}.norm.weight".format(n=0), "backbone.embeddings.weight", "backbone.norm_f.weight")


def _is_last(tensors: Tensors) -> bool:
    """Return whether the convolution has the shape (channels, size, 1), as in MLX, and not (channels, 1, size)."""
    shape = tensors[_FIRST].shape
    return len(shape) == 3 and shape[2] == 1 and shape[1] > 1


def _is_second(tensors: Tensors) -> bool:
    return len(tensors[_FIRST].shape) == 3 and not _is_last(tensors)


FAMILY = Family(
    "mamba2",
    (
        Layout("transformers", "transformers", "transformers 5.23.0", _NAMES, _MARKS, fits=_is_second),
        Layout("mlx", MLX, MLX_TESTED, _NAMES, _MARKS, (Transposed(_CONVOLUTION, dims=(1, 2)),), fits=_is_last),
    ),
)
