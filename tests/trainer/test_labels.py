"""Texts as the numbers of tokens, in the lists of each toolkit, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.labels import Labels, UnknownLetterError
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

COQUI = Labels([" ", "a", "b", "c", "<blank>"])
ESPNET = Labels(["<blank>", "<unk>", "<space>", "a", "b", "ab", "<sos/eos>"])
PIECES = Labels(["<blank>", "<unk>", "▁the", "▁t", "h", "e", "re", "▁", "<sos/eos>"])
WAV2VEC2 = Labels(["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T"])
BYTES = Labels(read_vocabulary("bytes").tokens)


def test_coquis_alphabet_has_its_blank_behind_the_last() -> None:
    Path("alphabet.txt").write_text("# a comment\n \na\n\\#\n")
    labels = Labels(read_vocabulary("alphabet.txt").tokens)
    assert (labels.blank, labels.encode("a #"), labels.decode([1, 0, 2])) == (3, [1, 0, 2], "a #")
    assert COQUI.encode(" a  b") == [0, 1, 0, 0, 2]


def test_espnets_list_has_it_first_and_a_token_for_the_space() -> None:
    assert (ESPNET.blank, ESPNET.start, ESPNET.end) == (0, 6, 6)
    assert (ESPNET.encode("a b"), ESPNET.decode([6, 3, 2, 4, 6])) == ([3, 2, 4], "a b")


def test_the_longest_token_wins() -> None:
    assert ESPNET.encode("abba ab") == [5, 4, 3, 2, 5]


def test_sentencepieces_words_begin_with_theirs() -> None:
    assert (PIECES.encode("the there"), PIECES.decode([2, 2, 6])) == ([2, 2, 6], "the there")
    assert (PIECES.encode("te he"), PIECES.decode([3, 5, 7, 4, 5])) == ([3, 5, 7, 4, 5], "te he")


def test_a_lone_piece_stands_between_letters() -> None:
    labels = Labels(["<blank>", "▁", "a", "b"])
    assert (labels.encode("a b"), labels.decode([2, 1, 3])) == ([2, 1, 3], "a b")


def test_wav2vec2s_list() -> None:
    assert (WAV2VEC2.blank, WAV2VEC2.start, WAV2VEC2.end) == (0, 1, 2)
    assert (WAV2VEC2.encode("TE E"), WAV2VEC2.decode([6, 5, 4, 5])) == ([6, 5, 4, 5], "TE E")
    assert WAV2VEC2.decode([4, 6, 4, 4, 5, 4]) == "T  E"  # as Wav2Vec2CTCTokenizer decodes it


def test_wav2vec2s_texts_are_those_of_transformers() -> None:
    tokenizer = pytest.importorskip("transformers").Wav2Vec2CTCTokenizer
    Path("vocab.json").write_text(json.dumps({token: row for row, token in enumerate(WAV2VEC2.tokens)}))
    theirs = tokenizer("vocab.json", pad_token=WAV2VEC2.tokens[0], word_delimiter_token="|")
    for frames in ([4, 0, 6, 0, 5, 5, 0, 5, 4], [4, 4, 0, 4, 6], [6, 4, 0, 4, 5], [0, 0], [4]):
        assert WAV2VEC2.decode(WAV2VEC2.collapse(frames)) == theirs.decode(frames), frames


@pytest.mark.long
@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bytes_spell_any_text(text: str) -> None:
    ids = BYTES.encode(text)
    assert (BYTES.blank, BYTES.decode(ids)) == (255, text)
    assert ids == [byte - 1 for byte in text.encode()]


@given(st.text(alphabet=" abc"))
def test_what_is_encoded_is_decoded(text: str) -> None:
    assert COQUI.decode(COQUI.encode(text)) == text


@pytest.mark.parametrize(
    ("labels", "text", "letter", "hint"),
    [
        (COQUI, "abd", "d", ""),
        (COQUI, "Abc", "A", "The token list has 'a'"),
        (WAV2VEC2, "te", "t", "The token list has 'T'"),
        (Labels(["<blank>", "a", "é"]), "ae\u0301", "e", ""),
        (Labels(["<blank>", "e", "é"]), "e\u0301", "\u0301", "NFC"),
        (PIECES, "x", "x", ""),
        (PIECES, "tx", "x", ""),
        (Labels(["<blank>", "a"]), "a a", " ", "Add a token for the space between words"),
        (BYTES, "\0", "\0", ""),
        (BYTES, "a\ud800", "\ud800", "half of a letter in UTF-16"),
        (ESPNET, "<unk>", "<", ""),
    ],
)
def test_a_letter_that_no_token_is_is_an_error(labels: Labels, text: str, letter: str, hint: str) -> None:
    with pytest.raises(UnknownLetterError) as caught:
        labels.encode(text)
    assert caught.value.letter == letter
    assert hint in caught.value.hint


def test_a_list_without_a_blank_is_refused() -> None:
    with pytest.raises(cs.ConfigError, match="no blank, which CTC needs. Add one of <blank>"):
        Labels(["a", "b"])


def test_ctc_collapses_repeats_and_then_drops_blanks() -> None:
    assert COQUI.collapse([4, 1, 1, 4, 1, 2, 2, 4, 4]) == [1, 1, 2]
    assert COQUI.collapse([4, 4]) == []


def test_a_repeat_needs_a_frame_more() -> None:
    assert [COQUI.frames_needed(COQUI.encode(text)) for text in ("", "a", "ab", "aab", "aaa")] == [0, 1, 2, 4, 5]
