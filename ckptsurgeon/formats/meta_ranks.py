"""Reads folders of Meta's Llama with a file for each rank: ``consolidated.00.pth`` and so on, and ``params.json``.

Follows ``llama_models/llama3/model.py``, and ``llama/model.py`` of Llama 1 and 2: the layers of fairscale split weights
along one dimension, and each rank stores the norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import FormatError, UnsafeError
from ..storage.read.base import Folder, Source
from ..tensors.composition import join
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import count, escape, listing
from ._open import open_header
from .base import limits
from .base.flatten import keys_with_tensors
from .base.header import Header
from .ranks.joining import equal_bytes, not_compared
from .torch.zero import StateFile

__all__ = ["FORMAT"]

_WHOLE_FOLDER = "Fetch the files of all ranks into one folder."
_FILE = re.compile(r"consolidated\.(\d{2})\.pth")
_SPLIT = re.compile(r"(?:^|\.)(?:wq|wk|wv|w1|w3|output|(?P<columns>wo|w2)|(?P<words>tok_embeddings))\.(?:weight|bias)$")
"""Matches weights that are split by rows, by columns (group ``columns``), or by one of both (group ``words``)."""
_WHOLE = re.compile(r"norm\b|norm_|_norm|(?:wo|w2)\.bias$|^rope\.freqs$")
"""Matches tensors that every rank has whole. Other tensors that are not in ``_SPLIT`` must be equal on all ranks."""


class _MetaRanks:
    name = "meta ranks"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has Meta's files of two ranks or more."""
        return isinstance(source, Folder) and len(_ranks(source)) > 1

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header, made from the files of all ranks; raises FormatError if the files do not fit together."""
        assert isinstance(source, Folder)
        names = _names(source)
        files: list[StateFile] = []
        try:
            for one in names:
                file = source.file(one)
                files.append(StateFile(file, open_header(file, one)))
            weights, notes = _joined(files)
        except BaseException:
            for opened in files:
                opened.file.close()
            raise
        return Header(
            format=self.name,
            tree=weights,
            files=tuple(file for one in files for file in one.header.files),
            handles={key: file for one in files for key, file in one.header.handles.items()},
            notes=(f"read as one model: {count(len(files), 'rank')} of tensor parallelism", *notes),
        )


def _ranks(folder: Folder) -> dict[int, str]:
    return {int(found[1]): name for name in folder.names() if (found := _FILE.fullmatch(name))}


def _names(folder: Folder) -> list[str]:
    """Return the names of the files of all ranks, in order.

    Raises FormatError if a file is missing, UnsafeError if there are too many.
    """
    found = _ranks(folder)
    lost = [f"consolidated.{rank:02d}.pth" for rank in range(max(found)) if rank not in found]
    if lost:
        raise FormatError(
            f"{escape(folder.uri)} lacks the files of some ranks: {listing(lost)}.", hint=_WHOLE_FOLDER, rule="ranks"
        )
    if len(found) > limits.RANKS:
        raise UnsafeError(
            f"{escape(folder.uri)} has {len(found)} ranks, more than the limit of {limits.RANKS}.", rule="ranks"
        )
    return [found[rank] for rank in sorted(found)]


def _joined(files: Sequence[StateFile]) -> tuple[dict[str, Any], list[Note]]:
    """Return the tensors of the whole model, and notes on tensors that differ and on entries that were left out.

    ``files`` has the file of each rank. Entries without tensors are those of the first rank. Raises FormatError if the
    files do not fit together, or have no tensors.
    """
    first, handles = files[0], {key: file for one in files for key, file in one.header.handles.items()}
    _check_keys(files)
    width = _width(first)
    _check_number(first, width, len(files))
    weights: dict[str, Any] = {}
    differing, unknown = [], []
    nested = keys_with_tensors(first.header.tree)
    for key, value in first.header.tree.items():
        infos = [one.header.tree[key] for one in files]
        if not isinstance(value, TensorInfo):
            weights |= {} if key in nested else {key: value}
            continue
        dim = _dimension(key, infos[0], width, len(files))
        if dim is None:
            equal = {equal_bytes(infos[0], info, handles) for info in infos}
            if equal != {True} and not _WHOLE.search(key):
                how = "differs between the ranks" if False in equal else "cannot be compared between the ranks"
                raise FormatError(
                    f"{escape(first.file.uri)}: {escape(key)} {how}, and ckpt does not know along which dimension it "
                    "is split.",
                    hint="Pass the file of a single rank to read its parts of the tensors.",
                    rule="rank part",
                )
            weights[key] = infos[0]
            differing += [key] if False in equal else []
            unknown += [key] if None in equal and False not in equal else []
            continue
        _check_alike(files, key)
        weights[key] = join(infos, dim)
    if not any(isinstance(info, TensorInfo) for info in weights.values()):
        raise FormatError(
            f"{escape(first.file.uri)} is not a dict of tensors, as Meta saves the part of a rank.", rule="rank state"
        )
    return weights, [*_notes(differing, [str(key) for key in nested]), *not_compared(unknown)]


def _check_keys(files: Sequence[StateFile]) -> None:
    """Raise FormatError if the ranks have different keys, or if only some of them have a tensor under a key."""
    first = files[0]
    for one in files:
        if not isinstance(one.header.tree, Mapping) or one.header.tree.keys() != first.header.tree.keys():
            raise FormatError(
                f"{escape(one.file.uri)} has other keys than {escape(first.file.uri)}: they are not ranks of one "
                "model.",
                rule="rank keys",
            )
    for key in first.header.tree:
        are_tensors = [isinstance(one.header.tree[key], TensorInfo) for one in files]
        if any(are_tensors) and not all(are_tensors):
            said = f"{escape(str(key))} is not a tensor here, but is one on rank {are_tensors.index(True)}"
            raise FormatError(f"{escape(files[are_tensors.index(False)].file.uri)}: {said}.", rule="rank part")


def _check_alike(files: Sequence[StateFile], key: str) -> None:
    """Raise FormatError if a rank's tensor ``key`` has another dtype or shape than that of the first rank."""
    first = files[0].header.tree[key]
    for one in files:
        info = one.header.tree[key]
        if (info.dtype, info.shape) != (first.dtype, first.shape):
            raise FormatError(
                f"{escape(one.file.uri)}: {escape(key)} is {info.dtype} {info.shape}, but {first.dtype} "
                f"{first.shape} on the first rank: they are not ranks of one model.",
                rule="rank shapes",
            )


def _notes(differing: Sequence[str], nested: Sequence[str]) -> Iterator[Note]:
    """Yield a note on tensors that should be equal but differ, and one on entries with tensors, which are not read."""
    if differing:
        what = f"{count(len(differing), 'tensor')} that should be equal on all ranks differ"
        said = f"{what}; those of the first rank are used: {listing(differing, where='')}"
        yield Note(NoteKind.SPLIT_TENSORS, said)
    if nested:
        said = f"left out, because ckpt does not join tensors in nested dicts and lists: {listing(nested, where='')}"
        yield Note(NoteKind.REMARK, said)


def _check_number(first: StateFile, width: int, ranks: int) -> None:
    """Raise FormatError if the first rank's attention weights show that there are more ranks than ``ranks``.

    In each of Meta's models, the heads of all ranks together are as wide as the model (``width``). So the width of one
    rank's heads gives the number of ranks.
    """
    infos = [first.header.tree.get(f"layers.0.attention.{name}.weight") for name in ("wq", "wo")]
    shapes = [info.shape for info in infos if isinstance(info, TensorInfo) and len(info.shape) == 2]
    if len(shapes) < 2 or shapes[0][0] != shapes[1][1] or not shapes[0][0]:
        return
    number, rest = divmod(width, shapes[0][0])
    if not rest and number > ranks:
        lost = [f"consolidated.{rank:02d}.pth" for rank in range(ranks, number)]
        raise FormatError(
            f"{escape(first.file.uri)} has 1/{number} of the heads, so there should be {number} ranks; missing: "
            f"{listing(lost)}.",
            hint=_WHOLE_FOLDER,
            rule="ranks",
        )


def _width(first: StateFile) -> int:
    """Return the width of the model: the size of its last norm, ``norm.weight``; 0 if the first file lacks it."""
    norm = first.header.tree.get("norm.weight")
    return norm.shape[0] if isinstance(norm, TensorInfo) and len(norm.shape) == 1 else 0


def _dimension(key: str, info: TensorInfo, width: int, ranks: int) -> int | None:
    """Return the dimension along which a tensor is split; None if every rank has the whole tensor.

    Llama 1 and 2 split the columns of the embedding, Llama 3 its rows. If a layer's matrix is split by columns, its
    bias is whole.
    """
    found = _SPLIT.search(key) if isinstance(key, str) else None
    if found is None or not info.shape:
        return None
    if found["words"]:
        return 1 if len(info.shape) == 2 and info.shape[1] * ranks == width else 0
    if found["columns"]:
        return 1 if len(info.shape) == 2 else None
    return 0


FORMAT = _MetaRanks()
