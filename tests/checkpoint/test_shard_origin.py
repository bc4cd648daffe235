"""A shard of another output between equal ones: keys, shapes and headers fit, only the recipe beside them can tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.opening import open_checkpoint
from ckptsurgeon.util.notes import is_serious

SECOND = "model-00002-of-00004.safetensors"
SAID = "is not from the same output as the other 3 shards"


def written(name: str, seed: int, number: int = 4) -> Path:
    """Write an output of ``number`` shards; each has a matrix and a vector."""
    torch.manual_seed(seed)
    state = {f"layers.{i}.{part}": torch.randn(shape) for i in range(number) for part, shape in PARTS.items()}
    save_file(state, f"{name}.safetensors", {"format": "pt"})
    cs.apply(cs.convert(f"{name}.safetensors"), name, max_shard_size="600B")
    return Path(name)


PARTS: dict[str, tuple[int, ...]] = {"bias": (16,), "weight": (8, 16)}


@pytest.fixture
def mixed() -> str:
    first, other = written("first", 0), written("other", 1)
    assert (first / SECOND).read_bytes()[:184] == (other / SECOND).read_bytes()[:184]  # the header
    shutil.copy(other / SECOND, first / SECOND)
    return str(first)


def said(path: str) -> list[str]:
    with open_checkpoint(path) as opened:
        return [note for note in opened.notes if "from the same output" in note]


def test_a_shard_of_another_output_is_noted(mixed: str) -> None:
    note = f"{SECOND} {SAID}: layers.1.bias and layers.1.weight have other checksums in ckptsurgeon.json"
    assert said(mixed) == [note]
    assert said(f"{mixed}/model.safetensors.index.json") == [note]
    assert all(map(is_serious, said(mixed)))


@pytest.mark.parametrize(
    "plan",
    [
        lambda path: cs.convert(path),
        lambda path: cs.convert(path, dtype="bfloat16"),
        lambda path: cs.average([path, "other"]),
        lambda path: cs.merge([path, "other"], method="linear", weights=[1, 1]),
        lambda path: cs.rename(path, map={"layers.{n}.bias": "blocks.{n}.bias"}),
    ],
)
def test_every_verb_says_so(plan: Callable[[str], Any], mixed: str) -> None:
    assert sum(SAID in note for note in plan(mixed).notes) == 1
    assert not any("from the same output" in note for note in plan("other").notes)


def test_inspect_warns(mixed: str, ckpt: Any) -> None:
    assert "warning: " + SECOND in " ".join(ckpt("inspect", mixed).err.split())


def test_quiet_keeps_warnings_and_hides_other_notes(mixed: str, ckpt: Any) -> None:
    Path(mixed, "model-00009-of-00009.safetensors").write_bytes(Path(mixed, SECOND).read_bytes())
    loud, quiet = ckpt("inspect", mixed), ckpt("inspect", mixed, "-q")
    assert "note: " in loud.err
    assert quiet.out == ""
    assert quiet.err.startswith("warning: " + SECOND)
    assert "note: " not in quiet.err


def test_outputs_as_they_were_written_have_no_note() -> None:
    assert not said(str(written("whole", 0)))
    assert not said(f"{written('single', 0)}/{SECOND}")


def test_without_a_recipe_nothing_is_said(mixed: str) -> None:
    (Path(mixed) / "ckptsurgeon.json").unlink()
    assert not said(mixed)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tensors": []}', '{"tensors": {"layers.1.bias": {"crc32": 7}}}'])
def test_nothing_is_compared_with_a_damaged_recipe(text: str, mixed: str) -> None:
    (Path(mixed) / "ckptsurgeon.json").write_text(text)
    assert not said(mixed)


def test_a_recipe_that_is_cut_short_is_noted(mixed: str, ckpt: Callable[..., Any]) -> None:
    recipe = Path(mixed) / "ckptsurgeon.json"
    recipe.write_text(recipe.read_text()[:-100])
    for command in (("inspect", mixed), ("convert", mixed, "-o", "out.safetensors"), ("diff", mixed, "first")):
        done = ckpt(*command)
        assert "is damaged: the weights and the token list are not compared" in " ".join((done.out + done.err).split())


def test_weights_that_were_all_saved_again_are_no_strangers() -> None:
    """A training that writes over its start changes every shard: its recipe is out of date, but no shard is a stranger."""
    folder = written("first", 0)
    for path in folder.glob("*.safetensors"):
        save_file({key: value + 1 for key, value in load_file(path).items()}, path, {"format": "pt"})
    assert not said(str(folder))


def test_a_recipe_of_other_keys_says_nothing(mixed: str) -> None:
    place = Path(mixed) / "ckptsurgeon.json"
    recipe = json.loads(place.read_text())
    recipe["tensors"] = {f"model.{key}": row for key, row in recipe["tensors"].items()}
    place.write_text(json.dumps(recipe))
    assert not said(mixed)
