"""Checks that the files of a ZeRO folder belong together: their names, their ranks, their settings and their steps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ...errors import FormatError
from ...storage.read.base import File
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing
from ..torch.zero import StateFile
from .byte_samples import sample_of

__all__ = [
    "check_names",
    "check_ranks",
    "check_settings",
    "copy_notes",
    "lost_notes",
    "named_ranks",
    "rank_notes",
    "step_notes",
]

_NUMBER = re.compile(r"(?:.*_)?zero_pp_rank_(\d{1,6})_mp_rank_\d{2,6}_(?:model|optim)_states\.pt", re.DOTALL)
_EXPERTS = re.compile(r"layer_\d+_expert_\d+_mp_rank_|(?:bf16_|fp16_)?expp_rank_\d+_mp_rank_")
_LAYERS = re.compile(r"layer_\d+-model_")
_STEPS = ("global_steps", "global_samples")


def check_names(folder: str, names: Sequence[str]) -> None:
    """Raise FormatError if a folder has files of experts, or of layers of a pipeline, which are not joined."""
    # other experts than those of AutoEP: https://github.com/deepspeedai/DeepSpeed/issues/5716
    experts = (_EXPERTS, "experts that are split across ranks", ", which converts only experts that AutoEP split")
    for pattern, what, also in (experts, (_LAYERS, "the layers of a pipeline", "")):
        found = next((name for name in names if pattern.match(name)), "")
        if found:
            raise FormatError(
                f"{escape(folder)} has {what} ({escape(found)}), which cannot be read.",
                hint=f"Convert the checkpoint with DeepSpeed's ds_to_universal.py first{also}: ckpt reads the result.",
                rule="model parallel",
            )


def check_ranks(optimizers: Sequence[StateFile], ranks: int) -> None:
    """Raise FormatError if the names of the optimizer states have numbers, but not those from 0 to ``ranks`` - 1."""
    there = _numbers(optimizers)
    lacking = [str(rank) for rank in range(ranks) if rank not in there]
    if None not in there and lacking:
        names = listing([escape(one.file.name) for one in optimizers], 3, where="")
        raise FormatError(
            f"the optimizer states of {named_ranks(lacking)} are missing, and those of other ranks are there "
            f"twice, or are of another run ({ranks} ranks: {names}).",
            hint="Fetch the whole folder again.",
            rule="zero ranks",
        )


def check_settings(optimizers: Sequence[StateFile], states: Sequence[Mapping[Any, Any]]) -> None:
    """Raise FormatError if the optimizer states disagree on the stage of ZeRO or on the number of ranks."""
    for name, what in (("zero_stage", "stages of ZeRO"), ("partition_count", "numbers of ranks")):
        for one, state in zip(optimizers, states, strict=True):
            if state.get(name) != states[0].get(name):
                raise FormatError(
                    f"{escape(one.file.name)} and {escape(optimizers[0].file.name)} were saved with different {what}: "
                    "the files are not from the same run.",
                    hint="Fetch the whole folder again.",
                    rule="zero states",
                )


def rank_notes(models: Sequence[StateFile], ranks: int, *, frozen: bool) -> Iterator[str]:
    """Yield a note if model states of ranks are missing in stage 3; raises FormatError if weights are missing, too.

    In stage 3, the model states of each rank have its part of the parameters that are not trained. ``frozen`` is true
    if there are such parameters.
    """
    there = _numbers(models)
    lacking = [str(rank) for rank in range(ranks) if rank not in there]
    if None in there or not lacking:
        return
    said = f"the model states of {named_ranks(lacking)} are missing"
    if frozen:
        raise FormatError(
            f"{said}, so parts of the parameters that were not trained are missing.",
            hint="Fetch the whole folder again.",
            rule="zero ranks",
        )
    yield Note(NoteKind.SPLIT_TENSORS, f"{said} (the weights in the optimizer states are complete)")


def step_notes(models: Sequence[StateFile]) -> Iterator[str]:
    """Yield a note if the model states of the ranks were saved at different steps."""
    for name in _STEPS:
        found = {value: one.file.name for one in models if type(value := one.tree.get(name)) is int}
        if len(found) > 1:
            shown = ", ".join(f"{value} in {escape(file)}" for value, file in list(found.items())[:3])
            text = f"the model states of the ranks are of different steps ({name}: {shown}): are they of one run?"
            yield Note(NoteKind.SPLIT_TENSORS, text)
            return


def copy_notes(
    parts: Sequence[Mapping[str, TensorInfo]], files: Sequence[StateFile], handles: Mapping[str, File]
) -> Iterator[str]:
    """Yield a note if two ranks have equal values although each should have a different part.

    ``parts`` has the parts of each rank, ``files`` the file of each rank.
    """
    known: dict[tuple[object, ...], str] = {}
    copies = []
    for own, one in zip(parts, files, strict=True):
        sample = sample_of(own, handles)
        other = known.setdefault(sample, one.file.name) if sample else one.file.name
        if other != one.file.name:
            copies.append(f"{escape(one.file.name)} has the same values as {escape(other)}")
    if copies:
        text = f"{listing(copies, 3, where='')}: if it is a copy, the part of its own rank is missing"
        yield Note(NoteKind.SPLIT_TENSORS, text)


def lost_notes(model: StateFile, weights: Collection[str]) -> Iterator[str]:
    """Yield a note on tensors of the model states that are neither in ``weights`` nor in a list of the model states."""
    module = model.tree.get("module")
    tensors = module.items() if isinstance(module, Mapping) else ()
    lost = [key for key, info in tensors if isinstance(info, TensorInfo) and info.numel and key not in weights]
    if lost:
        text = (
            f"left out {count(len(lost), 'tensor')} of {escape(model.file.name)}, neither in the optimizer states nor "
            f"listed as buffers or as frozen: {listing([*map(str, lost)], where='')}"
        )
        yield Note(NoteKind.SPLIT_TENSORS, text)


def _numbers(files: Sequence[StateFile]) -> list[int | None]:
    """Return the rank in the name of each file; None if the name contains no rank."""
    found = [_NUMBER.fullmatch(one.file.name.rpartition("/")[2]) for one in files]
    return [int(one[1]) if one is not None else None for one in found]


def named_ranks(numbers: Sequence[str]) -> str:
    """Return the ranks for a message, such as "ranks 1, 3"."""
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {listing(numbers, 6, where='')}"
