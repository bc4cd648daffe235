"""Texts are cut into pieces as the tokeniser of a model cuts them."""

from __future__ import annotations

import io
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.labels import Labels, UnknownLetterError
from ckptsurgeon.trainer.data.segmenter import Segmenter
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

from .sounds import corpus

sentencepiece = pytest.importorskip("sentencepiece")

TEXTS = [
    "the cat sat on the mat", "the dog ate the cat", "a cat and a dog sat", "that mat is the mat of the dog",
    "the dogs and the cats ate at the gate", "she sat at that gate",
]  # fmt: skip


@pytest.fixture(params=["unigram", "bpe"])
def model(request: pytest.FixtureRequest) -> str:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=made, vocab_size=80, model_type=request.param,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    Path(f"{request.param}.model").write_bytes(made.getvalue())
    return f"{request.param}.model"


def tokens_of(model: str) -> list[str]:
    """The list as ESPnet writes it: blank and unknown first, begin and end last."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    return ["<blank>", "<unk>", *(one for one in pieces if not one.startswith("<")), "<sos/eos>"]


@pytest.mark.costly
def test_speechbrains_tokenizer_ckpt_is_both_the_list_and_the_tokeniser(model: str) -> None:
    Path(model).rename("tokenizer.ckpt")
    processor = sentencepiece.SentencePieceProcessor(model_file="tokenizer.ckpt")
    labels = Labels(read_vocabulary("tokenizer.ckpt").tokens, needs_blank=False, segmenter=Segmenter("tokenizer.ckpt"))
    assert [labels.encode(text) for text in TEXTS] == processor.encode(TEXTS)


def test_half_a_letter_is_an_error(model: str) -> None:
    labels = Labels(tokens_of(model), segmenter=Segmenter(model))
    with pytest.raises(UnknownLetterError) as caught:
        labels.encode("the cat \ud800")
    assert (caught.value.letter, caught.value.hint[:19]) == ("\ud800", "It is half of a let")


@pytest.mark.costly
def test_labels_are_those_of_sentencepiece(model: str) -> None:
    processor, tokens = sentencepiece.SentencePieceProcessor(model_file=model), tokens_of(model)
    labels = Labels(tokens, segmenter=Segmenter(model))
    draws = random.Random(0)
    unseen = ["".join(draws.choices("acdeghmnost", k=8)) for _ in range(300)]
    for text in (*TEXTS, *unseen):
        ids = labels.encode(text)
        assert [tokens[i] for i in ids] == processor.encode(text, out_type=str)
        assert labels.decode(ids) == text
        assert labels.decode([0, *ids, len(tokens) - 1]) == text
    assert not labels.is_guessed
    guessed = Labels(tokens)
    assert guessed.is_guessed
    if model == "bpe.model":  # the longest pieces are others; so many of a unigram model are the same
        assert any(guessed.encode(text) != labels.encode(text) for text in unseen)


def test_what_the_list_lacks_is_named(model: str) -> None:
    labels = Labels(tokens_of(model), segmenter=Segmenter(model))
    with pytest.raises(UnknownLetterError) as raised:
        labels.encode("the zebra")
    assert raised.value.letter in "zebra"
    assert f"{model} makes the piece" in raised.value.hint


def test_a_tokenizer_json_cuts_too() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<blank>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    made.save("tokenizer.json")
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    labels = Labels(tokens, segmenter=Segmenter("tokenizer.json"))
    for text in (*TEXTS, "caf\u00e9 \u4e2d"):
        assert labels.encode(text) == made.encode(text).ids
        assert labels.decode(labels.encode(text)) == text


def test_a_letter_that_bpe_would_lose_is_an_error() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.train_from_iterator(
        TEXTS, tokenizers.trainers.BpeTrainer(special_tokens=["<blank>"], show_progress=False, vocab_size=60)
    )
    made.save("tokenizer.json")
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    labels = Labels(tokens, segmenter=Segmenter("tokenizer.json"))
    assert labels.encode(TEXTS[0]) == made.encode(TEXTS[0]).ids
    with pytest.raises(UnknownLetterError) as raised:
        labels.encode("the cat zzz")
    said = "tokenizer.json has no piece for this letter: correct the transcript, or train the tokeniser with it."
    assert (raised.value.letter, raised.value.hint) == ("z", said)
    assert labels.unknown_letters("q zzz cat") == {"q", "z"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_letter_that_the_normaliser_composes_is_not_lost(form: Literal["NFC", "NFD"]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.normalizer = tokenizers.normalizers.NFC()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.train_from_iterator(
        ["caf\u00e9 \ud55c"], tokenizers.trainers.BpeTrainer(special_tokens=["<blank>"], show_progress=False)
    )
    made.save("tokenizer.json")
    tokens = [made.id_to_token(i) for i in range(made.get_vocab_size())]
    labels = Labels(tokens, segmenter=Segmenter("tokenizer.json"))
    text = unicodedata.normalize(form, "caf\u00e9 \ud55c")
    assert labels.encode(text) == made.encode("caf\u00e9 \ud55c").ids
    assert labels.unknown_letters(unicodedata.normalize(form, "\u00e9\u00e1")) == {"\u00e1"}
    assert Segmenter("tokenizer.json").lost_letters(unicodedata.normalize(form, "\u00e1 \u00e1")) == {"\u00e1": 2}


@pytest.fixture
def train(model: str) -> Callable[..., Any]:
    corpus("train.csv", TEXTS, shortest=2.0)
    Path("tokens.txt").write_text("\n".join(tokens_of(model)) + "\n")
    made = {"train": "train.csv", "dev": "train.csv", "tokens": "tokens.txt", "segmenter": model}
    net = {
        "_target_": "torch.nn.Sequential",
        "_args_": [{"_target_": "torch.nn.Linear", "in_features": 40, "out_features": len(tokens_of(model))}],
    }
    document = {"model": net, "train": {"task": "ctc", "data": made, "steps": 2, "batch_size": 2}}
    Path("net.yaml").write_text(yaml.safe_dump(document))
    return lambda *sets: build_job("net.yaml", sets=sets, device="cpu")


@pytest.mark.costly
def test_a_job_cuts_by_the_segmenter_and_says_when_it_guesses(train: Callable[..., Any], model: str) -> None:
    guess = (
        "texts are cut into the longest pieces, not as the tokeniser cuts them: "
        "set train.data.segmenter to the tokeniser's file"
    )
    assert guess not in train().notes
    assert guess in train("data.segmenter=null").notes
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    batch = next(iter(train().train.read(0, 0)))
    tokens = tokens_of(model)
    found = {
        "".join(tokens[i] for i in ids[:size]).replace("\u2581", " ").strip()
        for ids, size in zip(batch.labels.tolist(), batch.label_lengths.tolist(), strict=True)
    }
    assert found <= set(TEXTS)
    sizes = {len(processor.encode(text)) for text in found}
    assert sizes == set(batch.label_lengths.tolist())


@pytest.mark.costly
@pytest.mark.parametrize("name", ["broken.model", "broken.json", "missing.model"])
def test_a_file_that_is_no_tokeniser_is_refused(train: Callable[..., Any], name: str) -> None:
    if not name.startswith("missing"):
        Path(name).write_text(json.dumps({"no": "tokeniser"}))
    with pytest.raises(cs.ConfigError, match=f"train.data.segmenter: .*{name} cannot be read"):
        train(f"data.segmenter={name}")


@pytest.mark.parametrize(("blank", "where"), [("", "alphabet-pieces.txt"), ("<blank>\n", "pieces.txt")])
def test_pieces_are_the_alphabet_of_a_deepspeech(model: str, blank: str, where: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    corpus("train.csv", TEXTS, shortest=2.0)
    Path(where).write_text("\n".join(pieces) + "\n" + blank)
    data = {"train": "train.csv", "segmenter": model}
    sizes = {"n_input": 40, "n_context": 0, "n_hidden": 8}
    made = {"model": {"name": "deepspeech", "alphabet": where, **sizes}, "train": {"task": "ctc", "data": data}}
    Path("dst.yaml").write_text(yaml.safe_dump(made))
    job = build_job("dst.yaml", device="cpu")
    assert job.tokens == (*pieces, "<blank>")
    assert job.target.tensors["layer_6.bias"].shape == (len(pieces) + 1,)
    assert job.task.labels.encode("the cat") == processor.encode("the cat")
