"""The operations on moments are those of the gradients: autograd is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.planning.resizing.gradients import gradient_rows

from ...helpers.depth import examples_of


def changed(moment: str, row: dict[str, Any], value: torch.Tensor) -> torch.Tensor:
    """Return a moment after the operations that correspond to an operation on the weight ``w``."""
    cs.apply(cs.rename({f"{moment}.w": value}, operations=gradient_rows(row, moment)), "out.safetensors", force=True)
    return load_file("out.safetensors")[f"{moment}.w"]


def gradient_of_copies(weights: torch.Tensor, taken: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of rows, and those of their copies in a network that uses copies of a row alike."""
    weights = weights.requires_grad_()
    copies = weights.detach()[taken].requires_grad_()
    readers = torch.linspace(-1, 2, weights.numel()).reshape(weights.shape)
    times = torch.bincount(torch.tensor(taken), minlength=len(weights)).clamp(min=1)
    means = torch.zeros_like(weights).index_add(0, torch.tensor(taken), copies) / times[:, None]
    used = torch.zeros(len(weights), 1).index_fill(0, torch.tensor(taken), 1.0)
    ((readers * weights).tanh() * used).sum().backward()
    ((readers * means).tanh() * used).sum().backward()
    assert weights.grad is not None
    assert copies.grad is not None
    return weights.grad, copies.grad


def text(taken: list[int]) -> str:
    return ",".join(map(str, taken))


@examples_of(30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 3))
def test_rows_that_are_taken_share_the_gradient_among_their_copies(taken: list[int], block: int) -> None:
    of_rows = [index * block + at for index in taken for at in range(block)]
    torch.manual_seed(len(taken))
    before, after = gradient_of_copies(torch.randn(5 * block, 3), of_rows)
    row = {"take": "w", "dim": 0, "block": block, "indices": text(taken)}
    torch.testing.assert_close(changed("exp_avg", row, before), after)
    torch.testing.assert_close(changed("exp_avg_sq", row, before**2), after**2)


def test_columns_are_shared_as_rows_are() -> None:
    value = torch.arange(1.0, 7.0).reshape(2, 3)
    row = {"take": "w", "dim": 1, "indices": "2,0,2,1,1,1"}
    shares = torch.tensor([2, 1, 2, 3, 3, 3])
    wanted = value[:, [2, 0, 2, 1, 1, 1]] / shares
    torch.testing.assert_close(changed("exp_avg", row, value), wanted)
    torch.testing.assert_close(changed("exp_avg_sq", row, value**2), wanted**2)


def test_neighbours_with_equally_many_copies_are_scaled_together() -> None:
    row = {"take": "w", "dim": 0, "block": 2, "indices": "0..3,0..1,4"}
    assert gradient_rows(row, "exp_avg") == [
        {**row, "take": "exp_avg.w"},
        {"scale": "exp_avg.w", "by": 0.5, "dim": 0, "begin": 0, "end": 4},
        {"scale": "exp_avg.w", "by": 0.5, "dim": 0, "begin": 8, "end": 12},
    ]
    assert gradient_rows({**row, "indices": "3,1"}, "exp_avg") == [{**row, "take": "exp_avg.w", "indices": "3,1"}]
    assert gradient_rows({**row, "indices": "1,1"}, "exp_avg_sq")[1:] == [{"scale": "exp_avg_sq.w", "by": 0.25}]


@pytest.mark.parametrize(
    ("row", "first", "second"),
    [
        ({"tile": "w", "dim": 0, "times": 3}, [1 / 3, 2 / 3] * 3, [1 / 9, 4 / 9] * 3),
        ({"repeat": "w", "heads": 2, "to": 4}, [0.5, 0.5, 1, 1], [0.25, 0.25, 1, 1]),
        ({"scale": "w", "by": 0.5}, [2, 4], [4, 16]),
        ({"scale": "w", "by": 0.0}, [0, 0], [0, 0]),
        ({"shift": "w", "by": 1.0}, [1, 2], [1, 4]),
        ({"noise": "w", "dim": 0, "of": "0,0", "by": 0.1, "seed": 1}, [1, 2], [1, 4]),
        ({"pad": "w", "dim": 0, "size": 5}, [1, 2, 0, 0, 0], [1, 4, 1, 4, 1]),
    ],
)
def test_other_operations(row: dict[str, Any], first: list[float], second: list[float]) -> None:
    value = torch.tensor([1.0, 2.0])
    if gradient_rows(row, "exp_avg"):
        torch.testing.assert_close(changed("momentum_buffer", row, value), torch.tensor(first).float())
        torch.testing.assert_close(changed("exp_avg_sq", row, value**2), torch.tensor(second).float())
    else:
        assert (first, second) == (value.tolist(), (value**2).tolist())
