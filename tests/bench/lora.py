"""The rows of ``lora merge``: adapters of several ranks, on more and more layers of a 2 GB base.

They are held against a copy of the base, and against PEFT's ``merge_and_unload`` and a save.
"""

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
norms = [f"layers.{{layer}}.{{one}}_layernorm" for layer in range(layers) for one in ("input", "post_attention")]
base.update({{f"model.{{one}}.weight": torch.ones(2048).bfloat16() for one in (*norms, "norm")}})
save_file(base, "base.safetensors", {{"format": "pt"}})
os.mkdir("model")
os.link("base.safetensors", "model/model.safetensors")
with open("model/config.json", "w") as file:
    sizes = {{"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": layers, "num_attention_heads": 16}}
    other = {{"vocab_size": 32000, "tie_word_embeddings": True, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}}
    json.dump({{"model_type": "llama", **sizes, **other}}, file)
for rank in ranks:
    for target in targets:
        os.mkdir(f"{{target}}-{{rank}}")
        with open(f"{{target}}-{{rank}}/adapter_config.json", "w") as file:
            json.dump({{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": [names[one] for one in target]}}, file)
        adapter = {{}}
        for (one, layer), key in keys.items():
            if one in target:
                out, into = shapes[one]
                adapter[f"base_model.model.{{key}}.lora_A.weight"] = torch.randn(rank, into) / into**0.5
                adapter[f"base_model.model.{{key}}.lora_B.weight"] = 0.02 * torch.randn(out, rank)
        save_file(adapter, f"{{target}}-{{rank}}/adapter_model.safetensors")
"""

COMPARED = ("all linear layers",)
"""The layers with adapters in the rows that hold against PEFT."""

IMPORTS = "import os, torch, transformers, peft\nfrom transformers import AutoModelForCausalLM"
PEFT = (
    IMPORTS
    + """
model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.bfloat16)
peft.PeftModel.from_pretrained(model, "{name}").merge_and_unload().save_pretrained("merged")
os.sync()
"""
)


def lora(folder: str, number: int, layers: int = 18) -> Iterator[Row]:
    """Merging adapters costs little more than a copy. 18 layers of a Llama of 2048 channels are 2 GB in bfloat16."""
    run(python(FILES.format(layers=layers, ranks=RANKS, targets=list(TARGETS.values()))), folder)

    def clean() -> None:
        for name in ("copy.safetensors", "out.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, name))
        shutil.rmtree(os.path.join(folder, "merged"), ignore_errors=True)
        os.sync()

    names = {(what, rank): f"{layers}-{rank}" for what, layers in TARGETS.items() for rank in RANKS}
    seen = rounds(
        {
            "cp": ["sh", "-c", "cp base.safetensors copy.safetensors && sync copy.safetensors"],
            **{
                name: ckpt("lora", "merge", "base.safetensors", name, "-o", "out.safetensors", "-q")
                for name in names.values()
            },
            "imports": python(IMPORTS),
            **{f"peft {name}": python(PEFT.format(name=name)) for (what, _), name in names.items() if what in COMPARED},
        },
        folder,
        before=clean,
        number=number,
    )
    clean()
    copy = seen["cp"].time
    shutil.rmtree(os.path.join(folder, "model"))
    for (what, rank), name in names.items():
        shutil.rmtree(os.path.join(folder, name))
        ours = seen[name]
        seconds = f"{ours.time:.2f} s / {copy:.2f} s; {ours.processor:.2f} s of processors"
        yield Row(f"lora merge, rank {rank} on {what}, 2 GB / cp and sync", ours.time / copy, 1.5, seen=seconds)
        if (other := seen.get(f"peft {name}")) is not None:
            theirs = other.time - seen["imports"].time
            busy = other.processor - seen["imports"].processor
            seconds = f"{ours.time:.2f} s / {theirs:.2f} s; {ours.processor:.2f} s / {busy:.2f} s of processors"
            yield Row(
                "the same / merge_and_unload and save of PEFT, without its imports",
                ours.time / theirs,
                1 / 3,
                seen=seconds,
            )
