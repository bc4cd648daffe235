"""Decoding with an attention decoder: greedy, or in a beam search together with CTC's prefix scores.

The model needs two methods. ``encode(inputs, lengths)`` returns the encoder's output (clips, frames, …) and the number
of frames of each clip. ``decode(previous, memory, lengths)`` returns logits (clips, length, tokens) of the token after
each of the previous tokens. The first previous token is the start token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ._task import Batch

__all__ = [
    "DecodableModel",
    "PrefixLogProbs",
    "PrefixScores",
    "SpecialTokens",
    "beam_search",
    "decodable",
    "greedy_search",
]

# CTC's probability that a text begins with some tokens: https://arxiv.org/abs/1706.02737, algorithm 2.
#
# The paper computes one frame after another. Both recursions are linear, so here each recursion is a cumulative sum::
#
#     label[t] = p[t](c) (label[t-1] + begun[t])          = sum over s <= t of begun[s] p[s](c) … p[t](c)
#     blank[t] = p[t](blank) (blank[t-1] + label[t-1])

LOG_ZERO = -1e6
"""Used as the logarithm of zero: with -inf, differences of sums would be NaN."""


class PrefixLogProbs(NamedTuple):
    """CTC's log-probabilities (…, frames + 1) that the first 0, 1, 2, … frames of a clip are decoded as a prefix.

    ``label`` is for alignments that end in the last token of the prefix, ``blank`` for alignments that end in a blank.
    """

    label: Tensor
    blank: Tensor


class PrefixScores:
    """Computes CTC's probability that the text of a clip begins with a given prefix (a sequence of tokens).

    ``log_probs`` (clips, frames, tokens) are the outputs of CTC, ``lengths`` (clips,) the numbers of frames without
    padding.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, blank: int) -> None:
        values = log_probs.double().clamp(min=LOG_ZERO).transpose(1, 2)
        padding = torch.arange(values.shape[2], device=values.device)[None] >= lengths[:, None]
        values = values.masked_fill(padding[:, None], LOG_ZERO)
        values[:, blank] = values[:, blank].masked_fill(padding, 0.0)  # padding is blank, and changes nothing
        self._sums = torch.nn.functional.pad(values.cumsum(2), (1, 0))
        self._blank = blank

    def start(self) -> PrefixLogProbs:
        """Return the log-probabilities of the empty prefix of each clip, that is, of blanks only."""
        blank = self._sums[:, self._blank]
        return PrefixLogProbs(torch.full_like(blank, LOG_ZERO), blank)

    def extend(
        self, clips: Tensor, spelled: PrefixLogProbs, last: Tensor, tokens: Tensor
    ) -> tuple[Tensor, PrefixLogProbs]:
        """Extend n prefixes, each by m different tokens: ``tokens`` (n, m).

        ``clips`` (n,) are the indices of the clips of the prefixes, ``spelled`` (n, frames + 1) are the
        log-probabilities of the prefixes, and ``last`` (n,) are their last tokens, -1 for the empty prefix.

        Returns the log-probabilities (n, m) that the text of a clip begins with the extended prefix, and the
        log-probabilities (n, m, frames + 1) of the extended prefixes.
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
        """Return CTC's log-probability that a prefix is the complete text of its clip."""
        return torch.logaddexp(spelled.label[..., -1], spelled.blank[..., -1])


def _behind(sums: Tensor, begun: Tensor) -> Tensor:
    """Return the log-probability (…, frames + 1) of all alignments of the first 0, 1, 2, … frames that end in a label.

    The label may begin at any of these frames; it is then the output of all following ones. ``sums`` (…, frames + 1)
    are the log-probabilities of the label, summed over the first 0, 1, 2, … frames. ``begun`` (…, frames) has, for each
    frame, the log-probability of everything before the label if the label begins at this frame.
    """
    found = sums[..., 1:] + (begun - sums[..., :-1]).logcumsumexp(-1)
    return torch.nn.functional.pad(found, (1, 0), value=LOG_ZERO)


CANDIDATES = 40
"""For each prefix, CTC scores only this many next tokens, the most likely by the decoder; ESPnet scores 1.5 * beam."""


class SpecialTokens(NamedTuple):
    """The indices of the tokens for start, end and blank."""

    start: int
    end: int
    blank: int


class DecodableModel(Protocol):
    """A model with an attention decoder that can be called for one token after another."""

    def encode(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's output (clips, frames, …), and the number of frames of each clip."""
        ...

    def decode(self, previous: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
        """Return logits (clips, length, tokens) of the token after each of the ``previous`` tokens (clips, length)."""
        ...


def decodable(model: nn.Module) -> DecodableModel:
    """Return the model without DDP's wrapper; raises ConfigError if it has no methods ``encode`` and ``decode``."""
    inner: Any = getattr(model, "module", model)
    if not hasattr(inner, "encode") or not hasattr(inner, "decode"):
        raise ConfigError(
            "the model has no methods encode and decode, which decoding with an attention decoder calls.",
            hint="Write train.decoding: ctc, or give the model the methods encode(inputs, lengths) and "
            "decode(previous, memory, lengths).",
        )
    return cast(DecodableModel, inner)


def greedy_search(model: DecodableModel, batch: Batch, symbols: SpecialTokens) -> list[list[int]]:
    """Return the tokens of each clip, always the most likely next token; at most as many as the clip has frames."""
    memory, frames = model.encode(batch.inputs, batch.lengths)
    previous = frames.new_full((len(frames), 1), symbols.start)
    going = torch.ones_like(frames, dtype=torch.bool)
    for size in range(1, int(frames.max()) + 1):
        following = _log_probs(model.decode(previous, memory, frames), symbols).argmax(-1)
        previous = torch.cat([previous, following.where(going, symbols.end)[:, None]], 1)
        going &= (following != symbols.end) & (size < frames)
        if not going.any():
            break
    return [_until(tokens[1:], symbols.end) for tokens in previous.tolist()]


def _log_probs(logits: Tensor, symbols: SpecialTokens) -> Tensor:
    """Return the log-probabilities (clips, tokens) of the next token; blank and start token get -inf."""
    found = logits[:, -1].double().log_softmax(-1)
    found[:, symbols.blank] = -math.inf
    if symbols.start != symbols.end:
        found[:, symbols.start] = -math.inf
    return found


def _until(tokens: Sequence[int], end: int) -> list[int]:
    return list(tokens[: tokens.index(end)] if end in tokens else tokens)


class _BeamState(NamedTuple):
    """The prefixes of a beam search, all of one length: ``beam`` prefixes for each of n ``clips`` that are not done.

    ``tokens`` (n, beam, length) are the prefixes, which begin with the start token. ``decoder`` (n, beam) are the
    log-probabilities of the prefixes by the decoder, and ``spelled`` (n, beam, frames + 1) are their log-probabilities
    by CTC. ``scores`` (n, beam) are the scores by CTC and decoder together; -inf marks an unused entry, which has no
    prefix.
    """

    clips: Tensor
    tokens: Tensor
    decoder: Tensor
    scores: Tensor
    spelled: PrefixLogProbs

    def of(self, chosen: Tensor) -> _BeamState:
        """Return the state with only the clips whose entry in ``chosen`` (n,) is true."""
        clips, tokens, decoder, scores, spelled = self
        return _BeamState(
            clips[chosen],
            tokens[chosen],
            decoder[chosen],
            scores[chosen],
            PrefixLogProbs(*(one[chosen] for one in spelled)),
        )


class _BeamSearch:
    """A beam search of the clips of a batch, all at once."""

    def __init__(
        self, model: DecodableModel, batch: Batch, symbols: SpecialTokens, *, weight: float, beam: int
    ) -> None:
        self._model, self._symbols, self._weight, self._beam = model, symbols, weight, beam
        self._memory, self.frames = model.encode(batch.inputs, batch.lengths)
        self.best: list[tuple[float, list[int]]] = [(-math.inf, []) for _ in batch.names]

    def run(self, ctc: PrefixScores) -> list[list[int]]:
        """Extend prefixes until all clips are done; return the tokens of the best complete text of each clip."""
        beams = self._begin(ctc)
        while len(beams.clips):
            following = self._following(beams)
            self._end(beams, following[..., self._symbols.end])
            beams = self._open(self._extend(beams, following, ctc))
        return [tokens for _, tokens in self.best]

    def _begin(self, ctc: PrefixScores) -> _BeamState:
        start = ctc.start()
        clips, shape = torch.arange(len(self.frames), device=self.frames.device), (len(self.frames), self._beam)
        scores = start.blank.new_full(shape, -math.inf)
        scores[:, 0] = 0.0  # one empty prefix
        return _BeamState(
            clips, clips.new_full((*shape, 1), self._symbols.start), torch.zeros_like(scores), scores,
            PrefixLogProbs(*(one[:, None].expand(*shape, -1) for one in start)),
        )  # fmt: skip

    def _following(self, beams: _BeamState) -> Tensor:
        """Return the decoder's log-probabilities (n, beam, tokens) of the next token."""
        rows = beams.clips.repeat_interleave(self._beam)
        logits = self._model.decode(beams.tokens.flatten(0, 1), self._memory[rows], self.frames[rows])
        return self._by_clip(_log_probs(logits, self._symbols))

    def _by_clip(self, rows: Tensor) -> Tensor:
        """Reshape (n * beam, …) to (n, beam, …)."""
        return rows.reshape(-1, self._beam, *rows.shape[1:])

    def _joined(self, decoder: Tensor, ctc: Tensor) -> Tensor:
        return (1 - self._weight) * decoder + self._weight * ctc

    def _end(self, beams: _BeamState, ends: Tensor) -> None:
        """Score each prefix as a complete text; if a prefix beats the best text of its clip so far, replace that text.

        ``ends`` (n, beam) are the decoder's log-probabilities of the end token after each prefix.
        """
        scores = self._joined(beams.decoder + ends, PrefixScores.whole(beams.spelled))
        scores = scores.masked_fill(beams.scores.isinf(), -math.inf)
        values, places = scores.max(1)
        for clip, value, place, tokens in zip(
            beams.clips.tolist(), values.tolist(), places.tolist(), beams.tokens.tolist(), strict=True
        ):
            if value > self.best[clip][0]:
                self.best[clip] = value, tokens[place][1:]

    def _extend(self, beams: _BeamState, following: Tensor, ctc: PrefixScores) -> _BeamState:
        """Return the best prefixes with one more token.

        ``following`` are the decoder's log-probabilities of the next token.
        """
        letters = following.clone()
        letters[..., self._symbols.end] = -math.inf
        values, tokens = letters.topk(min(CANDIDATES, int(letters[0, 0].isfinite().sum())), -1)  # (n, beam, candidates)
        last = beams.tokens[..., -1] if beams.tokens.shape[2] > 1 else beams.tokens[..., 0].new_full((), -1)
        flat = (
            beams.clips.repeat_interleave(self._beam),
            PrefixLogProbs(*(one.flatten(0, 1) for one in beams.spelled)),
        )
        begun, spelled = ctc.extend(*flat, last.expand(tokens.shape[:2]).flatten(), tokens.flatten(0, 1))
        decoder = beams.decoder[..., None] + values
        scores = self._joined(decoder, self._by_clip(begun))
        scores = scores.masked_fill(beams.scores.isinf()[..., None], -math.inf).flatten(1)
        chosen, places = scores.topk(self._beam, 1)
        rows = torch.arange(len(places), device=places.device)[:, None]
        parents = beams.tokens[rows, places // tokens.shape[2]]
        return _BeamState(
            beams.clips, torch.cat([parents, tokens.flatten(1)[rows, places][..., None]], 2),
            decoder.flatten(1)[rows, places], chosen,
            PrefixLogProbs(*(self._by_clip(one).flatten(1, 2)[rows, places] for one in spelled)),
        )  # fmt: skip

    def _open(self, beams: _BeamState) -> _BeamState:
        """Return the prefixes of the clips that are not done.

        A clip is done if its best complete text has at least as high a score as its best prefix: longer prefixes only
        have lower scores. It is also done if its prefixes have more tokens than the clip has frames.
        """
        found = beams.scores.new_tensor([self.best[clip][0] for clip in beams.clips.tolist()])
        return beams.of((beams.scores[:, 0] > found) & (beams.tokens.shape[2] - 1 <= self.frames[beams.clips]))


def beam_search(
    model: DecodableModel, batch: Batch, log_probs: Tensor, symbols: SpecialTokens, *, weight: float, beam: int
) -> list[list[int]]:
    """Return the tokens of each clip that are most likely by CTC and the decoder together, from a beam search.

    https://arxiv.org/abs/1706.02737: the score is ``weight`` times CTC's log-probability plus ``1 - weight`` times the
    decoder's log-probability. The best ``beam`` prefixes of each length are kept, by CTC's prefix score and the
    decoder's score. ``log_probs`` (clips, frames, tokens) are the outputs of CTC.
    """
    search = _BeamSearch(model, batch, symbols, weight=weight, beam=beam)
    return search.run(PrefixScores(log_probs, search.frames, symbols.blank))
