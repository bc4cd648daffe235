"""``lora_extract``: approximates the difference between a tuned model and its base by a low-rank adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint, path_of, place_of
from ...engine.compute.compute import memory_bytes, with_costs
from ...engine.inputs import PlanInputs
from ...errors import PlanError
from ...planning.encoding_checks import with_possible_codes_said
from ...planning.llama_cpp.names import in_llama_cpp, layout_hint
from ...planning.lora_extract.plan import plan_lora_extract, with_tied
from ...planning.lora_extract.steps import ExtractOptions, check_extraction, chosen_by, comparable
from ...planning.plan.plan import Plan
from ...planning.quantised import check_codes, refuse_codes
from ...planning.transplant.by_place import PLACE, is_of_tokens
from ...planning.transplant.options import Options
from ...util.notes import with_prefix
from ...util.text import count, escape, listing
from ..inputs.argument_types import CheckpointLike, Patterns, checked, plain_arguments
from ..inputs.encoding import ENCODINGS, read_as
from ..inputs.inputs import KeptOpen, names_of, notes_on, plan_source, unwrap_notes, view_of
from ..inputs.reopening import with_model_files_pinned
from ..inputs.sampled_parts import unrelated_notes
from ..inputs.stored_recipes import swapped_notes
from ..model_folder.checks import notes_beside, with_sources_said
from ..model_folder.config_differences import with_config_said
from ..model_folder.embedded_folder import with_embedded_tokens
from ..model_folder.folder import ModelFolder
from ..model_folder.licences import with_left_files_said, with_licences
from ..model_folder.quantised import folder_of
from ..model_folder.rows_by_place import EXTRACTED, check_place, checked_rows, token_note
from ..model_folder.weights.tied_heads import tied_head
from .adapter_files import model_at

if TYPE_CHECKING:
    import torch

__all__ = ["lora_extract"]


@checked
def lora_extract(
    tuned: CheckpointLike,
    base: CheckpointLike,
    *,
    rank: int = 16,
    alpha: float | None = None,
    include: Patterns = (),
    exclude: Patterns = (),
    embeddings: bool = False,
    fan_in_fan_out: bool = False,
    save_modules: bool = False,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    vocab: str | None = None,
    memory: str | int | None = None,
    unwrap: bool = False,
    root: str | None = None,
) -> Plan:
    """Plan a PEFT adapter: for each weight, the best factors of rank ``rank`` of the difference ``tuned`` - ``base``.

    This reads the values of both models, to find the tensors that differ. ``alpha`` is PEFT's lora_alpha, by default
    the rank. ``include`` and ``exclude`` select keys. With ``embeddings``, embeddings are factored too. Set
    ``fan_in_fan_out`` if weights have the shape (in, out), as in GPT-2, and no config.json contains the architecture.
    Tensors that differ but cannot be factored are listed in a note; with ``save_modules``, they are saved whole.
    ``dtype`` is the dtype of the factors, and ``seed`` the seed of the randomised decomposition. ``memory`` (such as
    "512MB") limits the memory of the decomposition. The receipt of ``apply`` has the approximation error of each
    weight. If the rows of an embedding belong to different tokens in the two models, PlanError is raised. If
    ``vocab`` is "place", there is no error: row n of the base is subtracted from row n of the tuned model, whatever
    their tokens. Quantised models are decoded before they are compared.

    Raises ConfigError for an invalid rank or alpha, PlanError if nothing can be extracted, PatternError for a pattern
    that matches nothing, and the errors of ``open_checkpoint``.
    """
    options = Options.of(include=include, exclude=exclude, dtype=str(dtype))
    alpha = float(alpha) if alpha is not None else None  # 4 and 4.0 must result in the same file
    asked = ExtractOptions(
        rank, alpha, options.include, options.exclude, embeddings, fan_in_fan_out, save_modules, options.dtype, seed,
    )  # fmt: skip
    check_extraction(asked)
    check_place(vocab, "rows with the same number are subtracted, whatever their tokens.", EXTRACTED)
    most = memory_bytes(memory)
    opened: list[Checkpoint] = []
    with KeptOpen(opened):
        opened += (
            open_checkpoint(one, root, unwrap=unwrap, called=name) for one, name in ((tuned, "tuned"), (base, "base"))
        )
        opened[:] = (read_as(one, ENCODINGS[1]) for one in opened)
        ours, theirs = opened
        asked = replace(asked, model=model_at(place_of(base), theirs) or model_at(place_of(tuned), ours))
        names = names_of([path_of(tuned), path_of(base)])
        views = [view_of(plan_source(name, one), one) for name, one in zip(names, opened, strict=True)]
        refuse_codes(views, "lora extract", {key for key, info in ours.items() if info.opaque})
        folders = list(map(folder_of, opened))
        tied = _tied(folders, opened)
        differing = list(_differing(ours, theirs, tied, chosen_by(asked)))
        plan = plan_lora_extract(
            views[0],
            views[1],
            differing,
            asked,
            tied=tied,
            arguments={
                **plain_arguments(
                    rank=rank, include=include, exclude=exclude, embeddings=embeddings, save_modules=save_modules,
                    fan_in_fan_out=fan_in_fan_out, dtype=options.dtype, vocab=vocab, unwrap=unwrap,
                    root=root,
                ),
                **({"alpha": alpha} if alpha is not None else {}),
            },
            notes=[*_notes(ours, theirs, tied[0], unwrap=unwrap)],
        )  # fmt: skip
        check_codes(plan, [one.codes_before_operations for one in opened])
        plan = with_possible_codes_said(plan, [one.codes for one in opened])
        plan = _with_files_said(plan, opened, folders)
        plan = _with_rows_checked(plan, folders, names, vocab)
        plan = with_model_files_pinned(plan, folders)
        return with_costs(replace(plan, inputs=PlanInputs(tuple(opened), None, memory=most)), most)


def _notes(ours: Checkpoint, theirs: Checkpoint, tied: Mapping[str, str], *, unwrap: bool) -> Iterator[str]:
    """Yield the notes on the tuned model ``ours`` and the base ``theirs``.

    ``tied`` maps the key of an output layer that the tuned model ties, and does not store, to its embedding's key.
    """
    opened = (ours, theirs)
    for one in opened:
        yield from notes_on(one, 2)
    yield from unwrap_notes(opened, asked=unwrap)
    yield from _lacking(ours, theirs, tied)
    yield from _other_encoding(opened)
    yield from _of_llama_cpp(theirs)
    yield from swapped_notes(ours, theirs)
    yield from unrelated_notes(theirs, [ours])


def _with_files_said(plan: Plan, opened: Sequence[Checkpoint], folders: Sequence[ModelFolder]) -> Plan:
    """Return the plan with notes on the files in the folders of both models."""
    plan = with_config_said(plan, folders, 1)
    beside = (
        with_prefix(f"{escape(one.path)}: ", note)
        for one, folder in zip(opened, folders, strict=True)
        for note in notes_beside(one, folder)
    )
    plan = with_sources_said(with_left_files_said(with_licences(plan, folders), folders[0]), opened, folders)
    return replace(plan, notes=tuple(dict.fromkeys((*plan.notes, *beside))))


def _with_rows_checked(plan: Plan, folders: Sequence[ModelFolder], names: Sequence[str], vocab: str | None) -> Plan:
    """Return ``plan`` with notes on rows of an embedding that belong to different tokens in the two models.

    ``names`` are the names of the tuned model and of the base. Raises PlanError for such rows, unless ``vocab`` is
    "place".
    """
    whole = any(step.factor is None and is_of_tokens(step.source_key, len(step.shape)) for step in plan.steps)
    listed = [with_embedded_tokens(one) for one in folders]
    said = token_note(listed[0], listed[1], (names[0], names[1]), whole=whole) if vocab is None or whole else []
    plan = checked_rows(plan, folders, remedy=EXTRACTED, allowed=vocab == PLACE)
    return replace(plan, notes=(*plan.notes, *said))


def _tied(folders: Sequence[ModelFolder], opened: Sequence[Checkpoint]) -> tuple[dict[str, str], dict[str, str]]:
    """Return two dicts, for the tuned model and for the base: {output layer that is tied and not stored: embedding}.

    Both the output layer and the embedding are given by their keys. A dict is empty if there is no such layer.
    """
    ours, theirs = (tied_head(folder, one) for folder, one in zip(folders, opened, strict=True))
    return ours, theirs


def _differing(
    ours: Checkpoint, theirs: Checkpoint, tied: Sequence[Mapping[str, str]], is_chosen: Callable[[str], bool]
) -> Iterator[str]:
    """Yield the keys of the tuned model ``ours`` whose tensors differ from those of the base ``theirs``.

    Keys that the base lacks are also yielded. All values are read. ``tied`` is the result of ``_tied``. Raises
    PlanError if the models have no key in common, or if a tensor cannot be read as numbers; if the user's patterns do
    not choose this tensor (``is_chosen``), it is left out instead.
    """
    from ...engine.compute.extracting_lora import differ
    from ...engine.prefetch import fetch_tensors

    if not any(key in theirs for key in ours):
        raise PlanError(
            f"{escape(ours.path)} and {escape(theirs.path)} have no key in common.",
            hint=layout_hint([(ours.path, ours), (theirs.path, theirs)])
            or "Give the base that the model was tuned from; add --unwrap if keys have prefixes such as module.",
        )
    tuned, base = with_tied(ours, tied[0]), with_tied(theirs, tied[1])
    shared = [key for key in tuned if key in base and comparable(tuned[key], base[key])]
    fetch_tensors((one, tensors[key]) for one, tensors in ((ours, tuned), (theirs, base)) for key in shared)
    for key, info in tuned.items():
        if info.opaque and not is_chosen(key):
            continue
        if info.opaque:
            raise PlanError(
                f"the tensor {escape(key)} of {escape(ours.path)} cannot be compared: {info.opaque}.",
                hint=f"Leave the tensor out: --exclude {escape(key)}.",
            )
        there = base.get(key)
        same = there is not None and not there.opaque and comparable(info, there)
        if there is None or not same or differ((info, ours), (there, theirs)):
            yield key


def _lacking(ours: Checkpoint, theirs: Checkpoint, tied: Mapping[str, str]) -> list[str]:
    lacking = [key for key in theirs if key not in ours and key not in tied]
    if not lacking:
        return []
    lacks = f"{escape(ours.path)} lacks {count(len(lacking), 'tensor')} of the base"
    return [f"{lacks}, which the adapter does not change: {listing(lacking, where='')}"]


def _other_encoding(opened: Sequence[Checkpoint]) -> list[str]:
    """Return a note if only one of the two models is quantised, so that all weights differ."""
    quantised = [one.stored is not None for one in opened]
    if quantised[0] == quantised[1]:
        return []
    names = [escape(one.path) for one in opened]
    coded, plain = names if quantised[0] else names[::-1]
    return [f"{coded} is quantised and {plain} is not: the adapter includes the rounding of {coded}"]


def _of_llama_cpp(base: Checkpoint) -> list[str]:
    """Return a note if the models are GGUF files, whose names PEFT does not know."""
    if not (base.header.stored and in_llama_cpp(base)):
        return []
    return [
        "the adapter has the names and layout of llama.cpp: ckpt lora merge can apply it to the GGUF file, but PEFT "
        "cannot load it; for PEFT, first convert both models with ckpt convert X.gguf --layout transformers"
    ]
