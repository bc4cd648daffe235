"""Compares the bytes of a checkpoint with the checksums in its files and in ckptsurgeon's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...checkpoint.checkpoint import Checkpoint
from ...engine.checksums import check_storage, checkable
from ...errors import CheckpointError, FormatError, VerifyError
from ...formats.base.header import seal_of
from ...formats.base.sharded_writer import RECIPE_FILE, folder_recipe
from ...tensors.info import Storage, TensorInfo
from .measuring.measured import Measured

if TYPE_CHECKING:
    from ...planning.recipe import RecipeEntry

__all__ = ["Checksums", "RecipeSums", "checked_sums", "recipe_sums"]


@dataclass(frozen=True)
class Checksums:
    """The number of records (such as zip entries) with a stored checksum; ``bad`` are the names of damaged records.

    A record is damaged if its bytes do not match its checksum. ``keys`` are the keys of the tensors in these records.
    """

    number: int = 0
    bad: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


def checked_sums(checkpoint: Checkpoint, measured: Mapping[str, Measured]) -> Checksums:
    """Compare the checksums that the checkpoint's files store with the bytes, and return the result.

    ``measured`` has the CRC-32 of each tensor. If a record (such as a zip entry) consists of one tensor, the tensor's
    CRC-32 is used. Other records are read again.
    """
    seen: dict[Storage, bool] = {}
    keys: dict[Storage, list[str]] = {}
    for key, info in checkpoint.items():
        for file, storage in checkable(checkpoint, info):
            keys.setdefault(storage, []).append(key)
            one = measured.get(key)
            if storage.crc32 is not None and storage.crc32c is None and one is not None and _fills(info, storage):
                seen[storage] = one.crc32 == storage.crc32
            elif storage not in seen:
                try:
                    check_storage(file, storage)
                    seen[storage] = True
                except FormatError:
                    seen[storage] = False
    bad = [storage for storage, is_right in seen.items() if not is_right]
    inside = tuple(dict.fromkeys(key for storage in bad for key in keys[storage]))
    return Checksums(len(seen), tuple(storage.name for storage in bad), inside)


def _fills(info: TensorInfo, storage: Storage) -> bool:
    return info.storage is storage and info.is_plain and info.offset == 0 and info.nbytes == storage.nbytes


# The checksums in the recipe of an output.


@dataclass(frozen=True)
class RecipeSums:
    """The tensors of an output compared with the checksums in its recipe.

    ``place`` says where the recipe is. ``number`` is the number of tensors that were compared. ``bad`` has the keys of
    tensors whose CRC-32 differs from the CRC-32 in the recipe. ``file`` is the file with all tensors in ``bad``, '' if
    they are in several files. ``more`` are keys that the recipe lacks, ``fewer`` keys that only the recipe has.
    ``is_other`` is true if the recipe seems to describe other weights, so that its checksums say nothing about damage.
    ``is_unsealed`` is true if all tensors match the recipe, but the bytes outside the tensors do not match its seal (a
    digest of these bytes). ``fault`` is the reason if the recipe cannot be read.
    """

    place: str = ""
    number: int = 0
    bad: tuple[str, ...] = ()
    file: str = ""
    more: tuple[str, ...] = ()
    fewer: tuple[str, ...] = ()
    is_other: bool = False
    is_unsealed: bool = False
    fault: str = ""


def recipe_sums(checkpoint: Checkpoint, measured: Mapping[str, Measured]) -> RecipeSums:
    """Compare a checkpoint with the checksums in its recipe: a CRC-32 of each tensor, and a seal.

    The seal is a digest of all bytes outside the tensors. ``measured`` has the CRC-32 of each tensor. If a shard is
    opened alone, the recipe in its folder is used. Nothing is compared if there is no recipe, or if the file has
    several state dicts.
    """
    beside = _recipe_beside(checkpoint)
    text = beside if checkpoint.recipe is None and checkpoint.elsewhere else checkpoint.recipe
    if text is None or checkpoint.passed:
        return RecipeSums()
    from ...planning.recipe import parse_recipe

    place = RECIPE_FILE if text == beside else "the recipe in the file"
    try:
        found = _compared(checkpoint, parse_recipe(text).tensors, measured)
    except VerifyError as error:
        return RecipeSums(place, fault=error.said)
    is_none_right = text == beside and len(found.bad) == found.number
    is_other = bool(found.more or found.fewer or (found.bad and (is_none_right or not _is_sealed(checkpoint))))
    is_unsealed = not (is_other or found.bad or _is_sealed(checkpoint))
    return replace(found, place=place, is_other=is_other, is_unsealed=is_unsealed)


def _compared(checkpoint: Checkpoint, made: Mapping[str, RecipeEntry], measured: Mapping[str, Measured]) -> RecipeSums:
    """Compare the CRC-32s of the tensors in ``measured`` with the CRC-32s in ``made``, the entries of a recipe.

    If a shard is opened alone, the recipe may have more tensors than the shard; these are not listed in ``fewer``.
    """
    sums = {key: one.crc32 for key, one in made.items() if not one.implied}
    here = {checkpoint.stored_key(key): one.crc32 for key, one in measured.items()}
    compared = [key for key in here if key in sums]
    bad = tuple(key for key in compared if here[key] != sums[key])
    stored = checkpoint.unwrapped(stripped=())
    more = tuple(key for key in stored if key not in made)
    fewer = tuple(key for key in sums if key not in stored) if checkpoint.recipe is not None else ()
    files = {storage.file for key in bad if (storage := stored[key].storage) is not None}
    return RecipeSums("", len(compared), bad, files.pop() if len(files) == 1 else "", more, fewer)


def _recipe_beside(checkpoint: Checkpoint) -> str | None:
    """Return the text of the recipe in the folder of a checkpoint; None if there is none, or if it cannot be read."""
    with suppress(CheckpointError):
        return folder_recipe(checkpoint.around) if checkpoint.around is not None else None
    return None


def _is_sealed(checkpoint: Checkpoint) -> bool:
    """Return whether the seal of the recipe, a digest of all bytes outside the tensors, matches the checkpoint.

    Also returns True if the seal cannot be compared, because a shard is opened alone. Only the bytes outside the
    tensors are read.
    """
    return checkpoint.recipe is None or checkpoint.header.frame() == seal_of(checkpoint.recipe)
