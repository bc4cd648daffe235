"""What keys and shapes show of an adapter without an adapter_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.adapter_by_keys import adapter_by_keys
from ckptsurgeon.render.inspect import adapter_text
from ckptsurgeon.tensors.info import TensorInfo

Shapes = Mapping[str, tuple[int, ...]]
PEFT = "base_model.model.layers.0.self_attn"
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
         "PEFT's LOHA (by its keys), rank 4, 1 module"),
        ({f"{KOHYA}.lokr_w1": (2, 2), f"{KOHYA}.lokr_w2_a": (8, 4), f"{KOHYA}.lokr_w2_b": (4, 8)},
         "PEFT's LOKR (by its keys), rank 4, 1 module"),
        ({f"{KOHYA}.lokr_w1": (2, 2), f"{KOHYA}.lokr_w2": (8, 8)}, "PEFT's LOKR (by its keys), 1 module"),
        ({f"{PEFT}.q_proj.oft_R.weight": (2, 6)}, "PEFT's OFT (by its keys), 1 module, 1 target module (q_proj)"),
        ({"layers.0.q_proj.weight": (8, 8), "layers.0.q_proj.lora_A.weight": (4, 8)}, None),
        ({"layers.0.q.base_layer.weight": (8, 8), "layers.0.q.lora_A.weight": (4, 8), "layers.0.q.lora_B.weight": (8, 4)},
         None),
        ({"layers.0.weight": (8, 8)}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_keys_show_kind_rank_and_modules(shapes: Shapes, expected: str | None) -> None:
    assert said(shapes) == expected


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
