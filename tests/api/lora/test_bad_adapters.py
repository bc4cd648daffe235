"""Adapters that are none, of another kind, or of another model: what, where, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors, peft_folder

A, B = factors(8, 8)
PAIR = {"layers.0.q.lora_A.weight": A, "layers.0.q.lora_B.weight": B}


@pytest.mark.parametrize(
    ("config", "code", "why"),
    [
        ({"peft_type": "IA3"}, 2, "has the peft_type 'IA3'; only LORA, LOHA, LOKR and OFT can be used here"),
        ({"r": 0}, 2, "a/adapter_config.json: the rank 0 is not a whole number of 1 or more"),
        ({"r": -3}, 2, "a/adapter_config.json: the rank -3 is not"),
        ({"rank_pattern": {"q": 0}}, 2, "a/adapter_config.json: the rank 0 is not"),
        ({"r": 3}, 2, "has the rank 3 for layers.0.q, but its factors have the rank 2"),
        ({"lora_alpha": "big"}, 2, "lora_alpha has 'big', which is not a finite number"),
        ({"use_dora": True}, 2, "has use_dora true, but layers.0.q lacks magnitudes"),
        ({"init_lora_weights": "pissa_niter_4"}, 2, "which changed the base"),
        (
            {"layer_replication": [[0, 1]]},
            2,
            "sets layer_replication, so ckpt cannot use the adapter: it repeats layers",
        ),
        ({"trainable_token_indices": [1]}, 2, "it trains single tokens"),
        ({"rank_pattern": {"(a*)*b": 2}}, 2, "could take too long to match"),
        ({"rank_pattern": {"a?" * 40 + "b": 2}}, 2, "could take too long to match"),
        ({"rank_pattern": {"(a|a)" * 40 + "b": 2}}, 2, "could take too long to match"),
        ({"rank_pattern": {"a{99999999999}": 2}}, 2, "damaged"),
        ({"rank_pattern": {"(?i)up": 2}}, 2, "damaged"),
        ({"lora_alpha": 10**400}, 2, "damaged"),
        ({"peft_type": "LOHA", "alpha": 10**400}, 2, "which is not a finite number"),
        ({"use_rslora": "false"}, 2, "neither true nor false"),
        ({"fan_in_fan_out": "False"}, 2, "neither true nor false"),
        ({"modules_to_save": [{"a": 1}]}, 2, "is not a string"),
    ],
)
def test_a_configuration_that_does_not_fit_is_said(config: dict[str, Any], code: int, why: str, ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    peft_folder("a", PAIR, **config)
    done = ckpt("lora", "merge", "base.safetensors", "a", "-o", "o.safetensors")
    assert done.code == code
    assert why in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("tensors", "code", "why"),
    [
        ({**PAIR, "layers.0.q.lora_C.weight": A}, 3, "has 1 key that no LoRA adapter has: base_model.model.layers.0.q.lora_C.weight"),
        ({**PAIR, "extra.weight": A}, 3, "1 key that no LoRA adapter has: base_model.model.extra.weight"),
        ({"layers.0.q.lora_A.weight": A}, 3, ", but no factor B for the same module"),
        ({**PAIR, "layers.0.q.lora_B.weight": B[:, :1]}, 3, "their ranks differ"),
        ({"layers.0.q.lora_A.weight": A[:0], "layers.0.q.lora_B.weight": B[:, :0]}, 3, "has a rank of zero"),
        ({"other.q.lora_A.weight": A, "other.q.lora_B.weight": B}, 4, "is for another model: base.safetensors has none"),
        ({**PAIR, "layers.7.q.lora_A.weight": A, "layers.7.q.lora_B.weight": B}, 4, "1 module that base.safetensors lacks"),
        ({"layers.0.q.lora_A.weight": A[:, :5], "layers.0.q.lora_B.weight": B}, 4, "does not fit layers.0.q.weight"),
        ({"layers.0.q.lora_A.weight": A.long(), "layers.0.q.lora_B.weight": B}, 3, "its dtype is int64, not a floating-point dtype with one number in each element"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_said(tensors: dict[str, torch.Tensor], code: int, why: str, ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    peft_folder("a", tensors)
    done = ckpt("lora", "merge", "base.safetensors", "a", "-o", "o.safetensors")
    assert done.code == code
    assert why in " ".join(done.err.split())
    assert not Path("o.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["a", "--weights", "1,2"], 2, "--weights gives 2 weights for 1 adapter"),
        (["a", "--weights", "x"], 2, "--weights x is not a list of numbers"),
        (["a", "--weights", "nan"], 2, "nan is not a valid weight"),
        (["empty"], 3, "empty has no adapter_config.json"),
        (["none"], 3, "none does not exist"),
        (["a/adapter_config.json"], 3, "a/adapter_config.json is not a checkpoint"),
        (["alone.safetensors"], 2, "its folder has no adapter_config.json, which contains the scale"),
        (["base.safetensors"], 3, "keys that no LoRA adapter has"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], code: int, why: str, ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    peft_folder("a", PAIR)
    Path("empty").mkdir()
    Path("alone.safetensors").write_bytes(Path("a/adapter_model.safetensors").read_bytes())
    done = ckpt("lora", "merge", "base.safetensors", *arguments, "-o", "o.safetensors")
    assert done.code == code, done
    assert why in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        (torch.uint8, "or dequantise the model with the package that quantised it"),
        # without scales these may be any integers
        (torch.int16, "Merge the adapter into the model as it was before quantisation."),
    ],
)
def test_a_quantised_base_cannot_be_merged_into(dtype: torch.dtype, hint: str, ckpt: Any) -> None:
    state = base_state()
    state["layers.0.q.weight"] = torch.zeros(8, 8, dtype=dtype)
    save_file(state, "base.safetensors")
    peft_folder("a", PAIR)
    done = ckpt("lora", "merge", "base.safetensors", "a", "-o", "o.safetensors", "--json")
    assert done.code == 4
    assert hint in json.loads(done.err)["hint"]


def test_the_base_is_never_overwritten(ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    peft_folder("a", PAIR)
    for place in ("base.safetensors", "a/adapter_model.safetensors"):
        assert ckpt("lora", "merge", "base.safetensors", "a", "-o", place, "--force").code == 5


@pytest.mark.parametrize(
    ("endings", "kind"),
    [
        (["oft_blocks"], "an OFT or BOFT of LyCORIS (orthogonal rotations)"),
        (["boft_R", "boft_s"], "a BOFT of PEFT (products of orthogonal rotations)"),
        (["oft_diag"], "an OFT"),
        (["diff", "diff_b"], "an adapter of whole differences (LyCORIS' full and norm)"),
        (["w_norm", "b_norm"], "an adapter of whole differences"),
        (["a1.weight", "a2.weight", "b1.weight", "b2.weight"], "a GLoRA"),
        (["weight", "on_input"], "an (IA)3"),
    ],
)
@pytest.mark.parametrize("module", ["lora_unet_layers_0_q", "lycoris_layers_0_q", "unet.layers.0.q"])
def test_another_kind_of_adapter_is_named(module: str, endings: list[str], kind: str, ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    tensors = {f"{module}.{ending}": torch.ones(2, 2) for ending in endings}
    save_file({**tensors, f"{module}.alpha": torch.tensor(1.0)}, "a.safetensors")
    done = ckpt("lora", "merge", "base.safetensors", "a.safetensors", "-o", "o.safetensors")
    assert done.code == 2, done
    said = " ".join(done.err.split())
    assert f"a.safetensors is {kind}" in said
    assert "; only LoRA, LoHa, LoKr and PEFT's OFT can be used here" in said


@pytest.mark.parametrize(
    ("endings", "kind"),
    [
        (["lora_down.weight", "lora_up.weight", "lora_mid.weight"], "a LoCon with a Tucker (CP) decomposition"),
        (["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"], "a LoHa (Hadamard product)"),
        (["hada_w1_a", "hada_t1"], "a LoHa"),
        (["lokr_w1", "lokr_w2_a", "lokr_w2_b"], "a LoKr (Kronecker product)"),
        (["oft_R.weight"], "an OFT of PEFT (orthogonal rotation)"),
    ],
)
def test_verbs_that_take_only_lora_name_what_can_be_merged(endings: list[str], kind: str, ckpt: Any) -> None:
    save_file({f"unet.layers.0.q.{ending}": torch.ones(2, 2) for ending in endings}, "a.safetensors")
    done = ckpt("lora", "resize", "a.safetensors", "--rank", "1", "-o", "o.safetensors")
    assert done.code == 2, done
    said = " ".join(done.err.split())
    assert f"a.safetensors is {kind}" in said
    assert "; only LoRA can be used here" in said
    assert "ckpt lora merge" in said


@pytest.mark.parametrize("ending", ["oft_r.weight", "ia3_l", "vera_lambda_b"])
def test_another_kind_under_peft_s_names_is_named(ending: str, ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    peft_folder("a", {f"layers.0.q.{ending}": A})
    for adapter in ("a", "alone.safetensors"):
        Path("alone.safetensors").write_bytes(Path("a/adapter_model.safetensors").read_bytes())
        done = ckpt("lora", "merge", "base.safetensors", adapter, "-o", "o.safetensors")
        assert done.code == 2, done
        assert "; only LoRA, LoHa, LoKr and PEFT's OFT can be used here" in " ".join(done.err.split())


@pytest.mark.parametrize(("key", "shape"), [("layers_0_q", (1, 8)), ("layers_1_up", (1, 8)), ("conv", (1, 3, 1, 1))])
def test_a_dora_over_the_inputs_is_named(key: str, shape: tuple[int, ...], ckpt: Any) -> None:
    save_file(base_state(), "base.safetensors")
    name = f"lora_unet_{key}"
    save_file(
        {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.dora_scale": torch.ones(shape)}, "a.st"
    )
    Path("a.st").rename("a.safetensors")
    done = ckpt("lora", "merge", "base.safetensors", "a.safetensors", "-o", "o.safetensors")
    assert done.code == 2, done
    assert "a.safetensors has a DoRA magnitude for each input" in " ".join(done.err.split())


LAYOUTS = Path(__file__).parents[3] / "fixtures" / "golden" / "layouts"


@pytest.mark.parametrize(
    ("base", "module", "there", "here"),
    [
        ("flux/bfl", "transformer.transformer_blocks.0.attn.to_k", "diffusers", "bfl"),
        ("flux/diffusers", "lora_unet_double_blocks_0_img_attn_qkv", "bfl", "diffusers"),
        ("stable-diffusion/ldm", "lora_unet_mid_block_attentions_0_proj_in", "diffusers", "ldm"),
        ("stable-diffusion/diffusers", "lora_unet_middle_block_1_proj_in", "ldm", "diffusers"),
    ],
)
def test_an_adapter_with_names_of_another_layout_gets_the_commands(
    base: str, module: str, there: str, here: str
) -> None:
    path = LAYOUTS / f"{base}.safetensors"
    sides = ("lora_down", "lora_up") if module.startswith("lora_") else ("lora_A", "lora_B")
    save_file({f"{module}.{side}.weight": one for side, one in zip(sides, (A, B), strict=True)}, "a.safetensors")
    with pytest.raises(cs.PlanError, match="has names of another layout") as caught:
        cs.lora_merge(path, "a.safetensors")
    hint = caught.value.hint or ""
    assert (
        f"ckpt convert {path} --layout {there} -o base.safetensors, then ckpt lora merge base.safetensors a.safetensors"
        in hint
    )
    assert f"ckpt convert merged.safetensors --layout {here} -o" in hint
    if module.startswith("lora_"):
        with pytest.raises(cs.PlanError) as caught:
            cs.lora_convert("a.safetensors", to="peft", base=path)
        assert (caught.value.hint or "").endswith("give base.safetensors as the base.")


def test_modules_of_further_layers_are_not_of_another_layout() -> None:
    save_file(
        {f"double_blocks.99.img_attn.qkv.lora_{part}.weight": one for part, one in (("A", A), ("B", B))},
        "a.safetensors",
    )
    with pytest.raises(cs.PlanError, match="for another model"):
        cs.lora_merge(LAYOUTS / "flux/bfl.safetensors", "a.safetensors")
