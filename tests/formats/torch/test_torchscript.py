"""TorchScript archives: their tensors are read, their program is not."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.formats.base import limits
from ckptsurgeon.formats.pickle.values import GlobalName, OpaqueResult
from ckptsurgeon.formats.torch.script import other_tensors, script_tensors
from ckptsurgeon.tensors.info import TensorInfo
from tests.hostile.bombs import long_script_names, long_script_paths


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.BatchNorm1d(4)
        self.rnn = nn.LSTM(4, 3, 2)
        self.register_buffer("steps", torch.arange(3.0))
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        for layer in self.layers:
            y = layer(y)
        return self.out(self.norm(y)) + self.rnn(y[None])[0].sum() + self.steps.sum()


def written(how: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = Net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: Any = torch.jit.trace(net, torch.tensor([1, 2])) if how == "traced" else torch.jit.script(net)
        torch.jit.save(torch.jit.freeze(module) if how == "frozen" else module, "net.pt")
    return net.state_dict()


@pytest.mark.costly
@pytest.mark.parametrize("how", ["scripted", "traced"])
def test_the_tensors_are_those_of_the_state_dict(how: str) -> None:
    state = written(how)
    with cs.open_checkpoint("net.pt") as found:
        assert found.format == "torchscript"
        assert set(found) == set(state)
        assert found.ties == {"out.weight": "embed.weight"}
        for key, value in state.items():
            assert torch.equal(found.tensor(key), value), key
        assert found.notes == ("read the tensors of a TorchScript module, not its program",)


@pytest.mark.long
def test_a_scripted_module_is_a_source_like_any_other() -> None:
    state = written("scripted")
    cs.apply(cs.convert("net.pt"), "out.pth")
    assert cs.verify("out.pth").compared == len(state)
    other = Net()
    other.load_state_dict(torch.load("out.pth", weights_only=True), strict=True)
    assert torch.equal(other.rnn.weight_hh_l1, state["rnn.weight_hh_l1"])


def test_a_frozen_one_says_where_its_weights_are() -> None:
    written("frozen")
    with pytest.raises(cs.FormatError, match="do not use torch.jit.freeze"):
        cs.open_checkpoint("net.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")
def test_one_that_is_frozen_in_part_says_how_many_tensors_are_not_read() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(net), preserved_attrs=["1"]), "net.pt")
    found = cs.inspect("net.pt")
    assert list(found.tensors) == ["1.weight", "1.bias"]
    assert "not its program, and not 2 tensors that its program has as constants" in found.notes[0]


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.rows = [torch.ones(2), torch.zeros(2), self.layer.weight]
        self.named, self.pair = {"a": torch.arange(2.0)}, (torch.full((2,), 3.0), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.rows[0] + self.named["a"] + self.pair[0]


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::DeprecationWarning")
def test_tensors_in_containers_of_a_module_are_counted() -> None:
    torch.jit.save(torch.jit.script(Cached()), "net.pt")
    found = cs.inspect("net.pt")
    assert list(found.tensors) == ["layer.weight", "layer.bias"]
    assert found.notes == (
        "read the tensors of a TorchScript module, not its program, and not 4 tensors in lists, dicts or tuples of the "
        "module",
    )


class Sparse(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore:Sparse CSR", "ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_a_sparse_buffer_is_read(layout: str) -> None:
    torch.jit.save(torch.jit.script(Sparse(torch.eye(3).to_sparse(layout=getattr(torch, layout)))), "net.pt")
    table = cs.open_checkpoint("net.pt")["table"]
    assert (table.opaque, table.dtype, table.shape, table.parts[0]) == (
        "it is sparse", "float32", (3, 3), f"torch.{layout}",
    )  # fmt: skip
    with pytest.raises(cs.FormatError, match="the tensor table of net.pt cannot be copied: it is sparse"):
        cs.convert("net.pt")
    assert [step.key for step in cs.filter("net.pt", exclude=["table"]).steps] == ["weight"]


def test_an_attribute_whose_tensor_has_no_place_is_not_counted() -> None:
    """As of a tensor on the device meta, or a sparse one."""
    opaque, listed = (TensorInfo("float32", (2,), opaque="it is sparse") for _ in range(2))
    module = OpaqueResult(GlobalName("__torch__", "Net"))
    module.state = {"w": opaque, "rows": [listed, opaque]}
    assert other_tensors(module, script_tensors(module)) == 1


@pytest.mark.costly
@pytest.mark.parametrize("payload", [b"cos\nsystem\n(S'touch canary'\ntR.", b"c__builtin__\neval\n(S'1/0'\ntR."])
def test_a_payload_in_it_runs_nothing(payload: bytes) -> None:
    written("scripted")
    whole = zipfile.ZipFile(io.BytesIO(Path("net.pt").read_bytes()))
    with zipfile.ZipFile("evil.pt", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, payload if name.endswith("/data.pkl") else whole.read(name))
    with pytest.raises(cs.FormatError, match="no scripted module"):
        cs.open_checkpoint("evil.pt")
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("made", "rule"),
    [
        (lambda: long_script_names(9000, 1), "key length"),
        (lambda: long_script_names(100, 10), "module tree"),
        (lambda: long_script_names(3000, 3), "key length"),
        (lambda: long_script_paths(10_000, True), "module tree"),
        (lambda: long_script_paths(10_000, False), "module tree"),
    ],
)
def test_what_names_without_end_is_refused_by_the_rule(
    made: Callable[[], bytes], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATH_CHARACTERS", 1 << 20)
    Path("x.pt").write_bytes(made())
    with pytest.raises(cs.CheckpointError) as caught:
        cs.open_checkpoint("x.pt")
    assert isinstance(caught.value, (cs.FormatError, cs.UnsafeError))
    assert caught.value.rule == rule
    assert len(str(caught.value)) < 200


def test_shared_modules_of_short_names_are_read() -> None:
    Path("x.pt").write_bytes(long_script_names(3, 5))
    with cs.open_checkpoint("x.pt") as found:
        assert len(found) == 32
        assert "aaa.aaa.aaa.bbb.bbb.w" in found
