"""The rows of merge methods that factorise whole matrices: each against what it factorises, alone in torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from .factorising import FILES, READ, SIDE
from .harness import Row, ckpt, python, rounds, run

__all__ = ["spectra"]

BOUND = 1.2
ALONE: Mapping[str, tuple[str, str]] = {
    "iso_c": ("its decomposition alone, float32", "    torch.linalg.svd(sum(changes), full_matrices=False)\n"),
    "iso_cts": (
        "its five decompositions alone, float32",
        """
    every = [torch.linalg.svd(sum(changes), full_matrices=False)]
    shared = int(0.8 * len(base[key]))
    every += [torch.linalg.svd(one, full_matrices=False) for one in changes]  # what is left of one may not converge
    ranks = [shared, *[(len(base[key]) - shared) // 2] * 2]
    for parts in ([u[:, :n].T for (u, _, _), n in zip(every, ranks)], [v[:n] for (_, _, v), n in zip(every, ranks)]):
        torch.linalg.svd(torch.cat(parts), full_matrices=False)
""",
    ),
    "knots_ties": (
        "its decomposition alone, float32",
        "    torch.linalg.svd(torch.cat(changes, 1), full_matrices=False)\n",
    ),
    "wudi": (
        "the products of columns and their decomposition alone, float64",
        """
    wide = [one.double() / one.norm() for one in changes]
    torch.linalg.eigh(sum(one.T @ one for one in wide))
""",
    ),
    "regmean": (
        "the inverse and the products of its formula alone, float64",
        """
    wide = [one[key + ".gram"].double() for one in grams]
    (models[1][key] - models[0][key]).double() @ (wide[1] @ torch.linalg.inv(wide[0] + wide[1]))
""",
    ),
}
"""{method: what is computed in torch for comparison, and its code for one tensor of two models}."""
GRAMS = 'grams = [load_file(f"{name}-gram.safetensors") for name in ("a", "b")]\n'
NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear({side}, {side}, bias=False) for _ in range({layers}))

    def forward(self, x):
        for layer in self.layers:
            x = torch.nn.functional.layer_norm(layer(x), (x.shape[-1],))
        return x
"""
INPUTS = """
import torch
from safetensors.torch import save_file
torch.manual_seed(1)
save_file({{"x": torch.randn(2048, {side})}}, "inputs.safetensors")
"""


def spectra(folder: str, number: int, layers: int) -> Iterator[Row]:
    """Methods take little more than what they factorise: two models of square matrices and, but for RegMean, a base."""
    run(python(FILES.format(side=SIDE, layers=layers)), folder)
    _make_statistics(folder, layers)

    def clean() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "out.safetensors"))

    commands = {}
    for name, (_, code) in ALONE.items():
        merge = ["merge", "a.safetensors", "b.safetensors", "-m", name, "--memory", "512MB", "-o", "out.safetensors"]
        commands[name] = ckpt(*merge, *_more(name), "-q")
        commands[f"{name} alone"] = python(
            READ.replace("for key", f"{GRAMS if name == 'regmean' else ''}for key") + code
        )
    seen = rounds(commands, folder, before=clean, number=number)
    size = f"{layers * SIDE * SIDE * 4 / 1e6:.0f} MB"
    for name, (what, _) in ALONE.items():
        ours, theirs = seen[name].processor, seen[f"{name} alone"].processor
        said = f"{ours:.2f} s / {theirs:.2f} s"
        yield Row(f"CPU time of {name} of two models of {size} / {what}", ours / theirs, BOUND, seen=said)


def _more(method: str) -> list[str]:
    if method != "regmean":
        return ["--base", "base.safetensors"]
    return [text for name in ("a", "b") for text in ("--statistics", f"{name}.safetensors={name}-gram.safetensors")]


def _make_statistics(folder: str, layers: int) -> None:
    """Make the Gram matrices of both models, of random inputs."""
    for name, text in (
        ("network.py", NETWORK.format(side=SIDE, layers=layers)),
        ("network.yaml", "model: {_target_: network.Network}\n"),
    ):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write(text)
    run(python(INPUTS.format(side=SIDE)), folder)
    for name in ("a", "b"):
        given = ["--model", "network.yaml", "--inputs", "inputs.safetensors", "--gram", "--force", "-q"]
        run(ckpt("stats", f"{name}.safetensors", *given, "-o", f"{name}-gram.safetensors"), folder)
