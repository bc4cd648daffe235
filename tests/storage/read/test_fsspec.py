"""Addresses that fsspec reads: in ranges, and with the package named that one of them lacks."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, FormatError, SourceError
from ckptsurgeon.storage.read.uri import open_source

from ...helpers.torch_files import saved

VALUES = {"encoder.weight": torch.full((400, 400), 1.0), "decoder.weight": torch.full((400, 400), 2.0)}


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_parts_of_a_file_are_read(memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/bucket/run/model.pth", saved(VALUES))
    read: list[int] = []
    real = type(memory).cat_file

    def counted(self: object, path: str, start: int, end: int) -> bytes:
        data = real(self, path, start=start, end=end)
        read.append(len(data))
        return data

    monkeypatch.setattr(type(memory), "cat_file", counted)
    cs.apply(cs.filter("memory://bucket/run/model.pth", include=["encoder"]), "out.safetensors")
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("encoder.weight"), VALUES["encoder.weight"])
    assert sum(read) < 900_000


def test_a_folder_is_listed(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe({"/bucket/run/model.pth": saved(VALUES), "/bucket/run/sub/x": b"x"})
    folder = open_source("memory://bucket/run")
    assert (folder.names(), folder.folders()) == (["model.pth"], ["sub"])  # type: ignore[union-attr]
    with cs.open_checkpoint("memory://bucket/run") as far:
        assert list(far) == list(VALUES)
    with pytest.raises(FormatError, match="outside of it"):
        folder.file("../x")  # type: ignore[union-attr]


def test_what_is_not_there(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(SourceError, match="memory://bucket/x.pth cannot be fetched: it does not exist"):
        open_source("memory://bucket/x.pth")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Run pip install ossfs"):
        open_source("oss://bucket/x.pth")
    with pytest.raises(ConfigError, match="no installed package reads what:// addresses"):
        open_source("what://x/y")
