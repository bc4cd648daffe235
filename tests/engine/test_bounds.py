"""What we write we can read again: the bounds of readers and writers agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats import limits, writers

FORMATS = {"safetensors": "out.safetensors", "pth": "out.pth", "dcp": "dcp"}


def source(number: int, key: str = "model.layers.{}.weight", shape: tuple[int, ...] = (2, 1)) -> None:
    save_file({key.format(n): np.full(shape, n, np.float32) for n in range(number)}, "src.safetensors")


def spent(monkeypatch: pytest.MonkeyPatch, bound: str, output: str) -> int:
    """Return the least that a bound may be for an output to be read."""
    low, high = 0, getattr(limits, bound)
    while low < high:
        middle = (low + high) // 2
        with monkeypatch.context() as patch:
            patch.setattr(limits, bound, middle)
            try:
                cs.open_checkpoint(output).close()
                high = middle
            except cs.CheckpointError:
                low = middle + 1
    return low


PICKLED = ("PICKLE_OPS", "PICKLE_RARE", "PICKLE_CALLS", "PICKLE_BYTES", "PICKLE_TEXT")


@pytest.mark.parametrize("name", FORMATS)
def test_as_many_tensors_as_may_be_written_are_within_all_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = ("JSON_OPENED", "JSON_COMMAS") if name == "safetensors" else PICKLED
    took: dict[int, dict[str, int]] = {}
    for number in (100, 300):
        source(number, "model.decoder.blocks.layers.{}.attention.self.query.projection.weight", (1, 2, 1, 1))
        cs.apply(cs.convert("src.safetensors"), FORMATS[name], to=name, force=True)
        took[number] = {bound: spent(monkeypatch, bound, FORMATS[name]) for bound in bounds}
    for bound in bounds:
        each = (took[300][bound] - took[100][bound]) / 200
        assert each * writers()[name].most <= getattr(limits, bound), (bound, each)


@pytest.mark.parametrize("name", FORMATS)
def test_more_tensors_than_could_be_read_again_are_refused_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(5)
    plan = cs.convert("src.safetensors")
    monkeypatch.setattr(type(writers()[name]), "most", 4)
    with pytest.raises(cs.OutputError, match=f"5 tensors are too many for {name}: at most 4 could be read again"):
        cs.apply(plan, FORMATS[name], to=name)
    assert [path.name for path in Path().iterdir()] == ["src.safetensors"]


def test_longer_keys_than_could_be_read_again_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source(5)
    plan = cs.rename("src.safetensors", map="=a.b.c.d")
    monkeypatch.setattr(limits, "SEGMENTS", 39)
    with pytest.raises(cs.OutputError, match="the keys have 40 segments in all: at most 39"):
        cs.apply(plan, "out.pth")
    assert [path.name for path in Path().iterdir()] == ["src.safetensors"]


def test_segments_are_no_tighter_a_bound_than_tensors() -> None:
    assert limits.SEGMENTS >= 10 * limits.TENSORS
