"""``ckpt check`` compares values with the checksums in the recipe of an output: damage, mixed shards, stale recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

SECOND = "model-00002-of-00004.safetensors"


def made(name: str, seed: int = 0, **options: Any) -> Path:
    torch.manual_seed(seed)
    parts: dict[str, tuple[int, ...]] = {"bias": (16,), "weight": (8, 16)}
    state = {f"layers.{i}.{part}": torch.randn(shape) for i in range(4) for part, shape in parts.items()}
    save_file(state, f"source{seed}.safetensors", {"format": "pt"})
    cs.apply(cs.convert(f"source{seed}.safetensors"), name, **options)
    return Path(name)


def row(path: Path) -> cs.CheckRow:
    return cs.check(path).row("checksums")


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.safetensors", {}),
        ("shards", {"max_shard_size": "600B"}),
        ("folder", {}),
        ("out.pth", {}),
        ("shards_of_pth", {"max_shard_size": "600B", "to": "pth"}),
        ("dcp", {"to": "dcp"}),
        ("tensorflow", {"to": "tensorflow"}),
    ],
)
def test_outputs_as_they_were_written_pass(name: str, options: Any) -> None:
    found = row(made(name, **options))
    assert found.status.value == "PASS"
    assert "8 tensors" in found.looked_at


def unsealed(path: Path) -> None:
    (found,) = row(path).found
    assert found.status.value == "WARN"
    assert "was changed after writing" in found.what
    assert "ckpt verify" in found.todo
    assert not cs.verify(path).ok


def test_changed_metadata_breaks_the_seal() -> None:
    path = made("out.safetensors")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"format":"pt"', b'"format":"xy"', 1))
    assert path.read_bytes() != data
    unsealed(path)


@pytest.mark.parametrize("name", ["folder", "shards"])
def test_so_does_a_recipe_that_was_edited(name: str) -> None:
    folder = made(name, **({"max_shard_size": "600B"} if name == "shards" else {}))
    file = folder / "ckptsurgeon.json"
    text = file.read_text()
    file.write_text(text.replace("source0.safetensors", "source9.safetensors"))
    assert file.read_text() != text
    unsealed(folder)


def test_so_does_a_shard_that_was_saved_again_with_other_metadata() -> None:
    folder = made("shards", max_shard_size="600B")
    save_file(load_file(folder / SECOND), folder / SECOND, {"format": "pt", "epoch": "3"})
    unsealed(folder)
    assert row(folder / SECOND).status.value == "PASS"  # a shard alone: the seal is that of the folder


def test_a_model_that_ckpt_did_not_write_is_as_before() -> None:
    save_file({"w": torch.randn(4, 4)}, "a.safetensors")
    assert row(Path("a.safetensors")).status.value == "NOT RUN"


def test_a_shard_of_another_output_fails() -> None:
    first, other = (made(name, seed, max_shard_size="600B") for seed, name in enumerate(("first", "other")))
    shutil.copy(other / SECOND, first / SECOND)
    (found,) = row(first).found
    assert found.status.value == "FAIL"
    assert found.what == (
        f"2 of 8 tensors have another checksum than in ckptsurgeon.json, all in {SECOND}: layers.1.bias, layers.1.weight"
    )
    assert found.keys == ("layers.1.bias", "layers.1.weight")
    assert found.file == SECOND
    assert row(other).status.value == row(other / SECOND).status.value == "PASS"
    (alone,) = row(first / SECOND).found
    assert alone.status.value == "WARN"


@pytest.mark.parametrize("name", ["out.safetensors", "shards"])
def test_a_flipped_bit_fails(name: str) -> None:
    path = made(name, **({"max_shard_size": "600B"} if name == "shards" else {}))
    damaged(path / SECOND if name == "shards" else path)
    (found,) = row(path).found
    assert found.status.value == "FAIL"
    where = "ckptsurgeon.json, all in" if name == "shards" else "the recipe in the file: layers.3.weight"
    assert f"1 of 8 tensors has another checksum than in {where}" in found.what


def test_weights_that_were_saved_again_are_described_by_an_old_recipe() -> None:
    folder = made("first", max_shard_size="600B")
    for path in folder.glob("*.safetensors"):
        save_file({key: value + 1 for key, value in load_file(path).items()}, path, {"format": "pt"})
    (found,) = row(folder).found
    assert found.status.value == "WARN"
    assert found.what.startswith(
        "ckptsurgeon.json is not the recipe of these weights: 8 of 8 tensors have another checksum: "
    )


def test_a_part_that_was_saved_again_with_other_headers_is_a_warning() -> None:
    folder = made("first", max_shard_size="600B")
    state = load_file(folder / SECOND)
    save_file({key: value + 1 for key, value in state.items()}, folder / SECOND, {"format": "pt", "epoch": "3"})
    (found,) = row(folder).found
    assert found.status.value == "WARN"
    assert "2 of 8 tensors have another checksum" in found.what


def test_a_single_file_that_was_saved_again_is_described_by_an_old_recipe() -> None:
    path = made("folder") / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path, {"format": "pt"})
    (found,) = row(path.parent).found
    assert found.status.value == "WARN"
    assert found.what.startswith(
        "ckptsurgeon.json is not the recipe of these weights: 8 of 8 tensors have another checksum: "
    )


def test_a_recipe_of_other_keys_is_a_warning() -> None:
    folder = made("first", max_shard_size="600B")
    recipe = json.loads((folder / "ckptsurgeon.json").read_text())
    recipe["tensors"]["more"] = recipe["tensors"].pop("layers.0.bias")
    (folder / "ckptsurgeon.json").write_text(json.dumps(recipe))
    (found,) = row(folder).found
    assert found.status.value == "WARN"
    assert (
        found.what == "ckptsurgeon.json is not the recipe of these weights: it has no layers.0.bias; it has also more"
    )


def test_a_recipe_that_cannot_be_read_is_a_warning() -> None:
    folder = made("first", max_shard_size="600B")
    (folder / "ckptsurgeon.json").write_text("{")
    (found,) = row(folder).found
    assert found.status.value == "WARN"
    assert "the checksums in ckptsurgeon.json were not compared" in found.what
