"""``lora_convert``: writes an adapter with the names of another toolkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...engine.apply_settings import BUFFERS, MEMORY, memory_error
from ...engine.compute.compute import memory_bytes, with_costs
from ...errors import ConfigError
from ...methods.lora.adapter import AdapterModule
from ...methods.lora.composed import COMPOSED, composed_shape
from ...planning.keys.pattern import OptionPattern
from ...planning.keys.renaming import KeyMatcher
from ...planning.lora_merge.fitting import AdapterView
from ...planning.lora_output.convert import check_spelling, is_composed, plan_lora_convert
from ...planning.lora_output.modules import chosen_modules
from ...planning.lora_output.resize import check_sizes
from ...planning.lora_output.stacked_experts import inseparable_stacks
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ...util.text import count, escape, human_bytes
from ..inputs.argument_types import CheckpointLike, Patterns, checked, plain_arguments
from ..inputs.inputs import KeptOpen, source_notes
from .adapter_output import factor_dtype, open_adapters
from .opening import METADATA
from .resize import wanted_ranks

if TYPE_CHECKING:
    import torch

__all__ = ["lora_convert"]


@checked
def lora_convert(
    adapter: CheckpointLike,
    *,
    to: str,
    base: CheckpointLike | None = None,
    component: str | None = None,
    exclude: Patterns = (),
    rank: int | None = None,
    energy: float | None = None,
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
) -> Plan:
    """Plan the same adapter with the names and the layout of another toolkit; it changes each weight as before.

    ``to`` is "peft" or "mlx" (a folder), "kohya", "diffusers" or "comfy" (one file). The adapter is a PEFT or mlx-lm
    folder, or a file with kohya's, diffusers' or ComfyUI's names. ``base`` is the model whose modules kohya's names
    refer to; only its keys and shapes are read. Every LoHa or LoKr is compared with its weight in the base.
    ``component`` is the part of a diffusers pipeline that the adapter is for ("unet"), if the names do not show it.
    ``exclude`` leaves out modules. ``dtype`` is the dtype of the factors, by default that of the adapter. ``memory``
    ("512MB") limits the memory of the computation.

    A LoHa or LoKr (a PEFT folder, or a file with LyCORIS' names) becomes a LoRA: each of its modules gets the product
    of rank ``rank`` that is nearest to its change. With ``energy``, it gets the smallest rank that keeps this share of
    its squared singular values, at most ``rank`` if both are given. The receipt of ``apply`` has the error of each
    module.

    A scale that the toolkit cannot store is multiplied into the factors B, with a note. If 16 bits cannot store the
    products exactly, they become float32. The names of modules in the network are not translated, although another
    library may name them differently. Stacked experts (PEFT's target_parameters) of Mixtral and Qwen3 become single
    experts. Those of other models stay stacked, which only PEFT can store; for other toolkits, the keys of ``base``
    show the names of its single experts.

    Raises PlanError for tensors that the toolkit cannot store (DoRA, embeddings, tensors besides the factors), and if
    names are missing. Raises ConfigError for adapters of another kind, and for a rank or energy that is invalid,
    missing or superfluous; PatternError for a pattern that matches nothing; and the errors of ``open_checkpoint``.
    """
    check_spelling(to)
    share = float(energy) if energy is not None else None
    if rank is not None or share is not None:
        check_sizes(rank, share)
    options, wanted, most = Options.of(exclude=exclude), factor_dtype(dtype), memory_bytes(memory)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        matcher = KeyMatcher([flag.pattern for flag in options.exclude])
        found = open_adapters(
            [adapter], [1.0], opened, base, methods=COMPOSED, excluded=lambda module: bool(matcher.match(module)),
            kept_stacks=lambda data, names: inseparable_stacks(data, () if to == "peft" else names),
        )  # fmt: skip
        plan = plan_lora_convert(
            found.adapters[0],
            to,
            found.model,
            component=component or "",
            exclude=options.exclude,
            ranks=_ranks(found.adapters[0], opened[0], options.exclude, rank, share, most),
            dtype=wanted,
            arguments={
                "to": to,
                **plain_arguments(component=component, exclude=exclude, rank=rank, energy=share, dtype=wanted or None),
            },
            notes=[*source_notes(opened[:1], unwrap=False), *_metadata_notes(opened[0])],
        )
        return with_costs(found.finished(plan, opened, most), most)


def _ranks(
    one: AdapterView,
    opened: Checkpoint,
    exclude: Sequence[OptionPattern],
    rank: int | None,
    energy: float | None,
    memory: int,
) -> Mapping[str, int]:
    """Return the new rank of each module that is a LoHa or LoKr, by the key of its first tensor.

    Raises ConfigError if there are such modules but neither ``rank`` nor ``energy`` is given, or if one of these is
    given but there are no such modules. Raises PlanError if the computation takes more than ``memory`` bytes (0 means
    the default limit).
    """
    modules = [module for module in chosen_modules(one, exclude)[0] if is_composed(module)]
    if modules:
        check_sizes(rank, energy)
    elif one.adapter.modules and (rank is not None or energy is not None):
        raise ConfigError(
            f"{escape(one.adapter.name)} is already a LoRA: --rank and --energy are only for LoHa and LoKr.",
            hint="Leave --rank and --energy out; ckpt lora resize makes the ranks of a LoRA smaller.",
        )
    if energy is not None:
        _check_memory(modules, opened, rank, memory or MEMORY)
    return wanted_ranks(modules, opened, rank, energy)


def _check_memory(modules: Sequence[AdapterModule], opened: Checkpoint, rank: int | None, limit: int) -> None:
    """Raise PlanError if the singular values of a LoHa or LoKr cannot be computed in ``limit`` bytes of memory.

    The error advises a limit that is also enough for the new factors. Their ranks follow from the singular values, so
    the largest possible rank is assumed.
    """
    from ...methods.lora.composing import elements_of_composed

    advised, largest = BUFFERS, (0, "")
    for module in modules:
        shapes = [opened[key].shape for key in module.factors]
        found = composed_shape(module.kind, shapes)
        most = min(rank or found.rank, found.rank) if found is not None else 1
        largest = max(largest, (8 * elements_of_composed(module.kind, shapes, 1), module.name))
        advised = max(advised, 8 * elements_of_composed(module.kind, shapes, most))
    needed, name = largest
    if needed > limit:
        raise memory_error(
            f"the singular values of {escape(name)}, which --energy needs, take {human_bytes(needed)} of memory; the "
            f"limit is {human_bytes(limit)}.",
            advised,
            ", or use --exclude to leave the module out",
        )


def _metadata_notes(one: Checkpoint) -> list[str]:
    """Return a note on metadata that are not copied to the new adapter, except entries that determine its scales."""
    left = [name for name in one.metadata if name not in ("format", METADATA)]
    if not left:
        return []
    entries = count(len(left), "entry", "entries")
    are = "is not copied:" if len(left) == 1 else "are not copied, such as"
    return [f"{entries} of the metadata of {escape(one.path)} {are} {escape(left[0])}"]
