"""Files from before torch 1.6: pickles in a row, storages behind them."""

from __future__ import annotations

import collections
import pickle
import struct
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from ..helpers.torch_files import legacy_variety, same, saved, write

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def legacy(value: Any, **options: Any) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False, **options)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_variety_is_the_very_tensor_that_torch_loads(protocol: int) -> None:
    write("x.pt", legacy(legacy_variety(), pickle_protocol=protocol))
    theirs, ours = torch.load("x.pt", weights_only=False), cs.open_checkpoint("x.pt")
    assert ours.format == "torch legacy"
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert same(ours.tensor(key), tensor), key


def test_protocol_0_says_that_torch_cannot_read_it_either() -> None:
    write("x.pt", legacy({"a": torch.ones(2)}, pickle_protocol=0))
    with pytest.raises(Exception):  # noqa: B017  # torch asserts that the persistent id is a tuple
        torch.load("x.pt", weights_only=False)
    with pytest.raises(cs.FormatError, match=r"^x\.pt: the pickle refers to a storage in an unknown way"):
        cs.open_checkpoint("x.pt")


def test_a_training_checkpoint_is_opened_at_its_model() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    write("x.pt", legacy({"epoch": 2, "model": model.state_dict(), "optim": optimizer.state_dict()}))
    found = cs.open_checkpoint("x.pt")
    assert (found.root, list(found)) == ("model", ["weight", "bias"])


def by_hand(pickled: bytes, keys: list[str], storages: list[tuple[int, bytes]], **system: Any) -> bytes:
    info = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}, **system}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, info))
    body = b"".join(struct.pack("<q", count) + data for count, data in storages)
    return head + pickled + pickle.dumps(keys, 2) + body


class _Pid:
    def __init__(self, *pid: Any) -> None:
        self.pid = pid


def pickled(pid: tuple[Any, ...], size: tuple[int, ...] = (2,)) -> bytes:
    """A state dict of one tensor over a storage with this persistent id, as old versions wrote it."""
    import io

    class Pickler(pickle._Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.pid if isinstance(value, _Pid) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (_Pid(*pid), 0, size, (1,), False, collections.OrderedDict())

    out = io.BytesIO()
    Pickler(out, 2).dump({"a": Tensor()})
    return out.getvalue()


FLOATS = torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy().tobytes()


def test_a_view_of_a_storage_is_followed() -> None:
    pid = ("storage", torch.FloatStorage, "root", "cpu", 4, ("view", 2, 2))
    write("x.pt", by_hand(pickled(pid), ["root"], [(4, FLOATS)]))
    assert cs.open_checkpoint("x.pt").tensor("a").tolist() == [3.0, 4.0]


def test_a_big_endian_machine_writes_little_endian_values() -> None:
    pid = ("storage", torch.FloatStorage, "root", "cpu", 4, None)
    write("x.pt", by_hand(pickled(pid), ["root"], [(4, struct.pack("<4f", 1, 2, 3, 4))], little_endian=False))
    values = cs.open_checkpoint("x.pt").tensor("a").tolist()
    assert values == torch.load("x.pt", weights_only=False)["a"].tolist() == [1.0, 2.0]


GOOD = ("storage", torch.FloatStorage, "root", "cpu", 4, None)
BROKEN = {
    "cut in a storage": by_hand(pickled(GOOD), ["root"], [(4, FLOATS[:8])]),
    "cut before the keys": by_hand(pickled(GOOD), ["root"], [])[:-30],
    "another count": by_hand(pickled(GOOD), ["root"], [(3, FLOATS)]),
    "bytes behind": by_hand(pickled(GOOD), ["root"], [(4, FLOATS + b"x")]),
    "a storage nobody lists": by_hand(pickled(GOOD), [], []),
    "a storage nobody uses": by_hand(pickled(GOOD), ["root", "b"], [(4, FLOATS), (4, FLOATS)]),
    "keys that are no list": by_hand(pickled(GOOD), {"root": 1}, [(4, FLOATS)]),  # type: ignore[arg-type]
    "twice the same key": by_hand(pickled(GOOD), ["root", "root"], [(4, FLOATS), (4, FLOATS)]),
    "a view beyond": by_hand(pickled(("storage", torch.FloatStorage, "root", "cpu", 4, ("v", 3, 2))), ["root"], [(4, FLOATS)]),
    "a view that is no view": by_hand(pickled(("storage", torch.FloatStorage, "root", "cpu", 4, "v")), ["root"], [(4, FLOATS)]),
    "a negative count": by_hand(pickled(("storage", torch.FloatStorage, "root", "cpu", -4, None)), ["root"], [(4, FLOATS)]),
    "a tensor beyond": by_hand(pickled(GOOD, (5,)), ["root"], [(4, FLOATS)]),
    "a storage declared in two ways": by_hand(pickled(GOOD)[:-2] + b"X\x01\x00\x00\x00b" + pickled(("storage", torch.FloatStorage, "root", "cpu", 3, None))[2:-2].partition(b"X\x01\x00\x00\x00a")[2] + b"s.", ["root"], [(4, FLOATS)]),
    "an unknown persistent id": by_hand(pickled(("thing", 1)), ["root"], [(4, FLOATS)]),
    "an unknown protocol": b"".join(pickle.dumps(v, 2) for v in (MAGIC, 1002, {}, {})),
    "only the magic number": pickle.dumps(MAGIC, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str) -> None:
    write("x.pt", BROKEN[name])
    with pytest.raises(cs.FormatError) as caught:
        cs.open_checkpoint("x.pt")
    assert caught.value.exit_code == 3


def test_a_pickle_longer_than_the_first_read_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.formats import torch_legacy

    monkeypatch.setattr(torch_legacy, "_FIRST_READ", 64)
    write("x.pt", legacy({f"layer.{i}.weight": torch.ones(2) for i in range(50)}))
    assert len(cs.open_checkpoint("x.pt")) == 50
