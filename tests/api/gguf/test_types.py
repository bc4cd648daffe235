"""The types of matrices in a GGUF output: one for all, or a mixture, and another for rows that do not divide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

LAYERS = 16
BETTER = {0, 1, 4, 7, 10, 13, 14, 15}
"""The layers of 16 that llama.cpp rounds less: the first and the last two, and every third between them."""


def llama(**changes: Any) -> None:
    """A folder ``llama`` with a model of 16 layers, or as many as are given, 256 wide."""
    config: dict[str, Any] = {
        "model_type": "llama", "vocab_size": 96, "hidden_size": 256, "intermediate_size": 256,
        "num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128, "tie_word_embeddings": False,
    } | changes  # fmt: skip
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (96, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (96, width)
    for layer in range(config["num_hidden_layers"]):
        rows = {"q": width, "k": width // 4, "v": width // 4, "o": width}
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (size, width) for name, size in rows.items()}
        shapes |= {f"model.layers.{layer}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {
            f"model.layers.{layer}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    torch.manual_seed(0)
    Path("llama").mkdir()
    save_file({key: (torch.randn(shape) * 0.05).bfloat16() for key, shape in shapes.items()}, "llama/model.safetensors")
    Path("llama/config.json").write_text(json.dumps(config))


def types(path: str) -> dict[str, str]:
    with cs.open_checkpoint(path) as found:
        return {key: info.dtype for key, info in found.items()}


def file_type(path: str) -> str:
    with cs.open_checkpoint(path) as found:
        return found.metadata["general.file_type"]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("mixture", "most", "number", "tied"), [("q4_k_m", "q4_k", "15", False), ("q5_k_m", "q5_k", "17", True)]
)
def test_a_mixture_rounds_some_matrices_less(mixture: str, most: str, number: str, tied: bool) -> None:
    llama(tie_word_embeddings=tied)
    cs.apply(cs.convert("llama", layout="gguf", gguf_type=mixture), "out.gguf")
    assert cs.verify("out.gguf").ok
    found = types("out.gguf")
    finer = {f"blk.{n}.{name}.weight" for n in BETTER for name in ("attn_v", "ffn_down")}
    finer.add("token_embd.weight" if tied else "output.weight")
    matrices = {key for key in found if not key.endswith("norm.weight")}
    assert {key: found[key] for key in matrices} == {key: "q6_k" if key in finer else most for key in matrices}
    assert {found[key] for key in found.keys() - matrices} == {"float32"}
    assert file_type("out.gguf") == number
    # Of a file that has llama.cpp's names already the same is planned.
    cs.apply(cs.convert("llama", layout="gguf"), "plain.gguf")
    plan = cs.convert("plain.gguf", gguf_type=mixture)
    assert {step.key: step.dtype for step in plan.steps} == found


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "number"), [("q4_k", "14"), ("q5_k", "16"), ("q3_k", "11"), ("q6_k", "18")])
def test_one_type_for_all_matrices(kind: str, number: str) -> None:
    llama(num_hidden_layers=2)
    cs.apply(cs.convert("llama", layout="gguf", gguf_type=kind), "out.gguf")
    assert set(types("out.gguf").values()) == {kind, "float32"}
    assert file_type("out.gguf") == number


@pytest.mark.long
def test_rows_that_do_not_divide_get_another_type_with_a_note() -> None:
    llama(hidden_size=96, intermediate_size=256)
    plan = cs.convert("llama", layout="gguf", gguf_type="q4_k")
    noted = next(note for note in plan.notes if "not q4_k" in note)
    assert "98 tensors are rounded to q5_0, not q4_k, as the row length is not a multiple of 256: " in noted
    cs.apply(plan, "out.gguf")
    found = types("out.gguf")
    assert {kind for key, kind in found.items() if "ffn_down" in key} == {"q4_k"}
    assert {kind for key, kind in found.items() if "ffn_up" in key or ("attn" in key and "norm" not in key)} == {"q5_0"}


def test_rows_that_no_block_divides_stay_as_they_are() -> None:
    save_file({"a": torch.ones(2, 256), "b": torch.ones(2, 96), "c": torch.ones(2, 40)}, "x.safetensors")
    plan = cs.convert("x.safetensors", gguf_type="q6_k")
    assert {
        "1 tensor is rounded to q8_0, not q6_k, as the row length is not a multiple of 256: b",
        "1 tensor is not rounded to q6_k, as the row length is not a multiple of 32: c",
    } <= set(plan.notes)
    save_file({"c": torch.ones(2, 40)}, "y.safetensors")
    with pytest.raises(cs.PlanError, match="whose row length is a multiple of 32"):
        cs.convert("y.safetensors", gguf_type="q6_k")


def test_queries_keys_and_values_in_one_matrix_get_the_type_between() -> None:
    """As in Phi-3."""
    keys = [f"model.layers.{n}.{name}.weight" for n in range(4) for name in ("self_attn.qkv_proj", "mlp.down_proj")]
    save_file({key: torch.ones(2, 256) for key in ("lm_head.weight", *keys)}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type="q4_k_m"), "out.gguf")
    down = {f"model.layers.{n}.mlp.down_proj.weight": "q6_k" if n in (2, 3) else "q4_k" for n in range(4)}
    fused = {f"model.layers.{n}.self_attn.qkv_proj.weight": "q5_k" for n in range(4)}
    assert types("out.gguf") == {"lm_head.weight": "q6_k", **down, **fused}


def test_the_last_matrices_of_experts_that_are_one_tensor() -> None:
    """As transformers stores those of gpt-oss, without ``.weight``."""
    keys = {
        f"model.layers.{n}.mlp.experts.{name}": (2, 256, 256) for n in range(4) for name in ("down_proj", "up_proj")
    }
    biases = {f"model.layers.{n}.mlp.experts.down_proj_bias": (2, 256) for n in range(4)}
    save_file({key: torch.ones(shape) for key, shape in (keys | biases).items()}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type="q4_k_m"), "out.gguf")
    found = types("out.gguf")
    assert {key for key, kind in found.items() if kind == "q6_k"} == {
        f"model.layers.{n}.mlp.experts.down_proj" for n in (2, 3)
    }


@pytest.mark.parametrize(
    "shapes",
    [
        {"model.layers.0.self_attn.q_proj.weight": (2, 256)},
        {"lm_head.weight": (2, 256)},
        {"lm_head.weight": (2, 48), "model.layers.0.mlp.up_proj.weight": (2, 256)},
        {"lm_head.weight": (0, 256), "model.layers.0.mlp.up_proj.weight": (2, 256)},
        {"model.layers.0.mlp.down_proj.weight": (2, 48), "model.layers.0.mlp.up_proj.weight": (2, 256)},
        {f"model.layers.{10**17}.mlp.down_proj.weight": (2, 256)},
        {f"model.layers.{'9' * 5000}.mlp.down_proj.weight": (2, 256)},
    ],
)
def test_a_mixture_is_possible_where_one_type_is(shapes: dict[str, tuple[int, ...]]) -> None:
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, "x.safetensors")
    assert len(cs.convert("x.safetensors", gguf_type="q4_k_m").steps) == len(shapes)


def test_codes_must_be_decoded_first(ckpt: Any) -> None:
    save_file({"w": torch.randn(4, 256)}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type="q4_k"), "coded.gguf")
    done = ckpt("convert", "coded.gguf", "-o", "out.gguf", "--gguf-type", "q6_k")
    assert done.code == 4
    assert "some are quantised already. Decode the quantised tensors first: --dequantize" in " ".join(done.err.split())
    cs.apply(cs.convert("coded.gguf", dequantize=True, gguf_type="q6_k"), "out.gguf")
    assert types("out.gguf") == {"w": "q6_k"}


@pytest.mark.long
def test_an_adapter_is_merged_into_a_mixture() -> None:
    """What the adapter does not change is copied byte for byte; the other matrices get their own types again."""
    llama(num_hidden_layers=4)
    cs.apply(cs.convert("llama", layout="gguf", gguf_type="q4_k_m"), "base.gguf")
    torch.manual_seed(1)
    key = "blk.2.ffn_down"
    Path("adapter").mkdir()
    pair = {f"base_model.model.{key}.lora_A.weight": torch.randn(4, 256) * 0.1}
    pair[f"base_model.model.{key}.lora_B.weight"] = torch.randn(256, 4) * 0.1
    save_file(pair, "adapter/adapter_model.safetensors")
    Path("adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["ffn_down"]})
    )
    receipt = cs.apply(cs.lora_merge("base.gguf", "adapter"), "out.gguf")
    assert cs.verify("out.gguf").ok
    assert types("out.gguf") == types("base.gguf")
    assert [one.key for one in receipt.rounded] == [f"{key}.weight"]
    with cs.open_checkpoint("base.gguf") as base, cs.open_checkpoint("out.gguf") as out:
        changed = [name for name in base if not torch.equal(base.tensor(name), out.tensor(name))]
    assert changed == [f"{key}.weight"]
    for path in ("base", "out"):
        cs.apply(cs.convert(f"{path}.gguf", dequantize=True, dtype="float32"), f"{path}.safetensors")
    with cs.open_checkpoint("base.safetensors") as base, cs.open_checkpoint("out.safetensors") as out:
        added = out.tensor(f"{key}.weight") - base.tensor(f"{key}.weight")
    product = pair[f"base_model.model.{key}.lora_B.weight"] @ pair[f"base_model.model.{key}.lora_A.weight"]
    assert float((added - product).norm() / product.norm()) < 0.05
