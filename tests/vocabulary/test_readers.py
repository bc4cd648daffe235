"""Token lists of the toolkits: the token of every row, and an error for every file that is none."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptsurgeon.errors import ConfigError
from ckptsurgeon.vocabulary.beside_model import vocabulary_beside
from ckptsurgeon.vocabulary.coqui import VOCABULARY as COQUI
from ckptsurgeon.vocabulary.coqui import alphabet_text
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary, vocabulary_of


def read(name: str, content: str | bytes) -> tuple[str, ...]:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_vocabulary(name).tokens


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_text_has_a_token_a_line(end: str) -> None:
    assert read("tokens.txt", end.join(["<blank>", "a", " ", "#", "▁the", ""])) == ("<blank>", "a", " ", "#", "▁the")


def test_a_text_may_number_its_tokens() -> None:
    assert read("words.txt", "<eps> 0\na 1\nb 2\n") == ("<eps>", "a", "b")
    assert read("words.txt", "b 1\na 0\nc 2\nd 3\ne 4\n") == ("a", "b", "c", "d", "e")
    assert read("units.txt", "b 2\n<unk>\t1\n") == ("<unk>", "b")  # ESPnet's units.txt counts from 1
    assert read("words.txt", "  1\na 0\n") == ("a", " ")
    assert read("words.txt", "a 1\nb 0\nc\n") == ("a 1", "b 0", "c")
    assert read("words.txt", "a 01\nb 00\n") == ("a 01", "b 00")


def test_a_line_without_an_index_among_lines_with_one_is_an_error() -> None:
    lines = [f"{letter} {number}" for number, letter in enumerate("abcdefghijkl")]
    with pytest.raises(ConfigError, match=r"words\.txt: entry 5, 'e', has no index, but 11 of 12 have one"):
        read("words.txt", "\n".join(["e" if line == "e 4" else line for line in lines]))
    labels = [f"speaker {number}" for number in range(12)]
    assert read("labels.txt", "\n".join([*labels, "other"])) == (*labels, "other")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("# comment\n \na\n\n\\#\n b\r\n", (" ", "a", "#", " b")),
        ("a\nb", ("a", "b")),
        ("a\r\nb\r\n", ("a", "b")),
        ("a\rb\r", ("a", "b")),
        ("\na\n\n\nb\n\n", ("a", "b")),
        ("#a\n# b\n#\nc\nd\n", ("c", "d")),
        ("\\#\n\\#a\na#\n", ("#", "\\#a", "a#")),
        (" \n  \n a\na \n\tb\n", (" ", "  ", " a", "a ", "\tb")),
        ("ж\né\n\N{PILE OF POO}\n", ("ж", "é", "\N{PILE OF POO}")),
        ("a\u2028b\nc\x0bd\n", ("a\u2028b", "c\x0bd")),
    ],
)  # fmt: skip
def test_coquis_alphabet_and_its_blank_behind_the_last(text: str, labels: tuple[str, ...]) -> None:
    """native_client/alphabet.cc: comments, an escaped #, a blank that is a label, nothing trimmed, any line ends."""
    assert read("alphabet.txt", text) == (*labels, "<blank>")


LABELS = st.text(st.sampled_from(" #\\a\tж\ufeff\u2028") | st.characters(codec="utf-8"), max_size=3)


@given(st.lists(LABELS, min_size=1, max_size=6, unique=True))
@example([" ", "!", "#", "a"])
@example(["#", "\\", "\\\\#", "a#"])
@example(["\\#", "a"])
@example(["#a", "b"])
@example(["\ufeffa", "b"])
def test_an_alphabet_that_is_written_is_read_again_or_refused(labels: list[str]) -> None:
    try:
        text = alphabet_text(labels)
    except ConfigError:
        odd = [label for label in labels if not label or label == "\\#" or set(label) & set("\n\r\0")]
        assert odd or any(label[0] == "#" and label != "#" for label in labels) or labels[0][0] == "\ufeff"
    else:
        assert "<blank>" in labels or COQUI.read("alphabet.txt", text.encode()).tokens == (*labels, "<blank>")


def test_an_alphabet_that_is_no_utf_8_is_an_error() -> None:
    Path("alphabet.txt").write_bytes("ä\nb\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        read_vocabulary("alphabet.txt")


@pytest.mark.parametrize("beside", [False, True])
def test_coquis_bytes_mode_whatever_files_there_are(beside: bool) -> None:
    if beside:
        Path("bytes").write_text("a\nb\n")
        assert read_vocabulary("./bytes").tokens == ("a", "b")
    tokens = read_vocabulary("bytes").tokens
    assert (len(tokens), tokens[0], tokens[254], tokens[255]) == (256, "<0x01>", "<0xFF>", "<blank>")


def test_espnets_configuration() -> None:
    assert read("config.yaml", "token_list: ['<blank>', 'a', '1']\nencoder: conformer\n") == ("<blank>", "a", "1")


def test_transformers_vocabularies() -> None:
    assert read("vocab.json", json.dumps({"b": 1, "[PAD]": 0, "|": 2})) == ("[PAD]", "b", "|")
    added = [{"id": 2, "content": "<s>"}]
    assert read("tokenizer.json", json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added})) == (
        "a",
        "b",
        "<s>",
    )
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁a", -1.5]]}, "added_tokens": added}
    assert read("tokenizer.json", json.dumps(unigram)) == ("<unk>", "▁a", "<s>")
    unigram["added_tokens"] = []
    Path("tokenizer.json").write_text(json.dumps(unigram))
    assert read_vocabulary("tokenizer.json").scores == (0.0, -1.5)


def test_speechbrains_label_encoder() -> None:
    text = (
        "'b' => 1\n'a' => 0\n'it\\'s' => 2\n3 => 3\n================\n'starting_index' => 0\n'unk_label' => '<unk>'\n"
    )
    assert read("label_encoder.txt", text) == ("a", "b", "it's", "3")


def piece(text: str, score: float, kind: int = 1) -> bytes:
    raw = text.encode()
    inner = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(inner)]) + inner


MODEL = (
    piece("<unk>", 0.0, 2) + piece("▁the", -3.5) + piece("s", -4.25) + b"\x12\x04\x08\x01\x10\x02" + b"\x19" + b"\0" * 8
)


@pytest.mark.parametrize("name", ["bpe.model", "spm.bin"])
def test_a_sentencepiece_model(name: str) -> None:
    Path(name).write_bytes(MODEL)
    found = read_vocabulary(name)
    assert (found.tokens, found.scores) == (("<unk>", "▁the", "s"), (0.0, -3.5, -4.25))


def test_a_sentencepiece_model_that_sentencepiece_made() -> None:
    spm = pytest.importorskip("sentencepiece")
    Path("text.txt").write_text("\n".join("the cat sat on the mat and the dog ran to the cat" for _ in range(50)))
    spm.SentencePieceTrainer.train(input="text.txt", model_prefix="m", vocab_size=30, hard_vocab_limit=False)
    model = spm.SentencePieceProcessor(model_file="m.model")
    found = read_vocabulary("m.model")
    assert found.tokens == tuple(model.id_to_piece(i) for i in range(len(model)))
    assert found.scores == pytest.approx([model.get_score(i) for i in range(len(model))])


@pytest.mark.parametrize("name", ["bpe.vocab", "tokens.txt"])
def test_the_listing_of_a_sentencepiece_model_has_pieces_and_scores(name: str) -> None:
    Path(name).write_text("<unk>\t0\n▁the\t-3.5\ns\t-4.25e-05\n1\t-0\n#\t-7\n")
    found = read_vocabulary(name)
    assert (found.tokens, found.scores) == (("<unk>", "▁the", "s", "1", "#"), (0.0, -3.5, -4.25e-05, 0.0, -7.0))
    assert read(name, "<unk>\t0\n▁the\t-3.5\n<blank>\n") == ("<unk>", "▁the", "<blank>")
    assert read("words.txt", "<eps>\t0\na\t1\n-\t2\n") == ("<eps>", "a", "-")


def test_the_listing_that_sentencepiece_wrote_is_its_model() -> None:
    spm = pytest.importorskip("sentencepiece")
    Path("text.txt").write_text("\n".join("the cat sat on the mat and the dog ran to the cat" for _ in range(50)))
    for kind in ("unigram", "bpe"):
        spm.SentencePieceTrainer.train(
            input="text.txt", model_prefix="m", model_type=kind, vocab_size=30, hard_vocab_limit=False, minloglevel=2
        )
        model, listing = read_vocabulary("m.model"), read_vocabulary("m.vocab")
        assert listing.tokens == model.tokens
        assert listing.scores == pytest.approx(model.scores, abs=1e-4)


@pytest.mark.parametrize("text", ["a\nb\n", "a\nb\n<blank>\n", "a\t0\nb\t-1.5\n", "a\t0\nb\t-1.5\n<blank>\n"])
def test_the_blank_of_an_alphabet_is_last_whether_it_is_listed_or_not(text: str) -> None:
    assert read("alphabet.txt", text) == ("a", "b", "<blank>")


UNIGRAM = """{"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]},
 "added_tokens": [{"id": %d, "content": "x"}, {"id": %d, "content": "y"}]}"""
WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "nothing": ("t.txt", "", "has 0 tokens"),
    "one token": ("t.txt", "a\n", "has 1 token"),
    "a token twice": ("t.txt", "a\nb\na\n", "has tokens twice: 'a'"),
    "a blank before a label": ("alphabet.txt", "<blank>\na\nb\n", "Make <blank> the last line, or leave it out"),
    "no text": ("t.txt", b"\xff\xfe\n\xff", "it is not UTF-8"),
    "zero bytes": ("t.txt", b"PK\0\0\nab", "zero bytes, so it is not text"),
    "a list elsewhere": ("config.yaml", "token_list: data/tokens.txt\n", "Give that file"),
    "no token list": ("config.yaml", "encoder: conformer\n", "has no list of tokens (token_list)"),
    "numbers as tokens": ("config.yaml", "token_list: [a, 1]\n", "Put quotation marks"),
    "broken YAML": ("config.yaml", "token_list: [a", "config.yaml"),
    "broken JSON": ("vocab.json", "{", "is not valid JSON"),
    "no numbers": ("vocab.json", '{"a": "b"}', "does not map tokens to ids"),
    "a number twice": ("vocab.json", '{"a": 0, "b": 0}', "has two tokens with the id 0: 'a' and 'b'"),
    "a hole": ("vocab.json", '{"a": 0, "b": 2}', "no token with the id 1"),
    "an added token beyond a hole": ("tokenizer.json", UNIGRAM % (5, 6), "4 tokens, but no token with the id 2"),
    "an added number twice": ("tokenizer.json", UNIGRAM % (2, 2), "has two tokens with the id 2: 'x' and 'y'"),
    "a huge number": ("vocab.json", '{"a": 0, "b": 99999999999}', "does not map tokens to ids"),
    "a number below zero": ("vocab.json", '{"a": -1, "b": 0}', "does not map tokens to ids"),
    "a line's hole": ("t.txt", "a 0\nc 3\nb 1\n", "3 tokens, but no token with the index 2"),
    "a line's number twice": ("t.txt", "a 0\nb 1\nc 1\n", "two tokens with the index 1: 'b' and 'c'"),
    "lines that count from 2": ("t.txt", "a 2\nb 3\n", "no token with the index 1"),
    "a label without number": ("labels.txt", "'a' => 0\n'b' => x\n======\n", "is not a label with an index"),
    "a label that is code": ("labels.txt", "'a' => 0\n__import__('os') => 1\n======\n", "is not a label"),
    "a label's hole": ("labels.txt", "'a' => 0\n'b' => 2\n======\n", "no label with the index 1"),
    "a label's number twice": (
        "labels.txt",
        "'a' => 0\n'b' => 0\n======\n",
        "the token index 0 is already used on an earlier line",
    ),
    "a model cut short": ("m.model", MODEL[:-20], "is not a complete sentencepiece model"),
    "a model of noise": ("m.model", b"\xff" * 40, "is not a complete sentencepiece model"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_vocabulary_is_an_error(name: str) -> None:
    file, content, message = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        read(file, content)
    assert message in str(caught.value) + caught.value.hint
    assert caught.value.exit_code == 2


def test_one_added_token_beyond_a_hole_is_an_error() -> None:
    with pytest.raises(ConfigError, match="3 tokens, but no token with the id 2"):
        read("tokenizer.json", UNIGRAM.replace(', {"id": %d, "content": "y"}', "") % 5)


def test_a_vocabulary_with_a_hole_is_read_with_the_tokens_of_the_hint() -> None:
    words: dict[str, int] = {"a": 0, "b": 1, "c": 3, "d": 5}
    for absent in (2, 4):
        with pytest.raises(ConfigError, match=f"but no token with the id {absent}") as caught:
            read("tokenizer.json", json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
        (added,) = re.findall(r"such as (\S+) for", caught.value.hint)
        words[added] = absent
    found = read("tokenizer.json", json.dumps({"model": {"type": "WordLevel", "vocab": words}}))
    assert found == ("a", "b", "<unused2>", "c", "<unused4>", "d")


def test_two_added_tokens_with_one_id_are_an_error() -> None:
    Path("vocab.json").write_text('{"a": 0, "b": 1}')
    Path("added_tokens.json").write_text('{"x": 2, "y": 2}')
    with pytest.raises(ConfigError, match="do not continue the ids of the vocabulary, which has 2 tokens"):
        vocabulary_beside("vocab.json")


@pytest.mark.parametrize(
    ("path", "why"),
    [("nothing.txt", "No such file"), (".", "Is a directory"), ("/dev/zero", "it is a character device")],
)
def test_what_is_no_file_is_an_error(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_vocabulary(path)


def test_pairs_of_bytes_are_written_as_tokenizer_json_writes_them() -> None:
    assert read("x.tiktoken", "IGE= 1\n6A== 0\nw6k= 2\n") == ("è", "Ġa", "Ã©")
    assert read("x.tiktoken", "IGE= 1\n6A==  0\nw6k=\t2\n") == ("è", "Ġa", "Ã©")  # as tiktoken splits a line
    config = {"default_vocab_size": 3, "default_num_special_tokens": 1}
    rows = [{"rank": rank, "token_bytes": text} for rank, text in enumerate(["6A==", "IGE=", "w6k="])]
    tekken = {"config": config, "vocab": rows, "special_tokens": [{"rank": 0, "token_str": "<unk>"}]}
    assert read("tekken.json", json.dumps(tekken)) == ("<unk>", "è", "Ġa")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.tiktoken", "IGE= 0\nIGI= 2\n"), ("x.tiktoken", "IGE= 0\nIGI=\n"), ("x.tiktoken", "IGE= 0\nIG 1\n"),
        ("tekken.json", "[]"), ("tekken.json", '{"config": 1}'), ("tekken.json", "{"),
        ("tekken.json", '{"config": {"default_vocab_size": 9, "default_num_special_tokens": 1}, "vocab": []}'),
    ],
)  # fmt: skip
def test_pairs_of_bytes_that_are_none_are_an_error(name: str, content: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid byte-pair vocabulary"):
        read(name, content)


TRUNCATED = """{"config": {"default_vocab_size": 9, "default_num_special_tokens": 1},
 "special_tokens": [{"rank": 0, "token_str": "<s>"}], "vocab": [{"rank": 0, "token_bytes": "IGE="}]}"""


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.tiktoken", "IGE= 0\nIGI= 0\nIGM= 1\n", "the ranks of the tokens are not 0, 1, 2 and so on"),
        ("x.tiktoken", "IGE= 0\n\nIGI=\n", "line 3 is not a token in Base64, a space and a rank"),
        ("x.tiktoken", "IGE= 0\nIG 1\n", "the token with the rank 1 is not Base64"),
        ("tekken.json", "[]", "a field has a value of another type than in a file of Mistral"),
        ("tekken.json", TRUNCATED, "it lists 2 tokens, fewer than its vocabulary size 9"),
    ],
)
def test_why_pairs_of_bytes_are_none_is_said(name: str, content: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"{why}\\.$"):
        read(name, content)


LISTS = {"eng": {"<pad>": 0, "a": 1}, "deu": {"<pad>": 0, "ä": 1, "ß": 2}}


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [('{"target_lang": "deu"}', ("<pad>", "ä", "ß")), ('{"target_lang": "eng"}', ("<pad>", "a"))],
)
def test_a_list_for_each_language_is_that_of_the_target(settings: str, tokens: tuple[str, ...]) -> None:
    Path("tokenizer_config.json").write_text(settings)
    Path("vocab.json").write_text(json.dumps(LISTS))
    assert vocabulary_beside("vocab.json").tokens == tokens


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("{}", "has a token list for each of 2 languages, but tokenizer_config.json does not choose one"),
        ('{"target_lang": "fra"}', r"has no token list for fra \(target_lang\), only for deu, eng"),
    ],
)
def test_a_list_for_each_language_without_the_target_is_an_error(settings: str, why: str) -> None:
    Path("tokenizer_config.json").write_text(settings)
    Path("vocab.json").write_text(json.dumps(LISTS))
    with pytest.raises(ConfigError, match=why):
        vocabulary_beside("vocab.json")


def test_a_list_in_use_is_not_read_again_and_changed_bytes_are() -> None:
    first = vocabulary_of("vocab.txt", b"a\nb\n")
    assert vocabulary_of("vocab.txt", b"a\nb\n") is first
    assert vocabulary_of("vocab.txt", b"b\na\n").tokens == ("b", "a")
    assert vocabulary_of("other.txt", b"a\nb\n").name == "other.txt"
