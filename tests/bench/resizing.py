"""The rows of ``resize``: what it costs for a Llama of 2 GB, beside a copy of as many bytes as it writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from .harness import MB, Row, ckpt, python, rounds, run

__all__ = ["resizing"]

FILES = """
import json, os, torch
from safetensors.torch import save_file
torch.manual_seed(0)
layers, width, channels = {layers}, 2048, 5632
noise = (0.02 * torch.randn(channels, width)).bfloat16()
shapes = {{
    **{{f"self_attn.{{one}}_proj": (width, width) for one in "qkvo"}}, "mlp.gate_proj": (channels, width),
    "mlp.up_proj": (channels, width), "mlp.down_proj": (width, channels),
}}
state = {{
    f"model.layers.{{layer}}.{{name}}.weight": noise.flatten().roll(97 * layer + 11 * at)[: rows * columns].reshape(rows, columns).clone()
    for layer in range(layers) for at, (name, (rows, columns)) in enumerate(shapes.items())
}}
norms = [f"layers.{{layer}}.{{one}}_layernorm" for layer in range(layers) for one in ("input", "post_attention")]
state |= {{f"model.{{one}}.weight": torch.ones(width).bfloat16() for one in (*norms, "norm")}}
state |= {{key: (0.02 * torch.randn(32000, width)).bfloat16() for key in ("model.embed_tokens.weight", "lm_head.weight")}}
os.mkdir("llama")
save_file(state, "llama/model.safetensors", {{"format": "pt"}})
sizes = {{"hidden_size": width, "intermediate_size": channels, "num_hidden_layers": layers, "num_attention_heads": 16}}
other = {{"vocab_size": 32000, "tie_word_embeddings": False, "dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}}
json.dump({{"model_type": "llama", "num_key_value_heads": 16, **sizes, **other}}, open("llama/config.json", "w"))
"""

CASES = {
    "layers repeated, copies": ("num_hidden_layers={more}", "--layers", "repeat"),
    "layers added that pass their input on": ("num_hidden_layers={more}", "--layers", "identity"),
    "heads of keys and values pooled": ("num_key_value_heads=4",),
    "half of the channels, chosen by weights": ("intermediate_size=2816",),
    "twice the channels, copies": ("intermediate_size=11264", "--new-channels", "copy"),
    "twice the channels, copies with noise": ("intermediate_size=11264", "--new-channels", "copy", "--noise", "0.1"),
    "experts, copies": ("num_local_experts=2", "--as", "mixtral"),
    "rows added to the vocabulary": ("vocab_size=64000", "--new-tokens", "mean"),
    "dimensions added to the width": ("hidden_size=3072",),
    "twice the width": ("hidden_size=4096", "--set", "num_attention_heads=32", "--set", "num_key_value_heads=32"),
}
SPEED = 1e9
"""Bytes a second at which computed values are written, beside the start; that of copies is half of cp's."""


def resizing(folder: str, number: int, layers: int = 18) -> Iterator[Row]:
    """Resizing runs at the speed of the disk; 18 layers are 2 GB in bfloat16."""
    run(python(FILES.format(layers=layers)), folder)
    outputs = [f"out-{at}" for at in range(len(CASES))]

    def clean() -> None:
        for name in (*outputs, "copy"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        os.sync()

    for at, (what, (field, *options)) in enumerate(CASES.items()):
        given = ("--set", field.format(more=layers + layers // 2), *options, "-q")
        run(ckpt("resize", "llama", *given, "-o", f"{outputs[at]}/"), folder)
        os.rename(os.path.join(folder, outputs[at]), os.path.join(folder, "made"))
        size = sum(one.stat().st_size for one in os.scandir(os.path.join(folder, "made")) if "safetensors" in one.name)
        seen = rounds(
            {
                "resize": ckpt("resize", "llama", *given, "-o", f"{outputs[at]}/"),
                "plan": ckpt("resize", "llama", *given, "-n"),
                "cp": ["sh", "-c", "cp -r made copy && sync copy/*"],
                "torch": python("import torch"),
            },
            folder,
            before=clean,
            number=number,
        )
        shutil.rmtree(os.path.join(folder, "made"))
        ours, plan, cp = seen["resize"], seen["plan"], seen["cp"]
        said = f"{size / 1e9:.1f} GB: {ours.time:.2f} s - {plan.time:.2f} s / {cp.time:.2f} s"
        yield Row(f"resize, {what}, beyond its plan / cp and sync", (ours.time - plan.time) / cp.time, 2, seen=said)
        yield Row(f"resize, {what}, seconds for a GB", (ours.time - plan.time) / (size / SPEED), 1, "s", said)
        spent = (ours.processor - plan.processor) / (size / SPEED)
        yield Row(f"resize, {what}, seconds of processors for a GB", spent, 2, "s", f"{ours.processor:.2f} s in all")
        peak = (ours.peak - seen["torch"].peak) / MB
        yield Row("peak memory of it over import torch", peak, 512, "MB", f"{ours.peak / MB:.0f} MB in all")
