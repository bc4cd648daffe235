"""Tensors in memory as a checkpoint: what a file of them would say, without one, and without a copy."""

from __future__ import annotations

import argparse
import collections
import copy
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.storage.read._memory import MemoryFile
from ckptsurgeon.storage.read.base import File

from ..helpers.torch_files import bytes_of, same, variety

ON_META = "it is on the meta device, without values"


def test_every_variety_of_tensor_is_what_it_is_in_a_file() -> None:
    tensors = variety()
    torch.save(tensors, "a.pth")
    with cs.open_checkpoint(tensors) as here, cs.open_checkpoint("a.pth") as there:
        assert list(here) == list(there)
        for key, info in here.items():
            other = there[key]
            assert (info.dtype, info.shape, info.stride, info.conj, info.neg) == (
                other.dtype, other.shape, other.stride, other.conj, other.neg,
            ), key  # fmt: skip
            assert info.opaque == (ON_META if key == "meta" else other.opaque), key
            assert same(here.tensor(key), there.tensor(key)), key
        assert {key: here.ties.get(key) for key in here} == {key: there.ties.get(key) for key in there}


@pytest.mark.parametrize("verb", ["convert", "filter"])
def test_what_is_written_is_what_is_written_of_a_file(verb: str) -> None:
    tensors = {key: value for key, value in variety().items() if not cs.open_checkpoint({key: value})[key].opaque}
    torch.save(tensors, "a.pth")
    for source, output in ((tensors, "memory.pth"), ("a.pth", "file.pth")):
        cs.apply(getattr(cs, verb)(source), output)
    assert cs.diff("memory.pth", "file.pth", values=True).identical == len(tensors)
    assert cs.open_checkpoint("memory.pth").ties == cs.open_checkpoint("file.pth").ties


NUMPY = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """An array of any dtype and byte order that lies in memory in any way."""
    kind = draw(st.sampled_from(NUMPY))
    order = draw(st.sampled_from("<>=")) if kind not in ("?", "i1", "u1") else "|"
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    raw = np.frombuffer(draw(st.binary(min_size=16 * 4**3, max_size=16 * 4**3)), "u1")
    if kind == "?":
        raw = raw & 1
    array = raw[: int(np.prod(shape)) * np.dtype(kind).itemsize].copy().view(kind).reshape(shape)
    array = array.astype(np.dtype(kind).newbyteorder(order))
    if shape:
        array = array.transpose(draw(st.permutations(range(len(shape)))))
        steps = draw(st.lists(st.sampled_from([1, 2, -1]), min_size=len(shape), max_size=len(shape)))
        array = array[tuple(slice(None, None, step) for step in steps)]
    return array


@pytest.mark.long
@given(arrays())
def test_an_array_of_any_dtype_order_and_strides_has_its_own_bytes(array: np.ndarray[Any, Any]) -> None:
    with cs.open_checkpoint({"w": array}) as checkpoint:
        info, found = checkpoint["w"], checkpoint.tensor("w")
    native = np.array(array.astype(array.dtype.newbyteorder("=")), order="C")
    assert (info.dtype, info.shape, info.opaque) == (array.dtype.name, array.shape, "")
    assert bytes_of(found) == native.tobytes()
    cs.apply(cs.filter({"w": array}), "w.pth", force=True)
    assert bytes_of(cs.open_checkpoint("w.pth").tensor("w")) == native.tobytes()


def test_an_array_that_is_not_numbers_is_no_tensor() -> None:
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    odd = {"text": np.array(["a"]), "objects": np.array([None]), "records": np.zeros(2, "i4,f4"), "masked": masked}
    found = cs.inspect({"w": np.zeros(2), **odd, "one": np.float32(2.5)})
    assert list(found.tensors) == ["w"]
    types = {extra.key: extra.type for extra in found.extras}
    assert types["masked"] == "numpy.MaskedArray of float64"
    assert {key for key in types if types[key].startswith("numpy.")} == odd.keys()
    assert {extra.key: extra.value for extra in found.extras}["one"] == 2.5


@pytest.mark.parametrize("as_numpy", [False, True])
def test_what_is_tied_in_memory_is_tied(as_numpy: bool) -> None:
    tied = nn.Linear(3, 3)
    model = nn.Sequential(tied, nn.Linear(3, 3), tied)
    state: Any = model.state_dict()
    if as_numpy:
        state = {key: value.numpy() for key, value in state.items()}
    with cs.open_checkpoint(state) as checkpoint:
        assert checkpoint.ties == {"2.weight": "0.weight", "2.bias": "0.bias"}
        assert cs.open_checkpoint(model).ties == checkpoint.ties
    cs.apply(cs.filter(state), "tied.pth")
    saved = torch.load("tied.pth")
    assert saved["2.weight"].data_ptr() == saved["0.weight"].data_ptr()


def test_parts_of_one_storage_are_not_tied() -> None:
    whole = torch.arange(12.0)
    parts = {"whole": whole, "head": whole[:6], "tail": whole[6:], "square": whole.view(3, 4), "other": whole.double()}
    assert cs.open_checkpoint(parts).ties == {}


@pytest.mark.long
def test_nothing_is_copied_until_it_is_read() -> None:
    big = {"w": torch.zeros(1 << 22), "t": torch.zeros(1 << 11, 1 << 11).t(), "n": np.zeros((1 << 11, 1 << 11)).T}
    tracemalloc.start()
    with cs.open_checkpoint(big) as checkpoint:
        big["w"][0] = big["t"][0, 0] = 7
        big["n"][0, 0] = 7
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        for key in big:
            assert checkpoint.tensor(key).flatten()[0] == 7
    tracemalloc.stop()


def test_a_tensor_that_gets_another_storage_is_read_as_it_was() -> None:
    weight = nn.Parameter(torch.ones(4))
    with cs.open_checkpoint({"w": weight}) as checkpoint:
        weight.data = torch.zeros(9)
        assert checkpoint.tensor("w").tolist() == [1.0] * 4


def test_a_tensor_whose_storage_is_gone_is_an_error() -> None:
    weight = torch.ones(4)
    with cs.open_checkpoint({"w": weight}) as checkpoint:
        weight.untyped_storage().resize_(0)
        with pytest.raises(cs.SourceError, match="was freed or became smaller"):
            checkpoint.tensor("w")


def test_what_is_no_plain_bytes_says_why() -> None:
    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise NotImplementedError

    wrapped = torch.Tensor._make_wrapper_subclass(Wrapped, (2, 3))  # type: ignore[attr-defined]
    lazy = nn.LazyLinear(3).weight
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    state = {
        "w": torch.ones(2),
        "wrapped": wrapped,
        "lazy": lazy,
        "nested": nested,
        "meta": torch.ones(2, device="meta"),
    }
    with cs.open_checkpoint(state) as checkpoint:
        assert checkpoint["wrapped"].opaque.startswith("its class is ")
        assert checkpoint["wrapped"].opaque.endswith("Wrapped, which ckpt cannot read")
        assert checkpoint["lazy"].opaque == "its shape is only known after a forward pass"
        assert checkpoint["nested"].opaque == "its values are nested tensors"
        assert checkpoint["meta"].opaque == ON_META
    with pytest.raises(cs.FormatError, match="meta of <dict> cannot be copied: it is on the meta device"):
        cs.filter({"meta": state["meta"]})
    with pytest.raises(cs.FormatError, match="wrapped of <dict> cannot be in a destination"):
        cs.load_target({"wrapped": wrapped})


def test_a_nest_is_looked_through_as_a_file_is() -> None:
    Point = collections.namedtuple("Point", "x y")
    state = {"module.w": torch.ones(2), "module.b": torch.zeros(2)}
    whole = {
        "state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=1), "betas": (0.9, 0.98), "point": Point(1, 2),
        "names": ["a", "b"], "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save({key: value for key, value in whole.items() if key not in ("args", "point")}, "a.pth")
    with cs.open_checkpoint(whole) as here, cs.open_checkpoint("a.pth") as there:
        assert (list(here), here.root, here.stripped) == (list(there), there.root, there.stripped)
        assert all(extra in here.extras for extra in there.extras)
        told = {extra.key: extra.type for extra in here.extras}
        assert told["args"] == "argparse.Namespace"
        assert told["point"] == "tuple of 2"
    cs.apply(cs.filter(whole, keep_extras=True), "kept.pth")
    assert {key: torch.load("kept.pth")[key] for key in ("epoch", "names")} == {"epoch": 3, "names": ["a", "b"]}


def test_another_state_dict_is_chosen_by_its_root() -> None:
    state = {"ema": {"w": torch.ones(1)}, "net": {"w": torch.zeros(1), "v": torch.zeros(1)}}
    assert cs.inspect(state).root == "net"
    assert list(cs.inspect(state, root="ema").tensors) == ["w"]
    with pytest.raises(cs.ConfigError, match="several state dicts"):
        cs.inspect({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}})


def test_a_nest_that_holds_itself_ends() -> None:
    state: dict[str, Any] = {"w": torch.ones(2)}
    state["itself"] = state
    deep: Any = state
    for _ in range(5000):
        deep = {"in": deep}
    assert list(cs.inspect(state).tensors) == ["w"]
    with pytest.raises(cs.CheckpointError, match="no state dict|nests"):
        cs.inspect(deep)


def test_a_module_anywhere_is_its_state_dict() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert list(cs.inspect(net).tensors) == list(net.state_dict())
    found = cs.inspect({"model": net, "step": 5})
    assert (list(found.tensors), found.root) == (list(net.state_dict()), "model")
    assert cs.open_checkpoint(net).path == "<Sequential>"


@pytest.mark.parametrize("wrong", [3, None, [1], torch.ones(2), {"w": cs.TensorInfo("float32", (2,))}, object()])
def test_what_is_no_checkpoint_is_said(wrong: object) -> None:
    with pytest.raises(
        cs.ConfigError, match=r"is not a path, a checkpoint or a dict of tensors|contains only headers, no values"
    ):
        cs.open_checkpoint(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("empty", [{}, {"a": 1}, {"a": {"b": "c"}}])
def test_a_dict_without_tensors_holds_no_state_dict(empty: dict[str, object]) -> None:
    with pytest.raises(cs.FormatError, match="<dict> has no state dict"):
        cs.inspect(empty)


@pytest.mark.long
def test_looking_at_arrays_imports_no_torch() -> None:
    script = (
        "import sys, numpy as np, ckptsurgeon as cs\n"
        "state = {'w': np.ones((2, 2), 'f4')}\n"
        "cs.inspect(state, stats=True)\n"
        "cs.apply(cs.rename(state, map=['w=v']), 'out.safetensors')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    assert list(cs.inspect("out.safetensors").tensors) == ["v"]


# As a file.


class Bytes:
    """A piece of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.nbytes = data, len(data)

    def readinto(self, offset: int, view: memoryview) -> None:
        view[:] = self.data[offset : offset + len(view)]


@given(st.lists(st.binary(min_size=1, max_size=5), max_size=6), st.data())
def test_pieces_are_read_as_one_file(pieces: list[bytes], data: st.DataObject) -> None:
    file, whole = MemoryFile("m", list(map(Bytes, pieces))), b"".join(pieces)
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    assert isinstance(file, File)
    assert (file.size, file.read(begin, end - begin)) == (len(whole), whole[begin:end])
    with pytest.raises(cs.SourceError, match=f"m has only {len(whole)} bytes"):
        file.read(begin, len(whole) - begin + 1)


def test_a_file_in_memory_ends_when_it_is_closed_and_is_never_a_copy() -> None:
    file = MemoryFile("m", [Bytes(b"abc")])
    with file.descriptor() as fd:
        assert fd is None
    assert copy.copy(file) is copy.deepcopy(file) is file
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(file)
    with pytest.raises(cs.SourceError, match="has no folder"):
        file.folder()
    file.close()
    assert file.closed
    with pytest.raises(cs.SourceError, match="m is closed"):
        file.read(0, 1)


def test_a_checkpoint_says_where_it_is_and_whether_it_is_open() -> None:
    torch.save({"w": torch.ones(1)}, "a.pth")
    here, there = cs.open_checkpoint({"w": torch.ones(1)}), cs.open_checkpoint(Path("a.pth"))
    assert (here.in_memory, here.closed, here.format, here.path) == (True, False, "memory", "<dict>")
    assert (there.in_memory, there.closed) == (False, False)
    here.close()
    there.close()
    assert here.closed
    assert there.closed
    with pytest.raises(cs.SourceError, match="<dict> is closed"):
        here.tensor("w")
