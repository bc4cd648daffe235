"""TensorFlow's variables by their names: what is the model's, what is left of training beside it.

``/`` parts a name as ``.`` parts a key: ``layer_1/weights`` is ``layer_1.weights``. TensorFlow 2 puts
``/.ATTRIBUTES/VARIABLE_VALUE`` behind every variable of an object graph, which is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...errors import FormatError
from ...tensors.info import TensorInfo
from ...util.text import escape

__all__ = ["key_of", "tree_of"]

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_SLOTS: Mapping[str, tuple[str, ...]] = {
    "Adam": ("optimizer", "adam_m"),
    "Adam_1": ("optimizer", "adam_v"),
    "Momentum": ("optimizer", "momentum"),
    "ExponentialMovingAverage": ("model_ema",),
}
"""What TensorFlow 1 keeps for a variable under its name, and where it hangs here."""
_MOMENTS = ("Adam", "Adam_1")
"""Together they are an optimizer's, even of a variable that is not there: cuDNN's LSTM is saved under other names."""
_TRAINING = frozenset({"beta1_power", "beta2_power", "global_step", "learning_rate", "save_counter"})
"""Scalars that count and steer the training."""


def key_of(name: str) -> str:
    """Return the key of a variable."""
    return name.removesuffix(_VALUE).strip("/").replace("/", ".")


def tree_of(variables: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Return variables as a file of several state dicts: ``model``, ``model_ema``, and what the ``optimizer`` keeps.

    Raises FormatError where two names would be one key.
    """
    tree: dict[str, Any] = {}
    for name, info in variables.items():
        *path, key = _place(name, info, variables)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        if key in node:
            raise FormatError(f"two of its variables would be {escape(key)}.", rule="keys")
        node[key] = info
    return tree


def _place(name: str, info: TensorInfo, names: Collection[str]) -> tuple[str, ...]:
    """Return where a variable hangs, its key last."""
    owner, _, slot = name.rpartition("/")
    if slot in _SLOTS and (owner in names or all(f"{owner}/{moment}" in names for moment in _MOMENTS)):
        return (*_SLOTS[slot], key_of(owner))
    key = key_of(name)
    if _SLOT in name:
        owner, _, slot = name.removesuffix(_VALUE).partition(_SLOT)
        return ("optimizer", slot.replace("/", "."), key_of(owner))
    if key.startswith("optimizer.") and name.endswith(_VALUE):
        return ("optimizer", key.removeprefix("optimizer."))
    if key in _TRAINING and not info.shape:
        return ("optimizer", key)
    return ("model", key)
