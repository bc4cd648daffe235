"""Statistics for merges, made without a network: files like those of ``ckpt stats`` for any tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file

from ckptsurgeon.api.statistics.stored import MERGED, NOTE
from ckptsurgeon.api.statistics.weight_prints import weight_prints
from ckptsurgeon.checkpoint.opening import open_checkpoint

__all__ = ["merged_statistics_of", "statistics_of"]


def statistics_of(paths: Sequence[str], *, turned: bool = False, seed: int = 0) -> dict[str, str]:
    """Write Gram matrices and magnitudes for all matrices of each file, Fisher information for all floats; return files."""
    found = {}
    for number, path in enumerate(paths):
        chance = torch.Generator().manual_seed(100 * seed + number)
        values, weights = {}, load_file(path)
        for key, value in weights.items():
            if value.is_floating_point():
                values[f"{key}.fisher"] = torch.randn(value.shape, generator=chance) ** 2
            if value.ndim == 2 and value.numel():
                inputs = torch.randn(2 * max(value.shape), value.shape[0 if turned else 1], generator=chance)
                values[f"{key}.gram"] = inputs.T @ inputs / len(inputs)
                values[f"{key}.magnitudes"] = inputs.abs().mean(0)
        matrices = [key.removesuffix(".gram") for key in values if key.endswith(".gram")]
        about = {"rows": dict.fromkeys(matrices, 10**6), "turned": matrices if turned else [], "lacking": []}
        with open_checkpoint(path) as opened:
            said = {
                "model": path,
                **weight_prints(opened),
                "inputs": "made",
                "gram": about,
                "fisher": about,
                "magnitudes": about,
            }
        found[path] = f"{path}.{seed}.stats.safetensors"
        save_file(values, found[path], {NOTE: json.dumps(said)})
    return found


def merged_statistics_of(paths: Sequence[str]) -> dict[str, str]:
    """Write Gram matrices of all models to one file, as if they were merged while they ran; return {model: file}."""
    values, models, out = {}, [], "merged.stats.safetensors"
    for place, (path, name) in enumerate(statistics_of(paths).items()):
        values |= {f"{place}.{key}": one for key, one in load_file(name).items() if key.endswith(".gram")}
        with open_checkpoint(name, unwrap=False) as opened:
            models.append(json.loads(opened.metadata[NOTE]) | {"model": path})
    parameters = {"weight": [1.0] * len(paths), "alpha": 0.9, "ridge": 1e-6, "missing": "error"}
    save_file(values, out, {NOTE: json.dumps({"weights": [], MERGED: {"models": models, "parameters": parameters}})})
    return dict.fromkeys(paths, out)
