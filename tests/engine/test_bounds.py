"""What we write we can read again: the bounds of readers and writers agree."""

from __future__ import annotations

import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.base import sharded_writer as _sharded_writer
from ckptsurgeon.formats.base.format_table import writers
from ckptsurgeon.formats.base.untrusted import growth, most_segments

FORMATS = {"safetensors": "out.safetensors", "pth": "out.pth", "dcp": "dcp"}


def source(number: int, key: str = "model.layers.{}.weight", shape: tuple[int, ...] = (2, 1)) -> None:
    save_file({key.format(n): np.full(shape, n, np.float32) for n in range(number)}, "src.safetensors")


CLOSE = 4096
"""What a bound has to be is found to a part in so many."""


def spent(monkeypatch: pytest.MonkeyPatch, bound: str, output: str) -> tuple[int, int]:
    """Return the least that a bound may be for an output to be read: no less than the one, and no more than the other."""
    low, high = -1, getattr(limits, bound)
    while high - low > max(low // CLOSE, 1):
        middle = min((low + high) // 2, 2 * low + 64)  # reading less takes less time than reading all
        with monkeypatch.context() as patch:
            patch.setattr(limits, bound, middle)
            try:
                cs.open_checkpoint(output).close()
                high = middle
            except cs.CheckpointError:
                low = middle
    return low + 1, high


GROWING = ("PICKLE_OPS", "PICKLE_RARE", "PICKLE_CALLS")
"""What a pickle may do more of, the more bytes of the file it takes."""
BOUNDS = {
    "safetensors": ("JSON_OPENED", "JSON_COMMAS"),
    "pth": (*GROWING, "PICKLE_BYTES", "PICKLE_TEXT", "ZIP_ENTRIES", "ZIP_DIRECTORY_BYTES"),
    "dcp": (*GROWING, "PICKLE_BYTES", "PICKLE_TEXT", "PIECES"),
}
KEYS = {
    "short": "w{}",
    "usual": "model.layers.{}.mlp.experts.down_proj.weight",
    "long": "model.decoder.blocks.layers.{}.attention.self.query.projection.weight",
}


@pytest.mark.costly
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "safetensors" else pytest.mark.long) for name in FORMATS]
)
def test_as_many_tensors_as_may_be_written_are_within_all_bounds(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: dict[int, dict[str, tuple[int, int]]] = {}
    for number in (100, 300):
        source(number, KEYS[key], (1, 2, 1, 1))
        cs.apply(cs.convert("src.safetensors"), FORMATS[name], to=name, force=True)
        took[number] = {bound: spent(monkeypatch, bound, FORMATS[name]) for bound in BOUNDS[name]}
    each = {bound: (took[300][bound][1] - took[100][bound][0]) / 200 for bound in BOUNDS[name]}  # at most
    most = writers()[name].most
    assert most == 1_000_000
    least = {bound: (took[300][bound][0] - took[100][bound][1]) / 200 for bound in BOUNDS[name]}
    grown = growth(int(least.get("PICKLE_BYTES", 0) * most))
    for bound, one in each.items():
        assert one * most <= getattr(limits, bound) * (grown if bound in GROWING else 1), (bound, one)


def test_what_a_pickle_may_do_grows_with_the_bytes_of_the_file_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [growth(stored) for stored in (0, 20 << 20, 50 << 20, 1 << 40)] == [1, 1, 2.5, 5]
    source(200)
    cs.apply(cs.convert("src.safetensors"), "out.pth")
    monkeypatch.setattr(limits, "PICKLE_OPS", 2_000)  # a tensor takes some 24
    with pytest.raises(cs.UnsafeError, match="more instructions than the limit of 2000"):
        cs.open_checkpoint("out.pth")
    monkeypatch.setattr(limits, "PICKLE_FREE", 2_000)
    cs.open_checkpoint("out.pth").close()
    with zipfile.ZipFile("out.pth") as archive, zipfile.ZipFile("packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for one in archive.namelist():
            how = zipfile.ZIP_DEFLATED if one.endswith("data.pkl") else zipfile.ZIP_STORED
            packed.writestr(one, archive.read(one), how)
    with pytest.raises(
        cs.UnsafeError, match="more instructions than the limit of 2...?"
    ):  # what it unpacks to does not count
        cs.open_checkpoint("packed.pth")


def test_shards_end_before_their_headers_are_larger_than_readers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    source(5)
    monkeypatch.setattr(_sharded_writer, "DESCRIBED", 2 * (_sharded_writer.DESCRIPTION + len("model.layers.0.weight")))
    cs.apply(cs.convert("src.safetensors"), "out", to="safetensors")
    assert len(list(Path("out").glob("model-0000?-of-00003.safetensors"))) == 3
    assert list(cs.open_checkpoint("out")) == list(cs.open_checkpoint("src.safetensors"))


@pytest.mark.parametrize("name", FORMATS)
def test_more_tensors_than_could_be_read_again_are_refused_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source(5)
    plan = cs.convert("src.safetensors")
    monkeypatch.setattr(type(writers()[name]), "most", 4)
    with pytest.raises(
        cs.OutputError, match=f"5 tensors are too many for the format {name}: ckptsurgeon reads at most 4"
    ):
        cs.apply(plan, FORMATS[name], to=name)
    assert [path.name for path in Path().iterdir()] == ["src.safetensors"]


def test_longer_keys_than_could_be_read_again_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source(5)
    plan = cs.rename("src.safetensors", map="=a.b.c.d")
    monkeypatch.setattr(limits, "SEGMENTS", 39)
    monkeypatch.setattr(limits, "SEGMENTS_EACH", 3)
    with pytest.raises(
        cs.OutputError, match="the keys have 40 parts between dots in total: ckptsurgeon reads at most 39"
    ):
        cs.apply(plan, "out.pth")
    assert [path.name for path in Path().iterdir()] == ["src.safetensors"]


def test_operations_may_make_as_many_tensors_as_are_read() -> None:
    assert import_module("ckptsurgeon.planning.operations.perform").TENSORS == limits.TENSORS


def test_ten_segments_of_each_key_are_always_within_bounds() -> None:
    assert [most_segments(number) for number in (0, 300_000, limits.TENSORS)] == [3_000_000, 3_000_000, 10_000_000]
