"""Tells the roles of tensors by their keys: groups the same role in all layers, recognises weights and scales."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = ["families", "is_scale", "is_weight", "role_of"]

_WEIGHT = re.compile(r"(?:weight|kernel|_proj|_[wW]|\bw\d?|[AB])$")
"""Matches the ends of the keys of weights, including weights that contain several experts in one tensor."""
_OTHER = re.compile(
    r"norm|(?:^|[._])(?:ln|bn|rms)(?:[._\d]|$)|bias|mask|running_|rotary|inv_freq|pos(?:ition)?(?:al|s)?_?(?:emb|bias)"
    r"|relative|scale|gamma|beta|lora_|token_type|cls_token|buffer|running|(?:^|\.)gate\.weight|router",
    re.IGNORECASE,
)
"""Matches parts of the keys of norms, biases, buffers and adapter factors, which may be constant."""
_SCALE = re.compile(r"scale|absmax|SCB", re.IGNORECASE)


def role_of(key: str) -> str:
    """Return the role of a tensor: its key with ``{n}`` for each number, as in ``layers.{n}.mlp.up_proj.weight``."""
    return NUMBER_IN_KEY.sub("{n}", key)


def is_scale(ending: str) -> bool:
    """Return whether the ending of a key, such as ``.weight_scale``, is that of the scales of a quantised tensor."""
    return _SCALE.search(ending) is not None


def is_weight(key: str, info: TensorInfo) -> bool:
    """Return whether a tensor is a weight matrix of floats, by its dtype, shape and key; norms and biases are not."""
    if DTYPES[info.dtype].kind != "float" or sum(size > 1 for size in info.shape) < 2:
        return False
    return _WEIGHT.search(key) is not None and _OTHER.search(key) is None


def families(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return {role: keys}, with the roles of ``role_of``; the keys of a role keep their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        found[role_of(key)].append(key)
    return found
