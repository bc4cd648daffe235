"""Counts the floating-point operations of a step, by torch's formulas, and gives the peak FLOP/s of a GPU."""

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
"""Peak FLOP/s of GPUs in bf16, TF32 and float32, without sparsity, from NVIDIA's data sheets.

For bf16 and TF32, the data sheets give FLOP/s with sparsity, which are twice the values here. A key is a pattern for
the name of a GPU; of several patterns that match, the first counts.
"""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the floating-point operations inside its ``with`` block, in ``flops``.

    It counts the operations of matrix products, convolutions, attention and recurrent layers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch unchanged, and count its floating-point operations."""
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
    """Make active FlopCounters count ``product``, which ``torch.bmm(*factors)`` returned, as ``flops`` operations.

    The gradient of each factor is counted as ``flops`` operations, too. Use this for factors with padding, because
    multiplications by padding are not work of the model.
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
"""Maps attention operators on a CPU, for which torch has no formula, to operators whose formulas fit them."""
_CTC = {_aten._ctc_loss, _aten._ctc_loss_backward}
"""The CTC operators that torch calls while a dispatch mode is active: on a GPU, they need the lengths on the GPU, too.

Without a mode, torch passes lengths that are on the CPU as numbers
(https://github.com/pytorch/pytorch/blob/v2.11.0/aten/src/ATen/native/LossCTC.cpp).
"""
_RECURRENT = {
    _aten._cudnn_rnn: 1, _aten._cudnn_rnn_backward: 2, _aten.mkldnn_rnn_layer: 1, _aten.mkldnn_rnn_layer_backward: 2,
}  # fmt: skip
"""Maps operators of recurrent layers, for which torch has no formula, to their cost as a number of forward passes."""


def _convolution_backward(args: tuple[Any, ...]) -> int:
    """Return the number of floating-point operations in a convolution's backward pass, from the operator's ``args``.

    Each gradient that is wanted, of the input or of the weight, takes as many operations as a forward pass. torch's own
    formula ignores groups: for the positional convolution of wav2vec 2.0, it counts 16 times too many.
    """
    gradient, inputs, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
    products = (inputs if transposed else gradient).numel() * weight[0].numel()
    return 2 * int(products) * sum(map(bool, wanted[:2]))


def _recurrent(args: tuple[Any, ...]) -> int:
    """Return the number of floating-point operations in a recurrent layer, from the operator's ``args``.

    Each element of a matrix takes two operations in each time step of each clip.
    """
    weights = args[1] if isinstance(args[1], (list, tuple)) else args[1:5]
    matrices = [one for one in weights if isinstance(one, Tensor) and one.dim() == 2]
    return 2 * int(math.prod(args[0].shape[:-1])) * sum(one.numel() for one in matrices)


def peak_flops(settings: Settings, device: torch.device) -> float | None:
    """Return the peak FLOP/s of a device at the precision of the settings; None if it is not known."""
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
