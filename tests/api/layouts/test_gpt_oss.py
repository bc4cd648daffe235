"""gpt-oss: the bytes of mxfp4, what they stand for, numbers of heads, and what is refused.

`fixtures/layouts/gpt_oss.py` recorded a file as OpenAI published it, and the network that OpenAI's package loaded from it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
LAYER, EXPERTS = "model.layers.1.", "model.layers.1.mlp.experts."
QUANTISED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def stored() -> Tensors:
    """The file as OpenAI published it: 6 heads of queries, and 2 of keys and values, of 8 rows each."""
    return load_file(RECORDED / "gpt-oss.mxfp4" / "openai.safetensors")


def decoded() -> Tensors:
    """The state dict of OpenAI's network, in float32."""
    return load_file(RECORDED / "gpt-oss" / "openai.safetensors")


@pytest.mark.long
def test_codes_are_moved_byte_for_byte() -> None:
    theirs, made = stored(), converted(stored(), "transformers")
    for name, matrix in (("gate_up_proj", "mlp1_weight"), ("down_proj", "mlp2_weight")):
        for end in ("blocks", "scales"):
            assert torch.equal(made[f"{EXPERTS}{name}_{end}"], theirs[f"block.1.mlp.{matrix}.{end}"])
    assert made["model.norm.weight"].dtype == torch.float32
    assert_same(converted(made, "openai"), theirs)


def test_queries_then_keys_then_values() -> None:
    """Neither heads nor the rows of a head are in another order."""
    theirs, made = stored(), converted(stored(), "transformers")
    parts = [made[f"{LAYER}self_attn.{kind}_proj.weight"] for kind in "qkv"]
    assert [len(part) for part in parts] == [48, 16, 16]
    assert torch.equal(torch.cat(parts), theirs["block.1.attn.qkv.weight"])
    assert torch.equal(made[f"{LAYER}self_attn.sinks"], theirs["block.1.attn.sinks"])


@pytest.mark.long
def test_decoded_values_are_those_of_openai_s_reader() -> None:
    save_file(stored(), "stored.safetensors")
    cs.apply(cs.convert("stored.safetensors", dequantize=True, dtype="float32"), "decoded.safetensors")
    assert_same(load_file("decoded.safetensors"), decoded())
    for options in ({}, {"dequantize": True, "dtype": "float32"}):
        source = "stored.safetensors" if options else "decoded.safetensors"
        cs.apply(cs.convert(source, layout="transformers", **options), "made.safetensors", force=True)
        assert cs.verify("made.safetensors").ok
        assert_same(load_file("made.safetensors"), converted(decoded(), "transformers"))
    made = load_file("made.safetensors")
    assert torch.equal(made[f"{EXPERTS}gate_up_proj"], decoded()["block.1.mlp.mlp1_weight"].mT)


@pytest.mark.long
def test_transformers_decodes_the_codes_to_the_same_values() -> None:
    from transformers import GptOssForCausalLM

    Path("made").mkdir()
    save_file(converted(stored(), "transformers"), "made/model.safetensors", {"format": "pt"})
    config = json.loads((RECORDED / "gpt-oss.mxfp4" / "config.json").read_text())
    Path("made/config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED}))
    state = GptOssForCausalLM.from_pretrained("made", dtype=torch.bfloat16).state_dict()
    wanted = converted(decoded(), "transformers")
    assert {key: value.float() for key, value in state.items()}.keys() == wanted.keys()
    experts = [key for key in wanted if key.endswith(("gate_up_proj", "down_proj"))]
    assert len(experts) == 4
    assert all(torch.equal(state[key].float(), wanted[key]) for key in experts)


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["openai", "transformers"])
def test_sinks_show_the_number_of_heads(layout: str) -> None:
    tensors = converted(stored(), layout)
    other = "openai" if layout == "transformers" else "transformers"
    assert_same(converted(tensors, other, heads="6/2"), converted(tensors, other))
    with pytest.raises(PlanError, match="do not fit 3 heads of queries and 1 of keys with 8 rows in each head"):
        converted(tensors, other, heads="3/1")


def test_a_note_says_which_configuration_it_needs() -> None:
    _, notes = converted_and_noted(stored(), "transformers")
    assert "config.json must be that of the model on the hub" in notes
    assert "--map" not in notes


@pytest.mark.parametrize(
    "lost", ["block.1.mlp.mlp1_weight.scales", "block.0.attn.sinks", "block.1.attn.qkv.bias", "block.1.mlp.mlp2_bias"]
)
def test_an_incomplete_layer_is_an_error(lost: str) -> None:
    tensors = stored()
    del tensors[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing|is not known"):
        converted(tensors, "transformers")


def test_heads_that_the_sinks_do_not_show_are_an_error() -> None:
    tensors = stored()
    odd = {key: value[:5] if key.endswith("sinks") else value for key, value in tensors.items()}
    with pytest.raises(PlanError, match="the number of heads of keys and values is not known|attention heads"):
        converted(odd, "transformers")


def test_further_tensors_are_an_error() -> None:
    with pytest.raises(PlanError, match=re.escape("of the family gpt-oss: block.0.mlp.extra")):
        converted({**stored(), "block.0.mlp.extra": torch.ones(2)}, "transformers")


def test_experts_without_a_row_of_the_router_are_an_error() -> None:
    tensors = load_file(Path(__file__).resolve().parents[3] / "fixtures/golden/layouts/gpt-oss/openai.safetensors")
    cut = {key: value[:-1].clone() if ".mlp1_" in key or ".mlp2_" in key else value for key, value in tensors.items()}
    save_file(cut, "cut.safetensors")
    with pytest.raises(PlanError, match=r"block\.0\.mlp\.gate\.weight of cut.* is for 3 experts, but there are 2\."):
        cs.convert("cut.safetensors", layout="transformers")
