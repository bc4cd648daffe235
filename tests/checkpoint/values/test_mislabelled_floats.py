"""Matrices of float16 numbers whose header says bfloat16, and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint

from ...analysis.check.families import SAMPLE, save_small

Run = Callable[..., Any]
State = dict[str, torch.Tensor]
SAID = "the dtype in the header is perhaps wrong"
F16, BF16 = torch.float16, torch.bfloat16


def weights(dtype: torch.dtype, size: float = 0.02, layers: int = 6) -> State:
    draw = torch.Generator().manual_seed(0)
    return {f"layers.{i}.up.weight": (size * torch.randn(256, 256, generator=draw)).to(dtype) for i in range(layers)}


def mislabelled(dtype: torch.dtype, size: float = 0.02) -> State:
    """Weights of ``dtype`` whose bytes are labelled as the other dtype."""
    return {key: one.view(BF16 if dtype == F16 else F16) for key, one in weights(dtype, size).items()}


def notes_of(path: str) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [note for note in checkpoint.notes if SAID in note]


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("size", [0.0005, 0.02, 1.0])
def test_a_wrong_dtype_is_noted_and_fails_the_check(dtype: torch.dtype, size: float) -> None:
    save_file(mislabelled(dtype, size), "x.safetensors")
    (said,) = notes_of("x.safetensors")
    assert said.startswith("the values of 6 of 6 matrices that were looked at look like weights only if their")
    row = cs.check("x.safetensors").row("weight-size")
    assert [(row.status.value, SAID in one.what) for one in row.found] == [("FAIL", True)]


def test_a_shard_with_a_wrong_dtype_is_noted() -> None:
    state = weights(BF16)
    save_file({**state, **{key: mislabelled(F16)[key] for key in list(state)[4:]}}, "x.safetensors")
    (said,) = notes_of("x.safetensors")
    assert "2 of 6 matrices" in said
    assert said.endswith("layers.4.up.weight, layers.5.up.weight")


@pytest.mark.parametrize("verb", ["convert", "inspect", "diff"])
def test_verbs_warn(verb: str, ckpt: Run) -> None:
    save_file(mislabelled(F16), "x.safetensors")
    more = {"convert": ("--dtype", "fp32", "-o", "out.safetensors"), "inspect": (), "diff": ("x.safetensors",)}[verb]
    done = ckpt(verb, "x.safetensors", *more)
    text = " ".join((done.out + done.err).split())
    assert "warning:" in text, done
    assert SAID in text, done


DRAW = torch.Generator().manual_seed(0)
HEALTHY = {
    **{f"{dtype} {size}": weights(dtype, size) for dtype in (F16, BF16) for size in (1e-6, 1e-3, 0.02, 1.0, 30.0)},
    "sparse": {key: one * (torch.rand(one.shape) < 0.3) for key, one in weights(BF16).items()},
    "rows that died": {
        key: one * 10.0 ** torch.randint(-18, 1, (256, 1), generator=DRAW) for key, one in weights(BF16).items()
    },
    "heavy tails": {key: one * one.abs() * 50 for key, one in weights(BF16, 0.1).items()},
    "ternary": {f"{i}": torch.randint(-1, 2, (256, 256)).to(F16) for i in range(6)},
    "binary with scales": {
        f"{i}": (torch.rand(256, 1) + 0.5).to(F16) * (2 * torch.randint(0, 2, (256, 256)) - 1) for i in range(6)
    },
    "near one": {f"{i}": (1 + 0.1 * torch.randn(256, 256, generator=DRAW)).to(BF16) for i in range(6)},
    "one matrix": {**weights(BF16), "layers.0.up.weight": mislabelled(F16)["layers.0.up.weight"]},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_right_dtypes_are_not_noted(name: str) -> None:
    save_file({key: one.contiguous() for key, one in HEALTHY[name].items()}, "x.safetensors")
    assert not notes_of("x.safetensors")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", SAMPLE)
def test_new_models_of_transformers_are_not(kind: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_small(kind, tmp_path / "model")
    cs.apply(cs.convert(tmp_path / "model", dtype=dtype), tmp_path / "cast")
    assert not notes_of(str(tmp_path / "cast"))
