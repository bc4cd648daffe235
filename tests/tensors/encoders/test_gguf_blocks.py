"""Blocks of GGUF: the same bits as ggml, llama.cpp's own library, makes of the same weights (`make oracle-gguf`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptsurgeon.tensors.composition import blocked
from ckptsurgeon.tensors.decoders.gguf import _TYPES, values_of_blocks
from ckptsurgeon.tensors.dtypes import BLOCKS, OF_SHORT_ROWS, ROUNDED
from ckptsurgeon.tensors.encoders._encode import encode
from ckptsurgeon.tensors.encoders._k_blocks import _total
from ckptsurgeon.tensors.encoders._losses import RoundingLoss
from ckptsurgeon.tensors.info import TensorInfo
from ckptsurgeon.tensors.ops.regions import Array, Box

RECORDED = Path(__file__).parents[3] / "fixtures/golden/gguf/blocks.npz"
KINDS = [kind for kind in ROUNDED if kind != "mxfp4"]


def rounded(values: Array, kind: str, box: Box | None = None) -> tuple[Array, list[RoundingLoss]]:
    """The bytes to which a weight is rounded, or the part ``box`` of them, and its losses."""
    info, losses = blocked(TensorInfo("float32", values.shape), kind, "w"), list[RoundingLoss]()

    def read(_: TensorInfo, part: Box) -> Array:
        found: Array = values[tuple(slice(*span) for span in part)]
        return found

    return encode(read, info, box or tuple((0, size) for size in info.shape), measured=losses.append), losses


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_ggml(kind: str) -> None:
    with np.load(RECORDED) as found:
        values, wanted = found["values"], found[kind]
    made, losses = rounded(values, kind)
    assert np.array_equal(made.reshape(wanted.shape), wanted)
    meant = values_of_blocks(wanted, kind).reshape(values.shape)
    assert sum(one.squares for one in losses) == pytest.approx(float(((meant - values) ** 2.0).sum()), rel=1e-4)


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_does_not_depend_on_the_blocks_beside_it(kind: str) -> None:
    """Sums of one block alone are added in another order by numpy, unless they are added row by row."""
    with np.load(RECORDED) as found:
        values = found["values"].reshape(2, -1)
    whole, _ = rounded(values, kind)
    for at in range(0, whole.shape[1], 17):
        part, _ = rounded(values, kind, ((1, 2), (at, at + 3)))
        assert np.array_equal(part, whole[1:2, at : at + 3])
    last = 256 // BLOCKS[kind][0] * BLOCKS[kind][1]
    for row in (0, 1):
        assert np.array_equal(rounded(values[row : row + 1, -256:], kind)[0], whole[row : row + 1, -last:])


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("groups", [8, 9, 64, 1000, 16384])
def test_the_numbers_of_a_group_are_added_one_after_another(size: int, groups: int) -> None:
    rows = np.random.default_rng(groups).standard_normal((size, groups), dtype=np.float32)
    wanted = rows[0].copy()
    for row in rows[1:]:
        wanted += row
    assert np.array_equal(_total(rows), wanted)
    assert not np.array_equal(np.add.reduce(np.ascontiguousarray(rows.T), 1), wanted)  # another order rounds otherwise


def test_what_is_decoded_can_be_encoded() -> None:
    assert set(_TYPES) == set(ROUNDED)
    assert set(OF_SHORT_ROWS) == {kind for kind in ROUNDED if BLOCKS[kind][0] == 256}
    assert all(BLOCKS[other][0] == 32 and other in ROUNDED for other in OF_SHORT_ROWS.values())
