"""Models of other vocabularies are merged token by token."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine import apply_settings
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary
from fixtures.mergekit_cases import GOLDEN

Run = Callable[..., Any]
State = dict[str, torch.Tensor]
TOKENS = {"a": list("abcde"), "b": list("cbaxyz"), "base": list("abxd")}
WEIGHTS = {"a": 0.25, "b": 0.75}


def model(name: str, tokens: Sequence[str], dtype: torch.dtype = torch.float32) -> State:
    torch.manual_seed(len(name) + ord(name[0]))
    state = {"embed.w": torch.randn(len(tokens), 7), "out.w": torch.randn(4, len(tokens)), "body.w": torch.randn(4, 7)}
    state = {key: value.to(dtype) for key, value in state.items()}
    Path(name).mkdir(exist_ok=True)
    save_file(state, f"{name}/model.safetensors")
    Path(f"{name}/tokens.txt").write_text("".join(f"{token}\n" for token in tokens))
    return state


@pytest.fixture
def states() -> dict[str, State]:
    return {name: model(name, tokens) for name, tokens in TOKENS.items()}


def row(states: dict[str, State], key: str, name: str, token: str) -> torch.Tensor | None:
    """The row of a token, as floats, None where a model lacks it."""
    if token not in TOKENS[name]:
        return None
    values = states[name][key].float()
    return (values if key == "embed.w" else values.T)[TOKENS[name].index(token)]


def expected(states: dict[str, State], key: str, tokens: Sequence[str], base: str = "") -> torch.Tensor:
    """What a weighted sum of two models gives, or, with a base, of what they add to it."""
    made = []
    for token in tokens:
        own = {name: row(states, key, name, token) for name in WEIGHTS}
        there = [one for one in own.values() if one is not None]
        start = row(states, key, base, token) if base else None
        other = start if start is not None else sum(there) / len(there)
        full = {name: other if one is None else one for name, one in own.items()}
        zero = other if base else torch.zeros_like(other)
        made.append(zero + sum(WEIGHTS[name] * (one - zero) for name, one in full.items()))
    found = torch.stack(made)
    return found if key == "embed.w" else found.T


def merged(vocab: str, output: str = "out/", **how: Any) -> State:
    plan = cs.merge(["a", "b"], **{"method": "linear", "weights": [0.25, 0.75], **how}, vocab=vocab)
    assert cs.Plan.from_json(plan.to_json()) == plan
    cs.apply(plan, output, force=True)
    found = cs.verify(output)
    assert found.ok, found.failed
    return load_file("out/model.safetensors" if output == "out/" else output)


@pytest.mark.costly
@pytest.mark.parametrize("elements", [1, 9, 1 << 17])
@pytest.mark.parametrize(
    ("vocab", "tokens"), [("union", "abcdexyz"), ("base", "abcde"), ("UNION", "abcdexyz"), ("list.txt", "zdba")]
)
def test_rows_go_by_token_and_one_that_a_model_lacks_is_that_of_those_that_have_it(
    vocab: str, tokens: str, elements: int, states: dict[str, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_settings, "ELEMENTS", elements)
    Path("list.txt").write_text("\n".join(tokens))
    found = merged(vocab)
    for key in ("embed.w", "out.w"):
        assert torch.allclose(found[key], expected(states, key, tokens), atol=1e-6), key
    assert torch.allclose(found["body.w"], 0.25 * states["a"]["body.w"] + 0.75 * states["b"]["body.w"])
    name = "tokens.txt" if vocab != "list.txt" else "list.txt"
    assert read_vocabulary(f"out/{name}").tokens == tuple(tokens)


@pytest.mark.parametrize("vocab", ["union", "base"])
def test_with_a_base_a_row_that_a_model_lacks_is_the_bases(vocab: str, states: dict[str, State]) -> None:
    tokens = "".join(dict.fromkeys("abxd" + ("abcde" + "cbaxyz" if vocab == "union" else "")))
    found = merged(vocab, method="task_arithmetic", base="base")
    for key in ("embed.w", "out.w"):
        assert torch.allclose(found[key], expected(states, key, tokens, "base"), atol=1e-6), key
    assert read_vocabulary("out/tokens.txt").tokens == tuple(tokens)


def test_the_mean_of_a_lacking_row_is_of_all_models_that_have_it(states: dict[str, State]) -> None:
    found = merged("union", method="task_arithmetic", base="base", weights=[1.0, 0.0])["embed.w"]
    tokens = list(dict.fromkeys("abxd" + "abcde" + "cbaxyz"))
    c = (states["a"]["embed.w"][2] + states["b"]["embed.w"][0]) / 2  # of the base, which lacks it
    assert torch.allclose(found[tokens.index("c")], c + (states["a"]["embed.w"][2] - c), atol=1e-6)


def test_token_lists_are_given_by_model(states: dict[str, State], ckpt: Run) -> None:
    for name in TOKENS:
        shutil.move(f"{name}/tokens.txt", f"{name}.lst")
        shutil.move(f"{name}/model.safetensors", f"{name}.safetensors")
        Path(name).rmdir()
    asked = ["merge", "a.safetensors", "b.safetensors", "-m", "linear", "--weights", "0.25,0.75", "--vocab", "union"]
    done = ckpt(*asked, "-n")
    assert done.code == 2
    assert "there is no token list next to a.safetensors. Give the list with --tokens a.safetensors=LIST" in " ".join(
        done.err.split()
    )
    done = ckpt(*asked, "--tokens", "a.safetensors=a.lst", "--tokens", "b.safetensors=b.lst", "-o", "out.safetensors")
    assert not done.code, done
    assert "a.safetensors has 5 of the 8 tokens" in done.err
    assert "b.safetensors has 6 of the 8 tokens (5 moved)" in done.err
    assert "linear of 2 models, by token" in done.out
    said = "note: these files are not written, because the output is a file and not a folder (-o NAME/): tokens.txt"
    assert said in " ".join(done.err.split())
    found = load_file("out.safetensors")
    assert torch.allclose(found["embed.w"], expected(states, "embed.w", "abcdexyz"), atol=1e-6)
    assert not ckpt("verify", "out.safetensors").code
    done = ckpt(*asked, "--tokens", "c=a.lst", "-n")
    assert (done.code, "is not one of the models" in done.err) == (2, True)


def test_lists_of_one_size_are_never_guessed(ckpt: Run) -> None:
    states = {name: model(name, tokens) for name, tokens in (("a", "abcd"), ("b", "dcba"))}
    asked = ["merge", "a", "b", "-m", "linear", "--weights", "0.25,0.75", "--vocab", "base"]
    done = ckpt(*asked, "-n")
    assert done.code == 4
    said = " ".join(done.err.split())
    assert (
        "These have an axis as long as the lists: body.w, embed.w, out.w. Select the tensors with a row for each token: --vocab-keys"
        in said
    )
    assert not ckpt(*asked, "--vocab-keys", "embed", "--vocab-keys", "out=1", "-o", "out/").code
    found, back = load_file("out/model.safetensors"), [3, 2, 1, 0]
    assert torch.allclose(found["embed.w"], 0.25 * states["a"]["embed.w"] + 0.75 * states["b"]["embed.w"][back])
    assert torch.allclose(found["out.w"], 0.25 * states["a"]["out.w"] + 0.75 * states["b"]["out.w"][:, back])
    assert torch.allclose(found["body.w"], 0.25 * states["a"]["body.w"] + 0.75 * states["b"]["body.w"])
    done = ckpt(*asked, "--vocab-keys", "out", "-n")
    assert (
        "axes 0 and 1 of out.w both fit the vocabularies. Choose an axis, as in --vocab-keys out.w=0, and select all other"
        in " ".join(done.err.split())
    )
    done = ckpt(*asked, "--vocab-keys", "embed", "-n")
    assert "2 tensors with an axis as long as the token lists keep their order" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--vocab": "more.txt"}, 4, "embed.w: a, b have no row for 'f', 'g', 'q'"),
        ({"--tokens": "a=more.txt"}, 4, "embed.w is float32 (5, 7) in a, float32 (6, 7) in b"),
        ({"--vocab-keys": "body"}, 4, "body.w does not fit the vocabularies: it is (4, 7) in a, which has 5 tokens"),
        ({"--vocab-keys": "nosuch"}, 2, "--vocab-keys nosuch matches none"),
        ({"--vocab": "missing.txt"}, 2, "the vocabulary missing.txt cannot be read"),
    ],
)
def test_lists_that_do_not_fit_say_so(
    change: dict[str, str], code: int, said: str, states: dict[str, State], ckpt: Run
) -> None:
    Path("more.txt").write_text("\n".join("abcdefgq"))
    given = {"--vocab": "union", **change}
    flags = [text for pair in given.items() for text in pair]
    done = ckpt("merge", "a", "b", "-m", "linear", "--weights", "1,1", *flags, "-n")
    assert done.code == code
    assert said in " ".join(done.err.split())
    done = ckpt("merge", "a", "b", "-m", "linear", "--weights", "1,1", "--tokens", "a=more.txt", "-n")
    assert (done.code, "have no effect without --vocab" in done.err) == (2, True)


def test_token_lists_without_effect_name_the_vocab_that_was_given(states: dict[str, State]) -> None:
    with pytest.raises(cs.ConfigError, match='no effect with vocab="place". Leave them out, or write'):
        cs.merge(["a", "b"], method="linear", weights=[1, 1], vocab="place", vocab_keys=["embed"])


def test_a_plan_with_other_rows_is_refused(states: dict[str, State]) -> None:
    data = cs.merge(["a", "b"], method="linear", weights=[1, 1], vocab="union").to_json()
    changed = json.loads(json.dumps(data))
    changed["vocabularies"][0]["rows"][0] = changed["vocabularies"][1]["rows"][0] = None  # nobody has it
    with pytest.raises(cs.PlanError, match="the plan is not possible"):
        cs.apply(cs.Plan.from_json(changed), "out/")
    for broken in (data["vocabularies"][:1], [], [data["vocabularies"][0], {**data["vocabularies"][1], "rows": [0]}]):
        with pytest.raises(cs.ConfigError, match="the plan (is malformed|cannot be read)"):
            cs.Plan.from_json({**data, "vocabularies": broken})


def test_verify_finds_a_row_that_was_made_otherwise(states: dict[str, State]) -> None:
    found = merged("union", "out.safetensors")
    data = bytearray(Path("out.safetensors").read_bytes())
    data[data.index(found["embed.w"][6].numpy().tobytes())] ^= 1
    Path("out.safetensors").write_bytes(data)
    assert {failure.key for failure in cs.verify("out.safetensors").failed} == {"embed.w"}


def test_16_bits_are_merged_in_full_precision() -> None:
    states = {name: model(name, tokens, torch.bfloat16) for name, tokens in TOKENS.items()}
    found = merged("union")["embed.w"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected(states, "embed.w", "abcdexyz").bfloat16())


def test_a_tied_embedding_stays_tied_and_what_one_model_has_is_put_in_order() -> None:
    for name, tokens in TOKENS.items():
        state = model(name, tokens)
        Path(f"{name}/model.safetensors").unlink()
        more = {"extra.w": torch.arange(6.0)[:, None]} if name == "b" else {}
        torch.save({**state, "head.w": state["embed.w"], **more}, f"{name}/model.pth")
    plan = cs.merge(
        ["a/model.pth", "b/model.pth"], method="linear", weights=[1, 1], vocab="union", on_missing="any",
        vocab_keys=["embed", "head", "out=1"],
    )  # fmt: skip
    cs.apply(plan, "out.pth")
    assert cs.verify("out.pth").ok
    found = torch.load("out.pth", weights_only=True)
    assert found["head.w"].data_ptr() == found["embed.w"].data_ptr()
    assert found["extra.w"].flatten().tolist() == [0, 1, 2, 3, 4, 5]  # named by nobody
    with pytest.raises(cs.PlanError, match=r"extra\.w: b/model\.pth has no row for 'd', 'e'"):
        cs.merge(["a/model.pth", "b/model.pth"], method="linear", weights=[1, 1], vocab="union", on_missing="any",
                 vocab_keys=["embed", "head", "out=1", "extra"])  # fmt: skip


def test_one_vocabulary_for_all_is_an_ordinary_merge() -> None:
    for name in "ab":
        model(name, "abcd")
    plan = cs.merge(["a", "b"], method="linear", weights=[1, 1], vocab="union")
    assert not plan.vocabularies
    assert {step.policy for step in plan.steps} == {""}


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_methods_that_look_first_see_the_rows_as_they_are_merged(method: str, states: dict[str, State]) -> None:
    how = {"t": 0.3, "weights": None} if method == "slerp" else {"base": "base", "density": 0.5}
    by_token = merged("base", method=method, **how)
    tokens = TOKENS["base" if method == "ties" else "a"]
    for name in TOKENS:
        rows = [row(states, "embed.w", name, token) for token in tokens]
        others = [[row(states, "embed.w", other, token) for other in "ab"] for token in tokens]
        base = [row(states, "embed.w", "base", token) if method == "ties" else None for token in tokens]
        full = []
        for own, there, start in zip(rows, others, base, strict=True):
            has = [one for one in there if one is not None]
            full.append(own if own is not None else start if start is not None else sum(has) / len(has))
        save_file({"embed.w": torch.stack(full)}, f"{name}.safetensors")
    how = {**how, **({"base": "base.safetensors"} if method == "ties" else {})}
    plan = cs.merge(["a.safetensors", "b.safetensors"], method=method, **{"weights": [0.25, 0.75], **how})
    cs.apply(plan, "plain.safetensors")
    assert torch.equal(load_file("plain.safetensors")["embed.w"], by_token["embed.w"])


# Folders of transformers, and mergekit's own results


@pytest.mark.long
def test_mergekits_union_gives_mergekits_rows_and_a_tokeniser_with_its_tokens() -> None:
    for name in ("a", "wide"):
        shutil.copytree(GOLDEN / "models" / name, name)
    golden = GOLDEN / "yaml" / "union_tokenizer"
    shutil.copy(golden / "recipe.yml", "recipe.yml")
    cs.apply(cs.merge("recipe.yml"), "out/")
    assert cs.verify("out").ok
    ours, theirs = read_vocabulary("out/tokenizer.json"), read_vocabulary(str(golden / "expected_tokenizer.json"))
    assert sorted(ours.tokens) == sorted(theirs.tokens)
    order = [ours.tokens.index(token) for token in theirs.tokens]
    found, wanted = load_file("out/model.safetensors"), load_file(golden / "expected.safetensors")
    for key, value in wanted.items():
        made = found[key][order] if len(value) == len(order) else found[key]
        assert torch.allclose(made.float(), value.float(), rtol=2**-7, atol=1e-7), key
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == len(ours.tokens)


def test_added_tokens_join_a_tokeniser_and_words_do_not() -> None:
    for name in ("a", "wide"):
        shutil.copytree(GOLDEN / "models" / name, name)
    plan = cs.merge(["a", "wide"], method="linear", weights=[1, 1], vocab="union")
    cs.apply(plan, "out/")
    made = json.loads(Path("out/tokenizer.json").read_text())
    assert [(row["content"], row["id"]) for row in made["added_tokens"][-2:]] == [
        ("<|im_end|>", 32),
        ("<|im_start|>", 33),
    ]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("out")
    before = AutoTokenizer.from_pretrained("a")
    assert tokenizer("a<|im_end|>b", add_special_tokens=False).input_ids[1] == 32
    assert tokenizer("a b").input_ids == before("a b").input_ids
    words = json.loads(Path("wide/tokenizer.json").read_text())
    words["added_tokens"] = [row for row in words["added_tokens"] if row["content"] != "<|im_end|>"]
    Path("wide/tokenizer.json").write_text(json.dumps(words))
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        Path("a", name).write_text("{}")
    plan = cs.merge(["a", "wide"], method="linear", weights=[1, 1], vocab="union")
    (note,) = (note for note in plan.notes if "the output has a token list but no tokeniser" in note)
    _, left = note.split("; files of the tokeniser that are left out: ")
    there = {"special_tokens_map.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert set(left.split(", ")) == there & set(os.listdir("a"))
    cs.apply(plan, "out2/")
    assert read_vocabulary("out2/tokens.txt").tokens == read_vocabulary("out/tokenizer.json").tokens
    assert not Path("out2/tokenizer.json").exists()


def test_a_recipe_says_it_too(states: dict[str, State]) -> None:
    Path("sub").mkdir()
    for name in ("a", "b"):
        shutil.move(name, f"sub/{name}")
        shutil.move(f"sub/{name}/tokens.txt", f"sub/{name}.lst")
    Path("sub/recipe.yaml").write_text(
        "{verb: merge, models: [a, b], method: linear, weights: [0.25, 0.75], vocab: union, output: out/,"
        " tokens: {a: a.lst, b: b.lst}}"
    )
    cs.apply("sub/recipe.yaml")
    found = load_file("sub/out/model.safetensors")
    assert torch.allclose(found["embed.w"], expected(states, "embed.w", "abcdexyz"), atol=1e-6)


@pytest.mark.usefixtures("states")
def test_a_list_that_differs_from_the_tokeniser_of_its_model_is_said() -> None:
    Path("other.txt").write_text("".join(f"{token}\n" for token in reversed(TOKENS["a"])))
    for name, tokens in TOKENS.items():
        Path(f"{name}/tokens.txt").rename(f"{name}/vocab.txt")
        Path(f"{name}/config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(tokens)}))
    how: dict[str, Any] = {"method": "linear", "weights": [1, 1], "vocab": "union"}
    said = "row 0 is 'e' in other.txt and 'a' in the tokeniser of a: the list of --tokens is used"
    assert said in cs.merge(["a", "b"], tokens={"a": "other.txt"}, **how).notes
    assert said not in cs.merge(["a", "b"], **how).notes
    assert not any("--tokens" in note for note in cs.merge(["a", "b"], tokens={"a": "a/vocab.txt"}, **how).notes)


@pytest.mark.parametrize("name", ["tokenizer.json", "list.txt"])
def test_a_token_list_brings_the_tokeniser_next_to_it(name: str) -> None:
    for model in ("a", "wide"):
        shutil.copytree(GOLDEN / "models" / model, model)
    Path("a/chat_template.jinja").write_text("{{ messages }}")
    Path("c").mkdir()
    words = json.loads(Path("a/tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    words["model"]["vocab"] = {token: len(vocab) - 1 - place for token, place in vocab.items()}
    words["added_tokens"] = []
    Path("c/tokenizer.json").write_text(json.dumps(words))
    Path("c/tokenizer_config.json").write_text('{"of": "c"}')
    Path("c/special_tokens_map.json").write_text("{}")
    Path("c/list.txt").write_text("\n".join(read_vocabulary("c/tokenizer.json").tokens) + "\n")
    plan = cs.merge(["a", "a"], method="linear", weights=[1, 1], vocab=f"c/{name}")
    assert [note for note in plan.notes if "tokeniser" in note or note.startswith("files left out")] == [
        f"files left out, because none of them is next to c/{name}: chat_template.jinja"
    ]
    cs.apply(plan, "out/")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert Path("out", file).read_bytes() == Path("c", file).read_bytes()
    Path("c/tokenizer.json").unlink()
    if name == "list.txt":
        notes = cs.merge(["a", "a"], method="linear", weights=[1, 1], vocab="c/list.txt").notes
        assert "the output has a token list but no tokeniser" in "; ".join(notes)


def whisper(name: str, tokens: Sequence[str], **generation: Any) -> None:
    """A folder of a model with ``tokens``, and a generation_config.json with ids of languages and tasks."""
    save_file({"model.embed_tokens.weight": torch.randn(len(tokens), 4)}, Path(name, "model.safetensors"))
    Path(name, "config.json").write_text(json.dumps({"model_type": "whisper", "vocab_size": len(tokens)}))
    Path(name, "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **generation}))
    Path(name, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))


def test_languages_and_tasks_that_only_another_model_has_get_their_ids() -> None:
    for name in ("one", "two"):
        Path(name).mkdir()
    whisper("one", ["<e>", "<|en|>", "<|de|>", "x"], lang_to_id={"<|en|>": 1, "<|de|>": 2})
    whisper("two", ["<e>", "<|fr|>", "<|en|>", "y"], lang_to_id={"<|fr|>": 1, "<|en|>": 2}, task_to_id={"t": 3})
    how: dict[str, Any] = {"method": "linear", "weights": [0.5, 0.5]}
    plan = cs.merge(["one", "two"], vocab="union", **how)
    cs.apply(plan, "out")
    made = json.loads(Path("out/generation_config.json").read_text())
    assert made == {"eos_token_id": 0, "lang_to_id": {"<|en|>": 1, "<|de|>": 2, "<|fr|>": 4}}
    assert "lang_to_id of generation_config.json also gets the names that only two has: <|fr|> = 4" in plan.notes
    assert "the output's generation_config.json has no task_to_id, but the file of two has it: t = 5" in plan.notes
    plan = cs.merge(["one", "two"], vocab="base", **how)
    assert not any("lang_to_id" in note for note in plan.notes)  # the output has no such token
    cs.apply(plan, "base")
    assert json.loads(Path("base/generation_config.json").read_text())["lang_to_id"] == {"<|en|>": 1, "<|de|>": 2}
    Path("two/generation_config.json").unlink()
    assert not any("lang_to_id" in note for note in cs.merge(["one", "two"], vocab="union", **how).notes)


@pytest.mark.parametrize(("own", "is_said"), [(None, True), ({}, False), ([], False), ("x", False), (True, False)])
def test_a_map_of_languages_may_be_null_or_no_map(own: Any, is_said: bool) -> None:
    for name in ("one", "two"):
        Path(name).mkdir()
    whisper("one", ["<e>", "<|en|>", "<|de|>", "x"], lang_to_id=own)
    whisper("two", ["<e>", "<|fr|>", "<|en|>", "y"], lang_to_id={"<|fr|>": 1})
    plan = cs.merge(["one", "two"], vocab="union", method="linear", weights=[0.5, 0.5])
    cs.apply(plan, "out")
    made = json.loads(Path("out/generation_config.json").read_text())["lang_to_id"]
    assert made == ({**own, "<|fr|>": 4} if isinstance(own, dict) else own)
    lacks = "the output's generation_config.json has no lang_to_id, but the file of two has it: <|fr|> = 4"
    assert (lacks in plan.notes) is is_said


@pytest.mark.parametrize("text", ["[]", "null", "7", "{", '{"lang_to_id": {"<|fr|>": true, "<|en|>": 1e999, "x": -1}}'])
@pytest.mark.parametrize("whose", ["one", "two"])
def test_a_generation_config_without_usable_maps_adds_no_names(text: str, whose: str) -> None:
    for name in ("one", "two"):
        Path(name).mkdir()
        whisper(name, ["<e>", "<|en|>", "<|fr|>", "x"], lang_to_id={"<|en|>": 1})
    Path(whose, "generation_config.json").write_text(text)
    with suppress(cs.ConfigError):  # a file that is no object is an error, with a message
        plan = cs.merge(["one", "two"], vocab="union", method="linear", weights=[0.5, 0.5])
        assert not any("gets the names" in note for note in plan.notes)
