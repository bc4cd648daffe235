"""A small quantised Llama with embedding and output layer, and what each verb says about a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .coded_matrices import Encode

__all__ = ["LAYERS", "QUICK", "VERBS", "coded_tensors", "said_by", "silent", "write_model"]

State = dict[str, torch.Tensor]
LAYERS, WIDTH, INNER, TOKENS = 6, 128, 256, 256
ROLES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (64, WIDTH), "self_attn.v_proj": (64, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
TABLES = ("model.embed_tokens", "lm_head")
CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": TOKENS, "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def coded_tensors(encode: Encode, *, layers: int = LAYERS, tables: Sequence[str] = ()) -> State:
    """The state dict: every linear layer is encoded, and of embedding and output layer those in ``tables``."""
    draw = torch.Generator().manual_seed(0)
    sizes = {f"model.layers.{number}.{role}": shape for number in range(layers) for role, shape in ROLES.items()}
    state: State = {"model.norm.weight": torch.ones(WIDTH).half()}
    for name, shape in {**dict.fromkeys(TABLES, (TOKENS, WIDTH)), **sizes}.items():
        rows = torch.exp(torch.randn(shape[0], 1, generator=draw) / 4)
        weight = torch.randn(shape, generator=draw) * rows / shape[1] ** 0.5
        is_coded = name in sizes or name in tables
        state |= (
            {f"{name}{end}": one for end, one in encode(weight).items()}
            if is_coded
            else {f"{name}.weight": weight.half()}
        )
    for number in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{number}.{norm}.weight"] = 1 + torch.randn(WIDTH, generator=draw).half() / 20
    return state


def write_model(
    folder: Path, state: State, settings: Mapping[str, Any] | None, files: Mapping[str, Any] | None = None
) -> Path:
    """Write the tensors in a folder with these quantisation settings, and further JSON files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({key: one.contiguous() for key, one in state.items()}, folder / "model.safetensors", {"format": "pt"})
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("model.layers."))
    said = {"quantization_config": settings} if settings else {}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers, **said}))
    for name, content in (files or {}).items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _verified(folder: Path, *, dequantize: bool) -> list[str]:
    cs.apply(cs.convert(folder, dequantize=dequantize), "verified", force=True)
    return [note.why for note in cs.verify("verified").notes]


def _patched(folder: Path, verb: str) -> Sequence[str]:
    """What ``verb`` of a patch that changes nothing but a norm says of the new model."""
    old = Path(shutil.copytree(folder, "old", dirs_exist_ok=True))
    state = load_file(old / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, old / "model.safetensors", {"format": "pt"})
    made = cs.make_patch(old, folder, "x.patch", force=True)
    if verb == "make":
        return made.notes
    applied = cs.apply_patch(old, "x.patch", "patched", force=True)
    return applied.notes if verb == "apply" else [note.why for note in cs.verify("patched", patch="x.patch").notes]


def _checked(folder: Path) -> list[str]:
    rows = cs.check(folder, skip=["model-card", "class-tensors"]).rows
    return [f"{one.what}: {', '.join(one.keys)}" for row in rows for one in row.found]


VERBS: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "inspect": lambda folder: cs.inspect(folder).notes,
    "inspect --stats": lambda folder: cs.inspect(folder, stats=True).notes,
    "convert": lambda folder: cs.apply(cs.convert(folder), "copy", force=True).notes,
    "dequantise": lambda folder: cs.apply(cs.convert(folder, dequantize=True), "plain", force=True).notes,
    "filter": lambda folder: cs.apply(cs.filter(folder, exclude="model.norm.weight"), "part", force=True).notes,
    "average": lambda folder: cs.apply(cs.average([folder, folder], encoding="dequantize"), "mean", force=True).notes,
    "diff": lambda folder: cs.diff(folder, folder).notes,
    "verify": lambda folder: _verified(folder, dequantize=False),
    "verify a decoded output": lambda folder: _verified(folder, dequantize=True),
    "patch make": lambda folder: _patched(folder, "make"),
    "patch apply": lambda folder: _patched(folder, "apply"),
    "verify --patch": lambda folder: _patched(folder, "verify"),
    "check": _checked,
}
"""The verbs that look at a model, and the notes that each of them gives."""


QUICK = ("inspect --stats", "convert", "check")
"""The verbs that look at most, of which each looks in another way."""


def said_by(folder: Path, *texts: str, verbs: Sequence[str] = QUICK) -> list[str]:
    """Those of the ``verbs`` that say all ``texts`` in one note."""
    return [verb for verb in verbs if any(all(text in one for text in texts) for one in VERBS[verb](folder))]


def silent(folder: Path, *texts: str) -> list[str]:
    """The verbs, of all, that do not say all ``texts`` in one note."""
    found = said_by(folder, *texts, verbs=list(VERBS))
    return [verb for verb in VERBS if verb not in found]
