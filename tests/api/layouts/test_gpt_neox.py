"""GPT-NeoX: both forms of transformers' layout, the number of heads, and what litgpt computes or has otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckptsurgeon.errors import PlanError

from ...helpers.converting import converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "gpt-neox"


def test_a_state_dict_with_buffers_of_earlier_versions() -> None:
    files, litgpt = (load_file(RECORDED / f"{name}.safetensors") for name in ("transformers", "litgpt"))
    memory = {key.replace("embed_out.", "lm_head."): value for key, value in files.items()}
    buffers = {
        "bias": torch.ones(1, 1, 16, 16),
        "masked_bias": torch.tensor(-1e9),
        "rotary_emb.inv_freq": torch.ones(1),
    }
    older = {
        f"gpt_neox.layers.{n}.attention.{name}": value.clone() for n in range(2) for name, value in buffers.items()
    }
    for tensors in (memory, {**files, **older}):
        made, notes = converted_and_noted(tensors, "litgpt", heads="3")
        assert made.keys() == litgpt.keys()
        assert all(torch.equal(made[key], litgpt[key]) for key in litgpt)
        assert ("rotary_emb, which litgpt computes" in notes) == ("embed_out.weight" in tensors)


def test_heads_must_be_known_and_fit() -> None:
    files = load_file(RECORDED / "transformers.safetensors")
    with pytest.raises(PlanError, match="the number of attention heads is not known"):
        converted_and_noted(files, "litgpt")
    with pytest.raises(PlanError, match=r"query_key_value\.(weight|bias).* 72"):
        converted_and_noted(files, "litgpt", heads="5")


def test_networks_with_fewer_keys_than_queries_are_not_taken_for_gpt_neox() -> None:
    """litgpt has the same names for StarCoder 2, whose queries, keys and values are of other sizes."""
    litgpt = load_file(RECORDED / "litgpt.safetensors")
    grouped = {key: value[:40] if ".attn.qkv." in key else value for key, value in litgpt.items()}
    with pytest.raises(PlanError, match=r"the layout of before\.safetensors is not known"):
        converted_and_noted(grouped, "transformers", heads="3/1")
    with pytest.raises(PlanError, match=r"of the family gpt-neox: transformer\.h\.0\.attn\.norm_q\.weight"):
        converted_and_noted({**litgpt, "transformer.h.0.attn.norm_q.weight": torch.ones(8)}, "transformers", heads="3")


def test_an_attention_without_biases_gets_zeros() -> None:
    """transformers leaves them out with ``attention_bias: false``; litgpt's network has all biases, or none."""
    files = load_file(RECORDED / "transformers.safetensors")
    cut = (".query_key_value.bias", ".attention.dense.bias")
    without = {key: value for key, value in files.items() if not key.endswith(cut)}
    zeros = {key: value * 0 if key.endswith(cut) else value for key, value in files.items()}
    made, notes = converted_and_noted(without, "litgpt", heads="3")
    assert "zeros, since litgpt has these biases" in notes
    wanted = converted_and_noted(zeros, "litgpt", heads="3")[0]
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[key], wanted[key]) for key in wanted)
