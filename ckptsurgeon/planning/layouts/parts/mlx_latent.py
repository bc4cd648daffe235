"""Multi-latent attention as mlx-lm stores it: ``kv_b_proj`` as ``embed_q`` and ``unembed_out``, which have heads.

mlx-lm multiplies the queries by ``embed_q``, of the shape (heads, rank, size of a key), and the attention by
``unembed_out``, of the shape (heads, size of a value, rank). DeepSeek-V2 in mlx-lm has ``kv_b_proj`` instead.
https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/models/deepseek_v3.py (``sanitize``), glm4_moe_lite.py beside it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ....errors import PlanError
from ....util.text import escape, shape_text
from ..changes import matched
from ..layout import Change, Numbers, Row, Tensors, Unfit
from ..split_changes import Parted

__all__ = ["latent_changes", "unfit_for_joined", "unfit_for_latent"]

_V2 = "deepseek_v2"
_QUERIES = ("q_proj.weight", "q_b_proj.weight")


def latent_changes(attention: str) -> tuple[Change, ...]:
    """Return the changes of the module ``attention``: ``model.layers.{n}.self_attn``."""
    joined, keys, values = (f"{attention}.{one}.weight" for one in ("kv_b_proj", "embed_q", "unembed_out"))
    return _LatentParted(joined, keys, values, attention), Parted(joined, values)


def unfit_for_latent(config: Mapping[str, Any]) -> Unfit | None:
    """Return why mlx-lm has no ``embed_q`` for a network with this configuration; None if it has, or may have."""
    if config.get("model_type") != _V2:
        return None
    return Unfit("mlx-lm has kv_b_proj in DeepSeek-V2, not embed_q", "Correct model_type in config.json.")


def unfit_for_joined(config: Mapping[str, Any]) -> Unfit | None:
    """Return why mlx-lm has no ``kv_b_proj`` for a network with this configuration; None if it has, or may have."""
    if config.get("model_type", _V2) == _V2:
        return None
    return Unfit("mlx-lm has kv_b_proj only in DeepSeek-V2", "Correct model_type in config.json.")


@dataclass(frozen=True)
class _LatentParted(Parted):
    """A change that splits ``name`` into the keys ``made`` and the ``values`` of each head, and transposes the keys."""

    values: str
    attention: str

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that split the matrix ``name`` into keys and values, each with a dimension of heads."""
        keys = matched(at(self.name), tensors)
        if not keys:
            return []
        heads, key, value, rank = self._sizes(keys[0], tensors, at)
        parts = new_keys, new_values = f"{self.made}.split", f"{self.values}.split"
        return [
            {"split": at(self.name), "into": [*parts], "groups": heads, "sizes": [key, value]},
            {"reshape": new_keys, "shape": [heads, key, rank]},
            {"transpose": new_keys, "dims": [1, 2]},
            {"reshape": new_values, "shape": [heads, value, rank]},
            {"copy": new_keys, "into": [self.made]},  # a predicting layer has the last name already
            {"copy": new_values, "into": [self.values]},
        ]

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that join the keys ``made`` and the ``values`` into the matrix ``name``."""
        keys = matched(self.made, tensors)
        if not keys:
            return []
        if len(shape := tensors[keys[0]].shape) != 3:
            raise PlanError(
                f"{escape(keys[0])} is {shape_text(shape)}, and not (heads, rank, size of a key).",
                hint="Decode quantised weights first, with ckpt convert --dequantize.",
            )
        heads, rank, _ = shape
        return [
            {"transpose": self.made, "dims": [1, 2]},
            {"reshape": self.made, "shape": [-1, rank]},
            {"reshape": self.values, "shape": [-1, rank]},
            {"concat": [self.made, self.values], "into": self.name, "groups": heads},
        ]

    def _sizes(self, key: str, tensors: Tensors, at: Callable[[str], str]) -> tuple[int, int, int, int]:
        """Return the number of heads, the size of a key without its rotated part, the size of a value, and the rank.

        They follow from shapes. The queries have, for each head, as many rows as a key has without its rotated part,
        and as many as the rotated part. All heads share the rotated part of the keys, whose rows are in
        ``kv_a_proj_with_mqa``; so these rows show its size.
        """
        rows, rank = _shape(key, tensors)
        rotated = self._size("kv_a_proj_with_mqa.weight", 0, tensors, at) - rank
        values = self._size("o_proj.weight", -1, tensors, at)
        queries = max(self._size(one, 0, tensors, at) for one in _QUERIES)
        turned = queries - (rows - values)
        heads = turned // rotated if rotated > 0 else 0
        if heads < 1 or turned % rotated or rows <= values or (rows - values) % heads or not values or values % heads:
            raise PlanError(
                f"{escape(key)} has {rows} rows, which do not fit the other tensors of its attention, or some of the "
                "other tensors are missing.",
                hint="If they are missing, add q_proj or q_b_proj, kv_a_proj_with_mqa and o_proj first.",
            )
        return heads, (rows - values) // heads, values // heads, rank

    def _size(self, name: str, dim: int, tensors: Tensors, at: Callable[[str], str]) -> int:
        """Return the size of dimension ``dim`` of the first layer's tensor ``name``; 0 if there is none."""
        found = matched(at(f"{self.attention}.{name}"), tensors)
        return tensors[found[0]].shape[dim] if found and tensors[found[0]].shape else 0


def _shape(key: str, tensors: Tensors) -> tuple[int, int]:
    shape = tensors[key].shape
    if len(shape) != 2:
        raise PlanError(
            f"{escape(key)} is {shape_text(shape)}, and not a matrix.",
            hint="Decode quantised weights first, with ckpt convert --dequantize.",
        )
    return shape[0], shape[1]
