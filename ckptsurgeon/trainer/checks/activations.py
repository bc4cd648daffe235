"""Checks of the scale of each layer's activations, and of dead units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...util.text import count, escape, listing
from ..config.settings import Settings
from ..evaluation import evaluation_mode
from ..system.device import autocast
from ..tasks._task import Batch, Task
from .check import FAIL, NOT_RUN, PASS, WARN, Check

__all__ = ["LayerActivations", "activation_scale", "dead_units", "layer_activations"]

MIN_RATIO, MAX_RATIO = 0.5, 2.0
"""The usual range of the RMS of a layer's output, divided by the RMS of its input."""
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_CHANNELS_SECOND = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class LayerActivations:
    """The activations of one layer in one batch: their RMS, the number of units, and how many units are dead.

    ``rms`` and ``rms_in`` are the root mean squares of the layer's output and input in its first forward pass;
    ``rms_in`` is None if the layer has no parameters or no floating-point input. ``norm`` is true for a normalisation
    layer. A unit (a feature or channel) is dead if its output has the same value everywhere in the batch. If a layer
    runs several times, as in a recurrent decoder, the value must be the same in all forward passes.

    ``judged`` is false if the checks ignore the layer, because its constant output is no defect. This is so if its
    input was constant (BERT's segment embedding, if all tokens have one segment), or if all its matrices are zero, as
    in a new LoRA adapter (https://arxiv.org/abs/2106.09685).
    """

    name: str
    rms: float
    rms_in: float | None
    units: int
    dead: int
    norm: bool
    judged: bool = True


class _Constant:
    """Finds the units of a layer's output or input whose value is the same at all positions and in all forward passes.

    ``units`` is the output or input of the first forward pass, with the shape (units, positions).
    """

    def __init__(self, units: Tensor) -> None:
        self.value = units[:, 0]
        self.still = (units == units[:, :1]).all(1) if units.shape[1] > 1 else units.new_ones(len(units)).bool()
        self.seen = units.shape[1]

    def add(self, units: Tensor) -> None:
        if units.shape[0] == self.value.shape[0]:
            self.still &= (units == self.value[:, None]).all(1)
            self.seen += units.shape[1]

    @property
    def dead(self) -> int:
        return int(self.still.sum()) if self.seen > 1 else 0

    @property
    def varies(self) -> bool:
        return not bool(self.still.all())


def layer_activations(model: nn.Module, task: Task, batch: Batch, *, settings: Settings) -> list[LayerActivations]:
    """Return the activations of each leaf module that runs when the loss of a batch is computed, in order of execution.

    A module is left out if its output is not a floating-point tensor with two or more axes.
    """
    found: dict[str, LayerActivations] = {}
    constant: dict[str, _Constant] = {}
    given: dict[str, _Constant] = {}
    channels: dict[tuple[int, ...], int] = {}
    hooks = []

    def look(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            value = output[0] if isinstance(output, tuple) and output else output
            if not (isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.numel()):
                return
            value = value.detach().float()
            units = _units(module, value, channels=channels)
            inputs = _given(module, [*args, *named.values()])
            if name not in found:
                constant[name], given[name] = _Constant(units), _Constant(inputs)
                found[name] = _layer(name, module, args, value, len(units))
            else:
                constant[name].add(units)
                given[name].add(inputs)

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(look(name or type(module).__name__, module), with_kwargs=True))
    device = next(model.parameters()).device
    try:
        with evaluation_mode(model), autocast(settings, device):
            task.loss(model, batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    modules = {name or type(module).__name__: module for name, module in model.named_modules()}
    return [
        replace(layer, dead=constant[name].dead, judged=given[name].varies and not _begins_as_zeros(modules[name]))
        for name, layer in found.items()
    ]


def _given(module: nn.Module, values: Iterable[Any]) -> Tensor:
    """Return the first tensor in ``values``, the arguments of a layer, reshaped to (units, positions).

    ``module`` is the layer; its class decides which axis holds the units. Returns a tensor of one zero, with shape (1,
    1), if no argument is a tensor.
    """
    first = next((one for one in values if isinstance(one, Tensor) and one.numel()), None)
    if first is None:
        return torch.zeros(1, 1)
    if not first.is_floating_point() or first.dim() < 2:
        return first.detach().reshape(1, -1)
    axis = 1 if isinstance(module, _CHANNELS_SECOND) else first.dim() - 1
    return first.detach().transpose(0, axis).reshape(first.shape[axis], -1)


def _begins_as_zeros(module: nn.Module) -> bool:
    matrices = [one for one in module.parameters() if one.dim() > 1]
    return bool(matrices) and not any(bool(one.any()) for one in matrices)


def _units(module: nn.Module, value: Tensor, *, channels: dict[tuple[int, ...], int]) -> Tensor:
    """Return ``value``, the output of the layer ``module``, reshaped to (units, positions).

    The units of a layer in ``_CHANNELS_SECOND`` are on axis 1, those of any other layer with parameters on the last
    axis. ``channels`` maps the shape of an output to this axis; this function adds an entry for each layer with
    parameters. Any other layer, such as an activation function, has its units on the same axis as the layer before it:
    the axis that ``channels`` has for the shape of its output, or the last axis if ``channels`` lacks this shape.
    """
    shape = tuple(value.shape)
    axis = 1 if isinstance(module, _CHANNELS_SECOND) else channels.get(shape, value.dim() - 1)
    if list(module.parameters()):
        axis = channels[shape] = 1 if isinstance(module, _CHANNELS_SECOND) else value.dim() - 1
    return value.transpose(0, axis).reshape(shape[axis], -1)


def _layer(name: str, module: nn.Module, inputs: tuple[Any, ...], value: Tensor, units: int) -> LayerActivations:
    given = inputs[0] if inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point() else None
    learns = bool(list(module.parameters()))
    return LayerActivations(
        name, _rms(value), _rms(given.detach().float()) if given is not None and learns else None,
        units, 0, isinstance(module, _NORMS) or "norm" in type(module).__name__.lower(),
    )  # fmt: skip


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def activation_scale(layers: list[LayerActivations]) -> Check:
    """Warn about layers whose output has less than half or more than twice the RMS of their input.

    Normalisation layers are not checked. The factors of successive layers multiply. For example, with torch's default
    initialisers the RMS shrank from 0.42 to 0.07 over six layers, and the model learned nothing. Normalisation layers
    undo small factors, so in a model with normalisation layers only large factors are reported.
    """
    name = "scale of activations"
    ratios = {
        layer.name: layer.rms / layer.rms_in for layer in layers if layer.rms_in is not None and layer.rms_in > 0
        and not layer.norm and layer.judged
    }  # fmt: skip
    if not ratios:
        return Check(name, NOT_RUN, "no layer has an input and an output to compare")
    norms = [layer for layer in layers if layer.norm]
    first, last = layers[0].rms, layers[-1].rms
    least = 0.0 if norms else MIN_RATIO
    odd = {key: ratio for key, ratio in ratios.items() if not least <= ratio <= MAX_RATIO}
    says = f"RMS {first:.2g} to {last:.2g} over {count(len(layers), 'layer')}"
    if odd:
        return Check(name, WARN, f"{says}; {listing(_said(odd), 3, where='')}")
    rest = (
        f"; {count(len(norms), 'normalisation layer undoes', 'normalisation layers undo')} small factors"
        if norms and min(ratios.values()) < MIN_RATIO
        else ""
    )
    return Check(name, PASS, f"{says}; output / input {min(ratios.values()):.2g} to {max(ratios.values()):.2g}{rest}")


def _said(odd: Mapping[str, float]) -> list[str]:
    furthest = sorted(odd, key=lambda key: max(odd[key], 1 / max(odd[key], 1e-12)), reverse=True)
    return [f"{escape(key)} x {odd[key]:.2g}" for key in furthest]


def dead_units(layers: list[LayerActivations]) -> Check:
    """Look for units with the same output for every input: warn about single units, fail if a whole layer is dead."""
    name = "dead units"
    judged = [layer for layer in layers if layer.judged]
    units, dead = sum(layer.units for layer in judged), sum(layer.dead for layer in judged)
    if not units:
        return Check(name, NOT_RUN, "no layer has units that can be checked")
    all_dead = [layer.name for layer in judged if layer.dead == layer.units > 1]
    if all_dead:
        return Check(name, FAIL, f"every unit of {listing(all_dead, where='')} has the same output for every input")
    some = [f"{layer.name} {layer.dead} of {layer.units}" for layer in judged if layer.dead]
    if some:
        return Check(name, WARN, f"{dead} of {units}: {listing(some, 3, where='')}")
    return Check(name, PASS, f"0 of {units}")
