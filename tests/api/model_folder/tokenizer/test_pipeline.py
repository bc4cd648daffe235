"""A tokenizer.json that contradicts itself: its steps, its model and its list of tokens."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.vocabulary.huggingface import byte_letters

from ..test_model_folders import model, verbs_of

BYTES = [*sorted(byte_letters()), "<unk>", "Ġa", "ab"]
SPACES = ["<unk>", "<s>", "</s>", "a", "▁a", "▁b", "b", "▁c"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "##c", "<s>", "</s>"]
LETTERS = [*WORDS[:5], *string.ascii_lowercase[1:], *(f"##{one}" for one in string.ascii_lowercase)]
SUFFIXED = ["<unk>", "a", "b", "a</w>", "b</w>"]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
META = {"type": "Metaspace", "replacement": "▁"}
OF_LLAMA = {
    "type": "Sequence",
    "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"}],
}
PIECES = {"type": "WordPiece", "prefix": "##"}
BERT = {"type": "BertPreTokenizer"}
SMALL = {"normalizer": {"type": "Lowercase"}}
SPLIT = {"type": "WhitespaceSplit"}
BARE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 8], "cls": ["<s>", 7]}


def whole(
    path: str, tokens: list[str], steps: dict[str, Any], section: dict[str, Any], *, kind: str = "bert", seed: int = 0
) -> str:
    """A model whose tokeniser is a tokenizer.json with these steps and this section for its model."""
    model(path, rows=len(tokens), seed=seed, model_type=kind, eos_token_id=None, pad_token_id=None)
    Path(path, "vocab.json").unlink(), Path(path, "generation_config.json").unlink()
    listed = (
        [[one, -1.0] for one in tokens] if section["type"] == "Unigram" else {one: i for i, one in enumerate(tokens)}
    )
    rules = {"merges": []} if section["type"] == "BPE" else {}
    Path(path, "tokenizer.json").write_text(
        json.dumps({"added_tokens": [], **steps, "model": {**section, "vocab": listed, **rules}})
    )
    return path


def notes(tokens: list[str], steps: dict[str, Any], section: dict[str, Any], kind: str = "bert") -> list[str]:
    whole("m", tokens, steps, section, kind=kind)
    found = [one for one in cs.inspect("m").notes if "tokenizer.json" in one and "made by none" not in one]
    assert [one for one in cs.convert("m").notes if one in found] == found
    return found


FAILS = "texts with a character that the list lacks cannot be encoded"


@pytest.mark.parametrize(
    ("tokens", "section", "said"),
    [
        (WORDS, {"type": "WordPiece", "unk_token": "<unk>"}, "'<unk>'"),
        (WORDS, {"type": "WordPiece", "unk_token": "[UNK]"}, ""),
        (WORDS, {"type": "WordPiece"}, ""),
        (WORDS, {"type": "WordLevel", "unk_token": "<unk>"}, "'<unk>'"),
        (["A", "C", "G", "T"], {"type": "WordLevel", "unk_token": "<unk>"}, ""),  # a list that is complete
        (SPACES, {"type": "BPE", "unk_token": "[UNK]"}, "'[UNK]'"),
        (SPACES, {"type": "BPE", "unk_token": None}, ""),
        ([*SPACES, *(f"<0x{one:02X}>" for one in range(256))], {"type": "BPE", "unk_token": "[UNK]", "byte_fallback": True}, ""),
        (SPACES, {"type": "BPE", "unk_token": "[UNK]", "byte_fallback": True}, "'[UNK]'"),
    ],
)  # fmt: skip
def test_an_unknown_token_that_is_not_listed_is_said(tokens: list[str], section: dict[str, Any], said: str) -> None:
    text = f"the unknown token of tokenizer.json, {said} (unk_token of its model), is not in its list: {FAILS}"
    assert notes(tokens, {}, section) == ([text] if said else [])


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"unk_id": 4}, "unk_id of tokenizer.json is 4, '▁a', while '<unk>' is 0: unknown text becomes a word"),
        ({"unk_id": 9}, "unk_id of tokenizer.json is 9, but its list has 8 tokens: the tokeniser cannot be loaded"),
        ({"unk_id": None}, f"unk_id of tokenizer.json is null: {FAILS}"),
        ({"unk_id": None, "byte_fallback": True}, f"unk_id of tokenizer.json is null: {FAILS}, with byte_fallback too"),
        ({"unk_id": 0}, ""),
        ({"unk_id": 1}, ""),  # another special token, as some classes of transformers have it
        ({}, ""),
    ],
)
def test_an_unknown_id_of_unigram_that_is_none_is_said(section: dict[str, Any], said: str) -> None:
    assert notes(SPACES, {}, {"type": "Unigram", **section}) == ([said] if said else [])


def test_texts_that_are_bytes_need_no_unknown_token() -> None:
    assert notes(BYTES[:256], {"pre_tokenizer": LEVEL}, {"type": "Unigram", "unk_id": None}) == []


@pytest.mark.parametrize(
    ("tokens", "section", "said"),
    [
        (WORDS, {"type": "WordPiece", "continuing_subword_prefix": "@@"}, "continuing_subword_prefix of tokenizer.json "
         "is '@@', but 2 tokens begin with ## and none with this prefix: words of several pieces become unknown"),
        (WORDS, {"type": "WordPiece", "continuing_subword_prefix": ""}, "continuing_subword_prefix of tokenizer.json "
         "is '', but 2 tokens begin with ##: words of several pieces become unknown"),
        (WORDS, {"type": "WordPiece", "continuing_subword_prefix": "##"}, ""),
        ([*WORDS, "@@b"], {"type": "WordPiece", "continuing_subword_prefix": "@@"}, ""),
        (["[UNK]", "a", "b"], {"type": "WordPiece", "continuing_subword_prefix": "##"}, ""),  # characters
        (["<unk>", "a", "b"], {"type": "BPE", "continuing_subword_prefix": "##"}, "continuing_subword_prefix of "
         "tokenizer.json is '##', but no token begins with it: all characters of a word after the first are lost or unknown"),
        (SPACES, {"type": "BPE", "end_of_word_suffix": "</w>"}, "end_of_word_suffix of tokenizer.json is '</w>', "
         "but no token ends with it: the last character of each word is lost or unknown"),
        (SUFFIXED, {"type": "BPE", "end_of_word_suffix": "</w>"}, ""),
        (SUFFIXED, {"type": "BPE", "end_of_word_suffix": ""}, "tokenizer.json has 2 tokens that end with </w> "
         "('a</w>'), but no end_of_word_suffix: the tokeniser never produces them"),
        (SPACES, {"type": "BPE", "end_of_word_suffix": "", "continuing_subword_prefix": ""}, ""),
    ],
)  # fmt: skip
def test_an_affix_that_the_tokens_have_not_is_said(tokens: list[str], section: dict[str, Any], said: str) -> None:
    assert notes(tokens, {}, section) == ([said] if said else [])


def test_a_step_that_writes_the_suffix_is_enough() -> None:
    steps = {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "</w>"}}
    assert notes(SUFFIXED, steps, {"type": "BPE"}) == []


@pytest.mark.parametrize(
    ("tokens", "section", "steps", "said"),
    [
        (BYTES, "BPE", {"pre_tokenizer": None}, "has byte-level tokens ('Ġa', and 0 more), but no step of it is ByteLevel (none)"),
        (BYTES, "BPE", {"pre_tokenizer": LEVEL}, ""),
        (BYTES[:256], "BPE", {"pre_tokenizer": BERT}, "has byte-level tokens (a letter for each of the 256 bytes), but no "),
        (SPACES, "Unigram", {"pre_tokenizer": SPLIT}, "has 3 tokens that begin with ▁, but no step of it writes a space as ▁ "
         "(WhitespaceSplit): words become wrong tokens"),
        (SPACES, "Unigram", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, META]}}, ""),
        (SPACES, "BPE", {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": None}, ""),
        (SPACES, "BPE", {"normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "y"}, "pre_tokenizer": None},
         "no step of it writes a space as ▁ (Replace)"),
        (SPACES, "BPE", {"pre_tokenizer": {"type": "New"}}, ""),
        (WORDS, "WordPiece", {"pre_tokenizer": META}, "the Metaspace step of tokenizer.json writes a space as ▁, but none of its "
         "WordPiece tokens begins with that: words become unknown"),
        (LETTERS, "WordPiece", {"pre_tokenizer": None} | SMALL, "but no pre_tokenizer, which splits texts into words: texts with spaces"),
        (WORDS, "WordPiece", {"pre_tokenizer": None}, ""),  # no list of an alphabet: of molecules, for instance
        (LETTERS, "WordPiece", {"pre_tokenizer": BERT} | SMALL, ""),
    ],
)  # fmt: skip
def test_steps_that_do_not_fit_the_tokens_are_said(
    tokens: list[str], section: str, steps: dict[str, Any], said: str
) -> None:
    found = notes(tokens, steps, {"type": section, **({"unk_id": 0} if section == "Unigram" else {})})
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.parametrize(
    ("tokens", "section", "decoder", "said"),
    [
        (BYTES, "BPE", None, "tokenizer.json has no decoder, but its tokens write spaces as Ġ: decoded texts keep this mark, as in 'Ġa'"),
        (BYTES, "BPE", META, "the decoder of tokenizer.json is Metaspace, but its tokens write spaces as Ġ"),
        (BYTES, "BPE", LEVEL, ""),
        (SPACES, "BPE", LEVEL, "the decoder of tokenizer.json is ByteLevel, but its tokens write spaces as ▁"),
        (SPACES, "BPE", {"type": "Metaspace", "replacement": "_"}, "the decoder of tokenizer.json is Metaspace, but"),
        (SPACES, "BPE", META, ""),
        (SPACES, "BPE", OF_LLAMA, ""),
        (SPACES, "BPE", {"type": "New"}, ""),
        (WORDS, "WordPiece", LEVEL, "its tokens mark the continuation of a word with ##: decoded texts keep this mark, as in '##b'"),
        (WORDS, "WordPiece", None, ""),
        (WORDS, "WordPiece", PIECES, ""),
    ],
)  # fmt: skip
def test_a_decoder_that_leaves_the_marks_is_said(tokens: list[str], section: str, decoder: Any, said: str) -> None:
    found = notes(tokens, {"decoder": decoder}, {"type": section}, kind="llama")
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_an_encoder_needs_no_decoder() -> None:
    assert notes(BYTES, {"decoder": None}, {"type": "BPE"}, kind="roberta") == []


@pytest.mark.parametrize("processor", [None, BARE, {"type": "Sequence", "processors": [BARE]}])
@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        ({}, "bert", "'[CLS]' and '[SEP]'"),
        ({"cls_token": "<s>", "sep_token": "</s>"}, "roberta", "'<s>' and '</s>'"),
        ({"cls_token": "<none>"}, "bert", ""),
        ({}, "llama", ""),
        ({"auto_map": {"AutoTokenizer": ["own.Own", None]}}, "bert", ""),
    ],
)
def test_an_encoder_without_special_tokens_around_a_text_is_said(
    names: dict[str, Any], kind: str, said: str, processor: Any
) -> None:
    whole("m", WORDS, {"post_processor": processor}, {"type": "WordPiece"}, kind=kind)
    Path("m/tokenizer_config.json").write_text(json.dumps(names))
    text = f"tokenizer.json does not add {said} to a text (post_processor), but {kind} models expect them"
    assert [one for one in cs.inspect("m").notes if "post_processor" in one] == ([text] if said else [])


def template(*pieces: str) -> dict[str, Any]:
    listed = [{"SpecialToken": {"id": one}} if one != "A" else {"Sequence": {"id": "A"}} for one in pieces]
    special = {one: {"id": one, "ids": [WORDS.index(one)], "tokens": [one]} for one in sorted({*pieces} - {"A"})}
    return {"type": "TemplateProcessing", "single": listed, "special_tokens": special}


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({"type": "RobertaProcessing", "sep": ["<s>", 7], "cls": ["</s>", 8]}, "'</s>' and ends them with '<s>'"),
        (template("[SEP]", "A", "[CLS]"), "'[SEP]' and ends them with '[CLS]'"),
        ({"type": "Sequence", "processors": [LEVEL, template("</s>", "A", "<s>")]}, "'</s>' and ends them with '<s>'"),
        (template("[CLS]", "A", "[SEP]"), ""),
        (template("<s>", "A", "</s>"), ""),
        (template("</s>", "A"), ""),
        (template("</s>", "A", "</s>"), ""),
        (ROBERTA, ""),
    ],
)
def test_exchanged_tokens_around_a_text_are_said(processor: dict[str, Any], said: str) -> None:
    text = f"tokenizer.json begins texts with {said} (post_processor): the two tokens are perhaps exchanged"
    found = notes(WORDS, {"post_processor": processor}, {"type": "WordPiece"}, kind="llama")
    assert [one for one in found if "exchanged" in one] == ([text] if said else [])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"cls_token": "</s>", "sep_token": "<s>"}, "cls_token is '</s>' and sep_token is '<s>'"),
        ({"cls_token": "[SEP]", "sep_token": "[CLS]"}, "cls_token is '[SEP]' and sep_token is '[CLS]'"),
        ({"bos_token": "</s>", "eos_token": {"content": "<s>"}}, "bos_token is '</s>' and eos_token is '<s>'"),
        ({"bos_token": "</s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}, ""),
        ({"cls_token": "</s>", "bos_token": "<s>"}, ""),
        ({"cls_token": "[CLS]", "sep_token": "[SEP]"}, ""),
    ],
)
def test_exchanged_names_are_said(names: dict[str, Any], said: str) -> None:
    whole("m", WORDS, {"post_processor": ROBERTA}, {"type": "WordPiece"}, kind="roberta")
    Path("m/tokenizer_config.json").write_text(json.dumps(names))
    text = f"{said} in the files of the tokeniser: the two tokens are perhaps exchanged"
    assert [one for one in cs.inspect("m").notes if "exchanged" in one] == ([text] if said else [])


def test_an_encoder_with_special_tokens_around_a_text_is_not() -> None:
    assert notes(WORDS, {"post_processor": ROBERTA}, {"type": "WordPiece"}, kind="roberta") == []


def test_the_library_agrees() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for tokens, section, error in (
        (WORDS, {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}, "Missing"),
        (SPACES, {"type": "Unigram", "unk_id": None}, "unk_id"),
        (SPACES, {"type": "Unigram", "unk_id": None, "byte_fallback": True}, "unk_id"),
        (SPACES, {"type": "Unigram", "unk_id": 9}, "UnkIdNotInVocabulary"),
    ):  # fmt: skip
        name = f"net{len(list(Path().iterdir()))}"
        whole(name, tokens, {"pre_tokenizer": SPLIT}, section)
        with pytest.raises(Exception, match=error):
            tokenizers.Tokenizer.from_file(f"{name}/tokenizer.json").encode("xyz")


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_so(verb: str) -> None:
    whole("sound", SPACES, {"decoder": META}, {"type": "Unigram", "unk_id": 0}, kind="llama")
    whole("m", SPACES, {"decoder": LEVEL}, {"type": "Unigram", "unk_id": 3}, kind="llama", seed=1)
    found = " ".join(verbs_of("m")[verb]().notes)
    assert "the decoder of tokenizer.json is ByteLevel" in found
    assert "unk_id of tokenizer.json is 3, 'a'" in found


ALL_BYTES = ["<unk>", *(f"<0x{one:02X}>" for one in range(256)), "▁", "a", "▁a"]


@pytest.mark.parametrize(
    ("section", "tokens", "said"),
    [
        ({"byte_fallback": True}, ALL_BYTES, ""),
        ({"byte_fallback": False}, ALL_BYTES, "lists 256 tokens for bytes, but byte_fallback of its model is false"),
        ({"byte_fallback": False}, SPACES, ""),
        ({"byte_fallback": True, "dropout": 0.1}, ALL_BYTES, "dropout of tokenizer.json is 0.1: merges are left out"),
        ({"byte_fallback": True, "dropout": None}, ALL_BYTES, ""),
        ({"byte_fallback": True, "dropout": 0}, ALL_BYTES, ""),
    ],
)
def test_bytes_that_are_not_used_and_merges_left_to_chance_are_named(
    section: dict[str, Any], tokens: list[str], said: str
) -> None:
    steps = {"pre_tokenizer": META, "decoder": META}
    whole("m", tokens, steps, {"type": "BPE", "unk_token": "<unk>", **section}, kind="llama")
    found = [one for one in cs.inspect("m").notes if "byte_fallback" in one or "dropout" in one]
    assert len(found) == bool(said)
    assert all(said in one for one in found)


@pytest.mark.parametrize(
    ("tokens", "decoder", "is_said"),
    [
        (ALL_BYTES, OF_LLAMA, True),
        (ALL_BYTES, {"type": "Metaspace", "replacement": "▁"}, True),
        (ALL_BYTES, {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, *OF_LLAMA["decoders"]]}, False),
        (ALL_BYTES, {"type": "Sequence", "decoders": [{"type": "New"}, *OF_LLAMA["decoders"]]}, False),
        (SPACES, OF_LLAMA, False),
    ],
)
def test_tokens_for_bytes_that_no_decoder_joins_are_said(
    tokens: list[str], decoder: dict[str, Any], is_said: bool
) -> None:
    found = notes(tokens, {"decoder": decoder}, {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True}, "llama")
    own = [one for one in found if "ByteFallback" in one]
    assert len(own) == is_said
    assert all(one.endswith("decoded texts have '<0x00>' and the like instead of these characters") for one in own)


@pytest.mark.parametrize(
    ("tokens", "steps", "is_said"),
    [
        ([*sorted(byte_letters() - {"Ġ"}), *(f"Ä\xa0{one}" for one in "abcdefgh")], {"pre_tokenizer": LEVEL}, True),
        ([*BYTES, "Ä\xa0a"], {"pre_tokenizer": LEVEL}, False),  # one junk token of many
        (
            [*sorted(byte_letters() - {"Ġ"}), *(f"<|Ä\xa0{one}|>" for one in "abcdefgh")],
            {"pre_tokenizer": LEVEL},
            False,
        ),
        ([*sorted(byte_letters() - {"Ġ"}), *(f"Ä\xa0{one}" for one in "abcdefgh")], {"pre_tokenizer": SPLIT}, False),
    ],
)
def test_byte_level_tokens_read_in_another_encoding_of_characters_are_said(
    tokens: list[str], steps: dict[str, Any], is_said: bool
) -> None:
    found = [one for one in notes(tokens, steps, {"type": "BPE"}, "gpt2") if "byte-level BPE does not use" in one]
    assert len(found) == is_said
    assert all(
        "is byte-level, but 8 of its 263 tokens have characters that byte-level BPE does not use" in one
        for one in found
    )


def scored(path: str, scores: list[float]) -> str:
    """A model whose Unigram tokeniser has these scores, with an added token behind the list."""
    pieces = [*SPACES, *(f"▁{one}{one}" for one in string.ascii_lowercase)][: len(scores)]
    whole(path, pieces, {"decoder": META}, {"type": "Unigram", "unk_id": 0}, kind="t5")
    document = json.loads(Path(path, "tokenizer.json").read_text())
    document["model"]["vocab"] = [[piece, score] for piece, score in zip(pieces, scores, strict=True)]
    Path(path, "tokenizer.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("scores", "is_said"),
    [([0.0] * 30, True), ([-2.5] * 30, True), ([-float(n) for n in range(30)], False), ([0.0] * 10, False)],
)
def test_pieces_that_all_have_one_score_are_said(scores: list[float], is_said: bool) -> None:
    found = [one for one in cs.inspect(scored("m", scores)).notes if "same score" in one]
    said = f"all pieces of tokenizer.json have the same score, {scores[0]:g}: Unigram chooses pieces by their scores"
    assert len(found) == is_said
    assert all(one.startswith(said) for one in found)


def test_scores_that_differ_are_said_of_two_models() -> None:
    scores = [-float(n) for n in range(30)]
    scored("a", scores), scored("b", [*scores[:28], -3.5, -4.5]), scored("c", [one - 1e-8 for one in scores])
    (note,) = [one for one in cs.diff("a", "b").notes if "scores" in one]
    said = "the scores of 2 of 30 pieces differ, that of '▁uu' is -28 in a, -3.5 in b"
    assert note == f"the tokenisers split texts differently, according to tokenizer.json: {said}"
    assert not [one for one in cs.diff("a", "c").notes if "scores" in one]


@pytest.mark.parametrize("odd", [[float("nan")], [10**400]])
def test_scores_that_are_none_say_nothing(odd: list[Any]) -> None:
    scores = [*odd, *(-float(n) for n in range(29))]
    scored("a", scores), scored("b", scores)
    assert not [one for one in cs.diff("a", "b").notes if "scores" in one]


def test_merges_left_to_chance_are_said_of_two_models() -> None:
    for name, section in (("a", {}), ("b", {"dropout": 0.1, "byte_fallback": True}), ("c", {"dropout": 0.0})):
        whole(name, SPACES, {"decoder": META}, {"type": "BPE", "unk_token": "<unk>", **section}, kind="llama")
    (note,) = [one for one in cs.diff("a", "b").notes if "look up tokens" in one]
    assert note.endswith("byte_fallback is null in a, true in b; dropout is null in a, 0.1 in b")
    assert not [one for one in cs.diff("a", "c").notes if "look up tokens" in one]
