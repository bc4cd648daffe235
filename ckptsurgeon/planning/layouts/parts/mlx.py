"""Experts as mlx-lm stores them: all experts of a layer in one tensor for each projection, of shape (experts, out, in).

https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/switch_layers.py, and ``sanitize`` in the files beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..changes import Stacked
from ..layout import Unfit

__all__ = ["MLX", "MLX_TESTED", "mlx_stacks", "unfit_for_mlx"]

MLX, MLX_TESTED = "MLX (mlx-lm)", "mlx-lm 0.32.2"
_KINDS = ("gate_proj", "up_proj", "down_proj")


def mlx_stacks(experts: Sequence[str], module: str) -> tuple[Stacked, ...]:
    """Return the changes that stack experts.

    ``experts`` are the patterns of the gate, up and down weights of one expert, and ``module`` the module in which
    mlx-lm has the stacks: ``model.layers.{n}.mlp.switch_mlp``.
    """
    return tuple(Stacked(expert, f"{module}.{kind}.weight") for expert, kind in zip(experts, _KINDS, strict=True))


def unfit_for_mlx(config: Mapping[str, Any]) -> Unfit | None:
    """Return why mlx-lm has other names for the experts of a network with this configuration; None if it has these."""
    if config.get("model_type") != "dots1":
        return None
    return Unfit(
        "mlx-lm has its experts in mlp.experts, not in mlp.switch_mlp",
        "Stack the experts with --operations: {stack: 'model.layers.{n}.mlp.experts.{i}.up_proj.weight', "
        "into: 'model.layers.{n}.mlp.experts.up_proj.weight'}, and the same for gate_proj and down_proj.",
    )
