"""Parallel WaveGAN: the generator of the package ParallelWaveGAN, and of ESPnet 2, which joins two convolutions.

A residual block has one convolution for its output, and one for the sum of all blocks. ESPnet joins them when it loads
a file of the package: ``_load_state_dict_pre_hook`` in
https://github.com/espnet/espnet/blob/master/espnet2/gan_tts/parallel_wavegan/parallel_wavegan.py,
https://github.com/kan-bayashi/ParallelWaveGAN
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..changes import Fused
from ..layout import NO_NUMBERS, Family, Layout, Numbers, Tensors

__all__ = ["FAMILY"]

_BLOCK = "conv_layers.{n}"
_OUT, _SKIP = f"{_BLOCK}.conv1x1_out", f"{_BLOCK}.conv1x1_skip"
_SAME = {
    one: one for one in ("first_conv", "upsample_net", f"{_BLOCK}.conv", f"{_BLOCK}.conv1x1_aux", "last_conv_layers")
}
_MARKS = ("first_conv.bias", "conv_layers.0.conv1x1_out.bias", "last_conv_layers.1.bias")
_SEPARATE = "conv_layers.0.conv1x1_skip.bias"


def _channels(tensors: Tensors, config: Mapping[str, Any]) -> Numbers:
    """Return the numbers of channels of the two convolutions that ESPnet joins."""
    shapes = [tensors[key].shape for key in _MARKS[:2] if key in tensors]
    if len(shapes) < 2 or not all(shapes) or shapes[1][0] <= shapes[0][0]:
        return NO_NUMBERS
    return {"residual": shapes[0][0], "skip": shapes[1][0] - shapes[0][0]}


FAMILY = Family(
    "parallel-wavegan",
    (
        Layout(
            "parallel-wavegan", "ParallelWaveGAN", "espnet 202511, which reads it", {**_SAME, _OUT: _OUT, _SKIP: _SKIP},
            (*_MARKS, _SEPARATE),
        ),
        Layout(
            "espnet", "ESPnet", "espnet 202511", _SAME, _MARKS,
            (Fused((_OUT, _SKIP), _OUT, ("residual", "skip")),),
            fits=lambda tensors: _SEPARATE not in tensors and bool(_channels(tensors, {})),
        ),
    ),
    numbers=_channels,
)  # fmt: skip
