"""Gradient checkpointing: less is kept, and the same numbers come of it, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.models.deepspeech import DeepSpeech
from ckptsurgeon.trainer.models.hybrid_asr import HybridASR
from ckptsurgeon.trainer.system.gradient_checkpointing import enable_gradient_checkpointing

from . import toy


class Plain(nn.Module):
    """Sequences and lists of blocks, with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


def hybrid(encoder: str) -> HybridASR:
    return HybridASR(
        7, d_model=16, heads=2, encoder_layers=2, decoder_layers=1, n_mels=20, ctc_weight=0.3, encoder=encoder,
        dropout=0.1,
    )  # fmt: skip


CASES: dict[str, Any] = {
    "plain": (Plain, lambda: (torch.randn(6, 8),), ["front", "layers.0", "layers.1"]),
    "deepspeech": (
        lambda: DeepSpeech(5, n_input=10, n_context=1, n_hidden=8, dropout=0.1),
        lambda: (torch.randn(2, 9, 10), torch.tensor([9, 7])),
        ["_before", "lstm", "_after"],
    ),
    "conformer": (
        lambda: hybrid("conformer"),
        lambda: (torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.tensor([[6, 1], [6, 2]])),
        ["encoder.embed.conv", "encoder.layers.0", "encoder.layers.1", "decoder.layers.0"],
    ),
    "transformer": (
        lambda: hybrid("transformer"),
        lambda: (torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.tensor([[6, 1], [6, 2]])),
        ["encoder.embed.conv", "encoder.layers.0", "encoder.layers.1", "decoder.layers.0"],
    ),
}


def stepped(name: str, again: bool) -> tuple[dict[str, Tensor], int, list[str]]:
    """Two steps of a model; returns its state dict and gradients, and how much was kept for the gradient."""
    made, given, _ = CASES[name]
    torch.manual_seed(0)
    model = made().train()
    inputs = given()
    blocks = enable_gradient_checkpointing(model) if again else []
    optimizer, kept = torch.optim.SGD(model.parameters(), 0.1), 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    for _ in range(2):
        optimizer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = model(*inputs)
        parts = found if isinstance(found, tuple) else (found,)
        sum(one.float().square().sum() for one in parts if one.is_floating_point()).backward()
        optimizer.step()
    gradients = {f"gradient of {key}": value.grad for key, value in model.named_parameters()}
    return {**model.state_dict(), **gradients}, kept, blocks


@pytest.mark.costly
@pytest.mark.parametrize("name", CASES)
def test_it_comes_to_the_same_bit_for_bit_and_keeps_less(name: str) -> None:
    whole, much, _ = stepped(name, again=False)
    again, less, blocks = stepped(name, again=True)
    assert blocks == CASES[name][2]
    assert less < much
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_run_with_it_is_the_run_without() -> None:
    with pytest.raises(cs.ConfigError, match="train.gradient_checkpointing: no blocks were found in the model"):
        toy.loop(gradient_checkpointing=True)
    loops = [toy.loop(), toy.loop()]
    loops[1].model.stages = ("forward",)  # type: ignore[assignment]
    assert enable_gradient_checkpointing(loops[1].model) == ["forward"]
    for loop in loops:
        loop.run()
    assert toy.equal(*loops)
