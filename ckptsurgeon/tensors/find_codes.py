"""Finds the quantised tensors of a state dict; searches only if names, dtypes and shapes do not show it to be plain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .info import TensorInfo
from .quantised.encoding import CODE_TYPES, NO_CODES, QuantisedTensors
from .quantised.settings import Settings

__all__ = ["PLAIN_NAMES", "find_codes", "is_plain"]

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


def find_codes(
    tensors: Mapping[str, TensorInfo],
    settings: Callable[[], Settings] = dict,
    elsewhere: Callable[[], Iterable[str]] = tuple,
) -> QuantisedTensors:
    """Return the quantised tensors of a state dict.

    ``settings`` returns the ``quantization_config`` of its folder, ``elsewhere`` the keys in the model's other shards;
    both are called only if some tensor could be codes or scales.

    Codes in no known encoding are found, too, if they have a scale with a derived name (``x_scale`` for ``x``), or if
    the folder has a ``quantization_config``. They can be copied, but not decoded. The same is true for scales and zero
    points of a known encoding whose codes are in another shard.
    """
    if is_plain(tensors):
        return NO_CODES
    from .quantised.search import search_codes  # with all encodings

    return search_codes(tensors, settings, elsewhere)


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
