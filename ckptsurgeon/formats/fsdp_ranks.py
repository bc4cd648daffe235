"""Reads folders with one file per rank of FSDP: state dicts whose tensors are DTensors or ShardedTensors.

With FSDP2, and in trainers such as verl, every rank saves the state dict of its own part of the model (``torch.save``).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import FormatError
from ..storage.read.base import Folder, Source
from ..util.text import count, escape
from ._open import read_header
from .base.header import Header
from .base.sharded_writer import folder_frame, folder_recipe
from .ranks.rank_files import has_rank_files, rank_files
from .torch.rank_writer import FsdpWriter
from .torch.zero import StateFile

__all__ = ["FORMAT"]


class _FsdpRanks:
    name = "fsdp ranks"
    magic: tuple[bytes, ...] = ()
    writer = FsdpWriter()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has files of ranks, such as ``model_world_size_8_rank_3.pt``."""
        return isinstance(source, Folder) and has_rank_files(source.names())

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all ranks; raises FormatError if the files do not fit together."""
        from .ranks.joining import RankJoiner

        assert isinstance(source, Folder)
        found = rank_files(source)
        files: list[StateFile] = []
        try:
            for inner in found.names:
                files.append(_state(source, inner))
            joiner = RankJoiner(files)
            tree = joiner.tree()
        except BaseException:
            for one in files:
                one.file.close()
            raise
        whole = "" if joiner.joined else "; none of their tensors is split across ranks"
        return Header(
            format=self.name,
            tree=tree,
            files=tuple(file for one in files for file in one.header.files),
            handles={key: file for one in files for key, file in one.header.handles.items()},
            recipe=folder_recipe(source),
            notes=(f"read as one model: the files of {count(len(files), 'rank')}{whole}", *found.notes, *joiner.notes),
            frame=lambda: folder_frame(source, {one.file.name: one.header.frame() for one in files}),
        )


def _state(folder: Folder, name: str) -> StateFile:
    """Return the open file of one rank with its header; raises FormatError if its content is not a state dict."""
    file = folder.file(name)
    try:
        header = read_header(file, name)
        if not isinstance(header.tree, Mapping):
            raise FormatError(f"{escape(file.uri)} is not the state dict of a rank.", rule="rank state")
    except BaseException:
        file.close()
        raise
    return StateFile(file, header)


FORMAT = _FsdpRanks()
