"""CTC's probability that a text begins with some tokens: https://arxiv.org/abs/1706.02737, algorithm 2.

The paper goes through the frames one by one. Both recursions are linear, so here each is a cumulative sum::

    label[t] = p[t](c) (label[t-1] + begun[t])          = sum over s <= t of begun[s] p[s](c) … p[t](c)
    blank[t] = p[t](blank) (blank[t-1] + label[t-1])
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PrefixLogProbs", "PrefixScores"]

LOG_ZERO = -1e6
"""Stands for the logarithm of zero; unlike those of infinities, differences of its sums are numbers."""


class PrefixLogProbs(NamedTuple):
    """Log-probabilities (…, frames + 1) that so many frames spell a prefix, ending in a ``label`` or a ``blank``."""

    label: Tensor
    blank: Tensor


class PrefixScores:
    """Scores of prefixes of clips.

    ``log_probs`` (clips, frames, tokens) are CTC's, ``lengths`` (clips) the frames without padding.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, blank: int) -> None:
        values = log_probs.double().clamp(min=LOG_ZERO).transpose(1, 2)
        padding = torch.arange(values.shape[2], device=values.device)[None] >= lengths[:, None]
        values = values.masked_fill(padding[:, None], LOG_ZERO)
        values[:, blank] = values[:, blank].masked_fill(padding, 0.0)  # padding changes nothing
        self._sums = torch.nn.functional.pad(values.cumsum(2), (1, 0))
        self._blank = blank

    def start(self) -> PrefixLogProbs:
        """Return the empty prefix of each clip: only blanks."""
        blank = self._sums[:, self._blank]
        return PrefixLogProbs(torch.full_like(blank, LOG_ZERO), blank)

    def extend(
        self, clips: Tensor, spelled: PrefixLogProbs, last: Tensor, tokens: Tensor
    ) -> tuple[Tensor, PrefixLogProbs]:
        """Return the log-probabilities (n, m) that a text begins with a prefix and a token, and the new prefixes.

        The prefixes belong to ``clips`` (n), end in the tokens ``last`` (n), -1 for the empty one, and are ``spelled``
        (n, frames + 1); each is extended by ``tokens`` (n, m).
        """
        own, silence = self._sums[clips[:, None], tokens], self._sums[clips, self._blank][:, None]
        either = torch.logaddexp(spelled.blank, spelled.label)
        repeated = (tokens == last[:, None])[..., None]  # CTC merges equal labels without a blank between them
        begun = torch.where(repeated, spelled.blank[:, None], either[:, None])[..., :-1]
        scores = (begun + own.diff(dim=-1)).logsumexp(-1)
        label = _behind(own, begun)
        return scores, PrefixLogProbs(label, _behind(silence, label[..., :-1]))

    @staticmethod
    def whole(spelled: PrefixLogProbs) -> Tensor:
        """Return the log-probability that a prefix is the complete text."""
        return torch.logaddexp(spelled.label[..., -1], spelled.blank[..., -1])


def _behind(sums: Tensor, begun: Tensor) -> Tensor:
    """Return the log-probabilities of label runs that begin in any frame: (…, frames) → (…, frames + 1)."""
    found = sums[..., 1:] + (begun - sums[..., :-1]).logcumsumexp(-1)
    return torch.nn.functional.pad(found, (1, 0), value=LOG_ZERO)
