"""Networks that torch.ao quantises, each in every form in which torch saves it, with the weights that it computes with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization as quantization
from torch import nn

__all__ = ["FORMS", "NETWORKS", "Convolutional", "Recurrent", "dequantised", "quantised", "quick_qconfig", "save"]


class Feedforward(nn.Module):
    """A layer with a bias, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3, bias=False)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.head(torch.relu(self.fc(x))))


class Recurrent(nn.Module):
    """Layers and directions of ``kind``, and a layer on top."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, *shape: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.rnn = kind(*shape, bidirectional=bidirectional)
        self.fc = nn.Linear(shape[1] * (1 + bidirectional), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(4, 3), nn.GRUCell(4, 3), nn.RNNCell(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0] + self.gru(x) + self.rnn(x)


class Convolutional(nn.Module):
    """A network whose activations are quantised, too."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)
        self.emb = nn.Embedding(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.fc(self.conv(self.quant(x)).mean((2, 3))))


def _dynamic(network: nn.Module, dtype: torch.dtype = torch.qint8) -> nn.Module:
    kinds = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell}
    made: nn.Module = quantization.quantize_dynamic(network, kinds, dtype=dtype)
    return made


def quick_qconfig() -> Any:
    """The default of torch, but for its search for the best range of activations, which takes a fifth of a second."""
    usual = quantization.get_default_qconfig(torch.backends.quantized.engine)
    return usual._replace(activation=quantization.MinMaxObserver.with_args(reduce_range=True))


def _static(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).eval()
    network.qconfig = quick_qconfig()
    network.emb.qconfig = quantization.float_qparams_weight_only_qconfig
    prepared = quantization.prepare(network)
    prepared(torch.randn(2, 3, 6, 6))
    made: nn.Module = quantization.convert(prepared)
    return made


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "Linear": (Feedforward, _dynamic),
    "Linear in 16 bits": (Feedforward, lambda network: _dynamic(network, torch.float16)),
    "LSTM": (lambda: Recurrent(nn.LSTM, 4, 4), _dynamic),
    "LSTM of two layers": (lambda: Recurrent(nn.LSTM, 4, 3, 2), _dynamic),
    "LSTM of three layers": (lambda: Recurrent(nn.LSTM, 4, 4, 3), _dynamic),
    "LSTM in both directions": (lambda: Recurrent(nn.LSTM, 4, 3, bidirectional=True), _dynamic),
    "LSTM of two layers in both directions": (lambda: Recurrent(nn.LSTM, 4, 4, 2, bidirectional=True), _dynamic),
    "LSTM in 16 bits": (lambda: Recurrent(nn.LSTM, 4, 3), lambda network: _dynamic(network, torch.float16)),
    "GRU": (lambda: Recurrent(nn.GRU, 4, 3, 2, bidirectional=True), _dynamic),
    "cells": (Cells, _dynamic),
    "static": (Convolutional, _static),
}
"""{name: (what makes the network of floats, what quantises it)}."""


@cache
def quantised(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The network ``name`` of floats and the same network quantised, with weights that ``seed`` chooses; made once."""
    torch.manual_seed(seed)
    make, how = NETWORKS[name]
    network = make().eval()
    return network, how(network).eval()


def save(network: nn.Module, form: str, path: Path) -> Path:
    """The file that torch saves of a network in a form of ``FORMS``."""
    if form == "TorchScript":
        torch.jit.save(torch.jit.script(network), path)
    else:
        torch.save(network.state_dict() if form == "state dict" else network, path)
    return path


FORMS = ("state dict", "module", "TorchScript")


def dequantised(network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a quantised network computes with, as torch unpacks them, under their keys in the network of floats."""
    found: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        kind = type(module).__module__
        if ".quantized." in kind and hasattr(module, "_all_weight_values"):
            found |= _recurrent(name, module)
        elif ".quantized." in kind and hasattr(module, "get_weight"):  # a cell
            for both in (module.get_weight(), module.get_bias()):
                found |= {f"{name}.{key}": value for key, value in both.items()}
        elif ".quantized." in kind and callable(getattr(module, "weight", None)):
            found[f"{name}.weight"] = module.weight()
            if callable(getattr(module, "bias", None)) and module.bias() is not None:
                found[f"{name}.bias"] = module.bias()
    plain = {key: value for key, value in network.state_dict().items() if key.startswith("norm.")}
    return {key: one.dequantize() if one.is_quantized else one.detach() for key, one in {**found, **plain}.items()}


def _recurrent(name: str, module: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for kind in (module.get_weight(), module.get_bias()):
        found |= {f"{name}.{key}": value for key, value in kind.items()}
    return found
