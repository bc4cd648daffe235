"""A class in ``architectures`` of another model type: said by every verb, and never of what the Auto classes load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.weights.class_types import class_type_notes, loaded_class

from .test_family_checks import VERBS

transformers = pytest.importorskip("transformers")

SAYS = "config.json says mistral (model_type), but LlamaForCausalLM (architectures), a class of llama: transformers' "
TAKEN = f"{SAYS}Auto classes load MistralForCausalLM, while other programs choose the class by architectures"


def llama(path: str, **changes: Any) -> str:
    """Save a small Llama, and change fields of its config.json."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=8192)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    file = Path(path, "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


@pytest.mark.costly
@pytest.mark.parametrize("verb", [*VERBS, "gguf", "fits", "diff", "check"])
def test_every_verb_says_it(verb: str) -> None:
    llama("m", model_type="mistral")
    notes: list[str] = []
    if verb == "check":
        notes = [one.what for one in cs.check("m").row("configuration").found]
    elif verb == "gguf":
        notes = list(cs.apply(cs.convert("m", layout="gguf"), "m.gguf").notes)
    else:
        verbs = {
            **VERBS,
            "fits": lambda path: cs.fits(llama("n"), path),
            "diff": lambda path: cs.diff(llama("n"), path),
        }
        notes = list(verbs[verb]("m").notes)
    assert TAKEN in [one.removeprefix("m: ") for one in notes], notes


def test_the_class_is_compared_that_is_loaded() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama("m", model_type="mistral"))
    assert type(model).__name__ == "MistralForCausalLM" == loaded_class(json.loads(Path("m/config.json").read_text()))
    (said,) = [one for one in cs.inspect("m", model_class=True).notes if "keys and shapes" in one]
    assert said == "keys and shapes are those of MistralForCausalLM in transformers"
    assert cs.fits(llama("n"), "m").fits
    (differ,) = [one for one in cs.diff("n", "m").notes if one.startswith("equal weights compute different results")]
    assert "model_type is" in differ  # Mistral attends to the last 4096 tokens
    assert not [one for one in cs.inspect("n").notes if "architectures" in one]


def auto_classes() -> list[tuple[str, str]]:
    """Return (model type, class) of everything in the lists of transformers' Auto classes."""
    from transformers.models.auto import modeling_auto

    lists = (value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES"))
    pairs = [(kind, one) for classes in lists for kind, one in classes.items() if one]
    return [(kind, name) for kind, one in pairs for name in ((one,) if isinstance(one, str) else one)]


@pytest.mark.long
def test_what_the_auto_classes_load_has_no_note() -> None:
    pairs = auto_classes()
    assert len(pairs) > 1000
    notes = {pair: [*class_type_notes({"model_type": pair[0], "architectures": [pair[1]]})] for pair in pairs}
    assert not {pair: found for pair, found in notes.items() if found}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "CLIPTextModelWithProjection"),  # a part of the model
        ("siglip", "SiglipVisionModel"),
        ("llama", "LlamaForSequenceClassification"),
        ("gpt-sw3", "GPT2LMHeadModel"),
        ("wav2vec2", "MyOwnClass"),
        ("my_own", "LlamaForCausalLM"),
    ],
)
def test_parts_and_unknown_classes_have_no_note(kind: str, name: str) -> None:
    config = {"model_type": kind, "architectures": [name]}
    assert not [*class_type_notes(config)]
    assert loaded_class(config) == name


@pytest.mark.parametrize(
    ("kind", "name", "loaded"),
    [
        ("gpt2", "LlamaForCausalLM", "load GPT2LMHeadModel"),
        ("bert", "RobertaModel", "load BertModel"),
        ("camembert", "RobertaForMaskedLM", "load CamembertForMaskedLM"),
        ("bert", "T5ForConditionalGeneration", "load a class of bert"),
    ],
)
def test_the_note_names_the_class_that_is_loaded(kind: str, name: str, loaded: str) -> None:
    (note,) = class_type_notes({"model_type": kind, "architectures": [name]})
    assert loaded in note
    assert not [*class_type_notes({"model_type": kind, "architectures": [name], "auto_map": {"AutoModel": "x.Y"}})]
