"""Transcription with CTC and an attention decoder together, https://arxiv.org/abs/1609.06773.

A model gets inputs, lengths and the previous tokens (batch, length), which begin with the start token. It returns CTC's
log-probabilities as ``ctc``, their ``lengths``, and logits (batch, length, tokens) as ``decoder``. Its ``ctc_weight``
is the weight of CTC in the loss, and in the scores of a joint beam search. Decoding is in ``_decoding.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..config.settings import Settings
from ._ctc_model import CTCOutput, clip_rows, ctc_losses, error_figures, run_model, too_short_clips, uniform_losses
from ._decoding import SpecialTokens, beam_search, decodable, greedy_search
from ._sounds import MeasuredTask
from ._task import Batch, Loss, Task

__all__ = ["TASK", "Hybrid"]

CTC_WEIGHT = 0.3
IGNORED = -100
BEAM = 4
"""The beam width of a joint beam search, if ``train.beam`` is not set."""


class _HybridLosses(NamedTuple):
    """A model's output for a batch, its CTC loss and its decoder's loss, both as sums.

    ``asked`` is the number of tokens that the decoder had to predict, ``right`` how many it predicted correctly.
    """

    output: CTCOutput
    ctc: Tensor
    attention: Tensor
    right: Tensor
    asked: Tensor


class Hybrid(MeasuredTask):
    """The task of transcription with CTC and an attention decoder, which must also predict the end of each text.

    The loss is divided by the number of labels.
    """

    metric = "cer"
    decodings = ("ctc", "ctc_beam", "attention", "joint")
    higher = ("accuracy",)

    def __init__(self, settings: Settings, tokens: Sequence[str]) -> None:
        super().__init__(settings, tokens)
        if self.labels.start is None or self.labels.end is None:
            raise ConfigError(
                "the token list has no tokens for the begin and the end of a text, which the decoder needs.",
                hint="Add <sos/eos> as the last token, as in ESPnet, or <sos> and <eos>, or <s> and </s>.",
            )
        self._start, self._end = self.labels.start, self.labels.end
        self._symbols = SpecialTokens(self._start, self._end, self.labels.blank)

    def notes(self) -> list[str]:
        """Return notes on the data, and on how the texts for error rates are decoded."""
        if self.settings.decoding == "ctc_beam":
            return super().notes()
        how = f"{self._said_by()} (train.decoding: {self.settings.decoding})"
        return [*super().notes(), f"texts for error rates are decoded by {how}"]

    def _said_by(self) -> str:
        both = f"CTC and the decoder together, beam {self.settings.beam or BEAM}"
        return {"ctc": "CTC alone", "attention": "the decoder alone", "joint": both}[self.settings.decoding]

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the weighted loss of a batch, as a sum over its labels."""
        answer = self._ask(model, batch)
        weight = _weight(model)
        total = weight * answer.ctc + (1 - weight) * answer.attention
        parts = {"ctc": answer.ctc.detach(), "attention": answer.attention.detach()}
        return Loss(total, batch.label_lengths.sum(), parts, too_short_clips(answer.output.lengths, batch).sum())

    def _ask(self, model: nn.Module, batch: Batch) -> _HybridLosses:
        previous, wanted = self._taught(batch)
        output = run_model(model, batch, self.labels, previous, rate=self.settings.features.rate)
        if output.decoder is None:
            raise ConfigError("the model has no decoder, which the task hybrid needs.", hint="Use the task ctc.")
        ctc = ctc_losses(output, batch, self.labels.blank).sum()
        attention = nn.functional.cross_entropy(
            output.decoder.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum",
            label_smoothing=self.settings.label_smoothing,
        )  # fmt: skip
        right = (output.decoder.argmax(-1) == wanted).sum()
        return _HybridLosses(output, ctc, attention, right, (wanted != IGNORED).sum())

    def _taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the inputs of the decoder and the tokens that it has to predict, both (batch, longest + 1).

        The inputs are the start token and the labels; the tokens to predict are the labels and the end token.
        """
        clips, longest = batch.labels.shape
        places = torch.arange(longest + 1, device=batch.labels.device)[None]
        start = batch.labels.new_full((clips, 1), self._start)
        previous = torch.cat([start, batch.labels], 1)
        wanted = torch.cat([batch.labels, start], 1)
        wanted = wanted.masked_fill(places == batch.label_lengths[:, None], self._end)
        return previous, wanted.masked_fill(places > batch.label_lengths[:, None], IGNORED)

    @torch.no_grad()
    def uniform_loss(self, model: nn.Module, batch: Batch) -> float:
        """Return the loss per label if all tokens are equally likely."""
        output = run_model(model, batch, self.labels, self._taught(batch)[0], rate=self.settings.features.rate)
        weight, labels = _weight(model), int(batch.label_lengths.sum())
        ctc = float(uniform_losses(output, batch, self.labels.blank).sum())
        attention = (labels + len(batch.labels)) * math.log(len(self.labels))
        return (weight * ctc + (1 - weight) * attention) / labels

    @torch.no_grad()
    def measure(self, model: nn.Module, batch: Batch) -> list[dict[str, Any]]:
        """Return a row for each clip: the reference text, the decoded text and the number of labels.

        The loss and the decoder's counts are sums over the batch, in the row of the first clip; other rows have 0.
        """
        answer, weight = self._ask(model, batch), _weight(model)
        rows = clip_rows(answer.output, batch, self.labels, self._read(model, batch, answer.output))
        short = too_short_clips(answer.output.lengths, batch).tolist()
        sums = {
            "loss": float(weight * answer.ctc + (1 - weight) * answer.attention), "right": int(answer.right),
            "asked": int(answer.asked),
        }  # fmt: skip
        return [
            {**row, "items": size, "too_short": is_short, **(sums if number == 0 else dict.fromkeys(sums, 0))}
            for number, (row, size, is_short) in enumerate(zip(rows, batch.label_lengths.tolist(), short, strict=True))
        ]

    def figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the loss per label, error rates of decoded texts, and the decoder's accuracy with teacher forcing."""
        total = {name: sum(row[name] for row in rows) for name in ("loss", "items", "right", "asked")}
        loss, accuracy = total["loss"] / max(total["items"], 1), total["right"] / max(total["asked"], 1)
        return {"loss": loss, **error_figures(rows), "accuracy": accuracy}

    def _read(self, model: nn.Module, batch: Batch, output: CTCOutput) -> list[list[int]] | None:
        """Return the decoded tokens of each clip; None with ``decoding: ctc``, which decodes frame by frame."""
        if self.settings.decoding in ("ctc", "ctc_beam"):
            return self.decoded(output.log_probs, output.lengths)
        decoder = decodable(model)
        if self.settings.decoding == "attention":
            return greedy_search(decoder, batch, self._symbols)
        return beam_search(
            decoder, batch, output.log_probs, self._symbols, weight=_weight(model), beam=self.settings.beam or BEAM
        )  # fmt: skip


def _weight(model: nn.Module) -> float:
    inner = getattr(model, "module", model)  # DistributedDataParallel keeps the model in .module
    return float(getattr(inner, "ctc_weight", CTC_WEIGHT))


TASK: type[Task] = Hybrid
