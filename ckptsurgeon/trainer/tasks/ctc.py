"""Transcription with CTC alone: the probability of a text, summed over all ways to spell it in frames.

https://dl.acm.org/doi/10.1145/1143844.1143891. A model gets inputs and lengths and returns log-probabilities (batch,
frames, tokens), with lengths if there are fewer frames than inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ._ctc_model import CTCOutput, ErrorRates, ctc_losses, run_model, too_short_clips, uniform_losses
from ._sounds import TranscribedTask
from ._task import Batch, Loss, Task

__all__ = ["CTC", "TASK"]


class CTC(TranscribedTask):
    """CTC. Items are the labels of the clips that are long enough for CTC."""

    metric = "cer"

    def said(self, model: nn.Module, batch: Batch) -> CTCOutput:
        """Return the model's output for a batch."""
        return run_model(model, batch, self.labels, rate=self.settings.features.rate)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its labels."""
        said = self.said(model, batch)
        total = ctc_losses(said.log_probs, said.lengths, batch, self.labels.blank).sum()
        short = too_short_clips(said.lengths, batch).sum()
        return Loss(total, self._items(batch, said.lengths), {"ctc": total.detach()}, short)

    def _items(self, batch: Batch, lengths: Tensor) -> Tensor:
        return (batch.label_lengths * ~too_short_clips(lengths, batch)).sum()

    @torch.no_grad()
    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per label if all tokens are equally likely."""
        said = self.said(model, batch)
        total = uniform_losses(said, batch, self.labels.blank).sum()
        return float(total) / max(int(self._items(batch, said.lengths)), 1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return loss per label, error rates, the share of blanks, and how many clips are too short."""
        rates = ErrorRates(self.labels)
        total, items, short = 0.0, 0, 0
        for batch in batches:
            said = self.said(model, batch)
            total += float(ctc_losses(said.log_probs, said.lengths, batch, self.labels.blank).sum())
            items += int(self._items(batch, said.lengths))
            short += int(too_short_clips(said.lengths, batch).sum())
            rates.add(said, batch)
        return {"loss": total / max(items, 1), **rates.figures(), "too_short": float(short)}


TASK: type[Task] = CTC
