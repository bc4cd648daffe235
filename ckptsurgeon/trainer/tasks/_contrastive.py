"""The contrastive loss of wav2vec 2.0 (https://arxiv.org/abs/2006.11477), with its codebook, masks and negatives.

The loss is computed over masked frames only. A matrix product gives the similarities of all pairs of frames of a clip.
The product takes 16 MB; a tensor with the vectors of all negatives took 826 MB. Masks are spans as in SpecAugment
(https://arxiv.org/abs/1904.08779). Negatives are other masked frames of the same clip; so they are never padding.
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
    """Frames quantised to entries of a codebook: ``vectors`` (batch, frames, size) and ``codes`` (batch, frames).

    A code identifies the vector: frames with the same code have the same vector. ``perplexity`` (0-d) is the effective
    number of entries in use, summed over the groups of the codebook. It is between the number of groups and the number
    of all entries.
    """

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor


class ContrastiveSums(NamedTuple):
    """Sums over the masked frames of a batch: the ``loss``, and the number of ``frames``.

    ``correct`` is the number of masked frames that are more similar to their own target than to each of their
    negatives.
    """

    loss: Tensor
    correct: Tensor
    frames: Tensor


def quantise(quantizer: Any, features: Tensor, valid: Tensor) -> QuantisedFrames:
    """Quantise features (batch, frames, channels) with the quantizer of a wav2vec 2.0 model of transformers.

    ``valid`` (batch, frames) is true for the frames that count for the perplexity. In training mode, entries are drawn
    by the Gumbel softmax (https://arxiv.org/abs/1611.01144) at the quantizer's temperature; in evaluation mode, the
    most likely entries are used.
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

    ``targets`` (batch, frames, size) are the vectors to predict, ``codes`` (batch, frames) are their codes, and
    ``negatives`` (batch, frames, number) are indices of other frames. Only ``valid`` frames (batch, frames) are summed.
    A negative is ignored if it has the same code as the frame itself. A frame whose negatives are all ignored does not
    count as ``correct``, because nothing can be learned from it.
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

    Masked frames form spans of ``length`` frames, which may overlap. The number of spans is ``share * frames /
    length``, rounded up or down at random. It is at least ``fewest``, and at most the number of frames at which a span
    can begin. A clip that is not longer than one span has no masked frames. ``chance`` is the random generator.
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
    """Return ``number`` negatives for each of a clip's ``masked`` frames, as indices (masked, number) of masked frames.

    The negatives of a frame are drawn uniformly, with replacement, from the other masked frames. If a clip has only one
    masked frame, this frame is its own negative. ``chance`` is the random generator.
    """
    if masked < 2:
        return numpy.zeros((masked, number), numpy.int64)
    drawn = chance.integers(masked - 1, size=(masked, number))
    return drawn + (drawn >= numpy.arange(masked)[:, None])
