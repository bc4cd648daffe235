"""Layers with and without experts: those that contradict config.json are noted, and whole models have no note."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.layers.checks import layer_notes
from ckptsurgeon.api.model_folder.weights.expert_names import expert_name_notes
from ckptsurgeon.api.model_folder.weights.shape_checks import DescribedTensor

MLP = ("gate_proj", "up_proj", "down_proj")
RULES: Sequence[tuple[str, str, dict[str, Any], str]] = [
    ("qwen3_moe", "mlp", {"mlp_only_layers": [0, 2]}, "dsds"),
    ("qwen2_moe", "mlp", {"decoder_sparse_step": 2}, "dsds"),
    ("qwen3_moe", "mlp", {}, "ssss"),
    ("deepseek_v3", "mlp", {"first_k_dense_replace": 1, "n_routed_experts": 2}, "dsss"),
    ("deepseek_v2", "mlp", {"first_k_dense_replace": 2}, "ddss"),
    ("glm4_moe", "mlp", {}, "dsss"),
    ("exaone_moe", "mlp", {"mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}, "dsds"),
    ("ernie4_5_moe", "mlp", {"moe_layer_interval": 2, "moe_layer_start_index": 0}, "dsds"),
    ("jamba", "feed_forward", {"expert_layer_period": 2, "expert_layer_offset": 0}, "sdsd"),
    ("llama4_text", "feed_forward", {"interleave_moe_layer_step": 2}, "dsds"),
]


def names(kinds: Iterable[str], module: str = "mlp", *, stacked: bool = False) -> list[str]:
    """Return keys of layers without experts ("d") and with two experts ("s")."""
    found = []
    for number, kind in enumerate(kinds):
        stem = f"model.layers.{number}.{module}"
        if kind == "d":
            found += [f"{stem}.{one}.weight" for one in MLP]
        elif stacked:
            found += [
                f"{stem}.experts.gate_up_proj",
                f"{stem}.experts.down_proj",
                f"{stem}.shared_expert.up_proj.weight",
            ]
        else:
            found += [f"{stem}.experts.{at}.{one}.weight" for at in range(2) for one in MLP]
            found += [f"{stem}.gate.weight", f"{stem}.shared_experts.up_proj.weight"]
    return found


def notes(keys: Sequence[str], kind: str, **config: Any) -> list[str]:
    tensors = [DescribedTensor(key, "float32", (4, 4)) for key in keys]
    found = layer_notes(tensors, {"model_type": kind, "num_hidden_layers": 4, **config} if kind else config)
    return [one for one in found if "experts (" in one]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("kind", "module", "config", "kinds"), RULES)
def test_layers_with_experts_are_those_that_the_configuration_says(
    kind: str, module: str, config: dict[str, Any], kinds: str, stacked: bool
) -> None:
    assert not notes(names(kinds, module, stacked=stacked), kind, **config)
    other = "".join("s" if one == "d" else "d" for one in kinds)
    (note,) = notes(names(other, module, stacked=stacked), kind, **config)
    says, has = ("no experts", "some") if kinds[0] == "d" else ("experts", "none")
    assert note.startswith(f"config.json says that layer 0 has {says} (")
    assert note.endswith(f"but model.layers.0 has {has}: transformers initialises what is missing; 3 other layers too")


def test_the_fields_are_named_also_in_a_part_of_the_configuration() -> None:
    config = {"text_config": {"model_type": "qwen3_vl_moe_text", "num_hidden_layers": 4, "mlp_only_layers": [1]}}
    keys = [key.replace("model.", "model.language_model.") for key in names("dsss")]
    first = notes(keys, "", model_type="qwen3_vl_moe", **config)
    assert [one.partition(", but ")[0] for one in first] == [
        "config.json says that layer 0 has experts (mlp_only_layers)"
    ]
    (unset,) = notes(names("ssss"), "deepseek_v3")
    assert unset.startswith("config.json says that layer 0 has no experts (first_k_dense_replace is not set), but ")


@pytest.mark.parametrize("experts_first", [True, False])
def test_a_layer_with_experts_and_a_dense_part_has_experts_in_any_order(experts_first: bool) -> None:
    keys = [f"model.layers.{at}.mlp.{one}up_proj.weight" for at in range(1, 4) for one in ("experts.0.", "")]
    keys += names("d")
    assert not notes(keys if experts_first else keys[::-1], "deepseek_v3", first_k_dense_replace=1)


@pytest.mark.parametrize(
    "config",
    [{"auto_map": {"AutoModel": "code.Net"}}, {"num_experts": 0}, {"num_hidden_layers": None}, {"model_type": "net"}],
    ids=["own code", "no experts", "no number", "another type"],
)
def test_configurations_that_decide_nothing_have_no_note(config: dict[str, Any]) -> None:
    assert not notes(names("dddd"), "qwen3_moe", **config)


def test_a_layer_for_the_prediction_of_further_tokens_is_not_compared() -> None:
    assert not notes(names("ddssd"), "deepseek_v3", first_k_dense_replace=2)


def qwen(stacked: bool, width: int = 64) -> None:
    """Save a Qwen3-MoE with two layers of four without experts; ``width`` is that of their MLP."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(
        vocab_size=32, hidden_size=16, intermediate_size=width, moe_intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0, 2], pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.Qwen3MoeForCausalLM(config).save_pretrained("m")
    if stacked:
        cs.apply(cs.transplant("m", "m/config.json"), "stacked")


@pytest.mark.long
def test_a_model_with_both_kinds_of_layers_has_no_note_in_either_form() -> None:
    qwen(stacked=True)
    assert any(key.endswith("experts.gate_up_proj") for key in load_file("stacked/model.safetensors"))
    assert not cs.inspect("m").notes
    assert not cs.inspect("stacked").notes
    assert not cs.check("stacked").row("missing-tensors").found


def test_nor_if_experts_are_as_wide_as_the_layers_without_them() -> None:
    qwen(stacked=False, width=24)
    assert not cs.inspect("m").notes


def test_all_verbs_note_layers_that_contradict_the_configuration() -> None:
    qwen(stacked=False)
    path = Path("m/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "mlp_only_layers": [1, 3]}))
    said = (
        "config.json says that layer 0 has experts (mlp_only_layers, decoder_sparse_step), but model.layers.0 has none"
    )
    for one in (cs.inspect("m"), cs.convert("m"), cs.filter("m", exclude="lm_head.weight"), cs.average(["m", "m"])):
        assert [note for note in one.notes if said in note], one


@pytest.mark.long
def test_the_missing_tensor_in_a_note_does_not_depend_on_the_hash_seed() -> None:
    qwen(stacked=False)
    state = {
        key.replace("_proj", "_linear") if ".experts." in key else key: one
        for key, one in load_file("m/model.safetensors").items()
    }
    save_file(state, "m/model.safetensors")
    script = "import ckptsurgeon as cs; print(cs.inspect('m').notes)"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(found) == 1
    assert b"is a name that no qwen3_moe model has" in found.pop()


@pytest.mark.parametrize(
    ("kind", "module", "projections", "known"),
    [
        ("mixtral", "block_sparse_moe", ("w1", "w2", "w3"), True),
        ("mixtral", "mlp", ("w1", "w2", "w3"), True),  # transformers reads this, too
        ("mixtral", "mlp", MLP, False),
        ("qwen3_moe", "mlp", MLP, True),
        ("qwen3_moe", "block_sparse_moe", ("w1", "w2", "w3"), False),
        ("qwen3_moe", "mlp", ("w1", "w2", "w3"), False),
        ("deepseek_v3", "feed_forward", MLP, False),
        ("jamba", "feed_forward", MLP, True),
        ("net", "mlp", MLP, True),
        ("gpt_oss", "mlp", MLP, True),  # always stacked; other programs divide them
    ],
)
def test_experts_under_the_names_of_another_family_are_noted(
    kind: str, module: str, projections: tuple[str, ...], known: bool
) -> None:
    keys = [
        f"layers.{at}.{module}.experts.{e}.{one}.weight" for at in range(2) for e in range(3) for one in projections
    ]
    found = list(expert_name_notes([*keys, f"layers.0.{module}.gate.weight"], {"model_type": kind}))
    assert bool(found) != known
    assert all(
        one.startswith(f"{min(keys)} is a name that no expert of a {kind} model has (a valid name is ") for one in found
    )
    assert not list(expert_name_notes(keys, {"model_type": kind, "auto_map": {"AutoModel": "code.Net"}}))
    assert not list(expert_name_notes([*keys, "layers.0.mlp.experts.gate_up_proj"], {"model_type": kind}))


def test_all_verbs_note_experts_under_such_names() -> None:
    qwen(stacked=False)
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    state = {}
    for key, one in load_file("m/model.safetensors").items():
        new = next((key.replace(old, name) for old, name in names.items() if f".{old}." in key), key)
        state[new if ".experts." in key else key] = one
    save_file(state, "m/model.safetensors")
    for made in (cs.inspect("m"), cs.convert("m")):
        assert len([note for note in made.notes if "is a name that no expert of a qwen3_moe model has" in note]) == 1
