"""The rows of merges of whole matrices: TSV-M against its decompositions alone in torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .harness import Row, ckpt, python, rounds, run

__all__ = ["factorising"]

SIDE = 1024

FILES = """
import torch
from safetensors.torch import save_file
torch.manual_seed(0)
base = {{f"layers.{{i}}.weight": torch.randn({side}, {side}) for i in range({layers})}}
for name in ("base", "a", "b"):
    save_file({{k: v + 0.1 * (name != "base") * torch.randn_like(v) for k, v in base.items()}}, f"{{name}}.safetensors")
"""
READ = """
import torch
from safetensors.torch import load_file
base, *models = (load_file(f"{name}.safetensors") for name in ("base", "a", "b"))
for key in base:
    changes = [one[key] - base[key] for one in models]
"""
SINGULAR = (
    READ
    + """
    found = [torch.linalg.svd(one, full_matrices=False) for one in changes]
    half = len(base[key]) // 2
    torch.linalg.svd(torch.cat([u[:, :half] for u, _, _ in found], 1), full_matrices=False)
    torch.linalg.svd(torch.cat([v[:half] for _, _, v in found]), full_matrices=False)
"""
)
"""What FusionBench decomposes, in single precision."""
SQUARES = (
    READ
    + """
    turns = [torch.linalg.eigh(one @ one.T)[1] for one in (change.double() for change in changes)]
    half = len(base[key]) // 2
    left = torch.cat([one[:, half:] for one in turns], 1)
    torch.linalg.eigh(left.T @ left)
    torch.linalg.eigh(left @ left.T)
"""
)
"""What ckpt decomposes, in double precision."""


def factorising(folder: str, number: int, layers: int) -> Iterator[Row]:
    """TSV-M takes little more than its decompositions: two models and a base, of 128 MB each in square matrices.

    FusionBench decomposes them in single precision. ckpt's decompositions are of symmetric matrices in double precision.
    All compute on one processor for a minute or more; other programs change the time that this takes by half, the time of
    processors by less.
    """
    run(python(FILES.format(side=SIDE, layers=layers)), folder)

    def clean() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, "out.safetensors"))

    merge = ["merge", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "-o", "out.safetensors", "-q"]
    seen = rounds(
        {"merge": ckpt(*merge, "-m", "tsv_m"), "singular": python(SINGULAR), "squares": python(SQUARES)},
        folder,
        before=clean,
        number=number,
    )
    size = f"{layers * SIDE * SIDE * 4 / 1e6:.0f} MB"
    for name, what, bound in (
        ("singular", "FusionBench's decompositions of them alone in torch, float32", 1.2),
        ("squares", "ckpt's decompositions of them alone in torch, float64", 1.2),
    ):
        ours, theirs = seen["merge"].processor, seen[name].processor
        yield Row(
            f"CPU time of TSV-M of two models of {size} / {what}",
            ours / theirs,
            bound,
            seen=f"{ours:.2f} s / {theirs:.2f} s",
        )
