"""Experts as mlx-lm stores them: all experts of a layer in one tensor for each projection, of shape (experts, out, in).

https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/switch_layers.py, and ``sanitize`` in the files beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..changes import Stacked
from ..layout import Unfit

__all__ = ["ALIKE", "MLX", "MLX_TESTED", "UNSURE", "mlx_stacks", "unfit_for_modules", "unfit_for_switch"]

MLX, MLX_TESTED = "MLX (mlx-lm)", "mlx-lm 0.32.2"
ALIKE = ("llama",)
"""Families whose tensors have the same names and values in mlx-lm as in transformers."""
_KINDS = ("gate_proj", "up_proj", "down_proj")


def mlx_stacks(experts: Sequence[str], module: str) -> tuple[Stacked, ...]:
    """Return the changes that stack experts.

    ``experts`` are the patterns of the gate, up and down weights of one expert, and ``module`` the module in which
    mlx-lm has the stacks: ``model.layers.{n}.mlp.switch_mlp``.
    """
    return tuple(Stacked(expert, f"{module}.{kind}.weight") for expert, kind in zip(experts, _KINDS, strict=True))


_DOTS = "dots1"
"""The ``model_type`` of networks whose stacks mlx-lm has in the module ``experts``, not in ``switch_mlp``."""
UNSURE = (
    "model_type is not known: written as for GLM-4.5, with experts in mlp.switch_mlp; mlx-lm has those of dots.llm1 in "
    "mlp.experts: for dots.llm1, put its config.json beside the weights"
)
"""A note for weights that may be those of GLM-4.5 or of dots.llm1."""
_HINT = "Correct model_type in config.json."


def unfit_for_switch(config: Mapping[str, Any]) -> Unfit | None:
    """Return why mlx-lm has no ``switch_mlp`` in a network with this configuration; None if it has, or may have."""
    if config.get("model_type") != _DOTS:
        return None
    return Unfit("mlx-lm has the experts of dots.llm1 in mlp.experts, not in mlp.switch_mlp", _HINT)


def unfit_for_modules(config: Mapping[str, Any]) -> Unfit | None:
    """Return why mlx-lm has no stacks in the module ``experts`` with this configuration; None if it may have."""
    if config.get("model_type", _DOTS) == _DOTS:
        return None
    return Unfit("mlx-lm has experts in mlp.experts only in dots.llm1, else in mlp.switch_mlp", _HINT)
