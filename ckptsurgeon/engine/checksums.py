"""Computes the CRC-32 of written bytes, and checks the checksums that are stored in a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from isal import isal_zlib

from ..checkpoint.checkpoint import Checkpoint
from ..errors import FormatError, VerifyError
from ..storage.crc32c import crc32c
from ..storage.read.base import File
from ..tensors.composition import leaves
from ..tensors.info import Storage, TensorInfo
from ..util.text import count, escape, listing

if TYPE_CHECKING:
    from ..planning.plan.plan import Plan

__all__ = [
    "bad_checksum",
    "check_range",
    "check_storage",
    "check_values",
    "checkable",
    "combine",
    "crc32",
    "recipe_notes",
]

BLOCK = 1 << 20
"""How many bytes are read at once: about the size of a core's cache."""

crc32 = isal_zlib.crc32
Sum: TypeAlias = Callable[[memoryview, int], int]


def combine(parts: Sequence[tuple[int, int]]) -> int:
    """Return the CRC-32 of consecutive parts of a file, given as (CRC-32, number of bytes) of each part."""
    total = 0
    for crc, length in parts:
        total = isal_zlib.crc32_combine(total, crc, length)
    return total


def checkable(source: Checkpoint, info: TensorInfo) -> Iterator[tuple[File, Storage]]:
    """Yield (file, storage) for each storage of a tensor's values that has a checksum in the file."""
    for leaf in leaves(info):
        if leaf.storage is not None and leaf.storage.has_checksum:
            yield source.file(leaf), leaf.storage


def check_values(source: Checkpoint, info: TensorInfo) -> None:
    """Raise FormatError if a storage that contains values of the tensor has a wrong checksum.

    A storage that was checked before, for another tensor, is not read again.
    """
    for file, storage in checkable(source, info):
        if storage not in source.checked:
            check_storage(file, storage)
            source.checked.add(storage)


def check_storage(file: File, storage: Storage) -> None:
    """Raise FormatError if the bytes of a storage do not match a checksum that the file contains for them."""
    for expected, sum_of in ((storage.crc32, crc32), (storage.crc32c, crc32c)):
        if expected is not None and check_range(file, storage.offset, storage.nbytes, sum_of) != expected:
            raise bad_checksum(file, storage.name)


def bad_checksum(file: File, name: str) -> FormatError:
    """Return the error for a part of a file that does not match the checksum stored in the file."""
    return FormatError(
        f"{escape(file.uri)}: {escape(name)} does not match its checksum: the file is damaged.", rule="crc"
    )


def check_range(file: File, offset: int, nbytes: int, sum_of: Sum = crc32) -> int:
    """Return the CRC-32 of ``nbytes`` bytes of a file that begin at ``offset``; they are read block by block.

    ``sum_of`` may compute a different checksum: it is called with a block and the checksum of all bytes before it.
    """
    buffer = memoryview(bytearray(min(BLOCK, nbytes)))
    crc, done = 0, 0
    while done < nbytes:
        view = buffer[: min(BLOCK, nbytes - done)]
        file.readinto(offset + done, view)
        crc, done = sum_of(view, crc), done + len(view)
    return crc


def recipe_notes(plan: Plan, sources: Sequence[Checkpoint], written: Mapping[str, int]) -> Iterator[str]:
    """Yield a note on each source whose copied tensors do not have the checksums in the source's own recipe.

    ``written`` has the CRC-32 of each written tensor, so no tensor is read for this. Tensors that were not copied are
    not compared.
    """
    for number, source in enumerate(sources):
        copied = {
            step.source_key: written[step.key]
            for step in plan.steps
            if step.kind == "copied" and step.source == number and not step.tied_to and step.key in written
        }
        made = _recorded(source) if copied else {}
        decoded = {one.name for one in source.stored.codes.tensors} if source.stored is not None else set()
        made = {key: crc for key, crc in made.items() if key not in decoded}  # these were written as codes
        bad = [key for key, crc in copied.items() if key in source and made.get(source.stored_key(key), crc) != crc]
        if bad:
            joined = any(source[key].made is not None for key in bad)
            what = "the values, or how their parts are joined, were" if joined else "the values were"
            have = "has another checksum" if len(bad) == 1 else "have other checksums"
            yield (
                f"{count(len(bad), 'copied tensor')} of {escape(source.path)} {have} than in its recipe: "
                f"{listing([escape(key) for key in bad])}: {what} changed after ckpt wrote them"
            )


def _recorded(source: Checkpoint) -> dict[str, int]:
    """Return {key: CRC-32} for the tensors in the recipe of a source; {} if it has no recipe that can be read."""
    if source.recipe is None or source.passed:
        return {}
    from ..planning.recipe import parse_recipe

    with suppress(VerifyError):
        return {key: one.crc32 for key, one in parse_recipe(source.recipe).tensors.items() if not one.implied}
    return {}
