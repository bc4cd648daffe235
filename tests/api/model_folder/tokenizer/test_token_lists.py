"""Several files of one tokeniser that do not fit together: lists, pieces, added tokens, what is put around texts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model
from ..test_rows_by_place import tekken

SPECIAL = {"id": 1, "content": "<s>", "special": True}


def piece(text: str) -> bytes:
    """A piece of a sentencepiece model: its text and score."""
    inner = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", -1.0)
    return b"\x0a" + bytes([len(inner)]) + inner


def whole(
    path: str, added: list[dict[str, Any]] | None = None, tokens: list[str] = TOKENS, seed: int = 0, **more: Any
) -> str:
    """A model whose tokeniser is a tokenizer.json."""
    model(path, tokens=TOKENS, seed=seed)
    Path(path, "vocab.json").unlink()
    vocab = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {token: i for i, token in enumerate(tokens)}}
    Path(path, "tokenizer.json").write_text(json.dumps({"added_tokens": added or [], **more, "model": vocab}))
    return path


def notes() -> list[str]:
    found = list(cs.inspect("m").notes)
    assert [one.replace(" is copied unchanged", "") for one in cs.convert("m").notes if "copied:" not in one] == found
    return found


@pytest.mark.parametrize(
    ("row", "token", "is_said"),
    [(5, "w", True), (5, " b ", False), (5, "ｂ", False), (1, "[CLS]", False), (5, "[unused1]", False)],
)
def test_a_list_with_one_other_word_is_said(row: int, token: str, is_said: bool) -> None:
    whole("m")
    lines = [*TOKENS[:row], token, *TOKENS[row + 1 :]]
    Path("m/vocab.json").write_text(json.dumps({one: i for i, one in enumerate(lines)}))
    said = "vocab.json and tokenizer.json have different tokens in 1 of 8 rows: row 5 is 'w' in vocab.json and 'b' in tokenizer.json"
    assert notes() == ([said] if is_said else [])


def test_a_list_that_lacks_added_tokens_is_not() -> None:
    whole("m", [{"id": 7, "content": "d"}])
    Path("m/vocab.json").write_text(json.dumps({one: i for i, one in enumerate(TOKENS[:-1])}))
    assert notes() == []


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["<unk>", "a", "b", "c", "d"], ""),
        (["<unk>", "</s>", "<0x0A>", "<mask_1>", *"dcba"], ""),  # in another order, as many tokenisers have them
        (["<unk>", "a", "w", "x"], "2 of 4 pieces of spiece.model are not in tokenizer.json: 'w', 'x'"),
    ],
)
def test_pieces_of_another_model_than_tokenizer_json_are_said(pieces: list[str], said: str) -> None:
    whole("m")
    Path("m/spiece.model").write_bytes(b"".join(map(piece, pieces)))
    assert notes() == ([said] if said else [])


@pytest.mark.parametrize(
    ("kind", "pieces", "is_said"),
    [
        ("llama", ["<unk>", *"abcd"], True),
        ("llama", [*TOKENS], False),
        ("xlm-roberta", ["<unk>", *"abcd"], False),  # its ids are not those of its pieces
    ],
)
def test_pieces_with_other_ids_are_said(kind: str, pieces: list[str], is_said: bool) -> None:
    whole("m")
    config = json.loads(Path("m/config.json").read_text()) | {"model_type": kind}
    Path("m/config.json").write_text(json.dumps(config))
    Path("m/tokenizer.model").write_bytes(b"".join(map(piece, pieces)))
    number, row = len([one for one in "abcd" if one in TOKENS]), TOKENS.index("a")
    said = f"tokenizer.model and tokenizer.json have different ids for {number} of {number} pieces: 'a' is 1 in "
    said += f"tokenizer.model and {row} in tokenizer.json"
    assert [note for note in cs.inspect("m").notes if "different ids" in note] == ([said] if is_said else [])


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("abc", "abd", ""),
        ("abxy", "abcd", ""),  # half of Marian's pieces may be in no list
        ("apqr", "abcd", "3 of 4 pieces of source.spm are not in vocab.json: 'p', 'q', 'r'"),
        ("abcd", "auvw", ""),  # target_vocab.json lists them
    ],
)
def test_pieces_of_another_language_than_the_list_of_marian_are_said(source: str, target: str, said: str) -> None:
    model("m")
    Path("m/source.spm").write_bytes(b"".join(map(piece, source)))
    Path("m/target.spm").write_bytes(b"".join(map(piece, target)))
    Path("m/target_vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*TOKENS, *"uvw"])}))
    assert notes() == ([said] if said else [])


@pytest.mark.parametrize("is_said", [True, False])
def test_a_tekken_of_another_model_than_tokenizer_json_is_said(is_said: bool) -> None:
    whole("m")
    Path("m/tekken.json").write_text(
        tekken([*TOKENS[1:5], "w" if is_said else TOKENS[5], *TOKENS[6:], "beyond its size"])
    )
    said = "tekken.json and tokenizer.json have different tokens in 1 of 8 rows: row 5 is 'w' in tekken.json and 'b' in tokenizer.json"
    assert notes() == ([said] if is_said else [])


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.model", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_pieces_that_are_cut_short_are_said(name: str, is_alone: bool) -> None:
    whole("m")
    if is_alone:
        Path("m/tokenizer.json").unlink()
    Path("m", name).write_bytes(b"".join(map(piece, ["<unk>", *"abcd"]))[:-2])
    assert notes() == [f"{name}: it is not a complete sentencepiece model"]


def test_a_list_of_tiktoken_is_no_sentencepiece_model() -> None:
    whole("m")
    Path("m/tokenizer.model").write_text("YQ== 0\nYg== 1\n")
    assert notes() == []


@pytest.mark.parametrize("model", ["WordLevel", "Unigram"])
def test_an_added_token_with_the_number_of_another_is_said(model: str) -> None:
    whole("m", [{"id": 5, "content": "<new>"}, SPECIAL])
    if model == "Unigram":
        document = json.loads(Path("m/tokenizer.json").read_text())
        document["model"] = {"type": model, "vocab": [[token, -1.0] for token in TOKENS]}
        Path("m/tokenizer.json").write_text(json.dumps(document))
    assert notes() == ["tokenizer.json has two tokens with the id 5: 'b' and '<new>'"]


def test_an_average_says_why_such_lists_cannot_be_compared() -> None:
    whole("m", [{"id": 5, "content": "<new>"}]), whole("n")
    said = "tokenizer.json has two tokens with the id 5: 'b' and '<new>'"
    assert f"m: {said}" in cs.average(["n", "m"]).notes
    assert [note for note in cs.average(["m", "n"]).notes if said in note] == [f"m: {said}"]


def template(row: int, *, is_used: bool = True) -> dict[str, Any]:
    first = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if is_used else []
    special = {"<s>": {"id": "<s>", "ids": [row], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": [*first, {"Sequence": {"id": "A"}}], "special_tokens": special}


@pytest.mark.parametrize(
    ("processor", "is_said"),
    [
        (template(5), True),
        (template(1), False),
        (template(5, is_used=False), False),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(5)]}, True),
        ({"type": "BertProcessing", "cls": ["<s>", 5], "sep": ["</s>", 2]}, True),
        ({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, False),
        (None, False),
    ],
)
def test_other_tokens_around_texts_than_are_named_are_said(processor: dict[str, Any] | None, is_said: bool) -> None:
    whole("m", [SPECIAL], post_processor=processor)
    said = "the post_processor of tokenizer.json adds tokens with wrong ids to a text: '<s>' as 5 instead of 1"
    assert notes() == ([said] if is_said else [])


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({**template(1), "special_tokens": {}},
         "the post_processor of tokenizer.json adds '<s>', but its special_tokens have no such entry: encoding fails"),
        ({**template(1, is_used=False), "special_tokens": {}}, ""),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "Template"}]},
         "tokenizer.json has a post_processor of the type 'Template', which the package tokenizers does not load"),
        ({"cls": ["<s>", 1]},
         "tokenizer.json has a post_processor of the type None, which the package tokenizers does not load"),
    ],
)  # fmt: skip
def test_a_post_processor_that_cannot_work_is_said(processor: dict[str, Any], said: str) -> None:
    whole("m", [SPECIAL], post_processor=processor)
    assert notes() == ([said] if said else [])


@pytest.mark.parametrize(
    ("padding", "said"),
    [
        ({"pad_id": 1, "pad_token": "<s>"}, ""),
        ({"pad_id": 0, "pad_token": "<s>"}, "'<s>' (its id is 1), but with the id 0, which is "),
        ({"pad_id": 0, "pad_token": "[PAD]"}, "'[PAD]' (which it does not list), but with the id 0, which is "),
        ({"pad_id": 900, "pad_token": "<s>"}, "'<s>' (its id is 1), but with the id 900, which no token has"),
        ({"pad_id": "0", "pad_token": 3}, ""),
        (None, ""),
    ],
)
def test_padding_with_another_id_than_that_of_its_token_is_said(padding: Any, said: str) -> None:
    whole("m", [SPECIAL], padding=padding)
    found = notes()
    assert len(found) == bool(said)
    assert all(note.startswith(f"tokenizer.json pads texts with {said}") for note in found)
    if said:
        assert found == [note for note in cs.convert("m").notes if "pads texts" in note]


@pytest.mark.parametrize(
    ("kind", "positions", "length", "is_said"),
    [
        ("roberta", 130, 512, True),
        ("bert", 512, 512, False),
        ("bert", 512, 128, False),
        ("llama", 130, 512, False),
        ("bert", None, 512, False),
    ],
)
def test_texts_that_are_cut_to_more_tokens_than_there_are_positions_are_said(
    kind: str, positions: Any, length: int, is_said: bool
) -> None:
    whole("m", [SPECIAL], truncation={"max_length": length, "strategy": "LongestFirst", "stride": 0})
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, "model_type": kind, "max_position_embeddings": positions}))
    said = f"tokenizer.json cuts texts to {length} tokens (truncation), but the model has {positions} positions"
    assert (said in cs.inspect("m").notes) == is_said
    assert any(said in note for note in cs.convert("m").notes) == is_said


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"d": 7, "a": 17}, ""),  # tokenizer.json has both
        ({"<x>": 8, "<y>": 9}, ""),
        ({"<y>": 5, "<x>": 4}, "2 tokens that tokenizer.json lacks, and transformers changes the ids: "
         "'<x>' is 4 in the file and gets 8, '<y>' is 5 in the file and gets 9"),
        ({"<x>": 8, "<y>": 6}, "2 tokens that tokenizer.json lacks, and transformers changes the ids: "
         "'<y>' is 6 in the file and gets 8, '<x>' is 8 in the file and gets 9"),
        ({"<x>": 1}, "1 token that tokenizer.json lacks, and transformers changes the ids: "
         "'<x>' is 1 in the file and not added"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_read", [True, False])
def test_added_tokens_with_other_ids_are_said(added: dict[str, int], said: str, is_read: bool) -> None:
    whole("m", [SPECIAL])
    Path("m/added_tokens.json").write_text(json.dumps(added))
    if not is_read:  # transformers takes the added tokens of tokenizer_config.json
        Path("m/tokenizer_config.json").write_text('{"added_tokens_decoder": {}}')
    found = [note for note in notes() if "changes the ids" in note]
    assert found == ([f"added_tokens.json adds {said}"] if said and is_read else [])


@pytest.mark.parametrize("added", [{"d": 7, "a": 17}, {"<x>": 8, "<y>": 9}, {"<y>": 5, "<x>": 4}, {"<x>": 1}])
def test_transformers_agrees_on_added_tokens(added: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    steps = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    more = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    whole("m", [{**SPECIAL, **more}], version="1.0", **steps)
    document = json.loads(Path("m/tokenizer.json").read_text())
    document["model"]["unk_token"] = TOKENS[0]
    Path("m/tokenizer.json").write_text(json.dumps(document))
    Path("m/added_tokens.json").write_text(json.dumps(added))
    own = transformers.AutoTokenizer.from_pretrained("m").get_vocab()
    assert any("changes the ids" in note for note in notes()) == any(
        own.get(token) != row for token, row in added.items() if token not in TOKENS
    )


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("eng", []),
        ("deu", ["vocab.json has 10 tokens, but model.embed_tokens.weight has 8 rows: the last tokens have no row"]),
        ("fra", ["vocab.json: it has no token list for fra (target_lang), only for deu, eng"]),
        (None, ["vocab.json: it has a token list for each of 2 languages, but tokenizer_config.json does not choose one (target_lang)"]),
    ],
)  # fmt: skip
def test_a_list_for_each_language_is_held_against_the_rows(language: str | None, said: list[str]) -> None:
    model("m", tokens=TOKENS), model("a", tokens=TOKENS)
    for path, lang in (("m", language), ("a", "eng")):
        lists = {"eng": dict.fromkeys(TOKENS), "deu": dict.fromkeys([*TOKENS, "ä", "ß"])}
        lists = {name: {token: i for i, token in enumerate(one)} for name, one in lists.items()}
        Path(path, "vocab.json").write_text(json.dumps(lists))
        settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", **({"target_lang": lang} if lang else {})}
        Path(path, "tokenizer_config.json").write_text(json.dumps(settings))
    assert [one for one in cs.inspect("m").notes if "vocab.json" in one] == said
    assert [one for one in cs.diff("m", "a").notes if "vocab.json" in one][:1] == [f"m: {one}" for one in said]


@pytest.mark.costly
@pytest.mark.parametrize("number", [4, 5])
def test_an_id_of_another_sign_than_its_field_is_called_by_is_said(number: int) -> None:
    signs = [*TOKENS[:5], "<|vision_start|>", *TOKENS[6:]]
    model("m", tokens=signs, vision_start_token_id=number), model("a", tokens=signs, vision_start_token_id=5)
    told = "vision_start_token_id of config.json is 4 ('a'), while '<|vision_start|>' is 5"
    note = f"ids in fields that are meant for other tokens: {told}"
    for found in (cs.inspect("m"), cs.convert("m"), cs.filter("m", include="**.weight")):
        assert [one for one in found.notes if "vision" in one] == ([note] if number == 4 else [])
    assert [one for one in cs.diff("a", "m").notes if "m: " in one] == ([f"m: {note}"] if number == 4 else [])


@pytest.mark.parametrize("content", ['{"a": []}', '{"a": 1.5}', '{"a": null, "b": 1}', '{"eng": {"a": "b"}}'])
def test_a_vocabulary_that_gives_no_numbers_is_said(content: str) -> None:
    model("m", tokens=TOKENS)
    Path("m/vocab.json").write_text(content)
    Path("m/tokenizer_config.json").write_text('{"target_lang": "eng"}')
    (note,) = cs.inspect("m").notes
    assert note == "vocab.json: it does not map each token to an integer"


def test_the_rows_are_counted_without_a_configuration_and_in_merges_by_token() -> None:
    long = [*TOKENS, "ä", "ß"]
    for path in ("m", "a"):
        model(path, tokens=TOKENS)
    Path("m/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(long)}))
    note = "vocab.json has 10 tokens, but model.embed_tokens.weight has 8 rows: the last tokens have no row"
    for plan in (
        cs.rename("m", map=["model=net"]),
        cs.rename("m", map=["model.embed_tokens=x"]),
        cs.filter("m", include="**.embed_tokens.weight"),
    ):
        assert [one.replace("net.", "model.") for one in plan.notes if "10 tokens" in one] == [note]
    merged = cs.merge(["a", "m"], method="linear", weights=[1, 1], vocab="base")
    assert [one for one in merged.notes if "10 tokens" in one] == [f"m: {note}"]


@pytest.mark.long  # imports transformers
def test_a_fault_of_another_folder_than_the_destinations_is_said() -> None:
    sizes = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    for path, seed in (("m", 0), ("a", 1)):
        model(path, tokens=TOKENS, seed=seed, **sizes)
        Path(path, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*TOKENS, "ä"])}))
    for other, number in (("m", 1), ("a", 2)):
        found = cs.transplant("m", f"{other}/config.json", on_missing="init")
        assert sum("9 tokens" in one for one in found.notes) == number, found.notes


def test_a_list_with_tokens_twice_is_said() -> None:
    whole("m")
    pieces = [[token, -float(number)] for number, token in enumerate([*TOKENS, *TOKENS[:2]])]
    Path("m/tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}))
    said = f"tokenizer.json has tokens twice: {TOKENS[0]!r}, {TOKENS[1]!r}; the list is not compared with the weights"
    assert any(one.startswith(said) for one in notes())
