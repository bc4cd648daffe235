"""Tensors made of others are what torch makes of them, whatever is read of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.checkpoint.checkpoint import Checkpoint
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.tensors import composition as c
from ckptsurgeon.tensors.info import TensorInfo

from ..helpers.depth import examples_of

Pair = tuple[TensorInfo, torch.Tensor]


def stored(shape: tuple[int, ...], strided: bool) -> tuple[Checkpoint, Pair]:
    """Return a stored tensor, contiguous or not, as a header and as torch has it."""
    whole = torch.arange(float(math.prod(shape))).reshape(shape)
    tensor = whole.reshape(shape[::-1]).permute(*reversed(range(len(shape)))) if strided else whole
    torch.save({"w": tensor}, "w.pth")
    checkpoint = open_checkpoint("w.pth")
    return checkpoint, (checkpoint["w"], tensor)


def cut(pair: Pair, dim: int, begin: int, size: int) -> Pair:
    return c.cut(pair[0], dim, begin, size), pair[1].narrow(dim, begin, size)


def permute(pair: Pair, dims: tuple[int, ...]) -> Pair:
    return c.permute(pair[0], dims), pair[1].permute(dims)


def reshape(pair: Pair, shape: tuple[int, ...]) -> Pair:
    return c.reshape(pair[0], shape), pair[1].reshape(shape)


def join(pairs: list[Pair], dim: int) -> Pair:
    return c.join([info for info, _ in pairs], dim), torch.cat([tensor for _, tensor in pairs], dim)


def factors(number: int) -> list[tuple[int, ...]]:
    """All shapes of one to three dimensions with ``number`` elements."""
    pairs = [(a, number // a) for a in range(1, number + 1) if number % a == 0]
    return [(number,), *pairs, *((a, b, number // a // b) for a, _ in pairs for b, _ in pairs if number % (a * b) == 0)]


@pytest.mark.long
@examples_of(150)
@given(st.data())
def test_any_chain_of_operations_reads_as_torch_has_it(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    checkpoint, pair = stored(shape, data.draw(st.booleans()))
    for _ in range(data.draw(st.integers(1, 5))):
        shape = tuple(pair[1].shape)
        op = data.draw(st.sampled_from(["cut", "permute", "reshape", "join", "scale"]))
        dim = data.draw(st.integers(0, len(shape) - 1))
        if op == "cut":
            begin = data.draw(st.integers(0, shape[dim]))
            pair = cut(pair, dim, begin, data.draw(st.integers(0, shape[dim] - begin)))
        elif op == "permute":
            pair = permute(pair, tuple(data.draw(st.permutations(range(len(shape))))))
        elif op == "reshape" and 0 not in shape:
            pair = reshape(pair, data.draw(st.sampled_from(factors(math.prod(shape)))))
        elif op == "join" and math.prod(shape) < 200:
            pair = join(
                [pair, permute(permute(pair, tuple(reversed(range(len(shape))))), tuple(reversed(range(len(shape)))))],
                dim,
            )
        elif op == "scale":
            pair = c.scale(pair[0], 0.5), pair[1] * 0.5
    info, tensor = pair
    assert info.shape == tuple(tensor.shape)
    box = tuple(sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size)))) for size in info.shape)
    wanted = tensor[tuple(slice(*ends) for ends in box)].numpy()
    got = read_part(checkpoint, info, tuple((a, b) for a, b in box))
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, wanted)


def test_views_of_what_is_stored_stay_what_is_stored() -> None:
    """So that they are copied as they are: a split of the first dimension needs no computing."""
    _, (info, _) = stored((6, 4), strided=False)
    assert c.cut(info, 0, 2, 2).is_plain
    assert c.cut(info, 0, 2, 2).offset == 2 * 4 * 4
    assert c.reshape(c.cut(info, 0, 2, 2), (8,)).is_plain
    assert c.permute(c.permute(info, (1, 0)), (1, 0)).is_plain
    assert c.permute(info, (1, 0)).stride == (1, 4)
    assert c.cut(info, 1, 1, 2).made is None
    split = c.reshape(c.permute(info, (1, 0)), (2, 2, 6))
    assert (split.made, split.stride) == (None, (2, 1, 4))
    assert c.reshape(c.permute(info, (1, 0)), (24,)).made is not None


def test_a_made_tensor_is_read_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a transposed and reshaped tensor reads little more than the part."""
    import ckptsurgeon.engine.compute.reading as reading

    checkpoint, pair = stored((512, 512), strided=False)
    info, tensor = reshape(permute(pair, (1, 0)), (512 * 512,))
    sizes = []
    read = reading._read_stored
    monkeypatch.setattr(reading, "_read_stored", lambda *args: sizes.append(read(*args).size) or read(*args))
    got = read_part(checkpoint, info, ((1000, 3000),))
    np.testing.assert_array_equal(got, tensor[1000:3000].numpy())
    assert sum(sizes) == 2000


def test_sparse_parts_of_another_shape_are_not_read_with_all_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import ckptsurgeon.engine.compute.derived as derived
    import ckptsurgeon.engine.compute.reading as reading

    monkeypatch.setattr(derived, "SMALL_ELEMENTS", 16)
    checkpoint, pair = stored((64, 64), strided=False)
    info, tensor = reshape(permute(pair, (1, 0)), (64, 8, 8))
    sizes = []
    read = reading._read_stored
    monkeypatch.setattr(reading, "_read_stored", lambda *args: sizes.append(read(*args).size) or read(*args))
    got = read_part(checkpoint, info, ((3, 60), (2, 3), (0, 1)))
    np.testing.assert_array_equal(got, tensor[3:60, 2:3, 0:1].numpy())
    assert sum(sizes) == 57


def test_the_checkpoint_gives_made_tensors_as_torch_has_them() -> None:
    from ckptsurgeon.checkpoint.materialise import materialise

    checkpoint, pair = stored((4, 6), strided=False)
    info, tensor = join([cut(reshape(permute(pair, (1, 0)), (2, 12)), 1, 3, 4), reshape(pair, (2, 12))], 1)
    assert torch.equal(materialise(checkpoint, "w", info), tensor)
    assert torch.equal(materialise(checkpoint, "w", c.scale(info, 0.25)), tensor * 0.25)


def test_rows_are_made_of_rows_unless_a_tensor_is_transposed() -> None:
    _, (plain, _) = stored((6, 8), strided=False)
    rows = c.join([c.scale(plain, 0.5), c.noisy(c.take(plain, 1, [(0, 4), (0, 4)]), 1, [(0, 4), (0, 4)], 0.1, 0)], 0)
    assert all(map(c.is_rowwise, (plain, c.cut(plain, 1, 2, 3), rows, c.reshape(rows, (4, 3, 8)), c.shift(rows, 1.0))))
    turned = c.permute(plain, (1, 0))
    others = (turned, c.scale(turned, 2.0), c.permute(rows, (1, 0)), c.reshape(turned, (48,)), c.averaged(rows, 0))
    assert not any(map(c.is_rowwise, others))
    assert not c.is_rowwise(c.total([turned, turned]))
