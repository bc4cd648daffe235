"""Transcription with CTC alone: the probability of a text is the sum over all its alignments with the frames.

https://dl.acm.org/doi/10.1145/1143844.1143891. A model gets inputs and lengths, and returns log-probabilities (batch,
frames, tokens). If it makes fewer frames than there are inputs, it also returns the numbers of frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._ctc_model import CTCOutput, clip_rows, ctc_losses, error_figures, run_model, too_short_clips, uniform_losses
from ._sounds import MeasuredTask
from ._task import Batch, Loss, Task

__all__ = ["CTC", "TASK"]


class CTC(MeasuredTask):
    """The task of transcription with CTC alone.

    The loss is divided by the number of labels of all clips that are long enough for CTC.
    """

    metric = "cer"

    def said(self, model: nn.Module, batch: Batch) -> CTCOutput:
        """Return the model's output for a batch."""
        return run_model(model, batch, self.labels, rate=self.settings.features.rate)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch, as a sum over its labels."""
        said = self.said(model, batch)
        total = ctc_losses(said, batch, self.labels.blank).sum()
        short = too_short_clips(said.lengths, batch).sum()
        return Loss(total, self._items(batch, said.lengths), {"ctc": total.detach()}, short)

    def _items(self, batch: Batch, lengths: Tensor) -> Tensor:
        return (batch.label_lengths * ~too_short_clips(lengths, batch)).sum()

    @torch.no_grad()
    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per label if all tokens were equally likely in every frame."""
        said = self.said(model, batch)
        total = uniform_losses(said, batch, self.labels.blank).sum()
        return float(total) / max(int(self._items(batch, said.lengths)), 1)

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return a row for each clip: the reference text, the decoded text, the loss and the number of labels."""
        said = self.said(model, batch)
        losses = ctc_losses(said, batch, self.labels.blank).tolist()
        short = too_short_clips(said.lengths, batch).tolist()
        sizes = batch.label_lengths.tolist()
        rows = clip_rows(said, batch, self.labels, self.decoded(said.log_probs, said.lengths))
        return [
            {**row, "loss": loss, "items": 0 if is_short else size, "too_short": is_short}
            for row, loss, size, is_short in zip(rows, losses, sizes, short, strict=True)
        ]

    def figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the loss per label, error rates, the share of blanks, and how many clips are too short for CTC."""
        loss = sum(row["loss"] for row in rows) / max(sum(row["items"] for row in rows), 1)
        return {"loss": loss, **error_figures(rows)}


TASK: type[Task] = CTC
