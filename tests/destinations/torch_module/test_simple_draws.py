"""Tensors that one operation fills are drawn without the module, in pieces: bit for bit what the module draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ckptsurgeon.destinations.torch_module import simple_draws
from ckptsurgeon.destinations.torch_module.module import module_target
from ckptsurgeon.planning.target import Draw, TargetSpec
from ckptsurgeon.tensors.info import TensorInfo


class Filled(nn.Module):
    """Tensors that are filled in every way that torch's modules know."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.uniform = nn.Linear(48, 37, dtype=dtype)
        self.odd = nn.Linear(7, 5, dtype=dtype)
        self.normal = nn.Parameter(torch.empty(40, 6, 4, dtype=dtype).normal_(0.5, 0.02))
        self.norm = nn.BatchNorm1d(24, dtype=dtype)
        self.flat = nn.Parameter(torch.empty(640, dtype=dtype).normal_())
        self.ragged = nn.Parameter(torch.empty(45, dtype=dtype).normal_())
        self.strided = nn.Parameter(torch.empty(16, 32, dtype=dtype).t().normal_())
        self.scalar = nn.Parameter(torch.empty((), dtype=dtype).normal_())
        self.padded = nn.Embedding(32, 16, padding_idx=0, dtype=dtype)
        self.halved = nn.Parameter(torch.empty(32, 16, dtype=dtype).normal_() / 2)
        self.turned = nn.Parameter(torch.empty(16, 32, dtype=dtype).normal_().t())
        self.again = nn.Parameter(self.flat.detach().clone())
        both = torch.empty(64, dtype=dtype).normal_()
        self.first, self.second = nn.Parameter(both[:32]), nn.Parameter(both[32:])
        nn.init.trunc_normal_(truncated := nn.Parameter(torch.empty(16, 16, dtype=dtype)))
        self.truncated = truncated


NOT_SIMPLE = {"padded.weight", "halved", "turned", "strided", "again", "first", "second", "truncated"}


def target(build: Callable[[], nn.Module]) -> TargetSpec:
    return module_target(build, kind="factory", name="test")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [16, simple_draws.ROUNDED, 2 * simple_draws.ROUNDED + 48])
def test_values_of_16_bits_that_are_rounded_are_those_of_torch(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all sizes; and a version of torch that draws other values draws them itself."""
    draw, info = Draw("normal_", (0.5, 0.02)), TensorInfo(str(dtype).removeprefix("torch."), (size,))
    rounded = bytes(simple_draws.drawn_whole(draw, info, "w", 3))
    monkeypatch.setattr(simple_draws, "_rounds", lambda dtype: False)
    assert rounded == bytes(simple_draws.drawn_whole(draw, info, "w", 3))
    assert rounded != bytes(simple_draws.drawn_whole(draw, info, "w", 4))


def test_other_values_of_16_bits_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a version of torch that draws uniform numbers of 16 bits."""
    simple_draws._rounds.cache_clear()
    drawn = torch.Tensor.normal_

    def other(values: torch.Tensor, *numbers: float, generator: torch.Generator) -> torch.Tensor:
        drawn(values, *numbers, generator=generator)
        return values if values.dtype == torch.float32 else values.mul_(1 + 2**-7)

    monkeypatch.setattr(torch.Tensor, "normal_", other)
    assert not simple_draws._rounds(torch.bfloat16)
    simple_draws._rounds.cache_clear()


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_are_those_of_the_module(piece: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_draws, "PIECE", piece)
    spec = target(lambda: Filled(dtype))
    assert spec.draws.keys() == spec.tensors.keys() - NOT_SIMPLE
    assert spec.pieces is not None
    for key, values in spec.initial(list(spec.draws), 5):
        pieces = list(spec.pieces(key, 5))
        assert b"".join(pieces) == bytes(values), key
        assert bytes(simple_draws.drawn_whole(spec.draws[key], spec.tensors[key], key, 5)) == bytes(values), key
        shape = spec.tensors[key].shape
        assert all(len(one) % max(1, len(values) // (shape[0] if shape else 1)) == 0 for one in pieces), key
    assert len(list(spec.pieces("normal", 5))) == (1 if piece == 1 << 20 else 960 // (96 if piece == 100 else 48))


def test_another_seed_or_key_is_another_draw() -> None:
    spec = target(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    assert spec.pieces is not None
    drawn = {bytes(next(spec.pieces(key, seed))) for key in ("0.weight", "1.weight") for seed in (0, 1)}
    assert len(drawn) == 4


def test_operations_are_named_with_their_numbers() -> None:
    spec = target(lambda: Filled(torch.float32))
    assert spec.draws["normal"] == Draw("normal_", (0.5, 0.02))
    assert spec.draws["norm.weight"] == Draw("fill_", (1,))
    assert spec.draws["norm.bias"].how == "zero_"
    assert spec.draws["uniform.weight"].how == "uniform_"


def test_random_numbers_of_python_are_not_simple() -> None:
    import random

    assert not target(lambda: nn.ParameterList([torch.empty(16).normal_(0, random.random())])).draws
