"""Tensors under a name that no model of the type has, in place of one that it has: noted, and older names are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SIZES = {"q_proj": (8, 8), "k_proj": (8, 8), "v_proj": (8, 8), "o_proj": (8, 8)}
MLP = {"gate_proj": (16, 8), "up_proj": (16, 8), "down_proj": (8, 16)}


def llama() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32, 8),
        "lm_head.weight": (32, 8),
        "model.norm.weight": (8,),
    }
    for stem in (f"model.layers.{number}" for number in range(3)):
        shapes |= {f"{stem}.self_attn.{name}.weight": shape for name, shape in SIZES.items()}
        shapes |= {f"{stem}.mlp.{name}.weight": shape for name, shape in MLP.items()}
        shapes |= {f"{stem}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    return shapes


def notes(name: Callable[[str], str], **config: Any) -> list[str]:
    """Return the notes on a Llama whose tensors have other names."""
    Path("m").mkdir(exist_ok=True)
    save_file({name(key): torch.ones(shape) for key, shape in llama().items()}, "m/model.safetensors")
    fields = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "vocab_size": 32, "hidden_size": 8,
        "intermediate_size": 16, "num_attention_heads": 2, "tie_word_embeddings": False, **config,
    }  # fmt: skip
    Path("m/config.json").write_text(json.dumps(fields))
    return [note for note in cs.inspect("m").notes if "a name that no" in note or "of an adapter" in note]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.query_proj.weight"),
        ("model.layers.2.input_layernorm.weight", "model.layers.2.attention_norm.weight"),
        ("lm_head.weight", "output_head.weight"),
        ("model.norm.weight", "model.final_norm.weight"),
    ],
)
def test_a_tensor_under_another_name_is_noted(old: str, new: str) -> None:
    (note,) = notes(lambda key: new if key == old else key)
    assert note.startswith(
        f"{new} is a name that no llama model has, but {old} is missing: transformers ignores the unknown tensor"
    )


def test_so_is_one_in_all_layers_or_in_most() -> None:
    (note,) = notes(lambda key: key.replace("gate_proj", "w1"))
    assert note.startswith(
        "model.layers.*.mlp.w1.weight is a name that no llama model has, but model.layers.*.mlp.gate_proj.weight"
    )
    (note,) = notes(lambda key: key if "layers.0" in key else key.replace("gate_proj", "w1"))
    assert ".mlp.w1.weight is a name that no llama model has, but model.layers." in note


def test_adapters_that_are_not_merged_are_noted() -> None:
    (note,) = notes(lambda key: key.replace("q_proj.weight", "q_proj.base_layer.weight"))
    assert "q_proj.base_layer.weight and 2 other tensors are of an adapter that is not merged" in note


@pytest.mark.parametrize(
    "name",
    [
        str,
        lambda key: key.removeprefix("model."),
        lambda key: f"language_model.{key}",
        lambda key: key.replace("layernorm.weight", "layernorm.gamma"),
    ],
    ids=["own", "base", "prefix", "gamma"],
)
def test_sound_names_and_older_ones_are_not(name: Callable[[str], str]) -> None:
    assert not notes(name)


def test_nor_is_a_tied_output_layer_nor_code_of_its_own() -> None:
    assert not notes(lambda key: key.replace("lm_head", "output_head"), tie_word_embeddings=True)
    assert not notes(lambda key: key.replace("q_proj", "query_proj"), auto_map={"AutoModel": "m.Own"})


@pytest.mark.costly
@pytest.mark.parametrize("prefix", ["_orig_mod", "module"])
def test_some_tensors_under_a_wrapper_are_said_to_be(prefix: str) -> None:
    wrap = ("model.layers.2.", "lm_head.")
    notes(lambda key: f"{prefix}.{key}" if key.startswith(wrap) else key)
    found = [note for note in cs.inspect("m").notes if "begin with" in note]
    assert found == [
        f"the keys of 10 of 30 tensors begin with {prefix}, for example {prefix}.lm_head.weight: transformers ignores "
        "them, and initialises the missing weights"
    ]
    assert not notes(lambda key: f"{prefix}.{key}")  # all of them: the wrapper is removed


@pytest.mark.parametrize("kinds", [["conv", "full_attention", "conv"], ["full_attention"] * 3, ["conv"] * 3])
def test_layers_of_every_kind_have_names_that_are_known(kinds: list[str]) -> None:
    """Those of LFM2 are of attention by default, and its published models have both kinds."""
    transformers = pytest.importorskip("transformers")
    if "lfm2" not in transformers.CONFIG_MAPPING:
        pytest.skip("another transformers")
    config = transformers.Lfm2Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, layer_types=kinds, block_auto_adjust_ff_dim=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    transformers.Lfm2ForCausalLM(config).save_pretrained("m")
    assert not cs.inspect("m").notes
