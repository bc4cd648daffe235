"""The losses of wav2vec 2.0 (https://arxiv.org/abs/2006.11477), and the masks and negatives that they use.

The contrastive loss is computed over masked frames only, by matrix products. The vectors of negatives are not gathered
into a tensor of their own: that took 826 MB, matrix products take 16 MB. Masks are spans as in SpecAugment
(https://arxiv.org/abs/1904.08779); negatives are other masked frames of the same clip, so never padding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

__all__ = [
    "ContrastiveSums",
    "QuantisedFrames",
    "contrastive_sums",
    "masked_frames",
    "most_masked",
    "negatives_of",
    "quantise",
]


class QuantisedFrames(NamedTuple):
    """Frames as entries of a codebook: ``vectors`` (batch, frames, size) and ``codes`` (batch, frames).

    Frames with the same code have the same vector. ``perplexity`` is the number of entries in use, summed over the
    groups: at least the number of groups, at most that of all entries.
    """

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor


class ContrastiveSums(NamedTuple):
    """Sums over the masked frames of a batch: the ``loss``, and the number of ``frames``.

    ``correct`` is how many of these frames are more similar to their own target than to all of their negatives.
    """

    loss: Tensor
    correct: Tensor
    frames: Tensor


def quantise(quantizer: Any, features: Tensor, valid: Tensor) -> QuantisedFrames:
    """Return features (batch, frames, channels) quantised by the quantizer of one of transformers' wav2vec 2.0 models.

    Frames that are not ``valid`` (batch, frames) do not count for the perplexity. In training, entries are drawn by the
    Gumbel softmax (https://arxiv.org/abs/1611.01144) at the quantizer's temperature; otherwise the most likely entries
    are taken.
    """
    groups, entries = quantizer.num_groups, quantizer.num_vars
    logits = quantizer.weight_proj(features).float().unflatten(-1, (groups, entries))
    if quantizer.training:
        chosen, used = nn.functional.gumbel_softmax(logits, quantizer.temperature, hard=True), logits.softmax(-1)
    else:
        chosen = used = nn.functional.one_hot(logits.argmax(-1), entries).to(logits.dtype)
    mean = (used * valid[..., None, None]).sum((0, 1)) / valid.sum().clamp(min=1)
    bounded = mean.clamp(min=torch.finfo(mean.dtype).tiny)  # the gradient of log 0 is NaN
    perplexity = torch.exp(-torch.xlogy(mean, bounded).sum(-1)).sum()
    codebook = quantizer.codevectors.view(groups, entries, -1)
    vectors = torch.einsum("bfge,ged->bfgd", chosen.to(codebook.dtype), codebook).flatten(-2)
    powers = entries ** torch.arange(groups, device=features.device)
    return QuantisedFrames(vectors, (chosen.argmax(-1) * powers).sum(-1), perplexity)


def contrastive_sums(
    predicted: Tensor, targets: Tensor, codes: Tensor, negatives: Tensor, valid: Tensor, *, temperature: float
) -> ContrastiveSums:
    """Return the sums of the contrastive loss, by cosine similarity, of predicted frames (batch, frames, size).

    ``targets`` are the right vectors, ``codes`` (batch, frames) their codes, and ``negatives`` (batch, frames, number)
    the indices of other frames. Only frames that are ``valid`` (batch, frames) count. A negative with the frame's own
    code does not count. A frame whose negatives all have its code is not ``correct``: nothing can be learned from it.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        cosines = _unit(predicted) @ _unit(targets).transpose(1, 2) / temperature
    right = cosines.diagonal(dim1=1, dim2=2)
    others = codes.gather(1, negatives.flatten(1)).view_as(negatives)
    same = others == codes[..., None]
    wrong = cosines.gather(2, negatives).masked_fill(same, -torch.inf)
    losses = torch.logsumexp(torch.cat([right[..., None], wrong], -1), -1) - right
    correct = (right > wrong.amax(-1)) & ~same.all(-1) & valid
    return ContrastiveSums(torch.where(valid, losses, 0).sum(), correct.sum(), valid.sum())


def _unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors.float(), dim=-1, eps=1e-8)


def masked_frames(
    frames: int, share: float, length: int, *, fewest: int, chance: numpy.random.Generator
) -> numpy.ndarray:
    """Return the indices of the masked frames of a clip of ``frames`` frames, ascending.

    They are spans of ``length`` frames, which may overlap: ``share * frames / length`` spans, rounded up or down at
    random, and at least ``fewest``, unless fewer frames can be the begin of a span. A clip that is not longer than one
    span has no masked frame. ``chance`` is the random generator.
    """
    starts = frames - length + 1
    if starts < 2:
        return numpy.empty(0, numpy.int64)
    spans = min(max(int(share * frames / length + chance.random()), fewest), starts)
    begins = chance.choice(starts, spans, replace=False)
    return numpy.unique(begins[:, None] + numpy.arange(length))


def most_masked(frames: int, share: float, length: int, *, fewest: int) -> int:
    """Return the largest number of masked frames that ``masked_frames`` can return for these arguments."""
    starts = frames - length + 1
    if starts < 2:
        return 0
    return min(frames, min(max(math.ceil(share * frames / length), fewest), starts) * length)


def negatives_of(masked: int, number: int, chance: numpy.random.Generator) -> numpy.ndarray:
    """Return ``number`` negatives for each of the ``masked`` frames of a clip: indices (masked, number) of such frames.

    They are drawn uniformly, with repeats, from the other masked frames. If there is only one frame, it gets itself.
    """
    if masked < 2:
        return numpy.zeros((masked, number), numpy.int64)
    drawn = chance.integers(masked - 1, size=(masked, number))
    return drawn + (drawn >= numpy.arange(masked)[:, None])
