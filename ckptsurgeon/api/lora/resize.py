"""``lora_resize``: reduces the ranks of an adapter, by the singular values of its products B A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...engine.compute.compute import memory_bytes, with_costs
from ...methods.lora.adapter import AdapterModule
from ...planning.lora_output.resize import check_sizes, plan_lora_resize, refuse_resizing
from ...planning.lora_output.stacked_experts import target_stacks
from ...planning.plan.plan import Plan
from ..inputs.argument_types import CheckpointLike, checked, plain_arguments
from ..inputs.inputs import KeptOpen, source_notes
from .adapter_output import factor_dtype, open_adapters

if TYPE_CHECKING:
    import torch

__all__ = ["lora_resize", "wanted_ranks"]


@checked
def lora_resize(
    adapter: CheckpointLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
) -> Plan:
    """Plan an adapter with smaller ranks: for each product B A, the nearest product of rank ``rank``.

    With ``energy`` (0.95), each module gets the smallest rank that keeps this share of its squared singular values, at
    most ``rank`` if both are given. Only for ``energy``, planning reads the values of the factors. Factors are
    replaced by an orthonormal basis and a small triangular matrix (QR), so that no product is ever in memory. A module
    whose rank is already small enough is copied; scales (lora_alpha / r) do not change. The receipt of ``apply`` has
    the error of each module. Stacked experts (PEFT's target_parameters) stay stacked: each expert gets the nearest
    product to its own, all of them the same rank, which keeps ``energy`` of each.

    The adapter is a PEFT or mlx-lm folder, or a file with kohya's, diffusers' or ComfyUI's names. The output is of the
    same kind, except that it is a PEFT folder for mlx-lm. ``dtype`` is the dtype of the factors, by default that of the
    adapter. ``memory`` ("512MB") limits the memory of the computation.

    Raises PlanError for DoRA and for values that are not finite, ConfigError for an invalid ``rank`` or ``energy`` and
    for an adapter of another kind, and the errors of ``open_checkpoint``.
    """
    share = float(energy) if energy is not None else None
    check_sizes(rank, share)
    wanted, most = factor_dtype(dtype), memory_bytes(memory)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        found = open_adapters([adapter], [1.0], opened, kept_stacks=lambda data, _: target_stacks(data))
        view = found.adapters[0]
        refuse_resizing(view)
        plan = plan_lora_resize(
            view,
            wanted_ranks(view.adapter.modules, opened[0], rank, share),
            dtype=wanted,
            arguments=plain_arguments(rank=rank, energy=share, dtype=wanted or None),
            metadata=opened[0].metadata,
            notes=source_notes(opened, unwrap=False),
        )
        return with_costs(found.finished(plan, opened, most), most)


def wanted_ranks(
    modules: Sequence[AdapterModule], opened: Checkpoint, rank: int | None, energy: float | None
) -> Mapping[str, int]:
    """Return the new rank of each module, by the key of its factor A; with ``energy``, all values are read."""
    if energy is None:
        return dict.fromkeys((module.a for module in modules), rank or 1)
    from ...engine.compute.extracting_lora import rank_with_energy
    from ...engine.prefetch import fetch_tensors

    infos = {key: opened[key] for module in modules for key in module.factors}
    fetch_tensors((opened, info) for info in infos.values())
    found = {
        module.a: rank_with_energy(
            [(infos[key], opened) for key in module.factors], energy, module.kind, module.factors
        )
        for module in modules
    }
    return {key: min(each, rank) if rank is not None else each for key, each in found.items()}
