"""What keys and shapes show of an adapter without an adapter_config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.adapter_by_keys import adapter_by_keys
from ckptsurgeon.methods.lora.names import KINDS
from ckptsurgeon.render.inspect import adapter_text
from ckptsurgeon.tensors.info import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]
PEFT = "base_model.model.layers.0.self_attn"
EXPERTS = "base_model.model.layers.0.mlp.experts"
KOHYA = "lora_unet_down_blocks_0_attentions_0_to_q"


def said(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> str | None:
    found = adapter_by_keys({key: TensorInfo("float32", shape) for key, shape in shapes.items()}, metadata or {})
    return None if found is None else adapter_text(found)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({f"{PEFT}.q_proj.lora_A.weight": (4, 8), f"{PEFT}.q_proj.lora_B.weight": (8, 4)},
         "LoRA (by its keys), rank 4, 1 module, 1 target module (q_proj)"),
        ({f"{PEFT}.q_proj.lora_A.default.weight": (4, 8), f"{PEFT}.q_proj.lora_B.default.weight": (8, 4),
          f"{PEFT}.v_proj.lora_A.default.weight": (2, 8), f"{PEFT}.v_proj.lora_B.default.weight": (8, 2),
          f"{PEFT}.k_proj.lora_A.default.weight": (4, 8), f"{PEFT}.k_proj.lora_B.default.weight": (8, 4)},
         f"LoRA (by its keys), rank 4 ({PEFT}.v_proj: 2), 3 modules, 3 target modules (q_proj, v_proj, k_proj)"),
        ({f"{KOHYA}.lora_down.weight": (4, 8, 1, 1), f"{KOHYA}.lora_up.weight": (8, 4, 1, 1), f"{KOHYA}.alpha": ()},
         "LoRA (by its keys), rank 4, 1 module"),
        ({f"{KOHYA}.lora_down.weight": (4, 8), f"{KOHYA}.lora_up.weight": (8, 4), f"{KOHYA}.dora_scale": (1, 8)},
         "DoRA (by its keys), rank 4, 1 module"),
        ({"unet.mid.attn1.to_out.0.lora.down.weight": (4, 8), "unet.mid.attn1.to_out.0.lora.up.weight": (8, 4)},
         "LoRA (by its keys), rank 4, 1 module, 1 target module (to_out.0)"),
        ({"unet.mid.attn1.processor.to_q_lora.down.weight": (4, 8), "unet.mid.attn1.processor.to_q_lora.up.weight": (8, 4)},
         "LoRA (by its keys), rank 4, 1 module, 1 target module (to_q)"),
        ({"model.layers.0.self_attn.q_proj.lora_a": (8, 4), "model.layers.0.self_attn.q_proj.lora_b": (4, 8)},
         "LoRA (by its keys), rank 4, 1 module, 1 target module (q_proj)"),
        ({f"{KOHYA}.{part}": (8, 4) if part[-1] == "a" else (4, 8)
          for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
         "LoHa (by its keys), rank 4, 1 module"),
        ({f"{KOHYA}.lokr_w1": (2, 2), f"{KOHYA}.lokr_w2_a": (8, 4), f"{KOHYA}.lokr_w2_b": (4, 8)},
         "LoKr (by its keys), rank 4, 1 module"),
        ({f"{KOHYA}.lokr_w1": (2, 2), f"{KOHYA}.lokr_w2": (8, 8)}, "LoKr (by its keys), 1 module"),
        ({f"{PEFT}.q_proj.oft_R.weight": (2, 6)}, "OFT (by its keys), 1 module, 1 target module (q_proj)"),
        ({f"{KOHYA}.hada_w1_a": (4, 320), f"{KOHYA}.hada_w1_b": (4, 64), f"{KOHYA}.hada_t1": (4, 4, 3, 3),
          f"{KOHYA}.hada_w2_a": (4, 320), f"{KOHYA}.hada_w2_b": (4, 64), f"{KOHYA}.hada_t2": (4, 4, 3, 3)},
         "LoHa (by its keys), rank 4, 1 module"),
        ({"lora_unet_mlp.down.hada_w1_a": (8, 4), "lora_unet_mlp.down.hada_w1_b": (4, 16),
          "lora_unet_mlp.up.hada_w1_a": (16, 2), "lora_unet_mlp.up.hada_w1_b": (2, 8)},
         "LoHa (by its keys), rank 4 (lora_unet_mlp.up: 2), 2 modules, 2 target modules (down, up)"),
        ({f"{KOHYA}.lokr_w1": (2, 2), f"{KOHYA}.lokr_w2_a": (4, 160), f"{KOHYA}.lokr_w2_b": (4, 32),
          f"{KOHYA}.lokr_t2": (4, 4, 3, 3)},
         "LoKr (by its keys), rank 4, 1 module"),
        ({"model.layers.0.mlp.switch_mlp.gate_proj.lora_a": (64, 8, 2048),
          "model.layers.0.mlp.switch_mlp.gate_proj.lora_b": (64, 1408, 8)},
         "LoRA (by its keys), rank 8, 1 module, 1 target module (gate_proj)"),
        ({f"{EXPERTS}.base_layer.lora_A.weight": (32, 16), f"{EXPERTS}.base_layer.lora_B.weight": (24, 32),
          f"{EXPERTS}.lora_A.weight": (32, 12), f"{EXPERTS}.lora_B.weight": (16, 32)},
         "LoRA (by its keys), 2 modules, 1 target module (experts)"),
        ({"h.0.attn.attn.lora_A": (12, 8), "h.0.attn.attn.lora_B": (24, 4)},  # litgpt: queries, keys and values
         "LoRA (by its keys), 1 module, 1 target module (attn)"),
        ({f"{KOHYA}.{part}.weight": (8, 8) for part in ("a1", "a2", "b1", "b2")}, "GLoRA (by its keys), 1 module"),
        ({f"layers.0.{part}.weight": (8, 8) for part in ("a1", "a2", "b1", "b2")}, None),
        ({f"{KOHYA}.diff": (8, 8), f"{KOHYA}.diff_b": (8,), "lora_unet_norm.w_norm": (8,), "lora_unet_norm.b_norm": (8,)},
         "whole differences (by its keys), 2 modules"),
        ({"layers.0.q_proj.weight": (8, 8), "layers.0.q_proj.lora_A.weight": (4, 8)}, None),
        ({"layers.0.q.base_layer.weight": (8, 8), "layers.0.q.lora_A.weight": (4, 8), "layers.0.q.lora_B.weight": (8, 4)},
         None),
        ({"layers.0.weight": (8, 8)}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_keys_show_kind_rank_and_modules(shapes: Shapes, expected: str | None) -> None:
    assert said(shapes) == expected


@pytest.mark.parametrize(
    "ends",
    [("hada_w1_a", "hada_w1_b"), ("lokr_w1", "lokr_w2"), ("oft_R.weight",), ("oft_blocks",), ("oft_diag",), ("boft_R",),
     ("diff",), ("set_weight",), ("w_norm", "b_norm"), ("a1.weight", "b1.weight"), ("ia3_l",), ("vera_lambda_b",)],
)  # fmt: skip
def test_each_kind_of_key_that_lora_merge_names_is_described(ends: tuple[str, ...]) -> None:
    assert all(any(re.fullmatch(kind, end) for kind in KINDS) for end in ends)
    text = said({f"{KOHYA}.{end}": (8, 8) for end in ends})
    assert text is not None
    assert text.endswith(", 1 module")


def test_every_kind_of_key_is_in_the_table_of_the_test_above() -> None:
    (mark,) = test_each_kind_of_key_that_lora_merge_names_is_described.pytestmark
    ends = {end for row in mark.args[1] for end in row}
    left = {kind for kind in KINDS if not any(re.fullmatch(kind, end) for end in ends)}
    assert left == {kind for kind in KINDS if "mid" in kind or "_t" in kind}  # the cores of Tucker decompositions


FACTORS = {f"{KOHYA}.lora_down.weight": (4, 8), f"{KOHYA}.lora_up.weight": (8, 4)}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_network_alpha": "2.0", "ss_base_model_version": "sdxl_base_v1-0"}, "rank 4, alpha 2, 1 module, base sdxl_base_v1-0"),
        ({"ss_sd_model_name": "m.safetensors"}, "rank 4, 1 module, base m.safetensors"),
        ({"ss_network_alpha": "nan"}, "rank 4, 1 module"),
        ({"ss_network_alpha": "1e999"}, "rank 4, 1 module"),
        ({"ss_network_alpha": "four"}, "rank 4, 1 module"),
    ],
)  # fmt: skip
def test_alpha_and_base_are_those_of_kohya_s_metadata(metadata: dict[str, str], expected: str) -> None:
    assert said(FACTORS, metadata) == f"LoRA (by its keys), {expected}"


def test_inspect_and_the_page_show_it(ckpt: Any) -> None:
    save_file({key: torch.ones(shape) for key, shape in FACTORS.items()}, "lora.safetensors")
    found = cs.inspect("lora.safetensors")
    assert found.adapter is not None
    assert (found.adapter.rank, found.adapter.modules, found.model) == (4, 1, None)
    assert "adapter  LoRA (by its keys), rank 4, 1 module" in ckpt("inspect", "lora.safetensors").out
    ckpt("view", "lora.safetensors", "-o", "page.html")
    assert "LORA" not in Path("page.html").read_text()
    assert "LoRA, rank 4, 1 module" in Path("page.html").read_text()


def test_an_adapter_beside_the_configuration_of_its_base_has_no_parameters_of_it() -> None:
    Path("m").mkdir()
    Path("m/config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}')
    save_file({key: torch.ones(shape) for key, shape in FACTORS.items()}, "m/model.safetensors")
    found = cs.inspect("m")
    assert found.model is not None
    assert found.model.parameters is None
