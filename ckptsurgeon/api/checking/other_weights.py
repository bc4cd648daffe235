"""Compares the weights of a model with a second copy in its folder: model.safetensors with pytorch_model.bin."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import open_checkpoint
from ...errors import CheckpointError, FormatError
from ...storage.read.base import Folder
from ...storage.read.uri import scheme_of
from ...tensors.dtypes import DTYPES
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import notes_of
from ...util.text import count, escape, listing
from ..model_folder.weights.required_parts import BUFFER

__all__ = ["OTHER_WEIGHTS", "other_weight_notes"]

OTHER_WEIGHTS = "has other weights than"
COPIES = (
    ("model.safetensors", "pytorch_model.bin"), ("adapter_model.safetensors", "adapter_model.bin"),
    ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
)  # fmt: skip
"""Pairs of files with the same weights, of which libraries load only one. Instead of a file, there may be an index."""
INDEX = ".index.json"
Content: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""The dtype and the shape of a tensor, and some bytes from its middle."""
TENSORS, BYTES = 64, 4096
"""The largest number of tensors that are compared, and of bytes that are compared in the middle of each tensor."""


@notes_of(NoteKind.OTHER_WEIGHTS)
def other_weight_notes(checkpoint: Checkpoint, folder: Folder) -> Iterator[str]:
    """Yield a note on each file in a local folder with a second copy of the weights that differs from the first copy.

    transformers loads model.safetensors, but older versions and other programs load pytorch_model.bin. Tensors that are
    in both copies are compared: their shapes, and, if dtype and shape are equal, some of their values. A copy with
    another dtype gets no note. If most keys are in both copies, floating-point tensors that only one copy has are
    reported, too. The exceptions are buffers, tensors that equal another tensor of their copy (they may be tied), and
    tensors that the other copy has under another name. There is also a note on a second file that cannot be read.
    """
    read = {file.name for file in checkpoint.header.files}
    if scheme_of(checkpoint.path) or not read:
        return
    for name in _copies(read, folder):
        try:
            opened = open_checkpoint(os.path.join(folder.uri, name))
        except FormatError as error:
            if not name.endswith(INDEX):  # shards in an index are often not fetched
                yield f"a second file of weights cannot be read: {error.message.rstrip('.')}"
            continue
        except CheckpointError:
            continue
        with suppress(CheckpointError), opened as other:
            ours, theirs = set(checkpoint) - set(checkpoint.ties), set(other) - set(other.ties)
            shared = sorted(ours & theirs)
            differing = [key for key in shared if checkpoint[key].shape != other[key].shape]
            differing += [key for key in _spread(checkpoint, other, shared) if _differ(checkpoint, other, key)]
            mine, its = (
                {key: _content(one, key) for key in _lone(one, keys, shared)}
                for one, keys in ((checkpoint, ours - theirs), (other, theirs - ours))
            )
            lone = [_without_values(mine, {*its.values()}), _without_values(its, {*mine.values()})]
            said = [f"{count(len(differing), 'tensor')} {_are(differing, 'differs', 'differ')}: {listing(differing)}"]
            said += [
                f"{count(len(keys), 'tensor')} {_are(keys, 'is', 'are')} only in {file}: {listing(keys)}"
                for keys, file in zip(lone, (_named(read), escape(name)), strict=True)
            ]
            if some := [one for one, keys in zip(said, (differing, *lone), strict=True) if keys]:
                yield f"{escape(name)} {OTHER_WEIGHTS} {_named(read)}: {'; '.join(some)}"


def _without_values(contents: Mapping[str, Content], values: Container[Content]) -> list[str]:
    return [key for key, content in contents.items() if content not in values]


def _are(keys: list[str], one: str, several: str) -> str:
    return one if len(keys) == 1 else several


def _lone(checkpoint: Checkpoint, keys: set[str], shared: list[str]) -> list[str]:
    """Return the keys of weights in ``checkpoint`` that another copy lacks; [] if the two copies share few keys.

    ``keys`` are all keys that the other copy lacks, and ``shared`` the keys that both copies have. Buffers are left
    out, and tensors that equal a shared tensor, because they may be tied to it.
    """
    if len(shared) < len(keys):
        return []
    weights = [
        key for key in sorted(keys)
        if checkpoint[key].is_plain and DTYPES[checkpoint[key].dtype].kind == "float" and not BUFFER.search(key)
    ]  # fmt: skip
    forms = {_form(checkpoint[key]) for key in weights}
    alike = [key for key in shared if checkpoint[key].is_plain and _form(checkpoint[key]) in forms]
    same = {_content(checkpoint, key) for key in alike}
    return [key for key in weights if _content(checkpoint, key) not in same]


def _copies(read: set[str], folder: Folder) -> Iterator[str]:
    """Yield the names of files, or of their indexes, that may be a second copy of the weights.

    ``read`` are the names of the files from which the weights were read.
    """
    names = set(folder.names())
    for pair in COPIES:
        for name, other in (pair, pair[::-1]):
            stem, _, suffix = name.rpartition(".")
            if any(one == name or (one.startswith(f"{stem}-") and one.endswith(suffix)) for one in read):
                yield from [one for one in (other, other + INDEX) if one in names][:1]


def _spread(one: Checkpoint, other: Checkpoint, keys: list[str]) -> list[str]:
    """Return some keys, evenly spread, of tensors that have the same dtype and shape in both checkpoints."""
    alike = [key for key in keys if _form(one[key]) == _form(other[key]) and one[key].is_plain and other[key].is_plain]
    return alike[:: len(alike) // TENSORS + 1]


def _content(checkpoint: Checkpoint, key: str) -> Content:
    return *_form(checkpoint[key]), _middle(checkpoint, checkpoint[key])


def _form(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return info.dtype, info.shape


def _differ(one: Checkpoint, other: Checkpoint, key: str) -> bool:
    """Return whether some bytes in the middle of a tensor differ between two checkpoints."""
    return _middle(one, one[key]) != _middle(other, other[key])


def _middle(checkpoint: Checkpoint, info: TensorInfo) -> bytes:
    assert info.storage is not None  # plain tensors are stored
    size = min(BYTES, info.nbytes)
    begin = info.storage.offset + info.offset + (info.nbytes - size) // 2
    return bytes(checkpoint.file(info).read(begin, size))


def _named(read: set[str]) -> str:
    weights = [one for one in read if not one.endswith(INDEX)]
    return escape(weights[0]) if len(weights) == 1 else f"the {len(weights)} shards"
