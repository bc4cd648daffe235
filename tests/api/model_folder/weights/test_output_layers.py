"""Output layers that one model has and another makes of its embedding: nobody loses or gains one without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.config import TIED, UNTIED

EMBED = "model.embed_tokens.weight"
TIES = "tie_word_embeddings"


def model(name: str, *, tied: bool | None, head: bool, scale: float = 1.0, **more: Any) -> None:
    Path(name).mkdir()
    state = {EMBED: torch.arange(12.0).view(6, 2) * scale, "model.norm.weight": torch.ones(2)}
    if head:
        state["lm_head.weight"] = torch.ones(6, 2) * 3 * scale
    save_file(state, f"{name}/model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 6}
    said = {} if tied is None else {TIES: tied}
    Path(name, "config.json").write_text(json.dumps({**config, **said, **more}))


def notes(plan: cs.Plan) -> str:
    return "\n".join(plan.notes)


def test_an_output_layer_that_a_tied_destination_has_not_is_said() -> None:
    model("own", tied=False, head=True)
    model("tied", tied=True, head=False)
    said = notes(cs.transplant("own", "tied"))
    assert "uses its embedding as output layer (tie_word_embeddings); lm_head.weight of own is not used" in said
    model("tied2", tied=True, head=False, scale=2.0)
    assert "output layer" not in notes(cs.transplant("tied2", "tied"))
    assert "output layer" not in notes(cs.transplant("own", "tied", exclude=["model.embed_tokens"]))


def test_an_output_layer_that_a_tied_source_has_not_is_said() -> None:
    model("own", tied=False, head=True)
    model("tied", tied=True, head=False)
    said = notes(cs.transplant("tied", "own"))
    assert (
        "lm_head.weight keeps the destination's values, although the output gets the embedding of tied, which tied also uses as output layer"
        in said
    )
    model("untied", tied=False, head=False)
    assert "lm_head.weight" not in notes(cs.transplant("untied", "own"))


def test_a_tied_source_leaves_a_head_of_transformers_initialised_and_that_is_said() -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 0, "num_attention_heads": 1}
    model("own", tied=False, head=True, **sizes, num_key_value_heads=1, head_dim=2)
    model("tied", tied=True, head=False)
    said = notes(cs.transplant("tied", "own/config.json"))
    assert (
        "lm_head.weight is initialised, although the output gets the embedding of tied, which tied also uses as output layer"
        in said
    )


@pytest.mark.parametrize("stored", [False, True])
def test_a_head_that_an_adapter_brings_is_not_tied_again(stored: bool) -> None:
    model("tied", tied=True, head=stored)
    Path("adapter").mkdir()
    save_file({"base_model.model.lm_head.weight": torch.full((6, 2), 9.0)}, "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q"], "modules_to_save": ["lm_head"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    plan = cs.lora_merge("tied", ["adapter"])
    assert "the output layer has its own weights, so config.json gets tie_word_embeddings: false" in notes(plan)
    cs.apply(plan, "out")
    assert json.loads(Path("out/config.json").read_text())["tie_word_embeddings"] is False


STORED = "is stored too: if the two differ, transformers versions before 5 use only the embedding"
VERBS = {
    "convert": lambda path: cs.convert(path, dtype="bf16"),
    "filter": lambda path: cs.filter(path, include=["**"]),
    "rename": lambda path: cs.rename(path, map=["model.norm=model.norm"]),
    "average": lambda path: cs.average([path, path]),
    "merge": lambda path: cs.merge([path, path], method="linear", weights=[1, 1]),
    "transplant": lambda path: cs.transplant(path, path),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_that_the_configuration_ties_away_is_said(verb: str) -> None:
    model("both", tied=True, head=True)
    said = notes(VERBS[verb]("both"))
    assert said.count(f"the output layer (tie_word_embeddings), but lm_head.weight {STORED}") == 1
    model("untied", tied=False, head=True)
    assert TIES not in notes(VERBS[verb]("untied"))
    model("tied", tied=True, head=False)
    assert TIES not in notes(VERBS[verb]("tied"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_that_the_default_of_the_type_ties_away_is_said(verb: str) -> None:
    model("both", tied=None, head=True, model_type="gemma2")
    said = notes(VERBS[verb]("both"))
    does = f"config.json does not set tie_word_embeddings: the output layer of gemma2 is then {EMBED}"
    assert said.count(f"{does}, but lm_head.weight {STORED}") == 1, said
    model("untied", tied=None, head=True)  # Llama
    assert TIES not in notes(VERBS[verb]("untied"))
    model("named", tied=False, head=True, model_type="gemma2")
    assert TIES not in notes(VERBS[verb]("named"))
    model("tied", tied=None, head=False, model_type="gemma2")
    assert TIES not in notes(VERBS[verb]("tied"))


@pytest.mark.long
def test_check_and_gguf_find_a_head_that_the_default_of_the_type_ties_away() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.GemmaConfig(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=32)
    transformers.GemmaForCausalLM(config).save_pretrained("tied")
    for name in ("equal", "other"):
        state = load_file("tied/model.safetensors")
        state["lm_head.weight"] = state[EMBED].clone() + (name == "other")
        Path(name).mkdir()
        save_file(state, f"{name}/model.safetensors", {"format": "pt"})
        fields = json.loads(Path("tied/config.json").read_text())
        Path(name, "config.json").write_text(json.dumps({key: fields[key] for key in fields if key != TIES}))
    (found,) = cs.check("other").row("ties").found
    assert "are tied by the configuration, but their values differ" in found.what
    assert not cs.check("equal").row("ties").found
    for name in ("other", "tied"):
        made = cs.apply(cs.convert(name, layout="gguf"), f"{name}.gguf")
        assert any(one.startswith("lm_head.weight is left out") for one in made.notes) == (name == "other")


LOST = "says that the output layer is not the embedding (tie_word_embeddings: false), but there is no output layer"


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_that_the_configuration_wants_and_nobody_has_is_said(verb: str) -> None:
    model("lost", tied=False, head=False)
    said = notes(VERBS[verb]("lost"))
    assert said.count(LOST) == 1
    model("headless", tied=False, head=False, architectures=["LlamaModel"])
    assert TIES not in notes(VERBS[verb]("headless"))


def test_a_head_that_nobody_has_is_said_too_if_the_output_gets_no_configuration() -> None:
    model("lost", tied=False, head=False)
    renamed = cs.rename("lost", map={"model": "net"})
    assert sum(note == f"lost: config.json {LOST}" for note in renamed.notes) == 1
    in_file = cs.apply(cs.convert("lost", dtype="bf16"), "lost.safetensors")
    assert sum(note == f"config.json {LOST}" for note in in_file.notes) == 1
    operations = [{"copy": "model.embed_tokens.weight", "into": "lm_head.weight"}]
    assert TIES not in notes(cs.rename("lost", operations=operations))


@pytest.mark.parametrize("order", [["lost", "tied"], ["tied", "lost"]])
@pytest.mark.parametrize("verb", ["merge", "average"])
def test_a_head_that_one_of_several_models_lacks_is_said_in_either_order(verb: str, order: list[str]) -> None:
    model("lost", tied=False, head=False)
    model("tied", tied=True, head=False)
    plan = cs.average(order) if verb == "average" else cs.merge(order, method="linear", weights=[0.5, 0.5])
    assert notes(plan).count("there is no output layer") == 1
    assert "lost: config.json says that the output layer is not the embedding" in notes(plan)


@pytest.mark.parametrize("verb", VERBS)
def test_a_head_that_the_class_of_a_model_wants_and_nobody_has_is_said(verb: str) -> None:
    model("lost", tied=None, head=False)
    found = "config.json does not set tie_word_embeddings: the output layer of llama is then not the embedding"
    assert notes(VERBS[verb]("lost")).count(f"{found}, but there is no output layer") == 1
    model("own", tied=None, head=True)
    model("gemma", tied=None, head=False, model_type="gemma", architectures=["GemmaForCausalLM"])
    model("unknown", tied=None, head=False, model_type="mine", architectures=["MineForCausalLM"])
    model("parts", tied=True, head=False, text_config={"model_type": "llama"})
    for name in ("own", "gemma", "unknown", "parts"):
        assert TIES not in notes(VERBS[verb](name))


def test_a_model_that_its_class_unties_does_not_compute_with_its_embedding() -> None:
    model("own", tied=False, head=True)
    model("silent", tied=None, head=False)
    assert "uses its embedding as output layer" not in notes(cs.transplant("own", "silent"))
    model("gemma", tied=None, head=False, model_type="gemma")
    assert "uses its embedding as output layer" in notes(cs.transplant("own", "gemma"))
    plan = cs.merge(["own", "silent"], method="linear", weights=[1, 1], on_missing="any")
    (head,) = [step for step in plan.steps if step.key == "lm_head.weight"]
    assert [one.key for one in head.inputs] == ["lm_head.weight"]


def test_a_model_that_its_class_unties_is_not_untied_again() -> None:
    model("silent", tied=None, head=True)
    plan = cs.average(["silent", "silent"])
    assert TIES not in notes(plan)
    cs.apply(plan, "out")
    assert TIES not in json.loads(Path("out/config.json").read_text())


@pytest.mark.long
def test_defaults_of_classes_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    known = transformers.CONFIG_MAPPING
    found = {kind: getattr(known[kind](), TIES, None) for kind in sorted(UNTIED) if kind in known}
    assert len(found) > len(UNTIED) / 2
    assert {kind for kind, tied in found.items() if tied is not False} == set()
    found = {kind: getattr(known[kind](), TIES, None) for kind in sorted(TIED) if kind in known}
    assert len(found) > len(TIED) / 2
    assert {kind for kind, tied in found.items() if tied is not True} == set()
    for kind in ("gpt2", "gemma", "gemma2", "falcon", "bloom", "opt", "cohere", "starcoder2", "t5", "bert"):
        assert getattr(known[kind](), TIES, True) is True
        assert kind not in UNTIED


def test_a_head_that_a_file_itself_ties_is_not_said() -> None:
    model("both", tied=True, head=False)
    embedding = torch.ones(6, 2)
    Path("both/model.safetensors").unlink()
    torch.save({EMBED: embedding, "lm_head.weight": embedding}, "both/pytorch_model.bin")
    assert TIES not in notes(cs.convert("both"))


class Live(torch.nn.Module):
    """A model with an output layer, tied or not, under the names of Llama."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.model = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(6, 2), "norm": torch.nn.LayerNorm(2)})
        self.lm_head = torch.nn.Linear(2, 6, bias=False)
        if tied:
            self.lm_head.weight = self.model["embed_tokens"].weight


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [True, False])
def test_nothing_is_said_to_be_stored_in_a_live_module(tied: bool, head: bool) -> None:
    model("a", tied=True, head=head)
    if head and tied:  # two names of one tensor have one value
        state = {EMBED: torch.ones(6, 2), "lm_head.weight": torch.ones(6, 2), "model.norm.weight": torch.ones(2)}
        save_file(state, "a/model.safetensors")
    said = notes(cs.load_into(Live(tied=tied), "a"))
    assert "is stored" not in said
    assert ("keeps the destination's values" in said) == (not tied and not head)


def test_a_head_under_another_name_is_one() -> None:
    model("other", tied=False, head=False)
    state = {
        EMBED: torch.ones(6, 2),
        "lm_head.qweight": torch.ones(6, 2),
        "model.layers.0.out_proj.weight": torch.ones(1),
    }
    save_file(state, "other/model.safetensors")
    assert TIES not in notes(cs.convert("other"))


PAIRS = [("tied", "own"), ("own", "tied"), ("both", "own"), ("own", "both")]


@pytest.mark.costly
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_models_that_tie_their_head_and_that_do_not_come_apart_in_either_order(first: str, second: str) -> None:
    model("own", tied=False, head=True)
    model("tied", tied=True, head=False)
    model("both", tied=True, head=True, scale=2.0)
    key = EMBED if "tied" in (first, second) else "lm_head.weight"
    other = "both" if "both" in (first, second) else "tied"
    said = f"lm_head.weight is tied to the embedding in some models ({key} of {other}), but not in own ({TIES})"
    plans = [cs.merge([first, second], method="linear", weights=[0.5, 0.5])]
    plans += [cs.average([first, second])] if other == "both" else []
    for plan in plans:
        assert said in notes(plan)
        assert "the output does not tie the two" in notes(plan)
    for same in (["own", "own"], ["tied", "tied"], ["tied", "both"]):
        assert "does not tie the two" not in notes(cs.merge(same, method="linear", weights=[0.5, 0.5]))


@pytest.mark.parametrize("order", [["one.pth", "two.pth"], ["two.pth", "one.pth"]])
def test_an_average_says_that_tensors_come_apart_that_one_file_ties(order: list[str]) -> None:
    value = torch.ones(6, 2)
    torch.save({EMBED: value, "lm_head.weight": value}, "one.pth")
    torch.save({EMBED: value, "lm_head.weight": value.clone()}, "two.pth")
    said = f"{EMBED} and lm_head.weight are one tensor in one.pth, and two in the output"
    assert said in cs.average(order).notes
    assert cs.average(["one.pth", "one.pth"]).notes == ("one.pth is given twice, so its weights count twice",)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("verb", ["average", "merge"])
def test_output_layers_that_are_quantised_are_merged(verb: str) -> None:
    """The decoded sources stand behind those that were given; notes on tied heads look at the latter."""
    for name, scale in (("a", 1.0), ("b", 2.0)):
        model(name, tied=False, head=True, scale=scale)
        cs.apply(cs.convert(name, quantize="int8", include=["lm_head"]), f"{name}8")
    model("tied", tied=True, head=False)
    for models in (["a8", "b8"], ["a8", "b"], ["a", "b8"]):
        plan = cs.average(models) if verb == "average" else cs.merge(models, method="linear", weights=[0.5, 0.5])
        assert "in some models" not in notes(plan)
        cs.apply(plan, f"{'-'.join(models)}-{verb}.safetensors")
