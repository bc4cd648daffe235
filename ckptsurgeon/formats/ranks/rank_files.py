"""Finds the files of the ranks in a folder by their names, and makes notes on the folder's other files.

verl names the file of a rank ``model_world_size_8_rank_3.pt`` (``verl/utils/checkpoint/fsdp_checkpoint_manager.py``).
Other trainers leave out the number of ranks: ``pytorch_model_fsdp_rank3.bin`` (``accelerate/utils/fsdp_utils.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ...errors import CheckpointError, FormatError
from ...storage.read.base import Folder
from ...util.text import count, escape, listing
from ..base import limits
from ..base.untrusted import parse_json

__all__ = ["RankFiles", "has_rank_files", "rank_files"]

_NAMED = re.compile(r"(.*?)[-_.]?(?:world_size_(\d{1,6})_)?rank_?(\d{1,6})\.(?:pt|pth|bin)", re.DOTALL)
_MODEL = ("model", "pytorch_model_fsdp", "pytorch_model", "fsdp_model", "checkpoint", "state_dict")
"""Prefixes of the names of files with weights; files with optimizer states, for example, have other prefixes."""
_CONFIG = "fsdp_config.json"
"""verl's file in the same folder, with the number of ranks of the last run that saved into the folder."""


@dataclass(frozen=True)
class RankFiles:
    """The files of the ranks of one run, in the order of the ranks, and ``notes`` on other files in the folder."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def has_rank_files(names: Sequence[str]) -> bool:
    """Return whether ``names``, the files of a folder, include a file with the weights of one rank."""
    return bool(_groups(names))


def rank_files(folder: Folder) -> RankFiles:
    """Return the files of the ranks in a folder, which must have at least one such file.

    Raises FormatError if the file of a rank is missing, if a rank has two files, or if the folder has the files of two
    runs and it is unclear which run to read.
    """
    groups = _groups(folder.names())
    chosen = next(iter(groups))
    notes = []
    if len(groups) > 1:
        said = _said(folder)
        fitting = [group for group in groups if group[1] == said and said]
        shown = [
            f"{count(len(found), 'file')} such as {escape(next(iter(found.values())))}" for found in groups.values()
        ]
        if len(fitting) != 1:
            raise FormatError(
                f"{escape(folder.uri)} has the files of several runs: {listing(shown)}.",
                hint="Move the files of one run to another folder.",
                rule="several runs",
            )
        (chosen,) = fitting
        left = [name for group, found in groups.items() if group != chosen for name in found.values()]
        notes.append(f"read the files of {said} ranks, as {_CONFIG} says, and not {listing(left, 1, where='')}")
    found = groups[chosen]
    double = next((name for name in folder.names() if _group(name) == chosen and name not in found.values()), "")
    if double:
        raise FormatError(
            f"{escape(folder.uri)} has two files for the same rank, such as {escape(double)}.",
            hint="Move one of the two files to another folder.",
            rule="ranks",
        )
    ranks = chosen[1] or max(found) + 1
    if ranks > limits.RANKS or max(found) >= ranks:
        why = f"the run has {count(ranks, 'rank')}"
        if ranks > limits.RANKS:
            why = f"at most {limits.RANKS:,} ranks can be read"
        raise FormatError(f"{escape(folder.uri)} has the file {escape(found[max(found)])}, but {why}.", rule="ranks")
    missing = [rank for rank in range(ranks) if rank not in found]
    if missing:
        raise FormatError(
            f"{escape(folder.uri)} has the files of {len(found)} of {count(ranks, 'rank')}: "
            f"{_numbers(missing)} missing (found {escape(next(iter(found.values())))}).",
            hint="Fetch the whole folder again, or copy the missing files from the machines that wrote them.",
            details=[f"rank {rank}" for rank in missing],
            rule="ranks",
        )
    others = _others(folder.names(), {name for group in groups.values() for name in group.values()})
    if others:
        notes.append(f"left out other files of the ranks, such as states of optimizers: {listing(others, 2, where='')}")
    return RankFiles(tuple(found[rank] for rank in range(ranks)), tuple(notes))


def _groups(names: Sequence[str]) -> dict[tuple[str, int], dict[int, str]]:
    """Return the files with weights, grouped by run: {(prefix of the file names, number of ranks): {rank: file name}}.

    The number of ranks is 0 if the names do not contain it.
    """
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        group, found = _group(name), _NAMED.fullmatch(name)
        if group is not None and found is not None:
            groups.setdefault(group, {}).setdefault(int(found[3]), name)
    return groups


def _group(name: str) -> tuple[str, int] | None:
    """Return (prefix, number of ranks) from the name of a rank's file with weights; None for other files.

    The number of ranks is 0 if the name does not contain it.
    """
    found = _NAMED.fullmatch(name)
    return (found[1], int(found[2] or 0)) if found is not None and found[1] in _MODEL else None


def _numbers(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"the file of rank {ranks[0]} is"
    return f"the files of ranks {listing([str(rank) for rank in ranks], 6, where='')} are"


def _others(names: Sequence[str], own: set[str]) -> list[str]:
    return [name for name in names if name not in own and _NAMED.fullmatch(name)]


def _said(folder: Folder) -> int:
    """Return the number of ranks that the folder's ``fsdp_config.json`` gives; 0 if it cannot be read or gives none."""
    with suppress(CheckpointError, ValueError):
        file = folder.file(_CONFIG)
        try:
            found = parse_json(file.read(0, file.size)) if file.size <= limits.BESIDE_BYTES else None
        finally:
            file.close()
        ranks = found.get("world_size") if isinstance(found, dict) else 0
        return ranks if type(ranks) is int else 0
    return 0
