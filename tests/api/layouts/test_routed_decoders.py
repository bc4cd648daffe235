"""DeepSeek-V3 and GLM-4.5: first layers without experts, layers that predict later tokens, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
HEADS = {"deepseek": None, "glm-moe": "8/2"}
"""The families, and the numbers of heads that they need."""
MEGATRON = ("megatron", "megatron-local", "megatron-dist", "megatron-local-dist")
INSIDE = "mtp.layers.0.transformer_layer"


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording: layer 0 has no experts, and the predicting layer of ``.mtp`` follows layer 2."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def found(tensors: Tensors) -> list[tuple[str, str]]:
    """The families and layouts that are recognised."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, "found.safetensors")
    return [(one.family, one.layout) for one in cs.layouts("found.safetensors").found]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("family", HEADS)
def test_a_predicting_layer_has_its_own_list_in_megatron(family: str) -> None:
    made, notes = converted_and_noted(recorded(f"{family}.mtp", "transformers"), "megatron", heads=HEADS[family])
    assert_same(made, recorded(f"{family}.mtp", "megatron"))
    assert f"{INSIDE}.mlp.router.expert_bias" in made
    assert "left out: model.layers.3.embed_tokens.weight, since Megatron-core" in notes
    back, notes = converted_and_noted(made, "transformers", heads=HEADS[family])
    assert_same(back, recorded(f"{family}.mtp", "transformers"))
    assert "added: lm_head.weight" not in notes
    assert "added: model.layers.3.shared_head.head.weight, a copy of output_layer.weight" in notes


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("layout", MEGATRON)
def test_transformers_loads_a_network_with_a_predicting_layer(family: str, layout: str) -> None:
    """It does not build this layer, which stays unused."""
    import transformers

    config = RECORDED / f"{family}.mtp" / "config.json"
    heads = [] if HEADS[family] is None else [HEADS[family]]
    shutil.copy(RECORDED / f"{family}.mtp" / f"{layout}.safetensors", "theirs.safetensors")
    cs.apply(cs.transplant("theirs.safetensors", config, **({"heads": heads[0]} if heads else {})), "made")
    name = json.loads(config.read_text())["architectures"][0]
    network, report = getattr(transformers, name).from_pretrained("made", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    memory = recorded(f"{family}.mtp", "stacked")
    state = network.state_dict()
    assert state.keys() < memory.keys()
    assert all(torch.equal(state[key], memory[key]) for key in state)


@pytest.mark.parametrize(
    ("layout", "lost"),
    [
        ("megatron", f"{INSIDE}.mlp.router.weight"),
        ("megatron", f"{INSIDE}.mlp.experts.linear_fc1.weight3"),
        ("megatron", "mtp.layers.0.hnorm.weight"),
        ("megatron", "decoder.layers.2.mlp.router.expert_bias"),
        ("megatron-local", f"{INSIDE}.self_attention.kv_layernorm.weight"),
        ("megatron-dist", f"{INSIDE}.mlp.experts.experts.linear_fc2.weight"),
        ("megatron-local-dist", "decoder.layers.0.pre_mlp_layernorm.weight"),
        ("megatron-local-dist", f"{INSIDE}.self_attention.q_layernorm.weight"),
        ("transformers", "model.layers.3.shared_head.norm.weight"),
        ("transformers", "model.layers.3.mlp.experts.1.up_proj.weight"),
        ("stacked", "model.layers.3.mlp.experts.down_proj"),
    ],
)
def test_an_incomplete_layer_is_an_error(layout: str, lost: str) -> None:
    tensors = recorded("deepseek.mtp", layout)
    del tensors[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing from before.safetensors"):
        converted(tensors, "megatron" if layout == "transformers" else "transformers")


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["transformers", "stacked", *MEGATRON])
@pytest.mark.parametrize("network", ["deepseek", "deepseek.v2", "deepseek.every", "glm-moe", "glm-moe.normed"])
def test_families_with_some_of_these_names_are_not_taken_for_them(network: str, layout: str) -> None:
    assert found(recorded(network, layout)) == [(network.partition(".")[0], layout)]


def test_a_rotation_of_halves_is_an_error() -> None:
    """Megatron-core rotates pairs of rows in multi-latent attention."""
    Path("model").mkdir()
    shutil.copy(RECORDED / "deepseek" / "transformers.safetensors", "model/model.safetensors")
    fields = json.loads((RECORDED / "deepseek" / "config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**fields, "rope_interleave": False}))
    with pytest.raises(PlanError, match="rope_interleave: false, and Megatron-core rotates pairs of rows"):
        cs.convert("model", layout="megatron")
    cs.convert("model", layout="stacked")


def test_biases_that_megatron_lacks_are_an_error() -> None:
    tensors = recorded("deepseek", "transformers")
    bias = {f"model.layers.{n}.self_attn.kv_a_proj_with_mqa.bias": torch.ones(10) for n in range(3)}
    with pytest.raises(PlanError, match=r"no name in the layout megatron .*kv_a_proj_with_mqa\.bias"):
        converted({**tensors, **bias}, "megatron")
