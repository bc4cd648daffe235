"""Quantised weights in a patch with ``signs``: their codes and scales are stored exactly, and the output says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ..helpers.quantised import Quantised
from ..helpers.zoo import BY_NAME, ZOO

PLAIN = "model.layers.0.mlp.up_proj.weight"


def models(quantised: Quantised, tmp_path: Path, change: float = 1e-3) -> None:
    """Two models in the folders ``a`` and ``b``: all tensors differ; a plain matrix of the layer, too."""
    draw = torch.Generator().manual_seed(5)
    before = torch.randn(64, 128, generator=draw)
    for seed, name in enumerate("ab"):
        folder = quantised.folder(tmp_path / name, seed)
        tensors = load_file(folder / "model.safetensors")
        tensors[PLAIN] = before + seed * change * torch.randn(64, 128, generator=draw)
        save_file(tensors, folder / "model.safetensors")


def parts(folder: str) -> list[str]:
    with cs.open_checkpoint(folder) as one:
        return [key for key in one.codes.by_key if key != PLAIN]


@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_parts_are_stored_exactly_and_other_matrices_are_not(quantised: Quantised, tmp_path: Path) -> None:
    models(quantised, tmp_path)
    with cs.open_checkpoint("b") as one:
        plain, number = PLAIN not in one.codes.by_key, len({coded.name for coded in one.codes.by_key.values()})
    made = cs.make_patch("a", "b", "b.ckptpatch", signs="model.layers.**")
    (note,) = [note for note in made.notes if "stored exactly" in note]
    assert note.startswith(f"{number} quantised weight")
    cs.apply_patch("a", "b.ckptpatch", "out")
    wanted, found = load_file("b/model.safetensors"), load_file("out/model.safetensors")
    for key in parts("b"):
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), wanted[key].reshape(-1).view(torch.uint8)), key
    assert torch.equal(found[PLAIN], wanted[PLAIN]) != plain


@pytest.mark.parametrize("quantised", ZOO, ids=lambda one: one.name)
def test_a_pattern_of_parts_alone_is_refused(quantised: Quantised, tmp_path: Path) -> None:
    models(quantised, tmp_path)
    with pytest.raises(cs.PlanError, match="the patterns select only parts of quantised weights") as caught:
        cs.make_patch("a", "b", "b.ckptpatch", signs=parts("b"))
    assert quantised.method in caught.value.message
    assert "stored exactly" in caught.value.hint
    assert not Path("b.ckptpatch").exists()


def test_codes_in_the_old_checkpoint_alone_are_exact(tmp_path: Path) -> None:
    """The scales are gone from the new one: what were codes in floats is approximated in neither."""
    models(BY_NAME["bnb-fp4-bf16"], tmp_path)
    tensors = load_file("b/model.safetensors")
    save_file({key: one for key, one in tensors.items() if ".weight." not in key}, "b/model.safetensors")
    made = cs.make_patch("a", "b", "b.ckptpatch", signs="model.layers.**")
    assert any("2 quantised weights are stored exactly" in note for note in made.notes)


def test_plain_models_have_no_note(tmp_path: Path) -> None:
    models(BY_NAME["fp8-channel"], tmp_path)
    for name in "ab":
        tensors = load_file(f"{name}/model.safetensors")
        save_file(
            {key: one for key, one in tensors.items() if "_proj" not in key or key == PLAIN}, f"{name}.safetensors"
        )
    made = cs.make_patch("a.safetensors", "b.safetensors", "b.ckptpatch", signs=PLAIN)
    assert not [note for note in made.notes if "exactly" in note or "approximated" in note]


def test_parts_that_exact_selects_are_not_counted(tmp_path: Path) -> None:
    models(BY_NAME["fp8-channel"], tmp_path)
    made = cs.make_patch("a", "b", "b.ckptpatch", signs="model.layers.**", exact="**.self_attn")
    assert not [note for note in made.notes if "stored exactly" in note]
    made = cs.make_patch("a", "b", "exact.ckptpatch")
    assert not [note for note in made.notes if "stored exactly" in note]


def test_the_command_says_how_many(ckpt: Any, tmp_path: Path) -> None:
    models(BY_NAME["gptq"], tmp_path)
    done = ckpt("patch", "make", "a", "b", "-o", "b.ckptpatch", "--signs", "model.layers.**")
    assert done.code == 0
    assert "2 quantised weights are stored exactly, although the patterns select them" in " ".join(done.err.split())
    done = ckpt("patch", "make", "a", "b", "-o", "c.ckptpatch", "--signs", "**.scales")
    assert done.code == 4
    assert not Path("c.ckptpatch").exists()
