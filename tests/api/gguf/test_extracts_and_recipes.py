"""LoRA extracts of GGUF files, and merges of them by recipes of mergekit: what works, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.embedded import embedded_model
from ckptsurgeon.planning.mergekit.tokenizer import TEMPLATES

from .test_differences import document, written

PEFT = "the adapter has the names and layout of llama.cpp"


def tuned(name: str = "b", *exchanged: str, blocks: str | None = None) -> None:
    """Write the folder NAME and NAME.gguf: the model a with other projections, of rank 2, and maybe other tokens."""
    shutil.copytree("a", name)
    state, draw = load_file("a/model.safetensors"), torch.Generator().manual_seed(1)
    for key, value in state.items():
        if "proj" in key:
            rows, columns = value.shape
            change = torch.randn(rows, 2, generator=draw) @ torch.randn(2, columns, generator=draw) / 20
            state[key] = (value.float() + change).to(value.dtype)
    save_file(state, f"{name}/model.safetensors", {"format": "pt"})
    Path(name, "tokenizer.json").write_text(json.dumps(document(*exchanged)))
    cs.apply(cs.convert(name, layout="gguf", gguf_type=blocks), f"{name}.gguf")


@pytest.mark.long
def test_an_extract_of_gguf_files_fits_its_base_and_is_said_to_be_none_for_peft() -> None:
    written("a", blocks=None)
    tuned()
    plan = cs.lora_extract("b.gguf", "a.gguf", rank=2)
    (note,) = [note for note in plan.notes if note.startswith(PEFT)]
    assert "--layout transformers" in note
    receipt = cs.apply(plan, "adapter")
    assert all(fit.error < 0.05 for fit in receipt.fits)  # bfloat16
    assert cs.verify("adapter").ok
    (unstored,) = [note for note in receipt.notes if note.startswith("metadata not written")]
    assert unstored.count("tokenizer.ggml.tokens") == 1
    cs.apply(cs.lora_merge("a.gguf", "adapter"), "back.gguf")
    with cs.open_checkpoint("b.gguf") as want, cs.open_checkpoint("back.gguf") as found:
        for key in want:
            assert torch.allclose(found.tensor(key).float(), want.tensor(key).float(), atol=0.02), key
    assert not [note for note in cs.lora_extract("b", "a", rank=2).notes if note.startswith(PEFT)]


@pytest.mark.costly
@pytest.mark.parametrize("blocks", [None, "q8_0"])
def test_an_extract_says_that_the_tokens_of_gguf_files_differ(blocks: str | None) -> None:
    written("a", blocks=blocks)
    tuned("b", blocks=blocks)
    tuned("c", "a", "b", blocks=blocks)
    said = "the tokenisers of c.gguf and a.gguf differ: the adapter is for the tokens of a.gguf"
    assert said in cs.lora_extract("c.gguf", "a.gguf", rank=2).notes
    assert not [note for note in cs.lora_extract("b.gguf", "a.gguf", rank=2).notes if "tokenisers" in note]


@pytest.mark.long
def test_an_extract_of_one_quantised_model_says_that_rounding_is_in_it() -> None:
    written("a", blocks=None)
    tuned("b", blocks="q8_0")
    said = "b.gguf is quantised and a.gguf is not: the adapter includes the rounding of b.gguf"
    assert said in cs.lora_extract("b.gguf", "a.gguf", rank=2).notes
    said = "b.gguf is quantised and a.gguf is not: the adapter includes the rounding of b.gguf"
    assert said in cs.lora_extract("a.gguf", "b.gguf", rank=2).notes
    cs.apply(cs.convert("a.gguf", gguf_type="q8_0"), "q.gguf")
    for tuned_model, base in (("b.gguf", "q.gguf"), ("b", "a")):
        assert not [note for note in cs.lora_extract(tuned_model, base, rank=2).notes if "rounding" in note]


OTHER_NAMES: dict[str, tuple[Callable[[], Any], str]] = {
    "extract": (lambda: cs.lora_extract("b.gguf", "a"), "ckpt convert b.gguf --layout transformers -o NAME/"),
    "extract from it": (lambda: cs.lora_extract("b", "a.gguf"), "ckpt convert a.gguf --layout transformers -o NAME/"),
    "lora merge": (lambda: cs.lora_merge("a", "of_gguf"), "ckpt convert a --layout gguf -o NAME.gguf"),
    "lora merge into it": (lambda: cs.lora_merge("a.gguf", "of_folder"), "ckpt convert a.gguf --layout transformers"),
    "merge": (
        lambda: cs.merge(["b.gguf", "a"], method="linear", weights=[1, 1]),
        "ckpt convert b.gguf --layout transformers",
    ),
    "average": (lambda: cs.average(["a", "b.gguf"]), "ckpt convert b.gguf --layout transformers"),
    "transplant": (lambda: cs.transplant("b.gguf", "a"), "ckpt convert b.gguf --layout transformers"),
    "mergekit": (lambda: cs.merge(recipe("a", "b.gguf")), "ckpt convert b.gguf --layout transformers"),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", OTHER_NAMES)
def test_names_of_llama_cpp_and_of_transformers_are_told_apart(verb: str) -> None:
    written("a", blocks=None)
    tuned()
    cs.apply(cs.lora_extract("b.gguf", "a.gguf", rank=2), "of_gguf")
    cs.apply(cs.lora_extract("b", "a", rank=2), "of_folder")
    plan, remedy = OTHER_NAMES[verb]
    with pytest.raises(cs.PlanError) as caught:
        plan()
    assert "has the names and layout of llama.cpp" in caught.value.hint
    assert remedy in caught.value.hint


# Recipes of mergekit.


def recipe(*models: str, **fields: Any) -> str:
    listed = [{"model": one, "parameters": {"weight": 0.5}} for one in models]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "linear", "models": listed, **fields}))
    return "recipe.yaml"


def template_of(path: str) -> str:
    with cs.open_checkpoint(path) as checkpoint:
        model = embedded_model(checkpoint)
        return model.chat_template if model is not None else ""


@pytest.mark.long
def test_a_recipe_merges_gguf_files() -> None:
    written("a", blocks=None)
    tuned()
    cs.apply(cs.merge(recipe("a.gguf", "b.gguf")), "out.gguf")
    assert cs.verify("out.gguf").ok
    cs.apply(cs.merge(["a.gguf", "b.gguf"], method="linear", weights=[0.5, 0.5]), "same.gguf")
    assert cs.diff("out.gguf", "same.gguf", values=True).differs is False
    assert template_of("out.gguf") == ""


@pytest.mark.long
def test_the_chat_template_of_a_recipe_is_written_into_a_gguf_file() -> None:
    written("a", blocks=None)
    tuned()
    cs.apply(cs.merge(recipe("a.gguf", "b.gguf", chat_template="chatml")), "out.gguf")
    assert template_of("out.gguf") == TEMPLATES["chatml"]
    assert cs.verify("out.gguf").ok
    named = cs.merge(recipe("out.gguf", "b.gguf", chat_template="alpaca"), metadata={"general.name": "mine"})
    cs.apply(named, "named.gguf")
    assert template_of("named.gguf") == TEMPLATES["alpaca"]
    with cs.open_checkpoint("named.gguf") as checkpoint:
        assert checkpoint.metadata["general.name"] == "mine"
    cs.apply(cs.merge(recipe("b.gguf", "out.gguf", chat_template="auto")), "auto.gguf")
    assert template_of("auto.gguf") == TEMPLATES["chatml"].strip()
    none = "chat_template changes nothing: no model has a chat template"
    assert none in cs.merge(recipe("a.gguf", "b.gguf", chat_template="auto")).notes


@pytest.mark.long
def test_other_chat_templates_in_gguf_files_are_said() -> None:
    written("a", blocks=None)
    for name in ("chatml", "alpaca"):
        template = TEMPLATES[name]
        cs.apply(cs.convert("a.gguf", metadata={"tokenizer.chat_template": template}), f"{name}.gguf")
    said = "the chat templates of chatml.gguf and alpaca.gguf differ, first at character "
    assert [note for note in cs.diff("chatml.gguf", "alpaca.gguf").notes if note.startswith(said)]
    assert [note for note in cs.average(["alpaca.gguf", "chatml.gguf"]).notes if note.startswith(said)]
    for other in ("chatml.gguf", "a.gguf"):
        assert not [note for note in cs.diff("chatml.gguf", other).notes if "chat templates" in note]


@pytest.mark.costly
@pytest.mark.parametrize(
    "fields", [{}, {"tokenizer_source": "union"}, {"tokenizer_source": "base", "base_model": "a.gguf"}]
)
def test_other_tokens_in_gguf_files_are_merged_if_they_are_given_as_lists(fields: dict[str, str]) -> None:
    written("a", blocks=None)
    tuned("c", "a", "b")
    with pytest.raises(cs.PlanError, match="row 0 is 'b' in c.gguf and 'a' in the output") as caught:
        cs.merge(recipe("a.gguf", "c.gguf", **fields))
    assert "--vocab-keys '{token_embd,output}=0' --tokens MODEL=LIST" in str(caught.value.hint).replace(
        "vocab_keys", "--vocab-keys"
    )
    lists = {"a.gguf": "a/tokenizer.json", "c.gguf": "c/tokenizer.json"}
    plan = cs.merge(
        recipe("a.gguf", "c.gguf", **fields), vocab="union", vocab_keys="{token_embd,output}=0", tokens=lists
    )
    cs.apply(plan, "out.gguf")
    with (
        cs.open_checkpoint("out.gguf") as found,
        cs.open_checkpoint("c.gguf") as other,
        cs.open_checkpoint("a.gguf") as own,
    ):
        tokens = [embedded_model(one).tokens[:2] for one in (found, other, own)]  # type: ignore[union-attr]
        rows = [one.tensor("token_embd.weight").float() for one in (found, other, own)]
    assert tokens == [("a", "b"), ("b", "a"), ("a", "b")]
    assert torch.allclose(rows[0][0], (rows[1][1] + rows[2][0]) / 2, atol=0.01)


@pytest.mark.long
def test_a_tokeniser_inside_another_gguf_file_is_not_called_none() -> None:
    written("a", blocks=None)
    tuned()
    tuned("c", "a", "b")
    with pytest.raises(cs.ConfigError, match="tokenizer_source is c.gguf, whose tokeniser is inside the GGUF file"):
        cs.merge(recipe("a.gguf", "b.gguf", tokenizer_source="c.gguf"))
    assert cs.merge(recipe("a.gguf", "b.gguf", tokenizer_source="a.gguf")).steps
