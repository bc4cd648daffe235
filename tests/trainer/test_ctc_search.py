"""The beam search over CTC's outputs against all alignments, alone and with a language model."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.data.labels import Labels
from ckptsurgeon.trainer.tasks import _ctc_search
from ckptsurgeon.trainer.tasks._ctc_search import CTCSearch, WordScores, ctc_search
from ckptsurgeon.trainer.tasks._ngrams import read_arpa
from ckptsurgeon.trainer.tasks.classify import Classify
from ckptsurgeon.trainer.tasks.ctc import CTC
from ckptsurgeon.trainer.tasks.hybrid import Hybrid
from fixtures import pyctcdecode_cases
from fixtures.pyctcdecode_cases import BEAM, WEIGHTS

from .test_hypotheses import TEXTS, configuration, lines

ROOT = Path(__file__).parents[2]
LETTERS = ["<blank>", "a", "b", " "]
PIECES = ["<blank>", "▁a", "▁b", "a"]
CHARACTERS = ["<blank>", "a", "b", "c"]
WORDS = ("a", "b", "ab", "ba", "aa")


def said(seed: int, frames: int, tokens: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(1, frames, tokens, generator=draw, dtype=torch.float64)).log_softmax(-1)


def texts(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every text, summed over all its alignments."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    rows = log_probs.exp().tolist()
    for path in product(range(len(rows[0])), repeat=len(rows)):
        spelled = tuple(token for token, _ in groupby(path) if token)
        found[spelled] += math.prod(row[token] for row, token in zip(rows, path, strict=True))
    return found


def arpa(path: str = "lm.arpa", words: Sequence[str] = WORDS) -> str:
    """Write a bigram model in which no two words and no two pairs are as likely."""
    ones = [
        f"{-0.5 - 0.13 * n:.3f}\t{word}\t{-0.1 - 0.07 * n:.3f}"
        for n, word in enumerate(("<s>", "</s>", "<unk>", *words))
    ]
    pairs = [
        f"{-0.3 - 0.11 * n:.3f}\t{first} {second}"
        for n, (first, second) in enumerate(zip(("<s>", *words), (*words, "</s>"), strict=True))
    ]
    parts = [
        "\\data\\",
        f"ngram 1={len(ones)}",
        f"ngram 2={len(pairs)}",
        "",
        "\\1-grams:",
        *ones,
        "",
        "\\2-grams:",
        *pairs,
        "",
        "\\end\\",
    ]
    Path(path).write_text("\n".join(parts) + "\n")
    return path


def words_score(labels: Labels, tokens: Sequence[int], *, weight: float, bonus: float, single: bool = False) -> float:
    """The score of a text's words by the definition: the model's probabilities, the bonus, what unknown words cost."""
    model = read_arpa("lm.arpa")
    words = [labels.decode([one]) for one in tokens] if single else labels.decode(tokens).split()
    state, score = model.begin(), 0.0
    for word in words:
        log_prob, state = model.next(state, word)
        unknown = 0.0 if word in set(model.words) else 10 * math.log(10)
        score += weight * (log_prob - unknown) + bonus
    return score + weight * model.end(state)


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_that_loses_nothing_finds_the_most_likely_text(seed: int) -> None:
    log_probs = said(seed, 6)
    probable = texts(log_probs[0])
    (found,) = CTCSearch(0, 10_000).read(log_probs, torch.tensor([6]))
    assert probable[tuple(found)] == pytest.approx(max(probable.values()), rel=1e-9)
    greedy = tuple(token for token, _ in groupby(log_probs[0].argmax(-1).tolist()) if token)
    assert probable[tuple(found)] >= probable[greedy] * (1 - 1e-9)


def test_the_best_text_need_not_be_that_of_the_best_path() -> None:
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]], dtype=torch.float64).log()
    assert CTCSearch(0, 8).read(log_probs, torch.tensor([2])) == [[1]]  # 0.64 in three ways; the blank path has 0.36
    assert CTCSearch(0, 8).read(log_probs, torch.tensor([0])) == [[]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("tokens", "single"),
    [(LETTERS, False), (PIECES, False), (CHARACTERS, True)],
    ids=["letters", "pieces", "characters"],
)
def test_with_a_language_model_the_best_score_of_all_texts_is_found(seed: int, tokens: list[str], single: bool) -> None:
    labels, weights = Labels(tokens), {"weight": 0.7, "bonus": 0.9}
    scores = WordScores(read_arpa(arpa()), labels, **weights)
    log_probs = said(seed, 5)
    by_hand = {
        one: math.log(probability) + words_score(labels, one, single=single, **weights)
        for one, probability in texts(log_probs[0]).items()
    }
    (found,) = CTCSearch(0, 10_000, scores).read(log_probs, torch.tensor([5]))
    assert by_hand[tuple(found)] == pytest.approx(max(by_hand.values()), abs=1e-6)


RECORDED = json.loads((ROOT / "fixtures" / "golden" / "pyctcdecode" / "texts.json").read_text())["texts"]


@pytest.mark.costly
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_texts_are_those_of_pyctcdecode(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyctcdecode 0.5.0 with KenLM, `make oracle-pyctcdecode`: outputs of CTC that are heard wrongly, unknown words too.

    Alone it differs in one: of pieces, it adds up the ways to make a text, and ckpt searches for the likeliest pieces.
    """
    monkeypatch.setattr(_ctc_search, "CANDIDATES", 100)
    Path("lm.arpa").write_text(pyctcdecode_cases.arpa())
    labels, (weight, bonus) = Labels(pyctcdecode_cases.tokens(kind)), WEIGHTS[kind]
    scores = WordScores(read_arpa("lm.arpa"), labels, weight=weight, bonus=bonus)
    found, wanted = [], []
    for _, seed, text, _, alone in (row for row in RECORDED if row[0] == kind):
        log_probs = torch.from_numpy(pyctcdecode_cases.log_probs(kind, seed))[None]
        lengths = torch.tensor([log_probs.shape[1]])
        for search in (CTCSearch(0, BEAM, scores), CTCSearch(0, BEAM)):
            found.append(" ".join(labels.decode(search.read(log_probs, lengths)[0]).split()))
        wanted += [text, alone]
    assert found[::2] == wanted[::2]
    assert sum(one != other for one, other in zip(found[1::2], wanted[1::2], strict=True)) == (kind == "pieces")
    assert found[::2] != found[1::2]


def test_padding_is_not_read() -> None:
    one, other = said(1, 6), said(2, 4)
    both = torch.cat([one, torch.nn.functional.pad(other, (0, 0, 0, 2), value=-1.0)])
    search = CTCSearch(0, 20)
    alone = search.read(one, torch.tensor([6])) + search.read(other, torch.tensor([4]))
    assert search.read(both, torch.tensor([6, 4])) == alone


def test_only_the_likeliest_tokens_of_a_frame_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = torch.tensor([[[0.1, 0.5, 0.4]]]).log()
    assert CTCSearch(0, 4).read(log_probs, torch.tensor([1])) == [[1]]
    labels = Labels(["<blank>", "a", "b"])
    scores = WordScores(read_arpa(arpa(words=["b"])), labels, weight=1.0, bonus=0.0)
    assert CTCSearch(0, 4, scores).read(log_probs, torch.tensor([1])) == [[2]]
    monkeypatch.setattr(_ctc_search, "CANDIDATES", 1)
    assert CTCSearch(0, 4, scores).read(log_probs, torch.tensor([1])) != [[2]]


def test_a_language_model_corrects_what_is_heard() -> None:
    labels = Labels(["<blank>", *"abcdeghinorst "])
    heard, meant = "the cad is not here", "the cat is not here"

    def spelled(text: str) -> Tensor:
        ids = [one for i in labels.encode(text) for one in (i, 0)]
        return torch.nn.functional.one_hot(torch.tensor(ids), len(labels)).double()

    log_probs = (0.6 * spelled(heard) + 0.39 * spelled(meant) + 0.01 / len(labels)).log()[None]
    lengths = torch.tensor([log_probs.shape[1]])
    assert labels.decode(CTCSearch(0, 10).read(log_probs, lengths)[0]) == heard
    scores = WordScores(read_arpa(arpa(words=meant.split())), labels, weight=0.5, bonus=1.5)
    assert labels.decode(CTCSearch(0, 10, scores).read(log_probs, lengths)[0]) == meant


def test_words_of_bytes_are_read_as_their_letters() -> None:
    labels = Labels(["<blank>", *(f"<0x{one:02X}>" for one in range(1, 256))])
    ids = [one for byte in "да ня".encode() for one in (byte, 0)]
    log_probs = (torch.nn.functional.one_hot(torch.tensor(ids), 256).double() * 0.6 + 0.4 / 256).log()[None]
    scores = WordScores(read_arpa(arpa(words=["да", "нет"])), labels, weight=0.5, bonus=1.5)
    assert sorted(scores.breaks) == [32]
    assert labels.decode(CTCSearch(0, 10, scores).read(log_probs, torch.tensor([len(ids)]))[0]).split()[0] == "да"


def test_words_that_no_token_spells_are_an_error() -> None:
    with pytest.raises(
        cs.ConfigError, match=r"no word of .*lm\.arpa can be written with the token list.*same case as the token list"
    ):
        WordScores(read_arpa(arpa(words=["AB", "BA"])), Labels(LETTERS), weight=1.0, bonus=0.0)


def settings(**given: Any) -> Any:
    return parse_settings({"data": {"train": "x.csv", "tokens": "x"}, **given}, "a test")


def test_settings_of_a_search_are_checked() -> None:
    with pytest.raises(cs.ConfigError, match=r"train\.lm needs train\.decoding: ctc_beam, but train\.decoding is ctc"):
        settings(lm="lm.arpa")
    for section in ({"lm_weight": -1.0}, {"word_bonus": math.inf}, {"beam": 0}):
        with pytest.raises(cs.ConfigError):
            settings(decoding="ctc_beam", **section)
    with pytest.raises(cs.ConfigError, match="the task classify has no CTC, which a beam search needs"):
        Classify(settings(task="classify", decoding="ctc_beam"), ["a", "b"])
    for kind in (CTC, Hybrid):
        assert kind(settings(decoding="ctc_beam"), ["<blank>", "a", "<sos/eos>"]).decoded(
            said(0, 3, 3), torch.tensor([3])
        )
    assert isinstance(ctc_search(settings(decoding="ctc_beam", lm=arpa(), beam=3), Labels(LETTERS)), CTCSearch)


SEARCH = {"decoding": "ctc_beam", "beam": 5, "lm_weight": 2.0, "word_bonus": 0.0}


@pytest.mark.usefixtures("cheap")
def test_a_run_is_evaluated_and_transcribed_by_the_search_that_it_names(ckpt: Any) -> None:
    usual = {"steps": 4, "lr": 1e-6, "evaluate_every": 4}
    found = cs.train(configuration(**SEARCH, **usual, lm=arpa(words=TEXTS)), run="run", keep_going=True)
    assert any(
        "beam search with" in note and "lm.arpa, beam 5 (train.decoding: ctc_beam)" in note for note in found.notes
    )
    paths = [line.split(",")[0] for line in Path("dev.csv").read_text().splitlines()[1:]]
    read = {row["reference"]: row["hypothesis"] for row in lines("run/dev.hypotheses.jsonl")}
    searched = cs.transcribe("run", paths, batch_size=3)
    assert [one.text for one in searched.sounds] == [read[text] for text in TEXTS]
    configuration(**usual)  # x.yaml decodes frame by frame now
    greedy = cs.transcribe("run", paths, config="x.yaml", batch_size=3)
    assert greedy.sounds != searched.sounds
    options = ("--beam", "5", "--lm", "lm.arpa", "--lm-weight", "2", "--word-bonus", "0", "--batch-size", "3")
    again = ckpt("transcribe", "run", *paths, "--config", "x.yaml", *options)
    assert again.out.splitlines() == [f"{one.path}\t{one.text}" for one in searched.sounds]
    alone = cs.transcribe("run", paths, config="x.yaml", beam=5, batch_size=3)
    assert alone.sounds != searched.sounds


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_what_a_search_cannot_be_given_is_an_error() -> None:
    cs.train(configuration(), run="run", keep_going=True)
    for given, why in (
        ({"lm_weight": 1.0}, "lm_weight has no effect without a language model"),
        ({"word_bonus": 1.0}, "word_bonus has no effect without a language model"),
        ({"beam": 0}, "beam is 0; it must be 1 or more"),
        ({"lm": "none.arpa"}, "none.arpa does not exist"),
    ):
        with pytest.raises(cs.ConfigError, match=why):
            cs.transcribe("run", "dev-0.wav", **given)


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_resumed_run_says_that_its_language_model_is_another_one() -> None:
    cs.train(configuration(**SEARCH, lm=arpa(words=TEXTS)), run="run", keep_going=True)
    notes = cs.train(run="run", resume=True, steps=6, keep_going=True).notes
    assert not [note for note in notes if "lm.arpa is not what it was" in note]
    arpa(words=TEXTS[:4])
    notes = cs.train(run="run", resume=True, steps=8, keep_going=True).notes
    assert [note for note in notes if "lm.arpa has changed since run was started" in note]
