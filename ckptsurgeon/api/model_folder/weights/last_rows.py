"""A note on the last tokens of a list if their embedding rows are zeros, as if tokens were inserted before them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ....checkpoint.checkpoint import Checkpoint
from ....errors import CheckpointError
from ....planning.transplant.by_place import is_embedding
from ....tensors.dtypes import DTYPES
from ....tensors.info import TensorInfo
from ....util.text import count, escape, listing
from ....vocabulary.placeholders import is_placeholder
from ..documents import BYTE_PAIRS
from ..folder import ModelFolder
from ..tokenizer.tokenizer_files import SPECIAL, added_tokens, brief_token, local_tokens, named_tokens

__all__ = ["is_readable", "last_row_notes", "token_embedding", "token_embeddings"]

_MOST = 64
"""The most rows before the end of a token list that are read."""
_WIDEST = 1 << 20
"""The largest row, in bytes, that is read."""
_PADDING = "pad_token_id"


def last_row_notes(checkpoint: Checkpoint, folder: ModelFolder) -> Iterator[str]:
    """Yield a note if ordinary tokens at the end of a folder's token list have rows of zeros, and others do not.

    If tokens are inserted into the list but not into the embedding, each later token has the row of another, and the
    last ones have rows of padding, which often are zeros. Special and added tokens, placeholders such as
    ``[unused12]`` and the padding token may have rows of zeros. Of most models, one row is read: the last one.
    """
    if not folder.vocabulary or folder.vocabulary in BYTE_PAIRS or checkpoint.elsewhere:
        return
    with suppress(CheckpointError):
        found = token_embedding(checkpoint)
        if found is None or not _is_zero(checkpoint, *found, found[1].shape[0] - 1):
            return
        key, info = found
        tokens = local_tokens(folder)
        if not 0 < len(tokens) <= info.shape[0] or folder.token_list is None or not folder.token_list.is_whole:
            return
        zero, is_all = _of_zeros(checkpoint, key, info, _ordinary(folder, tokens))
        if zero and not (is_all and _is_zero(checkpoint, key, info, len(tokens) // 2)):
            named = listing([brief_token(tokens[one]) for one in reversed(zero)], 3, where="")
            many = f"{'at least ' if is_all else ''}{count(len(zero), 'token')}"
            has = "has a row" if len(zero) == 1 else "have rows"
            said = f"{many} at the end of {escape(folder.vocabulary)} {has} of zeros in {escape(key)}: {named}"
            yield f"{said}; perhaps tokens were inserted before, so that each later token has the row of another"


def token_embedding(checkpoint: Checkpoint) -> tuple[str, TensorInfo] | None:
    """Return the key and the header of the embedding with most rows; None if it is quantised or cannot be read."""
    found = token_embeddings(checkpoint)
    return (found[0], checkpoint[found[0]]) if found and is_readable(checkpoint, found[0]) else None


def token_embeddings(checkpoint: Checkpoint) -> list[str]:
    """Return the keys of all embeddings, those with most rows first."""
    found = {key: info.shape[0] for key, info in checkpoint.items() if is_embedding(key) and _is_matrix(key, info)}
    return sorted(found, key=lambda one: -found[one])


def is_readable(checkpoint: Checkpoint, key: str) -> bool:
    """Return whether single rows of a matrix can be read: it is not quantised, and in a local file."""
    info = checkpoint[key]
    coded = any(key in one.parts.values() for one in checkpoint.codes.tensors)
    if coded or not info.is_plain or info.nbytes % info.shape[0] or info.nbytes // info.shape[0] > _WIDEST:
        return False
    file = checkpoint.file(info)
    return not (file.remote or file.closed)


def _is_matrix(key: str, info: TensorInfo) -> bool:
    return "position" not in key and len(info.shape) == 2 and info.numel > 0 and DTYPES[info.dtype].kind == "float"


def _is_zero(checkpoint: Checkpoint, key: str, info: TensorInfo, row: int) -> bool:
    """Return whether all bytes of a row are 0; a row with -0.0 counts as other than zeros."""
    size = info.nbytes // info.shape[0]
    begin = (info.storage.offset if info.storage is not None else 0) + info.offset
    data = checkpoint.file(info).read(begin + row * size, size)
    return bytes(data) == bytes(size)


def _of_zeros(checkpoint: Checkpoint, key: str, info: TensorInfo, ordinary: Iterator[int]) -> tuple[list[int], bool]:
    """Return those ids at the beginning of ``ordinary`` whose rows are zeros, and whether all ids are among them."""
    zero = list[int]()
    for one in ordinary:
        if not _is_zero(checkpoint, key, info, one):
            return zero, False
        zero.append(one)
    return zero, True


def _ordinary(folder: ModelFolder, tokens: tuple[str, ...]) -> Iterator[int]:
    """Yield the ids of ordinary tokens among the last tokens of a list, from the end."""
    others = {*added_tokens(folder), *named_tokens(folder).values()}
    padding = set(_padding(folder.config))
    for one in range(len(tokens) - 1, max(len(tokens) - _MOST, 0) - 1, -1):
        token = tokens[one]
        if not (one in padding or token in others or SPECIAL.fullmatch(token) or is_placeholder(token)):
            yield one


def _padding(config: Mapping[str, Any]) -> Collection[Any]:
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    return [one for part in parts if type(one := part.get(_PADDING)) is int]
