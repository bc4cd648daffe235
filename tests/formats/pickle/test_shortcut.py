"""The shortcut for plain tensors: whatever a pickle says, it gives what the machine gives without it."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.formats.pickle import machine as _pickle
from ckptsurgeon.formats.pickle.values import GlobalName, OpaqueResult
from ckptsurgeon.tensors.info import TensorInfo

from ...helpers.torch_files import saved, variety


def plain(value: Any, depth: int = 0) -> Any:
    """A tree as data that can be compared."""
    if isinstance(value, TensorInfo):
        place = (value.storage.name, value.storage.offset) if value.storage else None
        return ("tensor", value.dtype, value.shape, value.stride, value.offset, place, value.opaque)
    if isinstance(value, dict):
        return {repr(key): plain(entry, depth + 1) for key, entry in value.items()} if depth < 9 else "deep"
    if isinstance(value, (list, tuple)):
        return [plain(entry, depth + 1) for entry in value] if depth < 9 else "deep"
    return (
        (value.module, value.name)
        if isinstance(value, GlobalName)
        else repr(value)
        if not isinstance(value, OpaqueResult)
        else "opaque"
    )


def read(path: str) -> Any:
    try:
        with cs.open_checkpoint(path, ".", unwrap=False) as found:
            return plain(found.header.tree)
    except cs.CheckpointError as error:
        return type(error), error.rule


def without(monkeypatch: pytest.MonkeyPatch, path: str) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(_pickle, "plain_tensors", lambda *_, edge: None)
        return read(path)


def count_taken(monkeypatch: pytest.MonkeyPatch, path: str) -> int:
    taken, real = [], _pickle.plain_tensors

    def counted(*args: Any, edge: int) -> Any:
        found = real(*args, edge=edge)
        taken.append(sum(isinstance(value, TensorInfo) for value in found[0]) if found else 0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(_pickle, "plain_tensors", counted)
        read(path)
    return sum(taken)


def test_nearly_every_tensor_of_a_real_file_is_taken_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the memo has more than 256 entries, which is after some thirty tensors."""
    net = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32), 12, enable_nested_tensor=False)
    torch.save({"model": net.state_dict(), "steps": torch.tensor(3)}, "net.pth")
    assert len(net.state_dict()) == 144
    assert count_taken(monkeypatch, "net.pth") > 100
    assert read("net.pth") == without(monkeypatch, "net.pth")


def test_views_ties_and_other_types_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("variety.pth").write_bytes(saved({f"{i}.{key}": value for i in range(9) for key, value in variety().items()}))
    assert count_taken(monkeypatch, "variety.pth") > 20
    assert read("variety.pth") == without(monkeypatch, "variety.pth")


def test_entries_that_refer_back_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memo holds what the shortcut passed over: texts, sizes, tensors that stand twice."""
    tensors = {str(i): torch.zeros(3, i % 4 + 1) for i in range(80)}
    torch.save({"a": tensors, "b": list(tensors.values()), "c": list(tensors)}, "twice.pth")
    assert count_taken(monkeypatch, "twice.pth") > 30
    assert read("twice.pth") == without(monkeypatch, "twice.pth")


def test_tensors_of_any_number_of_dimensions_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(i): torch.zeros([2] * (i % 6)) for i in range(200)}, "dimensions.pth")
    assert count_taken(monkeypatch, "dimensions.pth") > 160
    assert read("dimensions.pth") == without(monkeypatch, "dimensions.pth")


def test_a_type_that_comes_late_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is fetched by a longer instruction."""
    torch.save({str(i): torch.zeros(2, dtype=torch.half if i > 90 else torch.float) for i in range(180)}, "late.pth")
    assert count_taken(monkeypatch, "late.pth") > 140
    assert read("late.pth") == without(monkeypatch, "late.pth")


def test_bounds_hold_in_a_run_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(i): torch.zeros(2) for i in range(500)}, "many.pth")
    for limit, rule in (("PICKLE_CALLS", "pickle calls"), ("PICKLE_TEXT", "pickle text")):
        with monkeypatch.context() as patch:
            patch.setattr(_pickle.limits, limit, 600)
            assert read("many.pth") == without(patch, "many.pth") == (cs.UnsafeError, rule)


def test_a_number_that_is_remembered_out_of_turn_ends_the_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    torch.save({f"w{i}": torch.zeros(2, 3) for i in range(60)}, buffer)
    whole = zipfile.ZipFile(buffer)
    with zipfile.ZipFile("far.pth", "w", zipfile.ZIP_STORED) as archive:
        for name in whole.namelist():
            data = whole.read(name)
            if name.endswith("data.pkl"):  # None is remembered as number 999 and dropped, then all goes on as before
                data = data[:2] + b"Nr\xe7\x03\x00\x000" + data[2:]
            archive.writestr(name, data)
    assert count_taken(monkeypatch, "far.pth") == 0
    assert read("far.pth") == without(monkeypatch, "far.pth")
    assert len(read("far.pth")) == 60


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_damaged_pickles_are_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(seed)
    buffer = io.BytesIO()
    torch.save({f"w{i}": torch.zeros(2, 3)[: i % 3] for i in range(60)}, buffer)
    whole = zipfile.ZipFile(buffer)
    for _ in range(60):
        with zipfile.ZipFile("damaged.pth", "w", zipfile.ZIP_STORED) as archive:
            for name in whole.namelist():
                data = bytearray(whole.read(name))
                if name.endswith("data.pkl"):
                    for _ in range(random.randint(1, 3)):
                        data[random.randrange(len(data) // 2, len(data))] = random.choice(
                            b"\x00\x01(tQRhqrXKMJ\x85\x86\x87\x89)j."
                        )
                archive.writestr(name, bytes(data))
        assert read("damaged.pth") == without(monkeypatch, "damaged.pth")
