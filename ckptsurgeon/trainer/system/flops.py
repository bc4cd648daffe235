"""Floating-point operations of a step, by torch's own formulas, and the peak of a GPU."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.flop_counter import flop_registry

from ..config.settings import Settings

__all__ = ["FlopCounter", "count_product_as", "peak_flops"]

PEAKS: Mapping[str, tuple[float, float, float]] = {
    "H[12]00(?= NVL)": (835e12, 417e12, 60e12),
    "H100(?= PCIe)": (756e12, 378e12, 51e12),
    "H[12]00": (989e12, 494e12, 67e12),
    "A100": (312e12, 156e12, 19.5e12),
    "L40S": (362e12, 183e12, 91.6e12),
    "L4": (121e12, 60e12, 30.3e12),
}
"""Dense operations a second in bf16, TF32 and float32, by the name of a GPU, from NVIDIA's data sheets.

They give those with sparsity for bf16 and TF32: twice these. The first pattern that matches counts.
"""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations inside its ``with`` block, in ``flops``.

    Those of matrix products, convolutions, attention and recurrent layers are counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation of torch as it is, and count its floating-point operations."""
        packet = func._overloadpacket
        if packet in _CTC:
            args = [one.to(args[0].device) if isinstance(one, Tensor) else one for one in args]
        found = func(*args, **(kwargs or {}))
        if packet is _aten.convolution_backward:
            self.flops += _convolution_backward(args)
        elif packet in flop_registry:
            self.flops += int(flop_registry[packet](*args, **(kwargs or {}), out_val=found))
        elif packet in _ATTENTION:
            self.flops += int(flop_registry[_ATTENTION[packet]](*args, **(kwargs or {}), out_val=found))
        elif packet in _RECURRENT:
            self.flops += _RECURRENT[packet] * _recurrent(args)
        return found


def count_product_as(flops: int, product: Tensor, factors: tuple[Tensor, Tensor]) -> None:
    """Let a FlopCounter around this call count a product of ``torch.bmm`` as ``flops``, and its gradients as much each.

    For factors that are padded: what is multiplied by their zeros is no work of the model.
    """
    if torch.compiler.is_compiling() or not _counters():
        return
    surplus = 2 * product.numel() * factors[0].shape[-1] - flops
    _subtract(surplus)
    if product.requires_grad:
        wanted = sum(one.requires_grad for one in factors)
        product.register_hook(lambda gradient: _subtract(wanted * surplus))  # type: ignore[no-untyped-call]


def _counters() -> list[FlopCounter]:
    return [one for one in _get_current_dispatch_mode_stack() if isinstance(one, FlopCounter)]


def _subtract(flops: int) -> None:
    for counter in _counters():
        counter.flops -= flops


_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""Attention operators on a CPU, for which torch has no formula, each with an operator that has the same formula."""
_CTC = {_aten._ctc_loss, _aten._ctc_loss_backward}
"""What torch computes CTC losses by where a mode like this one is active: on a GPU, lengths must be there too.

Elsewhere lengths on the CPU go to the GPU as numbers (https://github.com/pytorch/pytorch/blob/v2.11.0/aten/src/ATen/native/LossCTC.cpp).
"""
_RECURRENT = {
    _aten._cudnn_rnn: 1, _aten._cudnn_rnn_backward: 2, _aten.mkldnn_rnn_layer: 1, _aten.mkldnn_rnn_layer_backward: 2,
}  # fmt: skip
"""Recurrent layers, for which torch has no formula, and how often their products are computed."""


def _convolution_backward(args: tuple[Any, ...]) -> int:
    """Return the operations in a convolution's backward pass: for each wanted gradient, as many as in its forward pass.

    Gradients are those of input and weight. torch's formula ignores groups: it counts 16 times too many in wav2vec
    2.0's positional convolution.
    """
    gradient, inputs, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    products = (inputs if transposed else gradient).numel() * weight[0].numel()
    return 2 * int(products) * sum(map(bool, wanted[:2]))


def _recurrent(args: tuple[Any, ...]) -> int:
    """Return the operations of a recurrent layer: two for each entry of its matrices, at each input time step."""
    weights = args[1] if isinstance(args[1], (list, tuple)) else args[1:5]
    matrices = [one for one in weights if isinstance(one, Tensor) and one.dim() == 2]
    return 2 * int(math.prod(args[0].shape[:-1])) * sum(one.numel() for one in matrices)


def peak_flops(settings: Settings, device: torch.device) -> float | None:
    """Return the most floating-point operations a second that a device can do at the set precision; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return peak_of(name, settings.precision)


def peak_of(name: str, precision: str) -> float | None:
    """Return the peak FLOP/s of a GPU by its name, for a precision; None for an unknown GPU."""
    for pattern, peaks in PEAKS.items():
        if re.search(rf"\b({pattern})\b", name):
            return dict(zip(("bf16", "tf32", "float32"), peaks, strict=True))[precision]
    return None
