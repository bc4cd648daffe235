"""The losses of wav2vec 2.0 (https://arxiv.org/abs/2006.11477): contrast to other frames, and use of the codebook.

They are worked out over masked frames only, as products of matrices: the vectors that are held against each other are
never copied side by side, which took 826 MB where this takes 16.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

__all__ = [
    "ContrastiveSums",
    "Quantised",
    "contrastive_sums",
    "masked_frames",
    "most_masked",
    "negatives_of",
    "quantise",
]


class Quantised(NamedTuple):
    """Frames as entries of a codebook: their ``vectors`` (batch, frames, size), and ``codes`` (batch, frames).

    Frames of one code have one vector. ``perplexity`` is how many entries are in use, over all groups: from the number
    of groups, where it is always the same one, to the number of entries.
    """

    vectors: Tensor
    codes: Tensor
    perplexity: Tensor


class ContrastiveSums(NamedTuple):
    """Sums over frames: of the loss, and of how many were told from all others. ``frames`` is how many there are."""

    loss: Tensor
    correct: Tensor
    frames: Tensor


def quantise(quantizer: Any, features: Tensor, valid: Tensor) -> Quantised:
    """Return features (batch, frames, channels) as a quantizer of transformers has them; not ``valid`` ones use none.

    Entries are drawn by the Gumbel softmax while training (https://arxiv.org/abs/1611.01144), at the quantizer's
    temperature, and are the likeliest ones else.
    """
    groups, entries = quantizer.num_groups, quantizer.num_vars
    logits = quantizer.weight_proj(features).float().unflatten(-1, (groups, entries))
    if quantizer.training:
        chosen, used = nn.functional.gumbel_softmax(logits, quantizer.temperature, hard=True), logits.softmax(-1)
    else:
        chosen = used = nn.functional.one_hot(logits.argmax(-1), entries).to(logits.dtype)
    mean = (used * valid[..., None, None]).sum((0, 1)) / valid.sum().clamp(min=1)
    bounded = mean.clamp(min=torch.finfo(mean.dtype).tiny)  # the logarithm of 0 has a gradient that is no number
    perplexity = torch.exp(-torch.xlogy(mean, bounded).sum(-1)).sum()
    codebook = quantizer.codevectors.view(groups, entries, -1)
    vectors = torch.einsum("bfge,ged->bfgd", chosen.to(codebook.dtype), codebook).flatten(-2)
    powers = entries ** torch.arange(groups, device=features.device)
    return Quantised(vectors, (chosen.argmax(-1) * powers).sum(-1), perplexity)


def contrastive_sums(
    predicted: Tensor, targets: Tensor, codes: Tensor, negatives: Tensor, valid: Tensor, *, temperature: float
) -> ContrastiveSums:
    """Return how well frames (batch, frames, size) are told from their negatives (batch, frames, number), by cosines.

    A negative of the same code is no negative. A frame that has no other counts as one not told: where all codes are
    one, nothing is learned.
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
    """Return the places of the masked frames of a clip, ascending: spans of ``length`` that may overlap.

    There are ``share * frames / length`` of them, rounded up or down by chance, and at least ``fewest``, as far as they
    find different beginnings; none where the clip is not longer than one.
    """
    starts = frames - length + 1
    if starts < 2:
        return numpy.empty(0, numpy.int64)
    spans = min(max(int(share * frames / length + chance.random()), fewest), starts)
    begins = chance.choice(starts, spans, replace=False)
    return numpy.unique(begins[:, None] + numpy.arange(length))


def most_masked(frames: int, share: float, length: int, *, fewest: int) -> int:
    """Return how many frames ``masked_frames`` may give, whatever it draws."""
    starts = frames - length + 1
    if starts < 2:
        return 0
    return min(frames, min(max(math.ceil(share * frames / length), fewest), starts) * length)


def negatives_of(masked: int, number: int, chance: numpy.random.Generator) -> numpy.ndarray:
    """Return for each of ``masked`` frames the ``number`` that it is held against: (masked, number).

    They are drawn evenly, with repeats, from the others, and counted among the masked ones; a single one has itself.
    """
    if masked < 2:
        return numpy.zeros((masked, number), numpy.int64)
    drawn = chance.integers(masked - 1, size=(masked, number))
    return drawn + (drawn >= numpy.arange(masked)[:, None])
