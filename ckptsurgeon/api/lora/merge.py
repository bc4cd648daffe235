"""``lora_merge``: adds low-rank adapters to the base that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint, path_of, place_of
from ...engine.compute.compute import memory_bytes, with_costs
from ...engine.compute.reading import read_part
from ...engine.inputs import PlanInputs
from ...methods.lora.adapter import Adapter
from ...methods.lora.kinds import MERGED
from ...planning.encoding_checks import with_possible_codes_said
from ...planning.lora_merge.plan import plan_lora_merge
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes
from ...planning.transplant.by_place import PLACE
from ...planning.transplant.options import Options
from ..inputs.argument_types import CheckpointLike, Patterns, Sources, checked, plain_arguments
from ..inputs.encoding import as_stored, check_encoding, encoding_notes, read_as
from ..inputs.inputs import KeptOpen, names_of, plan_source, source_notes, unwrap_notes, view_of
from ..inputs.kept_codes import keeping_codes
from ..inputs.reopening import with_model_files_pinned
from ..inputs.sampled_parts import twice_notes
from ..inputs.stored_recipes import merged_notes
from ..model_folder.checks import source_layer_notes, with_layers_said
from ..model_folder.codes.output_settings import with_settings
from ..model_folder.folder import ModelFolder
from ..model_folder.merged import lora_folder
from ..model_folder.quantised import folder_of
from ..model_folder.rows_by_place import ADAPTED, check_place, checked_rows
from ..model_folder.weights.tied_heads import tied_head
from .adapter_files import model_at, other_base_notes
from .already_merged import already_merged_notes
from .base_class import other_class_notes
from .large_changes import large_change_notes
from .magnitudes import magnitude_notes
from .merging import adapters_of, weights_of_adapters
from .opening import open_adapter

if TYPE_CHECKING:
    import torch

__all__ = ["lora_merge"]

BLOCK = 4 << 20
"""Matrices are compared in blocks of about this many bytes."""


@checked
def lora_merge(
    base: CheckpointLike,
    adapters: Sources,
    *,
    weights: Sequence[float] | None = None,
    exclude: Patterns = (),
    vocab: str | None = None,
    encoding: str = "keep",
    dtype: str | torch.dtype | None = None,
    memory: str | int | None = None,
    unwrap: bool = False,
    root: str | None = None,
) -> Plan:
    """Plan to add adapters to a base: W + weight * scale * B A, summed over all adapters and rounded once, at the end.

    Adapters are PEFT folders, single files with kohya's or diffusers' key names, or dicts of an adapter's tensors. An
    adapter may be a LoRA, DoRA, LoHa or LoKr; or a LoCon, LoHa or LoKr with a core (a Tucker decomposition). It may
    also be PEFT's OFT, whose change is weight * (W R' - W) with the rotation R. ``weights`` has a weight for each
    adapter, by default 1; ``exclude`` leaves out modules of the adapters. ``dtype`` is the dtype of all floating-point
    tensors of the output except complex tensors and codes, by default that of the base. ``memory`` (such as "512MB")
    limits the memory of the computation. If the base is a transformers folder, its configuration and tokeniser are
    copied; if an adapter has its own embedding for another vocabulary, the adapter's tokeniser is copied instead. If
    rows of an embedding would belong to other tokens than in the base, PlanError is raised. If ``vocab`` is "place",
    there is no error: row n of the adapter is added to row n of the base, whatever their tokens. A quantised base is
    decoded first; the sums are then quantised like the base, or stored as plain numbers if ``encoding`` is
    "dequantize".

    Sums are in double precision or, if all changes of a tensor are of LoRA and its result has 16 bits, in single.

    Raises ConfigError for adapters of another kind or invalid weights, PlanError if an adapter does not fit the base,
    PatternError for a pattern that matches nothing, and the errors of ``open_checkpoint``.
    """
    given = adapters_of(adapters)
    check_encoding(encoding)
    check_place(vocab, "row n of the adapter is added to row n of the base, whatever their tokens.", ADAPTED)
    counts, most = weights_of_adapters(weights, given), memory_bytes(memory)
    options = Options.of(exclude=exclude, dtype=str(dtype) if dtype is not None else None)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        opened.append(open_checkpoint(base, root, unwrap=unwrap, called="base"))
        opened[0] = read_as(opened[0], encoding)
        names = names_of([path_of(base), *map(path_of, given)])
        views = [
            open_adapter(*one, opened, methods=MERGED, base=opened[0])
            for one in zip(given, names[1:], counts, strict=True)
        ]
        stored = as_stored(opened, encoding)
        folders = list(map(folder_of, stored))
        tied = tied_head(folders[0], opened[0])
        is_tied = bool(tied or opened[0].ties)
        changes = [
            replace(view, copies=_copies(one, view.adapter)) if is_tied else view
            for (view, _), one in zip(views, opened[1:], strict=True)
        ]
        plan = plan_lora_merge(
            view_of(plan_source(names[0], opened[0]), opened[0]),
            changes,
            model=model_at(place_of(base), opened[0]),
            dtype=options.dtype,
            exclude=options.exclude,
            tied=tied,
            arguments={
                **plain_arguments(
                    exclude=exclude, vocab=vocab, dtype=options.dtype, unwrap=unwrap, root=root, encoding=encoding
                ),
                **({"weights": counts} if weights is not None else {}),
            },
            metadata=stored[0].metadata,
            notes=_notes(opened, counts, encoding, unwrap=unwrap),
        )
        merged = already_merged_notes(plan, opened, changes, counts)
        sampled = *large_change_notes(plan, opened), *magnitude_notes(plan, opened)
        plan = replace(plan, notes=(*plan.notes, *merged, *sampled))
        plan, opened[:] = keeping_codes(plan, opened, encoding, dtype=options.dtype)
        check_codes(plan, [one.codes_before_operations for one in opened])
        plan = with_possible_codes_said(plan, [one.codes for one in opened])
        plan = with_settings(plan, opened, 0)
        inputs = PlanInputs(tuple(opened), None, tuple(path for _, path in views if path), memory=most)
        plan = _with_files(plan, opened[0], folders, by_place=vocab == PLACE)
        return with_costs(replace(plan, inputs=inputs), most)


def _copies(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, str]:
    """Return {key: key of an earlier matrix with equal values} for the matrices that an adapter saves in full.

    PEFT saves an output layer and the embedding to which it is tied as two matrices.
    """
    found: dict[str, str] = {}
    firsts: list[str] = []
    for key in adapter.saved.values():
        if len(checkpoint[key].shape) > 1:
            first = next((one for one in firsts if _are_equal(checkpoint, one, key)), None)
            if first is None:
                firsts.append(key)
            else:
                found[key] = first
    return found


def _are_equal(checkpoint: Checkpoint, first: str, other: str) -> bool:
    """Return whether two matrices have the same dtype, shape and bytes; they are read in blocks of rows."""
    one, two = checkpoint[first], checkpoint[other]
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    rest = tuple((0, size) for size in one.shape[1:])
    rows = max(1, BLOCK * one.shape[0] // max(1, one.nbytes))
    parts = (((at, min(at + rows, one.shape[0])), *rest) for at in range(0, one.shape[0], rows))
    return all(read_part(checkpoint, one, at).tobytes() == read_part(checkpoint, two, at).tobytes() for at in parts)


def _notes(opened: Sequence[Checkpoint], weights: Sequence[float], encoding: str, *, unwrap: bool) -> list[str]:
    """Return the notes on the base and the adapters, which are ``opened``; other arguments are as in ``lora_merge``."""
    return [
        *source_notes(opened, unwrap=False),
        *unwrap_notes(opened[:1], asked=unwrap),
        *encoding_notes(opened[:1], encoding),
        *twice_notes(opened[1:], weights),
        *merged_notes(opened[0], opened[1:], weights),
        *other_base_notes(*opened),
        *other_class_notes(*opened),
    ]


def _with_files(plan: Plan, base: Checkpoint, folders: Sequence[ModelFolder], *, by_place: bool) -> Plan:
    """Return the plan with the files of an output folder, and with notes on those of the base and the adapters.

    ``folders`` are the folders of the base and of the adapters. Raises PlanError if rows belong to different tokens,
    unless ``by_place`` is set.
    """
    plan = lora_folder(plan, folders[0], base, folders[1:], by_place=by_place)
    plan = with_layers_said(plan, source_layer_notes(base, folders[0]), base.path, folders[0].config)
    return with_model_files_pinned(checked_rows(plan, folders, remedy=ADAPTED, allowed=by_place), folders)
