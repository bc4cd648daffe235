"""The rows of ``lora merge``: adapters of several ranks, on more and more layers of a 2 GB base, against copying it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from .harness import Row, ckpt, python, rounds, run

__all__ = ["lora"]

RANKS = (8, 64, 256)
TARGETS = {"q, v": "qv", "q, k, v, o": "qkvo", "all linear layers": "qkvogud"}
"""Which layers have an adapter: attention's projections, and ``g``, ``u``, ``d`` of the network behind it."""

FILES = """
import json, os, torch
from safetensors.torch import save_file
torch.manual_seed(0)
layers, ranks, targets = {layers}, {ranks}, {targets}
names = {{**{{one: f"self_attn.{{one}}_proj" for one in "qkvo"}}, "g": "mlp.gate_proj", "u": "mlp.up_proj", "d": "mlp.down_proj"}}
shapes = {{**{{one: (2048, 2048) for one in "qkvo"}}, "g": (5632, 2048), "u": (5632, 2048), "d": (2048, 5632)}}
keys = {{(one, layer): f"model.layers.{{layer}}.{{name}}" for layer in range(layers) for one, name in names.items()}}
base = {{f"{{key}}.weight": (0.02 * torch.randn(shapes[one])).bfloat16() for (one, _), key in keys.items()}}
base["model.embed_tokens.weight"] = (0.02 * torch.randn(32000, 2048)).bfloat16()
save_file(base, "base.safetensors")
for rank in ranks:
    for target in targets:
        os.mkdir(f"{{target}}-{{rank}}")
        with open(f"{{target}}-{{rank}}/adapter_config.json", "w") as file:
            json.dump({{"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [names[one] for one in target]}}, file)
        adapter = {{}}
        for (one, layer), key in keys.items():
            if one in target:
                out, into = shapes[one]
                adapter[f"base_model.model.{{key}}.lora_A.weight"] = torch.randn(rank, into) / into**0.5
                adapter[f"base_model.model.{{key}}.lora_B.weight"] = 0.02 * torch.randn(out, rank)
        save_file(adapter, f"{{target}}-{{rank}}/adapter_model.safetensors")
"""


def lora(folder: str, number: int, layers: int = 18) -> Iterator[Row]:
    """Merging adapters costs little more than a copy. 18 layers of a Llama of 2048 channels are 2 GB in bfloat16."""
    run(python(FILES.format(layers=layers, ranks=RANKS, targets=list(TARGETS.values()))), folder)

    def clean() -> None:
        for name in ("copy.safetensors", "out.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        os.sync()

    names = {(what, rank): f"{layers}-{rank}" for what, layers in TARGETS.items() for rank in RANKS}
    seen = rounds(
        {
            "cp": ["sh", "-c", "cp base.safetensors copy.safetensors && sync copy.safetensors"],
            **{
                name: ckpt("lora", "merge", "base.safetensors", name, "-o", "out.safetensors", "-q")
                for name in names.values()
            },
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    copy = seen["cp"].time
    for (what, rank), name in names.items():
        shutil.rmtree(os.path.join(folder, name))
        seconds = f"{seen[name].time:.2f} s / {copy:.2f} s"
        yield Row(f"lora merge, rank {rank} on {what}, 2 GB / cp and sync", seen[name].time / copy, 1.5, seen=seconds)
