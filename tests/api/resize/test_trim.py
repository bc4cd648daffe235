"""The vocabulary of a model is cut to what a corpus uses: the texts are encoded as before, and computed as before."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.resize.trimming.chat_texts import chat_texts

from ...helpers.small_tokenizers import ENGLISH, GERMAN, KINDS, SPECIAL, saved_tokenizer, tokenizer
from .test_vocabulary import built, field, outputs, tokens_of

transformers = pytest.importorskip("transformers", minversion="5")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = [*ENGLISH, *GERMAN] * 2
CORPUS = "The sea shells of the dog\n\nand what it computes: a sun, 12!\n"
Models = Callable[..., Path]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a function that returns the folder of a network with a tokeniser of a kind."""

    @cache
    def saved(kind: str, network: str = "llama") -> Path:
        made = tokenizer(kind, TEXTS, 420, [*SPECIAL, "<|im_start|>"])
        folder = built(network, tmp_path_factory.mktemp(kind), made.get_vocab_size() + 5)
        return saved_tokenizer(made, folder, chat_template="<|im_start|>{{ messages }}")

    return saved


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    return tmp_path / "corpus.txt"


def encoded(folder: Path, text: str) -> list[str]:
    made = transformers.AutoTokenizer.from_pretrained(folder)
    found: list[str] = made.convert_ids_to_tokens(made(text)["input_ids"])
    return found


def file_of(folder: Path) -> Any:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_a_smaller_vocabulary_encodes_and_computes_the_corpus_as_before(
    kind: str, models: Models, corpus: Path, tmp_path: Path
) -> None:
    source, out = models(kind), tmp_path / "out"
    plan = cs.resize(source, trim=corpus)
    cs.apply(plan, out)
    assert not cs.verify(out).failed
    old, new = tokens_of(source), tokens_of(out)
    assert set(new) < set(old)
    assert sorted(new.values()) == list(range(len(new)))
    assert sorted(new, key=lambda token: new[token]) == sorted(new, key=lambda token: old[token])
    assert field(out, "llama") == len(new)
    assert any(f"{len(new)} of {len(old)} tokens are left (" in one for one in plan.notes), plan.notes
    for text in (CORPUS, *CORPUS.splitlines()):
        assert encoded(source, text) == encoded(out, text)
    both = sorted(new)
    first, second = (torch.tensor([tokens[token] for token in both]) for tokens in (old, new))
    picked = torch.randint(len(both), (2, 12), generator=torch.Generator().manual_seed(2))
    one, two = outputs(source, "llama", first[picked]), outputs(out, "llama", second[picked])
    assert torch.equal(one[..., first], two[..., second])


@pytest.mark.costly
@pytest.mark.parametrize("kind", KINDS)
def test_words_of_letters_that_were_seen_can_still_be_written(
    kind: str, models: Models, corpus: Path, tmp_path: Path
) -> None:
    cs.apply(cs.resize(models(kind), trim=corpus), tmp_path / "out")
    unseen = "he smells at a nose"
    assert "<unk>" not in encoded(tmp_path / "out", unseen)
    if kind == "bytes":
        made = file_of(tmp_path / "out")
        assert made.decode(made.encode("ß → 你好").ids) == "ß → 你好"


def test_padding_with_a_token_that_the_tokeniser_lacks_is_an_error(
    models: Models, corpus: Path, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    shutil.copytree(models("bytes"), source)
    document = json.loads((source / "tokenizer.json").read_text())
    document["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[NONE]",
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(cs.ConfigError, match=r"has the token '\[NONE\]', which is not in its vocabulary"):
        cs.resize(source, trim=corpus)


def test_the_files_name_the_new_ids(models: Models, corpus: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(models("bytes"), source)
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    plan = cs.resize(source, trim=corpus, pad_to=64)
    assert any("files of the old tokeniser that are left out: merges.txt" in one for one in plan.notes), plan.notes
    cs.apply(plan, out)
    new = tokens_of(out)
    assert not (out / "merges.txt").exists()
    assert (out / "chat_template.jinja").read_text().startswith("<|im_start|>")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, new["<|im_start|>"]]
    assert field(out, "llama") % 64 == 0
    rows = json.loads((out / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    assert all(new[row["content"]] == int(number) for number, row in rows.items())


def test_a_saved_plan_makes_the_same_rows(models: Models, corpus: Path, tmp_path: Path) -> None:
    plan = cs.resize(models("bytes"), trim=corpus, pad_to=64, seed=1)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, tmp_path / "first")
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "second")
    assert cs.diff(tmp_path / "first", tmp_path / "second", values=True).same
    assert tokens_of(tmp_path / "second") == tokens_of(tmp_path / "first")


@pytest.mark.long
def test_a_recipe_names_corpora_beside_it(
    models: Models, corpus: Path, tmp_path: Path, ckpt: Callable[..., Any]
) -> None:
    shutil.copytree(models("wordpiece"), tmp_path / "model")
    (tmp_path / "cut.yaml").write_text(
        "verb: resize\nsource: model\ntrim: corpus.txt\nkeep_special: false\noutput: out\n"
    )
    assert ckpt("apply", tmp_path / "cut.yaml").code == 0
    cs.apply(cs.resize(tmp_path / "model", trim=corpus, keep_special=False), tmp_path / "same")
    assert cs.diff(tmp_path / "out", tmp_path / "same", values=True).same
    done = ckpt("resize", tmp_path / "model", "--trim", corpus, "-o", corpus, "--to", "safetensors", "--force")
    assert done.code == 5
    assert "corpus.txt" in done.err
    assert corpus.read_text() == CORPUS


@pytest.mark.long
def test_special_tokens_that_nothing_names_can_be_left_out(corpus: Path, tmp_path: Path) -> None:
    reserved = [f"<|reserved_{number}|>" for number in range(9)]
    made = tokenizer("bytes", TEXTS, 420, [*SPECIAL, "<|im_start|>", *reserved])
    folder = saved_tokenizer(
        made, built("llama", tmp_path / "model", 420, eos_token_id=8), chat_template="<|im_start|>"
    )
    corpus.write_text(f"{CORPUS}{reserved[4]}")
    cs.apply(cs.resize(folder, trim=[str(corpus)]), tmp_path / "all")
    cs.apply(cs.resize(folder, trim=[str(corpus)], keep_special=False), tmp_path / "some")
    assert {*SPECIAL, *reserved} <= tokens_of(tmp_path / "all").keys()
    kept = [token for token in (*SPECIAL, "<|im_start|>", *reserved) if token in tokens_of(tmp_path / "some")]
    assert kept == [*SPECIAL, "<|im_start|>", reserved[2], reserved[4]]  # a role, the template, an id, the corpus
    assert field(tmp_path / "some", "llama", "eos_token_id") == tokens_of(tmp_path / "some")[reserved[2]]


TEMPLATE = """{# a comment, <dogs> #}
{%- for one in messages %}
{{ '<sea>' + one.role + "\\nsmelling 'shore'" }}{% if one.role == 'nose' %} computes {% endif %}
{%- endfor %}
[wood]"""


def test_the_texts_of_a_template_are_those_outside_of_tags_and_its_strings() -> None:
    found = chat_texts(TEMPLATE)
    assert {"<sea>", "\nsmelling 'shore'", "smelling 'shore'", "nose", " computes ", "computes", "[wood]"} <= {*found}
    assert not any("dogs" in one or "messages" in one for one in found)
    assert chat_texts([{"name": "default", "template": TEMPLATE}]) == found
    assert chat_texts({"default": TEMPLATE}) == found
    assert chat_texts(None) == chat_texts([1, {"name": "x"}]) == chat_texts("") == []


@pytest.mark.costly
@pytest.mark.parametrize("where", ["settings", "list", "chat_template.jinja", "chat_template.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_before(kind: str, where: str, corpus: Path, tmp_path: Path) -> None:
    made = tokenizer(kind, TEXTS, 420, SPECIAL)
    folder = saved_tokenizer(made, built("llama", tmp_path / "model", made.get_vocab_size()), chat_template=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if where in ("settings", "list"):
        rows = [{"name": "default", "template": TEMPLATE}]
        settings["chat_template"] = TEMPLATE if where == "settings" else rows
    else:
        text = TEMPLATE if where.endswith("jinja") else json.dumps({"chat_template": TEMPLATE})
        (folder / where).write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    cs.apply(cs.resize(folder, trim=corpus, keep_special=False), tmp_path / "out")
    old, new = file_of(folder), file_of(tmp_path / "out")
    assert new.get_vocab_size() < old.get_vocab_size()
    for text in chat_texts(TEMPLATE):
        assert old.encode(text, add_special_tokens=False).tokens == new.encode(text, add_special_tokens=False).tokens


@pytest.mark.costly
@pytest.mark.parametrize("seed", range(6))
def test_a_tokeniser_with_other_settings_is_cut_alike(seed: int, tmp_path: Path) -> None:
    random_ = random.Random(seed)
    made = tokenizer(random_.choice(["bytes", "metaspace"]), TEXTS, 400, SPECIAL[1:4])
    document = json.loads(made.to_str())
    model = document["model"]
    ends = [["</s>", made.token_to_id("</s>")], ["<s>", made.token_to_id("<s>")]]
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "BertProcessing", "sep": ends[0], "cls": ends[1]},
        ],
    }
    document["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": ends[0][1],
        "pad_type_id": 0, "pad_token": "</s>",
    }  # fmt: skip
    model["ignore_merges"] = bool(seed % 2)
    if seed % 3 == 0:
        model["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    words = [word for text in TEXTS for word in text.split()]
    texts = [" ".join(random_.choices(words, k=7)) for _ in range(5)]
    folder = built("gpt2", tmp_path / "model", 400, bos_token_id=0, eos_token_id=1)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    cs.apply(cs.resize(folder, trim=tmp_path / "corpus.txt"), tmp_path / "out")
    old, new = file_of(folder), file_of(tmp_path / "out")
    for text in (*texts, "\n".join(texts)):
        assert old.encode(text).tokens == new.encode(text).tokens
        assert new.encode(text).tokens[0] == "<s>"
    assert new.padding["pad_id"] == new.token_to_id("</s>")
    assert new.get_vocab_size() < old.get_vocab_size()


OWN = {
    "BertTokenizer": ("wordpiece", "bert", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), 0),
    "GPT2Tokenizer": ("bytes", "gpt2", ("<|endoftext|>",), 0),
    "LlamaTokenizer": ("metaspace", "llama", ("<unk>", "<s>", "</s>"), 0),
    "T5Tokenizer": ("unigram", "t5", ("<pad>", "</s>", "<unk>"), 100),
}
"""{class of transformers: (kind, type of network, special tokens, number of tokens that the class adds)}"""


@pytest.mark.costly
@pytest.mark.parametrize("keep_special", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_the_classes_of_transformers_open_the_smaller_tokeniser(
    name: str, keep_special: bool, corpus: Path, tmp_path: Path
) -> None:
    kind, network, special, more = OWN[name]
    made = tokenizer(kind, TEXTS, 400, special)
    model = json.loads(made.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(pair) for pair in model.get("merges") or ()]
    given = {"vocab": vocab if isinstance(vocab, dict) else [tuple(row) for row in vocab]}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1 % len(special))
    folder = built(network, tmp_path / "model", len(vocab) + more, **ids)
    getattr(transformers, name)(**given, **({"merges": merges} if merges else {})).save_pretrained(folder)
    cs.apply(cs.resize(folder, trim=corpus, keep_special=keep_special), tmp_path / "out")
    for text in (CORPUS, *CORPUS.splitlines()):
        assert encoded(folder, text) == encoded(tmp_path / "out", text)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(found).__name__ == name
    assert len(found) == field(tmp_path / "out", network) < len(vocab) + more


@pytest.mark.long
def test_ends_of_words_as_in_clip(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<|end|>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<|begin|>"], end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|end|>"])
    folder = built("clip", tmp_path / "model", 201, eos_token_id=2, pad_token_id=200, bos_token_id=0)
    saved_tokenizer(made, folder)
    (tmp_path / "corpus.txt").write_text("the shells she sells are surely sea shells")
    plan = cs.resize(folder, trim=tmp_path / "corpus.txt", keep_special=False)
    cs.apply(plan, tmp_path / "out")
    new = tokens_of(tmp_path / "out")
    assert new["<|end|>"] == len(new) - 1
    assert field(tmp_path / "out", "clip", "eos_token_id") == 2  # so the end of a text is still its largest id
    assert field(tmp_path / "out", "clip", "pad_token_id") == len(new) - 1
    old, new = file_of(folder), file_of(tmp_path / "out")
    text = "the shells she sells"
    assert old.encode(text).tokens == new.encode(text).tokens
    ids = [torch.tensor([[*one.encode(text).ids, one.token_to_id("<|end|>")]] * 2) for one in (old, new)]
    assert torch.equal(*(outputs(one, "clip", two) for one, two in zip((folder, tmp_path / "out"), ids, strict=True)))


def test_what_cannot_be_cut_is_an_error(models: Models, corpus: Path, tmp_path: Path) -> None:
    source = models("wordpiece")
    (tmp_path / "other.txt").write_text("你好 世界")
    for kind in ("wordpiece", "unigram"):  # unigram has a token for the space
        with pytest.raises(
            cs.ConfigError, match="no token of the tokeniser, except special and added tokens and spaces, occurs"
        ):
            cs.resize(models(kind), trim=tmp_path / "other.txt")
    (tmp_path / "weights.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(cs.ConfigError, match="is not text in UTF-8"):
        cs.resize(source, trim=tmp_path / "weights.txt")
    with pytest.raises(cs.ConfigError, match=r"corpus .*missing.txt cannot be read"):
        cs.resize(source, trim=[str(corpus), str(tmp_path / "missing.txt")])
    with pytest.raises(cs.ConfigError, match="tokenizer and trim cannot be used together"):
        cs.resize(source, trim=corpus, tokenizer=source)
    with pytest.raises(cs.ConfigError, match="adds no tokens"):
        cs.resize(source, trim=corpus, new_tokens="subword")
    with pytest.raises(cs.ConfigError, match="no effect without"):
        cs.resize(source, set={"num_hidden_layers": 1}, layers="first", keep_special=False)
    whole = tmp_path / "whole.txt"
    made = file_of(source)
    whole.write_text("\n".join(made.get_vocab()))
    (tmp_path / "list").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / "list" / name)
    (tmp_path / "list/vocab.json").write_text(json.dumps(made.get_vocab()))
    with pytest.raises(cs.ConfigError, match=r"trim needs a tokenizer.json"):
        cs.resize(tmp_path / "list", trim=corpus)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "WordLevel"}, "a model of the type 'WordLevel', whose vocabulary cannot be cut"),
        ({"dropout": 0.1}, "leaves out merges at random"),
        ({"vocab": 3}, r"tokenizers cannot read .*tokenizer.json: 'invalid type"),
    ],
    ids=["WordLevel", "dropout", "a number"],
)
def test_other_tokenisers_are_refused(
    change: dict[str, Any], said: str, models: Models, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(models("bytes"), tmp_path / "model")
    path = tmp_path / "model/tokenizer.json"
    document = json.loads(path.read_text())
    document["model"].update(change)
    if change.get("type") == "WordLevel":
        document["model"] = {"type": "WordLevel", "vocab": document["model"]["vocab"], "unk_token": "<unk>"}
    path.write_text(json.dumps(document))
    with pytest.raises(cs.ConfigError, match=said):
        cs.resize(tmp_path / "model", trim=corpus)


def test_added_tokens_in_another_file_are_refused(models: Models, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(models("bytes"), tmp_path / "model")
    path = tmp_path / "model/tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "added_tokens_decoder": {"420": {"content": "<new>"}}}))
    with pytest.raises(cs.PlanError, match="adds tokens that tokenizer.json does not have: <new>"):
        cs.resize(tmp_path / "model", trim=corpus)
