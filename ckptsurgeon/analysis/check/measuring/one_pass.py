"""Reads all values in one pass, with a few threads, and returns the figures of each tensor."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from threading import Event, Lock, Thread

import numpy as np

from ....checkpoint.checkpoint import Checkpoint
from ....engine.checksums import combine
from ....tensors.dtypes import BLOCK_EXPONENTS, BLOCK_SCALES
from ....tensors.info import TensorInfo
from ....tensors.ops.regions import Array
from .alike_rows import alike_rows
from .blocks import Block, BlockFigures, blocks_of, is_measured, measured_block
from .byte_scales import EXPONENTS
from .figures import Workspace, added
from .measured import Measured, Rows
from .repeats import has_words, repeats, step_of

__all__ = ["measure"]

THREADS = 4
"""The largest number of threads; more threads do not read faster."""
FLOATS = ("float16", "float32", "bfloat16")
"""The dtypes of matrices whose rows can be measured."""

Progress = Callable[[int, int], None]


def measure(
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    by_row: Sequence[str],
    progress: Progress | None = None,
    *,
    meanwhile: Callable[[], object] | None = None,
) -> dict[str, Measured]:
    """Read all tensors and return their figures (counts, extremes, sums) by key; shared bytes are read only once.

    ``by_row`` are the keys of matrices whose rows are also measured. ``progress`` is called with (bytes read, total
    bytes). ``meanwhile`` is called once, while other threads read. The result does not depend on the number of threads.
    Raises SourceError if a file cannot be read.
    """  # fmt: skip
    first = {info.place: key for key, info in reversed(list(tensors.items())) if info.place is not None}
    own = {key: info for key, info in tensors.items() if is_measured(info) and first.get(info.place, key) == key}
    whole = sum(info.nbytes for info in own.values())
    if any(file.remote for file in checkpoint.open_files().values()):
        from ....engine.prefetch import fetch_keys

        fetch_keys(checkpoint, own)
    step, codes = step_of(whole), {one.codes for one in checkpoint.codes.tensors}
    cut = (
        one
        for key, info in own.items()
        for one in blocks_of(
            key,
            info,
            by_row=_has_rows(key, info, by_row),
            step=step if has_words(info, is_code=key in codes) else 0,
        )
    )
    found = _in_threads(checkpoint, cut, _counter(progress, whole), meanwhile or (lambda: None))
    measured = {key: _together(checkpoint, own[key], found[key]) for key in own}
    words = {key: [one.words for one in some if one.words is not None] for key, some in found.items()}
    for repeat in repeats(checkpoint, own, words, step):
        key = repeat.keys[0]
        measured[key] = replace(measured[key], repeats=(*measured[key].repeats, repeat))
    return _with_aliases(tensors, first, _with_digests(checkpoint, own, measured))


def _has_rows(key: str, info: TensorInfo, by_row: Sequence[str]) -> bool:
    return key in by_row and info.dtype in FLOATS


def _counter(progress: Progress | None, whole: int) -> Callable[[int], None]:
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, whole)

    return count


def _in_threads(
    checkpoint: Checkpoint, cut: Iterator[Block], count: Callable[[int], None], meanwhile: Callable[[], object]
) -> dict[str, list[BlockFigures]]:
    """Return the figures (counts, extremes, sums) of the blocks of each tensor, in the order of the blocks.

    ``cut`` yields the blocks; ``count`` is called with the number of bytes of each measured block, and ``meanwhile``
    once, in this thread.
    """
    slots: dict[str, list[BlockFigures | None]] = defaultdict(list)
    lock, is_stopped, errors = Lock(), Event(), list[BaseException]()

    def work() -> None:
        try:
            measure_blocks()
        except BaseException as error:  # stops the other threads
            is_stopped.set()
            errors.append(error)

    def measure_blocks() -> None:
        space = Workspace()
        with np.errstate(over="ignore", invalid="ignore"):  # entered once, because entering takes time
            while (taken := take()) is not None:
                block, place, number = taken
                figures = measured_block(checkpoint, block, space)
                with lock:
                    place[number] = figures
                    count(figures.nbytes)

    def take() -> tuple[Block, list[BlockFigures | None], int] | None:
        with lock:
            block = None if is_stopped.is_set() else next(cut, None)
            if block is None:
                return None
            place = slots[block.key]
            place.append(None)
            return block, place, len(place) - 1

    _run([Thread(target=work, name="measure") for _ in range(_threads())], is_stopped, meanwhile)
    if errors:
        raise errors[0]
    return {key: [one for one in place if one is not None] for key, place in slots.items()}


def _threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _run(threads: Sequence[Thread], is_stopped: Event, meanwhile: Callable[[], object]) -> None:
    """Start threads, call ``meanwhile`` in the calling thread, and wait until all threads have ended.

    An error in the calling thread, such as Ctrl-C, stops the other threads.
    """
    try:
        for one in threads:
            one.start()
        meanwhile()
        for one in threads:
            one.join()
    except BaseException:
        is_stopped.set()
        for one in threads:
            if one.ident is not None:  # it was started
                one.join()
        raise


def _together(checkpoint: Checkpoint, info: TensorInfo, found: Sequence[BlockFigures]) -> Measured:
    figures = [one.figures for one in found if one.figures is not None]
    totals = [one.totals for one in found if one.totals is not None]
    squares = [one.squares for one in found if one.squares is not None]
    return Measured(
        figures=reduce(added, figures) if figures else None,
        crc32=combine([(one.crc32, one.nbytes) for one in found]),
        nbytes=sum(one.nbytes for one in found),
        rows=_rows(checkpoint, info, np.concatenate(totals), np.concatenate(squares)) if totals else None,
        is_of_scales=info.dtype in BLOCK_SCALES or info.dtype in BLOCK_EXPONENTS,
        dtype=EXPONENTS if info.dtype in BLOCK_EXPONENTS else info.dtype,
    )


def _rows(checkpoint: Checkpoint, info: TensorInfo, totals: Array, squares: Array) -> Rows:
    return Rows(squares, alike_rows(checkpoint, info, totals, squares))


def _with_digests(
    checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], measured: dict[str, Measured]
) -> dict[str, Measured]:
    """Add a digest to each tensor with the same size and CRC-32 as another tensor; only such tensors are read again."""
    alike: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for key, one in measured.items():
        alike[tensors[key].dtype, one.nbytes, one.crc32].append(key)
    for keys in alike.values():
        if len(keys) > 1:
            for key in keys:
                measured[key] = replace(measured[key], digest=_digest(checkpoint, key, tensors[key]))
    return measured


def _digest(checkpoint: Checkpoint, key: str, info: TensorInfo) -> str:
    found = hashlib.blake2b(digest_size=16)
    if not info.is_plain:
        return ""
    space = Workspace()
    for block in blocks_of(key, info, by_row=False):
        view = space.bytes.data[: block.nbytes]
        checkpoint.file(info).readinto(block.offset, view)
        found.update(view)
    return found.hexdigest()


def _with_aliases(
    tensors: Mapping[str, TensorInfo], first: Mapping[object, str], measured: Mapping[str, Measured]
) -> dict[str, Measured]:
    """Return the measured figures in the order of ``tensors``; tied tensors get the figures of their first key.

    ``first`` maps a position in a file to the first key with a tensor at this position. ``measured`` has the figures
    of these keys.
    """
    return {
        key: measured[owner]
        for key, info in tensors.items()
        if (owner := first.get(info.place, key) if info.place is not None else key) in measured
    }
