"""Recurrent layers in runs with autocast: they compute in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["keep_recurrent_in_float32"]


def keep_recurrent_in_float32(model: nn.Module) -> nn.Module:
    """Make the LSTM, GRU and RNN layers of a model compute in float32 inside autocast; return the model.

    On a GPU, autocast computes these layers in float16 even if its dtype is bfloat16: torch's
    ``_cudnn_rnn_cast_reflatten`` casts to float16 only. Gradients in float16 need loss scaling, which a run in bf16
    does not have.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.forward = _without_autocast(module.forward)
    return model


def _without_autocast(forward: Callable[..., Any]) -> Callable[..., Any]:
    def computed(inputs: Tensor | PackedSequence, state: Any = None) -> Any:
        device = (inputs.data if isinstance(inputs, PackedSequence) else inputs).device
        with torch.autocast(device.type, enabled=False):
            return forward(inputs.float(), _as_float32(state))

    return computed


def _as_float32(state: Any) -> Any:
    """Return a recurrent layer's state in float32; the state is a tensor, a pair of tensors, or None."""
    if isinstance(state, tuple):
        return tuple(map(_as_float32, state))
    return state.float() if isinstance(state, Tensor) else state
