"""The rows of merges of whole matrices: TSV-M against its decompositions alone in torch, and against FusionBench."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .harness import MB, Row, ckpt, python, rounds, run

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
"""The same decompositions, of products of rows, in double precision: ckpt needs less for the last two of two models."""
THEIRS = """
import contextlib, io, os, torch
from safetensors.torch import load_file, save_file
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
base, *models = (load_file(f"{name}.safetensors") for name in ("base", "a", "b"))
changes = [{key: one[key] - base[key] for key in base} for one in models]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    made = compute_and_sum_svd_mem_reduction(changes, accelerator="cpu")
save_file({key: base[key] + made[key] for key in base}, "theirs.safetensors")
"""
"""A whole merge by FusionBench, without its configuration and its model pool; it prints progress bars."""
FUSIONBENCH = ".oracle/fusionbench/bin/python"


def factorising(folder: str, number: int, layers: int, tool: str = FUSIONBENCH) -> Iterator[Row]:
    """TSV-M takes little more than its decompositions: two models and a base, of 512 MB each in square matrices.

    FusionBench decomposes them in single precision. ckpt's decompositions are of symmetric matrices in double precision.
    All compute on one processor for a minute or more; other programs change the time that this takes by half, the time of
    processors by less.
    """
    run(python(FILES.format(side=SIDE, layers=layers)), folder)

    def clean() -> None:
        for name in ("out", "theirs"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, f"{name}.safetensors"))

    merge = ["merge", "a.safetensors", "b.safetensors", "--base", "base.safetensors", "-o", "out.safetensors", "-q"]
    commands = {
        "merge": ckpt(*merge, "-m", "tsv_m", "--memory", "512MB"), "singular": python(SINGULAR),
        "squares": python(SQUARES), "pass": python("pass"),
    }  # fmt: skip
    if os.path.exists(tool):
        commands |= {"theirs": [os.path.abspath(tool), "-c", THEIRS]}
    else:
        print(f"(no {tool}: make oracle-fusionbench makes it; its merges are not measured)")
    seen = rounds(commands, folder, before=clean, number=number)
    size = f"{layers * SIDE * SIDE * 4 / 1e6:.0f} MB"
    for name, what, bound in (
        ("singular", "FusionBench's decompositions of them alone in torch, float32", 1.2),
        ("squares", "the same of products of rows, alone in torch, float64", 1.2),
    ):
        ours, theirs = seen["merge"].processor, seen[name].processor
        yield Row(
            f"CPU time of TSV-M of two models of {size} / {what}",
            ours / theirs,
            bound,
            seen=f"{ours:.2f} s / {theirs:.2f} s",
        )
    peak, bare = seen["merge"].peak, seen["pass"].peak
    yield Row("its memory with --memory 512MB, over python -c pass", (peak - bare) / MB, 512, "MB")
    if "theirs" in seen:
        one, other = seen["merge"].processor, seen["theirs"].processor
        yield Row("CPU time of that TSV-M / of FusionBench's", one / other, 0.5, seen=f"{one:.2f} s / {other:.2f} s")
        megabytes = f"{(peak - bare) / MB:.0f} MB / {(seen['theirs'].peak - bare) / MB:.0f} MB"
        yield Row("its memory / FusionBench's", (peak - bare) / (seen["theirs"].peak - bare), 0.2, seen=megabytes)
