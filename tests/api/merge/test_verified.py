"""Merges of recipes are verified by a sample: sources here, moved or gone, and a byte that was changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from fixtures.mergekit_cases import GOLDEN

Run = Callable[..., Any]
SOURCES = {"frankenmerge": ("a", "b"), "token_rows": ("a", "wide", "padded"), "stacked_slerp": ("a", "b", "base")}


@pytest.fixture(params=sorted(SOURCES))
def names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The models of a recipe, merged to a folder beside them."""
    for name in SOURCES[request.param]:
        shutil.copytree(GOLDEN / "models" / name, name)
    shutil.copy(GOLDEN / "yaml" / request.param / "recipe.yml", "recipe.yaml")
    cs.apply(cs.merge("recipe.yaml"), "out")
    return SOURCES[request.param]


def verified(ckpt: Run, *flags: str) -> tuple[int, str]:
    done = ckpt("verify", "out", "--sample", "50", *flags)
    return done.code, " ".join((done.out + done.err).split())


@pytest.mark.costly
def test_a_sample_is_found_equal_where_the_sources_lie(names: tuple[str, ...], ckpt: Run) -> None:
    code, said = verified(ckpt)
    assert (code, "NOT COMPARED" in said) == (0, False), said


@pytest.mark.costly
def test_sources_that_moved_are_named_and_those_that_are_gone_not_compared(names: tuple[str, ...], ckpt: Run) -> None:
    Path("far").mkdir()
    moved = [flag for name in names for flag in ("--source", f"{name}={shutil.move(name, f'far/{name}')}")]
    code, said = verified(ckpt)
    assert (code, "NOT COMPARED" in said) == (0, True), said
    code, said = verified(ckpt, *moved)
    assert (code, "NOT COMPARED" in said) == (0, False), said


@pytest.mark.costly
@pytest.mark.parametrize("where", ["out", "source"])
def test_a_changed_byte_is_found(where: str, names: tuple[str, ...], ckpt: Run) -> None:
    path = Path("out" if where == "out" else names[0], "model.safetensors")
    data = bytearray(path.read_bytes())
    values = load_file(path)["model.embed_tokens.weight"][4]
    data[data.index(values.view(torch.uint8).numpy().tobytes()) + 1] ^= 0x10
    path.write_bytes(data)
    code, said = verified(ckpt)
    assert code == 1, said
