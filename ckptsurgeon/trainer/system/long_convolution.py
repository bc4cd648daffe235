"""Computes long grouped convolutions on a GPU as matrix products, which are faster there.

wav2vec 2.0, HuBERT, WavLM and data2vec encode positions with a convolution of kernel size 128 in 16 groups (section 2
of https://arxiv.org/abs/2006.11477). cuDNN computes it group by group and, in bf16, without tensor cores: the forward
and backward pass of 16 clips of 10 s take 16 ms on an H200. Matrix products take 2.9 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .flops import count_product_as

__all__ = ["grouped_convolution", "use_matrix_products"]

KIND = "cuda"
"""The type of the devices on which matrix products are used."""
LONG = 32
"""The smallest kernel size for which matrix products are used."""
BLOCK = 16
"""The number of consecutive outputs in one row of the matrix product.

Inputs are copied (1 + kernel / BLOCK) times, and weights BLOCK times. There are (1 + BLOCK / kernel) times as many
multiplications as in a direct convolution.
"""


def use_matrix_products(model: nn.Module) -> nn.Module:
    """Make a model compute its long grouped convolutions as matrix products on a GPU; return the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and _is_long(module):
            module.forward = partial(_computed, module, module.forward)  # type: ignore[method-assign]
    return model


def _is_long(layer: nn.Conv1d) -> bool:
    plain = layer.stride == layer.dilation == (1,) and layer.padding_mode == "zeros"
    return plain and layer.groups > 1 and layer.kernel_size[0] >= LONG and not isinstance(layer.padding, str)


def _computed(layer: nn.Conv1d, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    padding = layer.padding[0]
    assert isinstance(padding, int)
    has_outputs = inputs.dim() == 3 and inputs.shape[2] + 2 * padding >= layer.kernel_size[0]
    if inputs.device.type != KIND or not has_outputs:
        return forward(inputs)
    return grouped_convolution(inputs, layer.weight, layer.bias, padding=padding, groups=layer.groups)


def grouped_convolution(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int, block: int = BLOCK
) -> Tensor:
    """Return the convolution that torch's ``conv1d`` computes with stride and dilation 1, up to rounding.

    ``inputs`` has the shape (batch, channels in, time). ``weight`` has the shape (channels out, channels in / groups,
    kernel). The result has the shape (batch, channels out, time + 2 * padding - kernel + 1). The function is
    differentiable. Inside autocast, it computes in autocast's dtype, as conv1d does.

    The outputs are cut along the time into blocks of ``block`` positions. Each block is a window of the inputs times a
    matrix. The matrix contains the kernel once for each position of the block, shifted by one from position to
    position. So inputs and kernels are copied several times; the gradients of the copies are summed in float32 or
    better.
    """
    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
    inputs, weight = (one.to(torch.promote_types(one.dtype, torch.float32)) for one in (inputs, weight))
    (batch, _, time), (out, inner, kernel) = inputs.shape, weight.shape
    length = time + 2 * padding - kernel + 1
    blocks, spans = -(-length // block), -(-(block + kernel - 1) // block)
    window, per_group = spans * block, out // groups

    # (groups, batch, blocks of the inputs, block * channels in): a window consists of several blocks, which are copied.
    behind = (blocks - 1 + spans) * block - time - padding
    cut = pad(inputs.transpose(1, 2), (0, 0, padding, behind))
    cut = cut.reshape(batch, blocks - 1 + spans, block, groups, inner).permute(3, 0, 1, 2, 4).flatten(3)
    windows = torch.cat([cut[:, :, at : at + blocks].to(dtype) for at in range(spans)], dim=-1).flatten(1, 2)

    # (groups, window, channels in, block, channels out of a group)
    kernels = weight.reshape(groups, per_group, inner, kernel).permute(0, 3, 2, 1)
    kernels = pad(kernels, (0, 0, 0, 0, block - 1, window - kernel))
    firsts = range(block - 1, -1, -1)
    shifted = torch.stack([kernels[:, first : first + window].to(dtype) for first in firsts], dim=3)

    matrix = shifted.flatten(3).flatten(1, 2)
    found = torch.bmm(windows, matrix)
    count_product_as(2 * batch * length * weight.numel(), found, (windows, matrix))
    found = found.view(groups, batch, blocks, block, per_group).permute(1, 2, 3, 0, 4)
    found = found.reshape(batch, blocks * block, out)[:, :length]
    return (found if bias is None else found + bias.to(found.dtype)).transpose(1, 2)
