"""A small quantised Llama with embedding and output layer, and what each verb says about a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .coded_matrices import Encode

__all__ = ["LAYERS", "QUICK", "coded_tensors", "false_alarms", "said_by", "silent", "statuses", "write_model"]

State = dict[str, torch.Tensor]
LAYERS, WIDTH, INNER, TOKENS = 4, 128, 256, 256
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


def _copied(folder: Path, verb: str = "convert", *, dequantize: bool = False) -> dict[str, Sequence[str]]:
    """What a conversion says that changes nothing, or decodes all, and what is said of its output."""
    receipt = cs.apply(cs.convert(folder, dequantize=dequantize), verb, force=True)
    return {verb: receipt.notes, f"verify {verb}": [note.why for note in cs.verify(verb).notes]}


def _patched(folder: Path) -> dict[str, Sequence[str]]:
    """What is said of the new model by a patch that changes nothing but a norm, and by what is done with it."""
    old = Path(shutil.copytree(folder, "old", dirs_exist_ok=True))
    state = load_file(old / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, old / "model.safetensors", {"format": "pt"})
    made = cs.make_patch(old, folder, "x.patch", force=True)
    applied = cs.apply_patch(old, "x.patch", "patched", force=True)
    verified = [note.why for note in cs.verify("patched", patch="x.patch").notes]
    return {"patch make": made.notes, "patch apply": applied.notes, "verify --patch": verified}


def _checked(folder: Path) -> list[str]:
    rows = cs.check(folder, skip=["model-card", "class-tensors"]).rows
    return [f"{one.status.name} {one.what}: {', '.join(one.keys)}" for row in rows for one in row.found]


QUICK: Mapping[str, Callable[[Path], Sequence[str]]] = {
    "inspect --stats": lambda folder: cs.inspect(folder, stats=True).notes,
    "convert": lambda folder: cs.apply(cs.convert(folder), "copy", force=True).notes,
    "check": _checked,
}
"""The verbs that look at most, of which each looks in another way, and the notes that each of them gives."""


def _every_note(folder: Path) -> dict[str, Sequence[str]]:
    """The notes of all verbs that look at a model."""
    return {
        "inspect": cs.inspect(folder).notes,
        "inspect --stats": cs.inspect(folder, stats=True).notes,
        **_copied(folder),
        **_copied(folder, "dequantise", dequantize=True),
        "filter": cs.apply(cs.filter(folder, exclude="model.norm.weight"), "part", force=True).notes,
        "average": cs.apply(cs.average([folder, folder], encoding="dequantize"), "mean", force=True).notes,
        "diff": cs.diff(folder, folder).notes,
        **_patched(folder),
        "check": _checked(folder),
    }


def _without(notes: Mapping[str, Sequence[str]], texts: Sequence[str]) -> list[str]:
    return [verb for verb, said in notes.items() if not any(all(text in one for text in texts) for one in said)]


_SAID: dict[tuple[str, str, str], Sequence[str]] = {}
"""What a verb said, by its name, and the path and content of a folder: many cases begin with one healthy model."""


def said_by(folder: Path, *texts: str) -> list[str]:
    """Those of the ``QUICK`` verbs that say all ``texts`` in one note."""
    return _saying(folder, _content(folder), [*QUICK], texts)


def false_alarms(folder: Path, *texts: str) -> list[str]:
    """Those verbs that say all ``texts`` of a healthy model, in one note: of ``convert``, and of one of the other two.

    ``convert`` looks at a sample, the others look at all values: which of the two is tried depends on the content.
    """
    content = _content(folder)
    whole = ("inspect --stats", "check")[int(content, 16) % 2]
    return _saying(folder, content, ["convert", whole], texts)


def statuses(folder: Path, text: str) -> list[str]:
    """The status of each finding of ``ckpt check`` that says ``text``."""
    return [one.partition(" ")[0] for one in _said(folder, _content(folder), "check") if text in one]


def _saying(folder: Path, content: str, verbs: Sequence[str], texts: Sequence[str]) -> list[str]:
    silent = _without({verb: _said(folder, content, verb) for verb in verbs}, texts)
    return [verb for verb in verbs if verb not in silent]


def _said(folder: Path, content: str, verb: str) -> Sequence[str]:
    key = verb, str(folder), content
    if key not in _SAID:
        _SAID[key] = QUICK[verb](folder)
    return _SAID[key]


def _content(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return content.hexdigest()


def silent(folder: Path, *texts: str) -> list[str]:
    """The verbs, of all, that do not say all ``texts`` in one note."""
    return _without(_every_note(folder), texts)
