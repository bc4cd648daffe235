"""A source that ckpt wrote, and that was changed since, keeps its recipe: copying from it compares the checksums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ckptsurgeon as cs

CHANGED = "copied tensor of {} has another checksum than in its recipe: x.weight: the values were changed"


def made(output: str) -> str:
    """The path of the weights of an output that ckpt made from another file."""
    save_file({"x.weight": torch.randn(8, 4), "x.bias": torch.randn(8)}, "a.safetensors")
    cs.apply(cs.convert("a.safetensors"), output)
    return f"{output}/model.safetensors" if Path(output).is_dir() else output


def changed(path: str) -> None:
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    tensors["x.weight"][0, 0] += 1
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("output", ["b.safetensors", "b/"])
def test_values_that_were_changed_after_ckpt_wrote_them_are_noted_where_they_are_copied(output: str) -> None:
    path = made(output)
    assert not cs.apply(cs.convert(output), "same.safetensors").notes
    changed(path)
    (note,) = cs.apply(cs.convert(output), "c.safetensors").notes
    assert CHANGED.format(output) in note
    assert not cs.apply(cs.convert(output, dtype="float16"), "cast.safetensors").notes  # other bytes, not compared


def test_a_name_that_is_changed_is_no_changed_value() -> None:
    made("b.safetensors")
    assert not cs.apply(cs.rename("b.safetensors", map=["x=y"]), "c.safetensors").notes
    assert not cs.apply(cs.filter("b.safetensors", exclude="x.bias"), "d.safetensors").notes
    changed("b.safetensors")
    (note,) = cs.apply(cs.rename("b.safetensors", map=["x=y"]), "e.safetensors").notes
    assert CHANGED.format("b.safetensors") in note


def test_a_recipe_that_cannot_be_read_is_not_compared() -> None:
    made("b.safetensors")
    with safe_open("b.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, "b.safetensors", {"ckptsurgeon": "{"})
    cs.apply(cs.convert("b.safetensors"), "c.safetensors")


def test_a_changed_index_of_ranks_is_not_called_changed_values() -> None:
    save_file({"x.weight": torch.randn(4, 4)}, "w.safetensors")
    cs.apply(cs.convert("w.safetensors"), "d", to="tp", ranks=2, axis=["x.weight=0"])
    index = Path("d/ranks.json")
    index.write_text(index.read_text().replace('"x.weight": 0', '"x.weight": 1'))
    result = cs.apply(cs.convert("d"), "y.safetensors")
    said = "x.weight: the values, or how their parts are joined, were changed after ckpt wrote them"
    assert any(note.endswith(said) for note in result.notes)
