"""Rereads an output and compares it with its recipe, its plan and its sources, bit for bit."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.values.value_notes import is_said_not_finite
from ...engine.prefetch import fetch_tensors
from ...errors import CheckpointError, FormatError
from ...planning.plan.plan import Plan
from ...planning.plan.receipt import OutputNote, Verification
from ...planning.recipe import Recipe
from ...tensors.info import TensorInfo
from ...util.text import escape, listing
from .differences import BLOCK, first_different_byte, reader
from .expected import Check, Expected, check_plan
from .other_files import companion_faults, other_files, signature_faults
from .values import check_values, left_out

__all__ = ["relabelled_notes", "verify_output"]

# Finds tensors that were drawn at random according to the recipe, but equal tensors of a source.

PROBE = 4096
"""This many bytes at the beginning of each tensor are compared before the rest is read."""

Named = tuple[Checkpoint, str]
Kind = tuple[str, tuple[int, ...]]
"""A dtype and a shape."""


def relabelled_notes(check: Check, keys: Iterable[str]) -> Iterator[OutputNote]:
    """Yield a note for each tensor that was drawn according to the recipe, but equals a tensor of a local source.

    Only tensors in ``keys`` are checked. Constant tensors are skipped, because every model has tensors of zeros
    and ones. Tensors are compared by digests, of their first bytes and then of all bytes, so the cost is linear in
    their number.
    """
    drawn = [key for key in keys if check.expected.tensors[key].source is None]
    kinds = {_kind(check.output[key]) for key in drawn}
    alike = _by_probe(check.expected.sources.values(), kinds) if kinds else {}
    contents: dict[tuple[Kind, bytes], dict[bytes, Named]] = {}
    for key in drawn if alike else ():
        info = check.output[key]
        found = _kind(info), _probe(check.output, info)
        if found not in alike:
            continue
        content = _content(check.output, info)
        if content is None:
            continue
        if found not in contents:
            contents[found] = _by_content(alike[found])
        if content in contents[found]:
            source, name = contents[found][content]
            yield OutputNote(
                key, f"was drawn at random according to the recipe, but equals {escape(name)} of {escape(source.path)}"
            )


def _kind(info: TensorInfo) -> Kind:
    return info.dtype, info.shape


def _by_probe(sources: Iterable[Checkpoint], kinds: set[Kind]) -> dict[tuple[Kind, bytes], list[Named]]:
    """Return the tensors of local sources, grouped by dtype, shape and a digest of their first bytes.

    Only tensors with a dtype and shape in ``kinds`` are read. Remote sources are skipped, to avoid downloads.
    """
    found: dict[tuple[Kind, bytes], list[Named]] = {}
    for source in sources:
        if any(file.remote for file in source.open_files().values()):
            continue
        for key, info in source.items():
            if _kind(info) in kinds:
                found.setdefault((_kind(info), _probe(source, info)), []).append((source, key))
    return found


def _by_content(candidates: Sequence[Named]) -> dict[bytes, Named]:
    found: dict[bytes, Named] = {}
    for source, key in candidates:
        content = _content(source, source[key])
        if content is not None:
            found.setdefault(content, (source, key))
    return found


def _probe(source: Checkpoint, info: TensorInfo) -> bytes:
    """Return a digest of a tensor's first bytes; b'' if they cannot be read, which is reported elsewhere."""
    if not info.opaque:
        with suppress(CheckpointError):
            data = reader(source, info)(0, min(PROBE, info.nbytes))
            return hashlib.blake2b(data, digest_size=16).digest()
    return b""


def _content(source: Checkpoint, info: TensorInfo) -> bytes | None:
    """Return a digest of a tensor's bytes; None if all its values are the same, or if they cannot be read."""
    if info.opaque:
        return None
    digest, first, single = hashlib.sha256(), b"", True
    with suppress(CheckpointError):
        read = reader(source, info)
        for begin in range(0, info.nbytes, BLOCK):
            data = bytes(read(begin, min(BLOCK, info.nbytes - begin)))
            first = first or data[: info.itemsize]
            single = single and data == first * (len(data) // len(first))
            digest.update(data)
        return None if single else digest.digest()
    return None


def verify_output(
    output: Checkpoint,
    expected: Expected,
    *,
    plan: Plan | None = None,
    sample: int | None = None,
    key_file: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check every byte of an output: header and metadata, all checksums, all copied and computed tensors, all ties.

    ``expected`` is the expected content of the output. If a ``plan`` is given, the output's recipe must also agree with
    the plan. A tensor whose source is missing is checked only by its checksum, and reported as NOT COMPARED. Tensors
    that were drawn at random are checked only by their checksums. ``sample`` is the number of merged tensors to compute
    again, None for all. If a ``key_file`` is given, the output must be signed with its key. ``progress`` is called with
    (bytes done, bytes in all).
    """
    began = time.perf_counter()
    total = 2 * sum(info.nbytes for info in output.values())
    check = Check(output, expected, progress or (lambda done, total: None), total, left_out(expected.tensors, sample))
    if expected.seal and output.header.frame() != expected.seal:
        check.fail("", "the header or metadata has changed since the output was written")
    for fault in companion_faults(output.path, expected.said.target.companions) if expected.said is not None else ():
        check.fail("", fault)
    unsigned = list(signature_faults(output, key_file)) if key_file else []
    for fault in unsigned:
        check.fail("", fault)
    _check_keys(check)
    if plan is not None:
        check_plan(check, plan)
    keys = [key for key in expected.tensors if key in output]
    with suppress(FormatError):  # reported when each tensor is read
        fetch_tensors(_read(check, keys), check.progress)
    for key in keys:
        try:
            check_values(check, key)
        except CheckpointError as error:
            check.fail(key, error.said)
    _check_ties(check)
    return Verification(
        output=output.path,
        checked=len(keys),
        compared=check.compared,
        drawn=check.drawn,
        near=check.near,
        products=check.products,
        failed=tuple(check.failed),
        not_compared=check.not_compared,
        nan=check.nan,
        inf=check.inf,
        nbytes=_nbytes(output, expected.said),
        elapsed_s=time.perf_counter() - began,
        recipe=expected.has_checksums,
        notes=(*relabelled_notes(check, keys), *_unsound(check), *other_files(output, expected.said)),
        signed=not unsigned if key_file else None,
    )


def _unsound(check: Check) -> Iterator[OutputNote]:
    """Yield a note on tensors with NaN or infinite values, except tensors that the output's own notes already name."""
    if keys := [key for key in check.unsound if not is_said_not_finite(key, check.output.notes)]:
        yield OutputNote(check.output.path, f"NaN or infinite values: {listing(keys)}")


def _read(check: Check, keys: Sequence[str]) -> Iterator[tuple[Checkpoint, TensorInfo | None]]:
    """Yield (checkpoint, header) of each tensor of an output, then of the source tensors that it is compared with.

    The header is None if a source lacks the tensor.
    """
    sources = check.expected.sources
    for key in keys:
        yield check.output, check.output[key]
        made = check.expected.tensors[key]
        named = [(made.source, made.source_key), *made.more, (check.expected.keeper, key)]
        for index, name in named if key not in check.left_out else ():
            if index is not None and index in sources:
                yield sources[index], sources[index].get(name)


def _nbytes(output: Checkpoint, said: Recipe | None) -> int:
    """Return the size of an output in bytes: its weights, its companions and, for a folder, its recipe."""
    beside = len(output.recipe.encode()) if output.recipe and os.path.isdir(output.path) else 0
    beside += sum(one.size for one in said.target.companions) if said is not None else 0
    return beside + sum(file.size for file in output.files)


def _check_keys(check: Check) -> None:
    for key, made in check.expected.tensors.items():
        if (key in check.output) == made.implied:
            why = "is in the output, but was left out by the recipe" if made.implied else "is not in the output"
            check.fail(key, why)
    made_by = "plan" if check.expected.said is None else "recipe"
    for key in check.output:
        if key not in check.expected.tensors:
            check.fail(key, f"is in the output, but not in the {made_by}")


def _check_ties(check: Check) -> None:
    """Check that tied keys have the same bytes; record a failure for each key that differs."""
    for key, made in check.expected.tensors.items():
        if not made.tied_to or key not in check.output or made.tied_to not in check.output:
            continue
        info, owner = check.output[key], check.output[made.tied_to]
        if info.place == owner.place:
            continue
        where = first_different_byte(check.output, info, check.output, owner)
        if where is not None:
            check.fail(key, f"is tied to {escape(made.tied_to)}, but differs from it at byte {where}")
