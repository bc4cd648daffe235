"""Random inputs for the speech recognition models of ESPnet, which transcribe waveforms."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["espnet_inputs"]

ARGUMENTS = ("speech", "speech_lengths", "text", "text_lengths")
ROWS, TARGETS = 2, 8
"""The number of random waveforms, and the number of random tokens for each."""
WAVE = 16_000
"""The number of samples of the longest random waveform."""
SPECIAL = 2
"""The number of special ids at the beginning: 0 is the blank, 1 the unknown token.

The last id, which marks the start and the end of a sentence, is special too.
"""


def espnet_inputs(module: nn.Module, chance: torch.Generator) -> dict[str, Tensor] | None:
    """Return random waveforms (batch, samples) and token ids (batch, tokens) with their lengths, for an ESPnet model.

    These are the arguments of the ``forward`` of ``espnet2.asr.espnet_model.ESPnetASRModel``. Returns None for any
    other network. Also returns None for a model without a front end, because the size of its features is not known.
    """
    known = inspect.signature(module.forward).parameters
    tokens: Any = getattr(module, "vocab_size", None)
    has_front_end = isinstance(getattr(module, "frontend", None), nn.Module)
    if not (set(ARGUMENTS) <= set(known) and has_front_end and isinstance(tokens, int) and tokens > SPECIAL + 1):
        return None
    return {
        "speech": torch.randn(ROWS, WAVE, generator=chance),
        "speech_lengths": torch.tensor([WAVE, WAVE * 3 // 4]),
        "text": torch.randint(SPECIAL, tokens - 1, (ROWS, TARGETS), generator=chance),
        "text_lengths": torch.tensor([TARGETS, TARGETS]),
    }
