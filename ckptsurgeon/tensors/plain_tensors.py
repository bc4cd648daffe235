"""Decides quickly, by names, dtypes and shapes, whether all tensors of a state dict are surely not quantised."""

from __future__ import annotations

from collections.abc import Mapping

from .dtypes import DTYPES
from .info import TensorInfo

__all__ = ["CODE_TYPES", "PLAIN_NAMES", "are_plain_integers", "is_plain"]

# Codes in unknown encodings are recognised by scales in the same module, or by the settings in their folder.

CODE_TYPES = frozenset(
    name
    for name, dtype in DTYPES.items()
    if dtype.kind == "quantized" or name.startswith(("float8", "float6", "float4"))
) | {"int8", "uint8", "int16", "uint16", "int32", "uint32"}  # fmt: skip
"""Dtypes that codes can have. Integers of 64 bits are indices and counters, not codes."""
_SIGNED = frozenset({"int8", "int16", "int32"})
_GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PLAIN_NAMES = frozenset({
    "weight", "bias", "gamma", "beta", "running_mean", "running_var", "num_batches_tracked", "weight_g", "weight_v",
    "in_proj_weight", "in_proj_bias", "cls_token", "class_embedding", "pos_embed", "position_embeddings",
    "positional_embedding", "position_ids", "inv_freq", "pos_bias_u", "pos_bias_v", "A_log", "dt_bias",
    *_GATES, *(f"{name}_l{layer}{end}" for name in _GATES for layer in range(8) for end in ("", "_reverse")),
})  # fmt: skip
"""Names of tensors that are not parts of a quantised tensor, unless another name or dtype in their module shows one."""
_CENTROIDS = "centroids"
"""The ``weight`` of modules whose name ends with this is a table of VPTQ."""


def is_plain(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether names, dtypes and shapes alone show that no tensor is quantised; most models are plain.

    If so, no module of an encoding is imported. If not, the state dict may nevertheless have no quantised tensors.
    """
    for key, info in tensors.items():
        module, _, name = key.rpartition(".")
        if name not in PLAIN_NAMES or info.dtype in CODE_TYPES or info.opaque or module.endswith(_CENTROIDS):
            return False
        if info.shape[1:] == (1,):  # bitsandbytes stores codes in this shape, sometimes as floats
            return False
    return True


def are_plain_integers(key: str, info: TensorInfo) -> bool:
    """Return whether a tensor is a matrix of signed integers called ``weight``; it may be a table of ids, not codes.

    Such integers are taken for codes only if there are scales, quantisation settings or other quantised tensors.
    """
    return key.rpartition(".")[2] == "weight" and len(info.shape) > 1 and info.dtype in _SIGNED and info.numel > 1
