"""``lora_convert``: writes an adapter with the names of another toolkit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...planning.lora_output.convert import check_spelling, plan_lora_convert
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ...util.text import count, escape
from ..inputs.argument_types import CheckpointLike, Patterns, checked
from ..inputs.arguments import plain_arguments
from ..inputs.inputs import source_notes
from ..inputs.kept_open import KeptOpen
from .adapter_output import factor_dtype, open_adapters
from .opening import METADATA

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
    dtype: str | torch.dtype | None = None,
) -> Plan:
    """Plan the same adapter with the names and the layout of another toolkit; it changes each weight as before.

    ``to`` is "peft" or "mlx" (a folder), "kohya", "diffusers" or "comfy" (one file). The adapter is a PEFT or mlx-lm
    folder, or a file with kohya's, diffusers' or ComfyUI's names. ``base`` is the model whose modules kohya's names
    refer to; only its keys are read. ``component`` is the part of a diffusers pipeline that the adapter is for
    ("unet"), if the names do not show it. ``exclude`` leaves out modules. ``dtype`` is the dtype of the factors, by
    default that of the adapter.

    A scale that the toolkit cannot store is multiplied into the factors B, with a note. If 16 bits cannot store the
    products exactly, they become float32. The names of modules in the network are not translated, although another
    library may name them differently.

    Raises PlanError for what the toolkit cannot store (DoRA, embeddings, tensors besides the factors) and if names are
    missing, ConfigError for adapters of another kind, PatternError for a pattern that matches nothing, and what
    ``open_checkpoint`` raises.
    """
    check_spelling(to)
    options, wanted = Options.of(exclude=exclude), factor_dtype(dtype)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        found = open_adapters([adapter], [1.0], opened, base)
        plan = plan_lora_convert(
            found.adapters[0],
            to,
            found.model,
            component=component or "",
            exclude=options.exclude,
            dtype=wanted,
            arguments={
                "to": to,
                **plain_arguments(component=component, exclude=exclude, dtype=wanted or None),
            },
            notes=[*source_notes(opened[:1], unwrap=False), *_metadata_notes(opened[0])],
        )
        return found.finished(plan, opened)


def _metadata_notes(one: Checkpoint) -> list[str]:
    """Return a note on metadata that are not copied to the new adapter, except entries that determine its scales."""
    left = [name for name in one.metadata if name not in ("format", METADATA)]
    if not left:
        return []
    entries = count(len(left), "entry", "entries")
    return [f"{entries} of the metadata of {escape(one.path)} are not copied, such as {escape(left[0])}"]
