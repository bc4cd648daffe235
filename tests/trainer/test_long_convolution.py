"""Long grouped convolutions as matrix products: the values and gradients of torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d
from torch.utils.checkpoint import checkpoint

import ckptsurgeon.trainer.system.long_convolution as long_convolution
from ckptsurgeon.trainer.system.flops import FlopCounter
from ckptsurgeon.trainer.system.long_convolution import grouped_convolution, use_matrix_products


def nearly(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [1, 7, 16])
@pytest.mark.parametrize(
    ("batch", "inner", "out", "time", "kernel", "groups", "padding"),
    [
        (2, 8, 8, 50, 32, 2, 16), (3, 12, 6, 33, 33, 3, 16), (1, 4, 4, 32, 32, 2, 0), (2, 6, 12, 7, 40, 3, 20),
        (2, 4, 4, 100, 35, 4, 3), (1, 2, 2, 1, 32, 2, 16),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_a_convolution(
    batch: int, inner: int, out: int, time: int, kernel: int, groups: int, padding: int, block: int
) -> None:  # fmt: skip
    shapes = ((batch, inner, time), (out, inner // groups, kernel), (out,))
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = conv1d(*given, padding=padding, groups=groups)
    found = grouped_convolution(*given, padding=padding, groups=groups, block=block)
    assert nearly(found, expected)
    ahead = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(found, given, ahead), torch.autograd.grad(expected, given, ahead), strict=True)
    assert all(nearly(*pair) for pair in pairs)
    without = grouped_convolution(given[0], given[1], None, padding=padding, groups=groups)
    assert nearly(without + given[2][:, None], expected)


def test_autocast_decides_the_dtype() -> None:
    inputs, weight = torch.randn(2, 4, 40), torch.randn(4, 2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = grouped_convolution(inputs, weight, None, padding=16, groups=2)
        theirs = conv1d(inputs, weight, padding=16, groups=2)
    assert found.dtype == theirs.dtype == torch.bfloat16
    # In bfloat16, torch 2.13's own convolution is wrong on processors with AMX: by up to 21 of 8 here.
    rounded = conv1d(inputs.bfloat16().float(), weight.bfloat16().float(), padding=16, groups=2)
    assert torch.allclose(found.float(), rounded, rtol=2**-6, atol=2**-4)


@pytest.mark.long
def test_gradients_in_bf16_are_rounded_once() -> None:
    """As sums of bf16 numbers, the gradients of the weights would be 0.6 % off, and those of the inputs 0.5 %."""
    torch.manual_seed(0)
    given = [torch.randn(3, 96, 300), torch.randn(96, 12, 128)]
    ahead = torch.randn(3, 96, 301)

    def gradients(convolution: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs, weight = (one.bfloat16().to(dtype).requires_grad_() for one in given)
        found = convolution(inputs, weight, None, padding=64, groups=8)
        return [one.double() for one in torch.autograd.grad(found, (inputs, weight), ahead.bfloat16().to(dtype))]

    found, exact = gradients(grouped_convolution, torch.bfloat16), gradients(conv1d, torch.float64)
    for one, other in zip(found, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.003


def test_a_model_on_a_cpu_is_as_it_was() -> None:
    layer = nn.Conv1d(4, 4, 32, groups=2, padding=16)
    inputs = torch.randn(2, 4, 40)
    before = layer(inputs)
    assert torch.equal(use_matrix_products(nn.Sequential(layer))(inputs), before)


@pytest.mark.parametrize(
    ("layer", "is_chosen"),
    [
        (nn.Conv1d(4, 4, 32, groups=2, padding=16), True),
        (nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 32, groups=2)), True),
        (nn.Conv1d(4, 4, 31, groups=2), False),
        (nn.Conv1d(4, 4, 32), False),
        (nn.Conv1d(4, 4, 32, groups=2, stride=2), False),
        (nn.Conv1d(4, 4, 32, groups=2, dilation=2), False),
        (nn.Conv1d(4, 4, 32, groups=2, padding="same"), False),
        (nn.Conv1d(4, 4, 32, groups=2, padding=4, padding_mode="circular"), False),
        (nn.Conv2d(4, 4, 32, groups=2), False),
    ],
    ids=["long", "with weight norm", "short", "one group", "strides", "dilated", "same", "circular", "in two dimensions"],
)  # fmt: skip
def test_which_layers_are_chosen(layer: nn.Module, *, is_chosen: bool) -> None:
    use_matrix_products(layer)
    assert ("forward" in vars(layer)) == is_chosen


def test_a_chosen_layer_gives_what_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a CPU takes the way of a GPU."""
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(6, 6, 40, groups=3, padding=20)).double()
    inputs = torch.randn(2, 6, 50, dtype=torch.float64)
    expected = layer(inputs)
    called = []

    def computed(*args: object, **options: object) -> Tensor:
        called.append(options)
        return grouped_convolution(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(long_convolution, "grouped_convolution", computed)
    monkeypatch.setattr(long_convolution, "KIND", "cpu")
    use_matrix_products(layer)
    assert nearly(layer(inputs), expected)
    assert called == [{"padding": 20, "groups": 3}]
    assert layer(inputs[0]).shape == expected[0].shape  # a single example is left to torch
    assert len(called) == 1


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(("of_inputs", "of_weight"), [(True, True), (False, True), (True, False), (False, False)])
def test_operations_are_those_of_the_convolution(
    of_inputs: bool, of_weight: bool, is_checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Conv1d(6, 6, 32, groups=3, padding=16)
    layer.weight.requires_grad_(of_weight)
    inputs = torch.randn(2, 6, 50, requires_grad=of_inputs)

    def counted() -> list[int]:
        with FlopCounter() as counter:
            found = checkpoint(layer, inputs, use_reentrant=False) if is_checkpointed else layer(inputs)
            forwards = counter.flops
            found.sum().backward()
        return [forwards, counter.flops]

    expected = counted()
    monkeypatch.setattr(long_convolution, "KIND", "cpu")
    use_matrix_products(layer)
    assert counted() == expected
    assert expected[0] == 2 * 2 * 51 * 6 * 2 * 32
