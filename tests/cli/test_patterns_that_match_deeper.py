"""Patterns that match few keys and far more deeper down: a note in every verb that takes some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..helpers.adapters import factors, peft_folder
from ..trainer import toy

Run = Callable[..., Any]
DEEPER = "matches 1 key; **.*.bias would match 7"


@pytest.fixture
def files() -> None:
    """A model with biases at two depths, another of it, a recipe, operations."""
    torch.manual_seed(0)
    state = {"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)}
    for i in range(6):
        state |= {f"layers.{i}.fc.weight": torch.randn(4, 4), f"layers.{i}.fc.bias": torch.randn(4)}
    torch.save(state, "a.pth")
    torch.save({key: value + torch.randn(()) for key, value in state.items()}, "b.pth")
    Path("tokens.txt").write_text("a\nb\nc\n")
    Path("tokens2.txt").write_text("c\nb\na\n")
    Path("ops.yaml").write_text("- {scale: '*.bias', by: 2}\n")
    Path("recipe.yaml").write_text("verb: convert\nsource: a.pth\nassert: {'*.bias': copied}\n")


MERGE = ("merge", "a.pth", "b.pth", "-m", "linear", "-n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("inspect", "a.pth", "--include", "*.bias"), "--include *.bias"),
        (("filter", "a.pth", "--include", "*.bias", "-n"), "--include *.bias"),
        (("filter", "a.pth", "--exclude", "*.bias", "-n"), "--exclude *.bias"),
        (("rename", "a.pth", "--map", "*.bias=*.b", "-n"), "--map *.bias=*.b"),
        (("rename", "a.pth", "--operations", "ops.yaml", "-n"), "scale *.bias"),
        (("transplant", "a.pth", "b.pth", "--exclude", "*.bias", "-n"), "--exclude *.bias"),
        (("transplant", "a.pth", "b.pth", "--operations", "ops.yaml", "-n"), "scale *.bias"),
        (("transplant", "a.pth", "b.pth", "--reinit", "*.bias", "-n"), "--reinit *.bias"),
        (("transplant", "a.pth", "b.pth", "--require", "*.bias", "-n"), "--require *.bias"),
        (("transplant", "a.pth", "b.pth", "--on-mismatch", "*.bias=init", "-n"), "--on-mismatch *.bias"),
        (("transplant", "a.pth", "b.pth", "--vocab", "tokens.txt:tokens2.txt", "--vocab-keys", "*.bias", "-n"),
         "--vocab-keys *.bias"),
        ((*MERGE, "--weights", "1,1", "--on-mismatch", "*.bias=skip"), "--on-mismatch *.bias"),
        ((*MERGE, "--weights", "1,1", "--param", "weight:*.bias=2"), "weight of *.bias"),
        ((*MERGE, "--weights", "1,1", "--vocab", "base", "--vocab-keys", "*.bias=0", "--tokens", "a.pth=tokens.txt",
          "--tokens", "b.pth=tokens2.txt"), "--vocab-keys *.bias"),
        (("lora", "extract", "b.pth", "a.pth", "--rank", "1", "--exclude", "*.bias", "-n"), "--exclude *.bias"),
        (("apply", "recipe.yaml", "-n"), "assert *.bias"),
    ],
)  # fmt: skip
def test_a_pattern_that_overlooks_most_gets_a_note(args: tuple[str, ...], said: str, ckpt: Run) -> None:
    done = ckpt(*args)
    assert done.code == 0, done
    text = " ".join(done.err.split())
    assert text.count(f"{said} {DEEPER}") == 1, done.err
    for name in ("ops.yaml", "recipe.yaml"):
        Path(name).write_text(Path(name).read_text().replace("*.bias", "**.bias"))
    assert "would match" not in ckpt(*(word.replace("*.bias", "**.bias") for word in args)).err


def test_modules_of_an_adapter_that_are_left_out_count_too(ckpt: Run) -> None:
    names = ["q", *(f"layers.{i}.q" for i in range(5))]
    torch.save({f"{name}.weight": torch.ones(4, 4) for name in names}, "base.pth")
    a, b = factors(4, 4)
    pairs = {f"{name}.lora_{which}.weight": one for name in names for which, one in (("A", a), ("B", b))}
    peft_folder("adapter", pairs)
    done = ckpt("lora", "merge", "base.pth", "adapter", "--exclude", "q", "-n")
    assert done.code == 0, done
    assert "--exclude q matches 1 key; **.q would match 6" in done.err


@pytest.mark.parametrize("settings", [{"freeze": ["*.weight"]}, {"lr_scale": {"*.weight": 0.5}}])
def test_what_a_configuration_freezes_counts_too(settings: dict[str, Any]) -> None:
    toy_notes = toy.job(**settings).notes
    assert f"train.{next(iter(settings))} *.weight matches 1 key; **.*.weight would match 4" in toy_notes


def test_the_number_of_a_module_is_no_such_pattern() -> None:
    torch.save({"0.weight": torch.ones(2), **{f"a.{i}.0.weight": torch.ones(2) for i in range(9)}}, "n.pth")
    assert not cs.filter("n.pth", exclude=["0"]).notes
