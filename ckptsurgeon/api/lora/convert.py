"""``lora_convert``: writes an adapter with the names of another toolkit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.in_memory import path_of
from ...checkpoint.opening import open_checkpoint
from ...engine.inputs import PlanInputs
from ...planning.lora_output.convert import check_spelling, plan_lora_convert
from ...planning.plan.plan import Plan
from ...planning.transplant.options import Options
from ...util.text import count, escape
from ..inputs.argument_types import CheckpointLike, Patterns, checked
from ..inputs.arguments import plain_arguments
from ..inputs.inputs import names_of, plan_source, source_notes, view_of
from ..inputs.kept_open import KeptOpen
from ..inputs.operations import operate
from ..inputs.reopening import with_model_files_pinned
from ..model_folder.licences import with_licences
from ..model_folder.quantised import folder_of
from .opening import METADATA, open_adapter
from .output_dtype import factor_dtype

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
    """Plan the same adapter with the names and the layout of another toolkit: its change of each weight is the same.

    ``to`` is "peft" or "mlx" (a folder), "kohya", "diffusers" or "comfy" (one file). The adapter is a PEFT or mlx-lm
    folder, or a file with kohya's, diffusers' or ComfyUI's names. ``base`` is the model that kohya's names are names
    of; only its keys are read. ``component`` is the model of a pipeline that the adapter is for ("unet"), if its names
    do not say. ``exclude`` leaves out modules. ``dtype`` is the dtype of the factors, by default theirs.

    A scale that the toolkit cannot store is multiplied into the factors B, with a note. If 16 bits cannot store the
    products exactly, they become float32. Names of modules are kept: the layers of one network may have other names
    in another library.

    Raises PlanError for what the toolkit cannot store (DoRA, embeddings, tensors besides the factors) and if names are
    missing, ConfigError for adapters of another kind, PatternError for a pattern that matches nothing, and what
    ``open_checkpoint`` raises.
    """
    check_spelling(to)
    options, wanted = Options.of(exclude=exclude), factor_dtype(dtype)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        names = names_of([path_of(adapter), *([path_of(base)] if base is not None else [])])
        view, path = open_adapter(adapter, names[0], 1.0, opened)
        model = None
        if base is not None:
            opened.append(open_checkpoint(base, unwrap=False, called="base"))
            model = view_of(plan_source(names[-1], opened[-1]), opened[-1])
        plan = plan_lora_convert(
            view,
            to,
            model,
            component=component or "",
            exclude=options.exclude,
            dtype=wanted,
            arguments={
                "to": to,
                **plain_arguments(component=component, exclude=exclude, dtype=wanted or None),
            },
            notes=[*source_notes(opened[:1], unwrap=False), *_metadata_notes(opened[0])],
        )
        return finished(plan, opened, path)


def finished(plan: Plan, opened: list[Checkpoint], path: str, memory: int = 0) -> Plan:
    """Return the plan of an adapter with its inputs; the first of them gets the tensors that its operations make.

    ``path`` is the path of the adapter's configuration, '' without one; ``memory`` is the limit in bytes.
    """
    before = list(plan.sources[0].operations)
    folders = [folder_of(opened[0])]
    made = [row for row in before if "constant" in row]
    opened[0] = operate([opened[0]], made)[0].checkpoint
    plan = with_model_files_pinned(with_licences(plan, folders), folders)
    return replace(plan, inputs=PlanInputs(tuple(opened), None, (path,) if path else (), memory=memory))


def _metadata_notes(one: Checkpoint) -> list[str]:
    """Return a note on metadata that the new adapter does not get, except those that its scales are from."""
    left = [name for name in one.metadata if name not in ("format", METADATA)]
    if not left:
        return []
    entries = count(len(left), "entry", "entries")
    return [f"{entries} of the metadata of {escape(one.path)} not copied, such as {escape(left[0])}"]
