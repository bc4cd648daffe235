"""A model gets another vocabulary: the outputs for tokens that both have stay the same, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from fixtures.resizing.cases import VOCABULARIES
from fixtures.resizing.networks import NETWORKS

from ...helpers.depth import FULL, each_in_turn
from ...helpers.small_tokenizers import ENGLISH, GERMAN, SPECIAL, saved_tokenizer, tokenizer

transformers = pytest.importorskip("transformers", minversion="5")

each_kind = each_in_turn("kind", VOCABULARIES if FULL else ("bert", "gpt2", "llama", "whisper"))
"""Of three networks each test takes another, and ``test_donor.py`` the third."""
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Models = Callable[..., Path]


def built(kind: str, folder: Path, size: int, **fields: Any) -> Path:
    """Save a network with random weights and ``size`` rows of tokens; returns the folder."""
    name, given = NETWORKS[kind]
    more: dict[str, Any] = {"vocab_size": size}
    if kind == "clip":
        more = {"text_config": {**given["text_config"], "vocab_size": size, "eos_token_id": 4, **fields}}
        fields = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[kind](**{**given, **more, **fields})
        getattr(transformers, name)(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a function that returns the folder of a network with a tokeniser trained on English."""
    made = tokenizer("bytes", ENGLISH, 340)

    @cache
    def saved(kind: str) -> Path:
        folder = built(kind, tmp_path_factory.mktemp(kind), made.get_vocab_size())
        return saved_tokenizer(made, folder)

    return saved


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tokeniser trained on German, with other ids for the special tokens."""
    made = tokenizer("bytes", GERMAN, 330, [*SPECIAL[1:], "<pad>", "<de>"])
    return saved_tokenizer(made, tmp_path_factory.mktemp("german"), chat_template="{{ messages }}")


TOKENS: dict[tuple[bytes, ...], dict[str, int]] = {}
"""The tokens of each tokeniser as transformers reads it: many networks have the same one."""


def tokens_of(folder: Path) -> dict[str, int]:
    key = tuple((folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json"))
    if key not in TOKENS:
        TOKENS[key] = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    return TOKENS[key]


def outputs(folder: Path, kind: str, ids: torch.Tensor) -> torch.Tensor:
    """Return what a network computes for token ids (and, if it needs them, for sounds or images)."""
    model, loading = getattr(transformers, NETWORKS[kind][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    generator = torch.Generator().manual_seed(1)
    inputs: dict[str, Any] = {"input_ids": ids}
    if kind == "wav2vec2":
        inputs = {"input_values": torch.randn(2, 400, generator=generator)}
    if kind == "clip":
        inputs["pixel_values"] = torch.randn(2, 3, 32, 32, generator=generator)
    if kind == "whisper":
        inputs = {"input_features": torch.randn(2, 20, 100, generator=generator), "decoder_input_ids": ids}
    if kind == "t5":
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        found = model.eval()(**inputs)
    result: torch.Tensor = found.text_embeds if kind == "clip" else found.logits
    return result


def check_kept(before: Path, after: Path, kind: str, *, exact: bool = True) -> list[str]:
    """Check that a network computes the same for tokens that both have; returns these tokens."""
    old, new = tokens_of(before), tokens_of(after)
    both = sorted(old.keys() & new.keys() - set(SPECIAL))
    assert len(both) > 60
    place = {name: torch.tensor([tokens[token] for token in both]) for name, tokens in (("old", old), ("new", new))}
    picked = torch.randint(len(both), (2, 12), generator=torch.Generator().manual_seed(2))
    ids = {name: places[picked] for name, places in place.items()}
    if kind == "clip":  # it reads a text at its end
        ids = {
            name: torch.cat([one, torch.full((2, 1), tokens["<mask>"])], 1)
            for (name, one), tokens in zip(ids.items(), (old, new), strict=True)
        }
    first, second = outputs(before, kind, ids["old"]), outputs(after, kind, ids["new"])
    if kind != "clip":
        first, second = first[..., place["old"]], second[..., place["new"]]
    if exact:
        assert torch.equal(first, second), (first - second).abs().max()
    else:
        assert (first - second).abs().max() < 1e-5 * first.abs().max()
    return both


def field(folder: Path, kind: str, name: str = "vocab_size") -> Any:
    found: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    return found["text_config"][name] if kind == "clip" else found[name]


# Another number of rows.


@pytest.mark.costly
@each_kind
def test_rows_are_added_at_the_end_and_cut_off_again(kind: str, english: Models, tmp_path: Path) -> None:
    name = "text_config.vocab_size" if kind == "clip" else "vocab_size"
    plan = cs.resize(english(kind), set={name: 384}, new_tokens="zero")
    assert any("44 rows added at the end (zero); the outputs for kept tokens stay equal" in one for one in plan.notes)
    cs.apply(plan, tmp_path / "more")
    assert field(tmp_path / "more", kind) == 384
    check_kept(english(kind), tmp_path / "more", kind)
    plan = cs.resize(tmp_path / "more", set=[f"{name}=350"])
    said = "34 rows cut off the end (none of them has a token: the tokeniser has 340 tokens)"
    assert any(said in one for one in plan.notes), plan.notes
    cs.apply(plan, tmp_path / "fewer")
    assert field(tmp_path / "fewer", kind) == 350
    check_kept(english(kind), tmp_path / "fewer", kind)
    with pytest.raises(cs.PlanError, match="1 token would lose"):
        cs.resize(tmp_path / "more", set={name: 339})
    cs.apply(cs.resize(tmp_path / "more", set={name: 340}), tmp_path / "all")
    assert cs.diff(english(kind), tmp_path / "all", values=True).same


def test_without_a_tokeniser_rows_are_cut_by_place(tmp_path: Path) -> None:
    folder = built("gpt2", tmp_path / "gpt2", 100)
    plan = cs.resize(folder, set={"vocab_size": 90, "n_layer": 1}, layers="first")
    assert any(
        "10 rows cut off the end (without regard to tokens, because there is no tokeniser)" in one for one in plan.notes
    )
    cs.apply(plan, tmp_path / "out")
    old, new = (
        transformers.GPT2LMHeadModel.from_pretrained(one).transformer.wte.weight for one in (folder, tmp_path / "out")
    )
    assert torch.equal(old[:90], new)
    with pytest.raises(cs.ConfigError, match="eos_token_id is 2, a row that would be cut"):
        cs.resize(folder, set={"vocab_size": 2})
    cs.apply(cs.resize(folder, set={"vocab_size": 2, "eos_token_id": 0}), tmp_path / "two")
    assert field(tmp_path / "two", "gpt2", "eos_token_id") == 0
    with pytest.raises(cs.ConfigError, match="has this value already"):
        cs.resize(folder, set={"vocab_size": 100})
    with pytest.raises(cs.ConfigError, match="is not a whole number above 0"):
        cs.resize(folder, set={"vocab_size": "many"})
    with pytest.raises(
        cs.ConfigError, match="fills the rows of new tokens, but the rows that are added here have no tokens"
    ):
        cs.resize(folder, set={"vocab_size": 110}, new_tokens="subword")
    with pytest.raises(cs.ConfigError, match="no effect without another"):
        cs.resize(folder, set={"vocab_size": 110}, pad_to=64)


def test_added_rows_are_the_mean_of_the_rows_of_tokens(english: Models, tmp_path: Path) -> None:
    cs.apply(cs.resize(english("gpt2"), set={"vocab_size": 350}, new_tokens="mean"), tmp_path / "out")
    rows = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").transformer.wte.weight.double()
    torch.testing.assert_close(rows[345], rows[:340].mean(0), atol=1e-7, rtol=0)


# Another tokeniser.


@pytest.mark.costly
@each_kind
def test_a_network_gets_another_tokeniser_and_computes_the_same_for_kept_tokens(
    kind: str, english: Models, german: Path, tmp_path: Path
) -> None:
    plan = cs.resize(english(kind), tokenizer=german)
    assert any(note.endswith("the outputs for kept tokens stay equal") for note in plan.notes), plan.notes
    cs.apply(plan, tmp_path / "out")
    assert not cs.verify(tmp_path / "out").failed
    new = tokens_of(german)
    assert tokens_of(tmp_path / "out") == new
    assert field(tmp_path / "out", kind) == len(new) == 330
    check_kept(english(kind), tmp_path / "out", kind)
    if kind not in ("clip", "t5"):
        assert field(tmp_path / "out", kind, "eos_token_id") == new["</s>"] != 2


@pytest.mark.long
def test_a_network_that_reads_a_text_at_its_largest_id_needs_the_id_of_the_end(german: Path, tmp_path: Path) -> None:
    made = tokenizer("bytes", ENGLISH, 340)
    folder = saved_tokenizer(made, built("clip", tmp_path / "clip", 340, eos_token_id=2))
    with pytest.raises(
        cs.ConfigError, match=r"text_config.eos_token_id is 2: .*clip reads the features of a text at the"
    ):
        cs.resize(folder, tokenizer=german)
    plan = cs.resize(folder, tokenizer=german, set={"text_config.eos_token_id": 1})
    cs.apply(plan, tmp_path / "out")
    assert field(tmp_path / "out", "clip", "eos_token_id") == 1


def test_the_files_are_those_of_the_new_tokeniser(english: Models, german: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(english("llama"), source)
    (source / "special_tokens_map.json").write_text("{}")
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 4], "suppress_tokens": [9]}')
    plan = cs.resize(source, tokenizer=german / "tokenizer.json", pad_to=64, new_tokens="zero")
    assert any("special_tokens_map.json" in note and "left out" in note for note in plan.notes), plan.notes
    cs.apply(plan, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert "special_tokens_map.json" not in names
    old, new = (tokens_of(folder) for folder in (source, german))
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["eos_token_id"] == [new["</s>"], new["<mask>"]]
    token = next(token for token, number in old.items() if number == 9)
    assert generation["suppress_tokens"] == [new[token]]
    assert field(tmp_path / "out", "llama") == 384
    rows = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").model.embed_tokens.weight
    by_row = sorted(new, key=lambda token: new[token])
    is_new = torch.tensor([token not in old or token == "<pad>" for token in by_row] + [True] * 54)  # it is zero, too
    assert torch.equal((rows == 0).all(1), is_new)


@pytest.mark.costly
@pytest.mark.parametrize("way", ["init", "mean", "subword"])
def test_a_saved_plan_makes_the_same_rows_of_new_tokens(
    way: str, english: Models, german: Path, tmp_path: Path
) -> None:
    plan = cs.resize(english("gpt2"), tokenizer=german, new_tokens=way, token_map={"<mask>": "<de>"}, seed=3)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, tmp_path / "first")
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "second")
    assert cs.diff(tmp_path / "first", tmp_path / "second", values=True).same
    old = transformers.GPT2LMHeadModel.from_pretrained(english("gpt2")).transformer.wte.weight
    new = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "second").transformer.wte.weight
    assert torch.equal(new[tokens_of(german)["<de>"]], old[tokens_of(english("gpt2"))["<mask>"]])


@pytest.mark.long
def test_a_tokeniser_together_with_other_fields(english: Models, german: Path, tmp_path: Path) -> None:
    more = {"tie_word_embeddings": False, "hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 4}
    plan = cs.resize(english("bert"), tokenizer=german, set={**more, "num_hidden_layers": 2 * 2, "eos_token_id": 7},
                     layers="repeat")  # fmt: skip
    cs.apply(plan, tmp_path / "deep")
    assert field(tmp_path / "deep", "bert", "eos_token_id") == 7
    del more["num_hidden_layers"]
    cs.apply(cs.resize(english("bert"), tokenizer=german, set=more), tmp_path / "wide")
    check_kept(english("bert"), tmp_path / "wide", "bert", exact=False)
    assert field(tmp_path / "wide", "bert", "hidden_size") == 128


@pytest.mark.long
def test_rows_of_padding_in_the_source_are_not_copied(german: Path, tmp_path: Path) -> None:
    made = tokenizer("bytes", ENGLISH, 340)
    folder = saved_tokenizer(made, built("llama", tmp_path / "padded", 384))
    plan = cs.resize(folder, tokenizer=german, new_tokens="mean")
    assert any("the last 44 have no token" in note for note in plan.notes), plan.notes
    cs.apply(plan, tmp_path / "out")
    check_kept(folder, tmp_path / "out", "llama")


def test_what_is_no_other_tokeniser_is_an_error(english: Models, german: Path, tmp_path: Path) -> None:
    source = english("llama")
    with pytest.raises(cs.ConfigError, match="the same tokens in the same order"):
        cs.resize(source, tokenizer=source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(cs.ConfigError, match="no token list in the folder"):
        cs.resize(source, tokenizer=tmp_path / "empty")
    (tmp_path / "list.txt").write_text("un\ndeux\n")
    with pytest.raises(cs.ConfigError, match="no token in common"):
        cs.resize(source, tokenizer=tmp_path / "list.txt")
    with pytest.raises(cs.ConfigError, match="both determine the number of rows"):
        cs.resize(source, tokenizer=german, set={"vocab_size": 400})
    with pytest.raises(cs.ConfigError, match="no effect without another vocabulary"):
        cs.resize(source, set={"num_hidden_layers": 1}, layers="first", pad_to=8)
    with pytest.raises(cs.ConfigError, match="0 is not a number above 0"):
        cs.resize(source, tokenizer=german, pad_to=0)
    with pytest.raises(cs.ConfigError, match="pad_to is too large: ckpt makes at most 67,108,864 rows"):
        cs.resize(source, tokenizer=german, pad_to=10**12)
    with pytest.raises(cs.ConfigError, match="is unknown"):
        cs.resize(source, tokenizer=german, new_tokens="average")
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / "bare" / name)
    with pytest.raises(cs.ConfigError, match="no tokeniser next to"):
        cs.resize(tmp_path / "bare", tokenizer=german)
    shutil.copy(german / "tokenizer.json", tmp_path / "bare/tokenizer.json")
    made = tokenizer("bytes", ENGLISH, 345)
    made.save(str(tmp_path / "bare/tokenizer.json"))
    with pytest.raises(cs.PlanError, match="it is not the model's tokeniser"):
        cs.resize(tmp_path / "bare", tokenizer=german)


def test_an_id_whose_token_is_gone_is_an_error_that_names_the_option(english: Models, tmp_path: Path) -> None:
    made = tokenizer("bytes", GERMAN, 330, ["<pad>", "<s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(cs.ConfigError, match=r"eos_token_id of config.json is 2 \('</s>'\)") as caught:
        cs.resize(english("llama"), tokenizer=tmp_path)
    assert "--set eos_token_id=ID" in caught.value.hint
    plan = cs.resize(english("llama"), tokenizer=tmp_path, set={"eos_token_id": 1})
    cs.apply(plan, tmp_path / "out")
    assert field(tmp_path / "out", "llama", "eos_token_id") == 1


def test_an_id_that_the_old_tokeniser_never_had_is_not_said_to_be_missing_in_the_new_one(
    english: Models, german: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(english("llama"), tmp_path / "m"))
    ids = {"bos_token_id": 345, "eos_token_id": [2, 345, 346]}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    with pytest.raises(cs.ConfigError) as error:
        cs.resize(folder, tokenizer=german)
    said = "bos_token_id of generation_config.json is 345, which no token of the old vocabulary has"
    assert error.value.message == f"{said}; the same is true of eos_token_id."
