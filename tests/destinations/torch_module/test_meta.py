"""A module that is built on the meta device draws no values for its parameters, and keeps those of its buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ckptsurgeon.destinations.torch_module.meta import build_on_meta

NORMAL = Tensor.normal_


class Drawn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))
        assert nn.init.normal_(self.weight) is self.weight
        self.register_buffer("positions", torch.empty(3).normal_(2, std=0.5))


def test_buffers_are_drawn_as_without_the_parameters() -> None:
    torch.manual_seed(0)
    module = build_on_meta(Drawn)
    assert isinstance(module, Drawn)
    assert module.weight.is_meta
    torch.manual_seed(0)
    assert torch.equal(module.positions, torch.empty(3).normal_(2, std=0.5))
    assert Tensor.normal_ is NORMAL
