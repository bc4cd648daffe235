"""Embeddings of an encoder or a decoder that are stored beside the shared embedding are noted by every verb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

ENCODER = "model.encoder.embed_tokens.weight"
NOTE = (
    f"{ENCODER} is stored, although the model's class ties it to model.shared.weight: if the two differ, "
    "transformers versions before 5 use only model.shared.weight"
)
Found = Callable[[], Any]
VERBS: dict[str, Found] = {
    "inspect": lambda: cs.inspect("own"),
    "convert": lambda: cs.convert("own"),
    "transplant": lambda: cs.transplant("own", "plain"),
    "average": lambda: cs.average(["own", "own"]),
    "diff": lambda: cs.diff("own", "plain"),
}


def model(name: str, *keys: str, **config: Any) -> str:
    Path(name).mkdir()
    state = {key: torch.full((6, 4), float(number)) for number, key in enumerate(("model.shared.weight", *keys))}
    save_file({**state, "model.encoder.layernorm_embedding.weight": torch.ones(4)}, f"{name}/model.safetensors")
    Path(name, "config.json").write_text(json.dumps({"model_type": "bart", "vocab_size": 6, "d_model": 4, **config}))
    return name


@pytest.mark.parametrize("verb", VERBS)
def test_an_embedding_beside_the_shared_one_is_noted_once(verb: str) -> None:
    model("own", ENCODER), model("plain")
    assert sum(NOTE in note for note in VERBS[verb]().notes) == 1


def test_what_converts_it_is_verified_with_the_note() -> None:
    cs.apply(cs.convert(model("own", ENCODER)), "out")
    assert any(NOTE in str(note) for note in cs.verify("out").notes)


def test_untied_and_shared_embeddings_are_not_noted() -> None:
    untied = model("untied", ENCODER, tie_word_embeddings=False)
    rows = torch.ones(6, 4)
    Path("one").mkdir()
    torch.save({"model.shared.weight": rows, ENCODER: rows}, "one/pytorch_model.bin")
    Path("one/config.json").write_text(Path(untied, "config.json").read_text().replace("false", "true"))
    assert not [note for path in (untied, "one", model("plain")) for note in cs.inspect(path).notes if "ties" in note]


def test_fits_notes_an_output_layer_that_is_stored_although_both_models_tie_it() -> None:
    pytest.importorskip("transformers")
    Path("llama").mkdir()
    rows = {key: torch.full((6, 4), float(number)) for number, key in enumerate(("model.embed_tokens", "lm_head"))}
    state = {**{f"{key}.weight": value for key, value in rows.items()}, "model.norm.weight": torch.ones(4)}
    save_file(state, "llama/model.safetensors")
    sizes = {
        "vocab_size": 6,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_attention_heads": 1,
        "num_hidden_layers": 0,
    }
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    Path("llama/config.json").write_text(json.dumps({**kind, **sizes}))
    (note,) = (note for note in cs.fits("llama", "llama/config.json").notes if "stored too" in note)
    assert (
        "lm_head.weight is stored too: if the two differ, transformers versions before 5 use only the embedding" in note
    )
