"""A healthy small model in a folder, and the faults that are planted in it: one function for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

__all__ = ["FIRST", "INDEX", "SECOND", "change", "edit_json", "header_of", "healthy", "with_header"]

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LAYERS, WIDTH, INNER, TOKENS = 6, 16, 32, 48
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": INNER, "vocab_size": TOKENS,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6, "dtype": "float16", "hidden_act": "silu", "head_dim": 8,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
CARD = "---\nlicense: apache-2.0\n---\n\n# A model\n"

State = dict[str, np.ndarray[Any, Any]]


def weights() -> State:
    draw = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray[Any, Any]:
        return (draw.standard_normal(shape) * 0.02).astype(np.float16)

    state = {"model.embed_tokens.weight": matrix(TOKENS, WIDTH)}
    for layer in range(LAYERS):
        head = f"model.layers.{layer}"
        state |= {f"{head}.{name}.weight": matrix(*shape) for name, shape in SHAPES.items()}
        state |= {f"{head}.{name}.weight": np.ones(WIDTH, np.float16) for name in NORMS}
    return {**state, "model.norm.weight": np.ones(WIDTH, np.float16), "lm_head.weight": matrix(TOKENS, WIDTH)}


NORMS = ("input_layernorm", "post_attention_layernorm")


def healthy(folder: Path) -> Path:
    """Write a model in two shards, with its configuration, tokeniser and card, in which nothing is wrong."""
    folder.mkdir()
    state = weights()
    keys = list(state)
    shards = {FIRST: keys[: len(keys) // 2], SECOND: keys[len(keys) // 2 :]}
    for name, own in shards.items():
        save_file({key: state[key] for key in own}, folder / name, metadata={"format": "pt"})
    places = {key: name for name, own in shards.items() for key in own}
    total = sum(value.nbytes for value in state.values())
    write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    write(folder / "config.json", CONFIG)
    write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write(folder / "tokenizer.json", tokenizer(TOKENS))
    (folder / "README.md").write_text(CARD)
    return folder


def tokenizer(number: int) -> dict[str, Any]:
    names = ["<unk>", "<s>", "</s>", *(f"word{i}" for i in range(3, number))]
    added = [
        {"id": i, "content": names[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in range(3)
    ]  # fmt: skip
    model = {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": "<unk>"}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_text())
    edit(document)
    write(path, document)


def change(folder: Path, key: str, edit: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any] | None]) -> None:
    """Replace a tensor in its shard; ``edit`` returns its new values, or None to leave it out."""
    index = json.loads((folder / INDEX).read_text())
    path = folder / index["weight_map"][key]
    state = load_file(path)
    value = edit(state[key])
    size = state[key].nbytes
    if value is None:
        del state[key], index["weight_map"][key]
    else:
        state[key] = value
        size -= value.nbytes
    index["metadata"]["total_size"] -= size
    save_file(state, path, metadata={"format": "pt"})
    write(folder / INDEX, index)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file, and the bytes after it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: dict[str, Any], body: bytes) -> None:
    """Write a safetensors file with any header."""
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
