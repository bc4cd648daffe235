"""Transposed tensors: which groups are compared, and how many comparisons that takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest

from ckptsurgeon.analysis.match import module_groups, transposed
from ckptsurgeon.analysis.match.module_groups import Unit, units_of
from ckptsurgeon.analysis.match.names import Likeness
from ckptsurgeon.analysis.match.parts import NOTHING
from ckptsurgeon.analysis.match.propose import propose
from ckptsurgeon.tensors.info import TensorInfo

Tensors = dict[str, TensorInfo]
Shape = tuple[int, ...]


def word(number: int) -> str:
    """A word that no other number has."""
    return "".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz", k=8))


def one_shape(number: int) -> Shape:
    return 64, 128


def two_shapes(number: int) -> Shape:
    return ((64, 128), (128, 64))[number % 2]


def own_shape(number: int) -> Shape:
    return 64 + number, 128 + 2 * number


def pair(size: int, shape: Callable[[int], Shape]) -> tuple[Tensors, Tensors]:
    """Matrices with unique names, and the same with another prefix, transposed."""
    names = {word(number): shape(number) for number in range(size)}
    first = {f"{name}.weight": TensorInfo("float32", one) for name, one in names.items()}
    return first, {f"model.{name}.weight": TensorInfo("float32", one[::-1]) for name, one in names.items()}


def comparisons(size: int, shape: Callable[[int], Shape], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """How many groups are compared, and how many cells the matrices have that say which fit, summed over all."""
    counts = [0, 0]

    def counted(a: Unit, b: Unit) -> bool:
        counts[0] += 1
        return module_groups.fits(a, b)

    def zeros(shape: Any, *rest: Any) -> Any:
        counts[1] += prod(shape)
        return np.zeros(shape, *rest)

    source, destination = pair(size, shape)
    with monkeypatch.context() as patch:
        patch.setattr(transposed, "fits", counted)
        patch.setattr(
            module_groups, "np", type("Counted", (), {"zeros": staticmethod(zeros), "ix_": np.ix_, "bool_": np.bool_})
        )
        found = propose("a", source, "b", destination)
    assert found.notes[0].startswith(
        f"no rules are proposed for {size} matrices whose names correspond, because only one"
    )
    return counts[0], counts[1]


@pytest.mark.costly
@pytest.mark.parametrize("shape", [one_shape, two_shapes, own_shape])
def test_twice_the_tensors_take_twice_the_comparisons(
    shape: Callable[[int], Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (comparisons(size, shape, monkeypatch) for size in (100, 200))
    assert many[0] <= 2 * few[0] + 20
    assert many[1] <= 2 * few[1] + 20


WORDS = [word(number)[:4] for number in range(18)]
SHAPES = ((8, 16), (16, 8), (8, 8), (4, 8))


def some(draw: random.Random, size: int) -> list[Unit]:
    names = {".".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(size)}
    keys = [*(f"{name}.weight" for name in sorted(names)), "1.2", "权重", "偏置"]  # the last three have no words
    tensors = {key: TensorInfo("float32", draw.choice(SHAPES)) for key in keys}
    return units_of(tensors, "tensors", dict.fromkeys(tensors, NOTHING))


@pytest.mark.parametrize("seed", range(20))
def test_the_groups_that_are_left_out_are_less_similar(seed: int) -> None:
    """Of all groups that fit, those that are at least as similar as asked are among those that are compared."""
    draw = random.Random(seed)
    first, second = some(draw, 60), some(draw, 60)
    likeness = Likeness(first, second)
    rivals = transposed._Rivals(first)
    for unit in second:
        least = draw.random()
        near = {one for one in first if module_groups.fits(one, unit) and float(likeness([one], [unit])[0, 0]) >= least}
        assert near <= set(rivals.of(unit, likeness.telling(unit, least)))


def test_a_vector_among_numbered_kernels_stays_as_it_is() -> None:
    shapes = {"layers.0.mlp.up_proj": (16,), "layers.1.mlp.up_proj": (8, 16)}
    source = {f"{name}.kernel": TensorInfo("float32", shape) for name, shape in shapes.items()}
    found = propose("a", source, "b", {"layers.1.mlp.up_proj.weight": TensorInfo("float32", (16, 8))})
    assert found.names == {}
    assert found.notes[0].startswith("no rules are proposed for 1 matrix whose names")
