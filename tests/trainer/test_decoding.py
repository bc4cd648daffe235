"""Prefix scores against all alignments, and beams against all texts, of models small enough to try everything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.config.settings import Settings
from ckptsurgeon.trainer.models.hybrid_asr import HybridASR
from ckptsurgeon.trainer.tasks._decoding import PrefixLogProbs, PrefixScores, SpecialTokens, beam_search, greedy_search
from ckptsurgeon.trainer.tasks._task import Batch
from ckptsurgeon.trainer.tasks.classify import Classify
from ckptsurgeon.trainer.tasks.ctc import CTC
from ckptsurgeon.trainer.tasks.hybrid import Hybrid

BLANK, END, A, B = 0, 3, 1, 2
SYMBOLS = SpecialTokens(END, END, BLANK)
TOKENS = ["<blank>", "a", "b", "<sos/eos>"]
FRAMES = (5, 3)


def said(seed: int, frames: Sequence[int] = FRAMES, tokens: int = 4) -> Tensor:
    """Log-probabilities (clips, frames, tokens), of no two frames the same; what is padding is as sure of itself."""
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(len(frames), max(frames), tokens, generator=draw)).log_softmax(-1)


def spellings(log_probs: Tensor) -> Iterator[tuple[list[int], float]]:
    """Every path through the frames (frames, tokens) of one clip: what it spells, and its probability."""
    for path in product(range(log_probs.shape[1]), repeat=len(log_probs)):
        probability = math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        yield [token for token, _ in groupby(path) if token != BLANK], probability


def prefixes(longest: int) -> list[tuple[int, ...]]:
    return [prefix for size in range(longest + 1) for prefix in product((A, B), repeat=size)]


def scored(log_probs: Tensor, frames: Sequence[int], prefix: Sequence[int]) -> tuple[list[float], list[float]]:
    """What is said of a prefix of each clip: that the text begins with it, and that it is the text."""
    scores = PrefixScores(log_probs, torch.tensor(frames), BLANK)
    clips = torch.arange(len(frames))
    spelled, begun, last = scores.start(), torch.zeros(len(frames)), torch.full((len(frames),), -1)
    for token in prefix:
        found, extended = scores.extend(clips, spelled, last, torch.tensor([[3 - token, token]] * len(frames)))
        begun, spelled = found[:, 1], PrefixLogProbs(extended.label[:, 1], extended.blank[:, 1])
        last = torch.full((len(frames),), token)
    return begun.exp().tolist(), PrefixScores.whole(spelled).exp().tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_prefix_scores_are_sums_over_all_alignments(seed: int) -> None:
    log_probs = said(seed)[..., :3].double().log_softmax(-1)  # repeats, texts too long for their frames, and padding
    ways = [list(spellings(log_probs[clip, :size])) for clip, size in enumerate(FRAMES)]
    for prefix in prefixes(4):
        begun, whole = scored(log_probs, FRAMES, prefix)
        for clip in range(len(FRAMES)):
            begins = sum(p for text, p in ways[clip] if text[: len(prefix)] == list(prefix))
            assert begun[clip] == pytest.approx(begins, rel=1e-9, abs=1e-12)
            assert whole[clip] == pytest.approx(sum(p for text, p in ways[clip] if text == list(prefix)), abs=1e-12)


def test_a_whole_text_scores_as_torch_says() -> None:
    frames, texts = (40, 30), ([A, A, B, A], [B, B, B])
    log_probs = said(3, frames, 3)
    for clip, text in enumerate(texts):
        whole = scored(log_probs, frames, text)[1][clip]
        loss = nn.functional.ctc_loss(
            log_probs[clip, : frames[clip], None].double(), torch.tensor([text]), torch.tensor([frames[clip]]),
            torch.tensor([len(text)]), BLANK, reduction="sum",
        )  # fmt: skip
        assert math.log(whole) == pytest.approx(-float(loss), rel=1e-9)


def test_what_cannot_be_is_no_nan() -> None:
    """Frames that are sure of one token: the others have the probability 0."""
    log_probs = torch.full((1, 4, 3), -math.inf)
    for frame, token in enumerate((A, BLANK, A, B)):
        log_probs[0, frame, token] = 0.0
    for prefix in prefixes(4):
        begun, whole = scored(log_probs, (4,), prefix)
        assert whole == [1.0 if prefix == (A, A, B) else 0.0]
        assert begun == [1.0 if prefix == (A, A, B)[: len(prefix)] else 0.0]


class Reader(nn.Module):
    """A decoder that finds tokens likely by the two before and by the clip: an attention that is easy to enumerate."""

    def __init__(self, seed: int, log_probs: Tensor, frames: Sequence[int]) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(len(frames), 4, 4, 4, generator=draw)
        self.ctc, self.frames, self.rows = log_probs, torch.tensor(frames), 0

    def encode(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(len(inputs))[:, None], self.frames

    def decode(self, previous: Tensor, memory: Tensor, lengths: Tensor) -> Tensor:
        self.rows += len(previous)
        before = torch.cat([torch.full_like(previous[:, :1], END), previous[:, :-1]], 1)
        return self.table[memory, before, previous]

    def score(self, clip: int, text: Sequence[int]) -> float:
        """The log-probability of a whole text."""
        tokens = torch.tensor([[END, *text]])
        found = self.decode(tokens, torch.tensor([[clip]]), self.frames)[0].double().log_softmax(-1)
        return sum(float(found[place, token]) for place, token in enumerate([*text, END]))


def batch_of(frames: Sequence[int]) -> Batch:
    empty = torch.zeros(len(frames), 1, dtype=torch.int64)
    return Batch(
        torch.zeros(len(frames), max(frames)), torch.tensor(frames), empty, empty[:, 0], 0.0, ("x",) * len(frames)
    )


@pytest.mark.costly
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_wide_beam_finds_the_likeliest_of_all_texts(seed: int, weight: float) -> None:
    log_probs = said(seed)
    model = Reader(seed, log_probs, FRAMES)
    found = beam_search(model, batch_of(FRAMES), log_probs, SYMBOLS, weight=weight, beam=64)
    for clip, size in enumerate(FRAMES):
        texts = prefixes(size)
        ctc = {text: scored(log_probs, FRAMES, text)[1][clip] for text in texts}
        scores = {
            text: (1 - weight) * model.score(clip, text) + weight * max(math.log(ctc[text] or 1e-300), -1e6)
            for text in texts
        }
        assert tuple(found[clip]) == max(scores, key=lambda text: scores[text])


def test_a_beam_of_one_follows_the_likeliest_prefix() -> None:
    """And is done with a clip once nothing that is longer can be better."""
    log_probs = said(7)
    model = Reader(7, log_probs, FRAMES)
    found = beam_search(model, batch_of(FRAMES), log_probs, SYMBOLS, weight=0.3, beam=1)
    assert len(found) == 2
    assert model.rows <= sum(FRAMES) + 2


@pytest.mark.parametrize("seed", range(6))
def test_greedy_takes_the_likeliest_token_until_the_end(seed: int) -> None:
    model = Reader(seed, said(seed), FRAMES)
    found = greedy_search(model, batch_of(FRAMES), SYMBOLS)
    for clip, size in enumerate(FRAMES):
        text: list[int] = []
        while len(text) < size:
            before = text[-2] if len(text) > 1 else END
            logits = model.table[clip, before, text[-1] if text else END].clone()
            logits[BLANK] = -math.inf
            if int(logits.argmax()) == END:
                break
            text.append(int(logits.argmax()))
        assert found[clip] == text


def settings(**section: Any) -> Settings:
    return parse_settings({"task": "hybrid", "features": {"kind": "waves"}, **section}, "x.yaml")


def learned() -> tuple[HybridASR, Batch]:
    """A model that has learned two clips by heart, by its decoder; CTC of it was never asked."""
    torch.manual_seed(0)
    model = HybridASR(
        4, d_model=16, heads=2, encoder_layers=1, decoder_layers=1, n_mels=20, ctc_weight=0.0, encoder="transformer",
        dropout=0.0,
    )  # fmt: skip
    labels = torch.tensor([[A, B, B], [B, A, 0]])
    draw = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(2, 8000, generator=draw), torch.tensor([8000, 6400]), labels, torch.tensor([3, 2]), 1.0, ("x", "y")
    )
    task, optimizer = Hybrid(settings(), TOKENS), torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(model, batch).total.backward()
        optimizer.step()
    return model.eval(), batch


@pytest.mark.long
def test_error_rates_are_of_the_decoding_that_is_chosen() -> None:
    model, batch = learned()
    figures = {
        name: Hybrid(settings(decoding=name), TOKENS).evaluate(model, [batch]) for name in ("ctc", "attention", "joint")
    }
    assert figures["attention"]["cer"] == figures["joint"]["cer"] == 0.0
    assert figures["ctc"]["cer"] > 0.5
    assert len({(one["loss"], one["accuracy"], one["blanks"]) for one in figures.values()}) == 1
    model.ctc_weight = 1.0  # which is how much CTC has to say in both, too
    assert Hybrid(settings(decoding="joint"), TOKENS).evaluate(model, [batch])["cer"] > 0


def test_what_the_error_rates_are_of_is_said() -> None:
    from .sounds import corpus

    corpus("train.csv", ["a", "b"])
    data = {"train": "train.csv"}
    ctc = Hybrid(settings(data=data), TOKENS).notes()[-1]
    assert ctc == "texts for error rates are decoded by CTC alone (train.decoding: ctc)"
    joint = Hybrid(settings(data=data, decoding="joint", beam=3), TOKENS).notes()[-1]
    assert joint == "texts for error rates are decoded by CTC and the decoder together, beam 3 (train.decoding: joint)"


@pytest.mark.long
def test_what_cannot_be_decoded_is_an_error() -> None:
    for name, kind in (("ctc", CTC), ("classify", Classify)):
        with pytest.raises(cs.ConfigError, match=f"the task {name} has no attention decoder. Use the task hybrid"):
            kind(settings(task=name, decoding="joint"), TOKENS)
    for section in ({"decoding": "beam"}, {"beam": 0}):
        with pytest.raises(cs.ConfigError):
            settings(**section)

    class Whole(nn.Module):
        def __init__(self, inner: HybridASR) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Tensor) -> Any:
            return self.inner(*args)

    model, batch = learned()
    assert Hybrid(settings(), TOKENS).evaluate(Whole(model), [batch])
    with pytest.raises(cs.ConfigError, match=r"no methods encode and decode.*Write train\.decoding: ctc"):
        Hybrid(settings(decoding="attention"), TOKENS).evaluate(Whole(model), [batch])
