"""The convolutional front end of wav2vec 2.0 and similar models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..config.settings import Settings

__all__ = ["ConvFrontend", "check_features", "normalise_wave"]

NEAR_ZERO = 1e-7
"""The number that transformers' feature extractor adds to the variance, to avoid a division by zero."""


class ConvFrontend:
    """The convolutional front end of a model: computes the number of its frames, and the model's padding masks."""

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        kernels, strides = (getattr(config, name, None) for name in ("conv_kernel", "conv_stride"))
        if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
            raise ConfigError(
                f"the model {type(model).__name__} has no convolutions over raw sound, as wav2vec 2.0 has.",
                hint="Use a configuration of such a model of transformers: model: {transformers: config.json}.",
            )
        behind = config.num_adapter_layers if getattr(config, "add_adapter", False) else 0
        self.has_adapter = bool(behind)
        self.convolutions: Sequence[tuple[int, int]] = tuple(zip(kernels, strides, strict=True))
        self.layers = (*self.convolutions, *((1, config.adapter_stride) for _ in range(behind)))
        self.masks = getattr(config, "feat_extract_norm", "group") == "layer"
        """Whether the model gets a padding mask; models with a group norm were trained without a padding mask."""

    def frames(self, samples: Any, *, with_adapter: bool = True) -> Any:
        """Return the number of frames that the model makes of ``samples`` samples (a number or a tensor).

        The result is 0 or negative if the samples are too few for a frame. If ``with_adapter`` is true and the model
        has an adapter, the frames are counted after the adapter, which reduces their number.
        """
        for kernel, stride in self.layers if with_adapter else self.convolutions:
            samples = (samples - kernel) // stride + 1
        return samples

    def attention_mask(self, inputs: Tensor, lengths: Tensor) -> Tensor | None:
        """Return a mask (batch, time) that is true for samples that are not padding; None if the model gets no mask."""
        return _before(lengths, inputs.shape[1]) if self.masks else None

    def frame_mask(self, lengths: Tensor, frames: int) -> Tensor | None:
        """Return a mask (batch, frames) that is true for frames that are not padding; None if the model gets no mask.

        If the model has a convolutional adapter, the mask is for the frames before the adapter.
        """
        return _before(self.frames(lengths, with_adapter=False), frames) if self.masks else None


def check_features(settings: Settings) -> None:
    """Raise ConfigError if the settings compute features, although the model needs waveforms."""
    features = settings.features
    if features.kind != "waves":
        raise ConfigError(
            f"the task {settings.task} needs waveforms, but train.features.kind is {features.kind}.",
            hint="Write train.features: {kind: waves}.",
        )


def normalise_wave(wave: Tensor) -> Tensor:
    """Return a wave scaled to mean 0 and variance 1, as transformers' feature extractor scales it."""
    return (wave - wave.mean()) / torch.sqrt(wave.var(correction=0) + NEAR_ZERO)


def _before(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]
