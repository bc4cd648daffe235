"""Reads the settings of a run of Megatron from the arguments that its checkpoints contain.

Follows ``megatron/training/arguments.py`` of Megatron-LM (core 0.4 to 0.16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MegatronSettings", "settings_of"]

_UNKNOWN = ("quick_geglu", "glu_activation", "use_kan", "heterogeneous_layers_config_path")
"""Arguments of runs that split layers in ways that this module cannot join."""


@dataclass(frozen=True)
class MegatronSettings:
    """The settings of a run, from its arguments: kinds of layers, and how the model is split across ranks.

    ``gated`` is true if layers have gates (swiglu), None if there are no arguments. ``groups`` is the number of query
    groups (0: no grouped queries), ``version`` the version of the checkpoint (0 if it states none). ``unknown`` is the
    name of an argument that makes joining impossible, or ''. ``tied`` is true if the output layer is the word
    embedding. ``tensor``, ``pipeline`` and ``experts`` are the numbers of ranks of the three kinds of parallelism (0, 0
    and 1 if unknown). ``layers`` is the number of layers (0 if unknown). ``latent`` is {"q" or "kv": number of rows of
    this down-projection of multi-latent attention}, as far as it is known.
    """

    gated: bool | None = None
    groups: int = 0
    version: float = 0.0
    has_version: bool = False
    unknown: str = ""
    tied: bool = False
    tensor: int = 0
    pipeline: int = 0
    experts: int = 1
    layers: int = 0
    latent: Mapping[str, int] = field(default_factory=dict)


def settings_of(args: Mapping[Any, Any], version: Any) -> MegatronSettings:
    """Return the settings in the arguments of a run; ``version`` is the version of its checkpoint."""
    has_version = type(version) in (int, float)
    number = float(version) if has_version else 0.0 if version is None else -1.0
    if not args:
        return MegatronSettings(version=number, has_version=has_version)
    unknown = next((name for name in _UNKNOWN if args.get(name)), "")
    of_experts = args.get("expert_tensor_parallel_size")
    if of_experts is not None and of_experts != args.get("tensor_model_parallel_size"):
        unknown = unknown or "expert_tensor_parallel_size"
    return MegatronSettings(
        gated=bool(args.get("swiglu") or args.get("gated_linear_unit")),
        groups=_whole(args.get("num_query_groups")) if args.get("group_query_attention") else 0,
        version=number,
        has_version=has_version,
        unknown=unknown,
        tied=args.get("untie_embeddings_and_output_weights") is False,
        tensor=_whole(args.get("tensor_model_parallel_size")),
        pipeline=_whole(args.get("pipeline_model_parallel_size")),
        experts=_whole(args.get("expert_model_parallel_size")) or 1,
        layers=_whole(args.get("num_layers")),
        latent=_latent(args),
    )


def _latent(args: Mapping[Any, Any]) -> dict[str, int]:
    """Return the number of rows of the down-projections "q" and "kv" of multi-latent attention, if they are known.

    The rows of "kv" are the latent vector, and the part of the keys that all heads share.
    """
    queries, both, rotated = (_whole(args.get(name)) for name in ("q_lora_rank", "kv_lora_rank", "qk_pos_emb_head_dim"))
    found = {"q": queries, "kv": both + rotated if both and rotated else 0}
    return {kind: rows for kind, rows in found.items() if rows}


def _whole(value: Any) -> int:
    return value if type(value) is int else 0
