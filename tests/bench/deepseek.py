"""The rows of a folder shaped like DeepSeek-V3: 92,000 tensors, 689 GB of block fp8 in 163 files without a byte of data."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from .harness import MB, Row, ckpt, python, rounds

__all__ = ["SIZES", "Stored", "deepseek", "make_deepseek", "tensors", "write_sparse"]

HIDDEN, EXPERTS, WORDS, DENSE, LAYERS = 7168, 256, 129_280, 3, 61
SHARDS = 163
SIZES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
Stored = dict[str, tuple[str, tuple[int, ...]]]

HEADERS = """
import glob
from safetensors import safe_open
for path in glob.glob("deepseek/*.safetensors"):
    with safe_open(path, "np") as file:
        for key in file.keys():
            one = file.get_slice(key)
            one.get_dtype(), one.get_shape()
"""

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": LAYERS,
    "num_nextn_predict_layers": 1, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "first_k_dense_replace": DENSE, "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": WORDS,
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
    },
}  # fmt: skip


def coded(name: str, rows: int, columns: int) -> Stored:
    """A matrix of 8-bit floats and the scales of its blocks."""
    blocks = (-(-rows // 128), -(-columns // 128))
    return {f"{name}.weight": ("F8_E4M3", (rows, columns)), f"{name}.weight_scale_inv": ("F32", blocks)}


def mlp(name: str, inner: int) -> Stored:
    """The three matrices of a feed-forward network."""
    return {
        **coded(f"{name}.gate_proj", inner, HIDDEN),
        **coded(f"{name}.up_proj", inner, HIDDEN),
        **coded(f"{name}.down_proj", HIDDEN, inner),
    }


def layer(number: int) -> Stored:
    """The tensors of a layer; the last is the one that predicts another token."""
    name = f"model.layers.{number}"
    attention = f"{name}.self_attn"
    found: Stored = {
        f"{name}.input_layernorm.weight": ("BF16", (HIDDEN,)),
        f"{name}.post_attention_layernorm.weight": ("BF16", (HIDDEN,)),
        **coded(f"{attention}.q_a_proj", 1536, HIDDEN),
        f"{attention}.q_a_layernorm.weight": ("BF16", (1536,)),
        **coded(f"{attention}.q_b_proj", 24576, 1536),
        **coded(f"{attention}.kv_a_proj_with_mqa", 576, HIDDEN),
        f"{attention}.kv_a_layernorm.weight": ("BF16", (512,)),
        **coded(f"{attention}.kv_b_proj", 32768, 512),
        **coded(f"{attention}.o_proj", HIDDEN, 16384),
    }
    if number < DENSE:
        return found | mlp(f"{name}.mlp", 18432)
    found |= {
        f"{name}.mlp.gate.weight": ("BF16", (EXPERTS, HIDDEN)),
        f"{name}.mlp.gate.e_score_correction_bias": ("F32", (EXPERTS,)),
        **mlp(f"{name}.mlp.shared_experts", 2048),
    }
    for expert in range(EXPERTS):
        found |= mlp(f"{name}.mlp.experts.{expert}", 2048)
    if number == LAYERS:
        found |= {
            f"{name}.embed_tokens.weight": ("BF16", (WORDS, HIDDEN)),
            f"{name}.enorm.weight": ("BF16", (HIDDEN,)),
            f"{name}.hnorm.weight": ("BF16", (HIDDEN,)),
            f"{name}.eh_proj.weight": ("BF16", (HIDDEN, 2 * HIDDEN)),
            f"{name}.shared_head.norm.weight": ("BF16", (HIDDEN,)),
            f"{name}.shared_head.head.weight": ("BF16", (WORDS, HIDDEN)),
        }
    return found


def tensors() -> Stored:
    """All tensors of the model, as published."""
    found: Stored = {"model.embed_tokens.weight": ("BF16", (WORDS, HIDDEN))}
    for number in range(LAYERS + 1):
        found |= layer(number)
    head: Stored = {"model.norm.weight": ("BF16", (HIDDEN,)), "lm_head.weight": ("BF16", (WORDS, HIDDEN))}
    return found | head


def write_sparse(folder: Path, stored: Stored, shards: int) -> None:
    """Write a folder of shards with as many tensors each; the files are sparse, their data all zeros."""
    folder.mkdir()
    items = list(stored.items())
    each = -(-len(stored) // shards)
    shards = -(-len(stored) // each)
    index = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:06d}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key, (dtype, shape) in items[shard * each : (shard + 1) * each]:
            begin, end = end, end + math.prod(shape) * SIZES[dtype]
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            index[key] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def make_deepseek(folder: Path) -> int:
    """Write the folder, and return how many tensors it has."""
    stored = tensors()
    write_sparse(folder, stored, SHARDS)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return len(stored)


def deepseek(folder: str, number: int) -> Iterator[Row]:
    """Inspecting and planning read headers alone. The reference is reading dtypes and shapes with safetensors."""
    path = Path(folder, "deepseek")
    count = make_deepseek(path)
    seen = rounds(
        {
            "inspect": ckpt("inspect", "deepseek"),
            "plan": ckpt("convert", "deepseek", "--dequantize", "-n", "-o", "bf16"),
            "safetensors": python(HEADERS),
            "pass": python("pass"),
        },
        folder,
        number=number,
    )
    shutil.rmtree(path)
    theirs = seen["safetensors"].processor
    for name, what, bound in (("inspect", "ckpt inspect", 14), ("plan", "ckpt convert --dequantize -n", 24)):
        ours = seen[name].processor
        said = f"{ours:.2f} s / {theirs:.2f} s of processors"
        yield Row(
            f"{what} of {count:,} tensors / safetensors.safe_open of their headers", ours / theirs, bound, seen=said
        )
        peak = (seen[name].peak - seen["pass"].peak) / MB
        yield Row("its memory, over python -c pass", peak, 400, unit="MB")
