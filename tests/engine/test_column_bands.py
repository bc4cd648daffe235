"""A strip of columns is read from a band of columns, which is kept for the next strips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import column_bands
from ckptsurgeon.engine.compute.column_bands import BandedFiles
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.tensors.ops.regions import Array, Box

ROWS, COLUMNS = 64, 200


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An open file with a matrix of 32-bit words, of which a band has 16 columns."""
    monkeypatch.setattr(column_bands, "BAND_BYTES", 16 * ROWS * 4)
    save_file({"w": torch.arange(ROWS * COLUMNS, dtype=torch.int32).reshape(ROWS, COLUMNS)}, "w.safetensors")
    return cs.open_checkpoint("w.safetensors")


def counted(source: BandedFiles, info: cs.TensorInfo, box: Box, whole: Array) -> int:
    """How many parts of the file are read for one part of the matrix, whose values are checked."""
    reads: list[Box] = []

    def gather(part: Box) -> Array:
        reads.append(part)
        return whole[tuple(slice(*span) for span in part)].copy()

    assert np.array_equal(source.read(info, box, gather), whole[tuple(slice(*span) for span in box)])
    return len(reads)


def test_neighbouring_strips_are_read_from_the_file_once(stored: Any) -> None:
    info, source = stored["w"], BandedFiles(stored)
    whole = read_part(stored, info, ((0, ROWS), (0, COLUMNS)))
    strips = [((0, ROWS), (begin, begin + 4)) for begin in range(0, COLUMNS, 4)]
    assert [counted(source, info, box, whole) for box in strips] == [1, 0, 0, 0] * 12 + [1, 0]


def test_two_bands_are_kept_for_threads_that_are_not_in_step(stored: Any) -> None:
    info, source = stored["w"], BandedFiles(stored)
    whole = read_part(stored, info, ((0, ROWS), (0, COLUMNS)))
    reads = [counted(source, info, ((0, ROWS), (begin, begin + 4)), whole) for begin in (12, 16, 8, 20, 4, 32, 0)]
    assert reads == [1, 1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "box", [((0, 64), (0, 200)), ((3, 9), (0, 50)), ((3, 4), (7, 8)), ((0, 64), (14, 18)), ((5, 5), (1, 2))]
)
def test_other_parts_are_read_as_ever(box: Box, stored: Any) -> None:
    info, source = stored["w"], BandedFiles(stored)
    whole = read_part(stored, info, ((0, ROWS), (0, COLUMNS)))
    assert [counted(source, info, box, whole) for _ in range(2)] == [1, 1]
    assert np.array_equal(read_part(source, info, box), read_part(stored, info, box))


def test_what_is_kept_cannot_be_changed(stored: Any) -> None:
    strip = read_part(BandedFiles(stored), stored["w"], ((0, ROWS), (0, 4)))
    with pytest.raises(ValueError, match="read-only"):
        strip += 1
