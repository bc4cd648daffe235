"""Weights that quantised layers of torch.ao pack are read as tensors; what is packed in another way is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

from ..helpers.quantised_networks import (
    FORMS,
    NETWORKS,
    Convolutional,
    Recurrent,
    dequantised,
    quantised,
    quick_qconfig,
    save,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
Run = Callable[..., Any]
SCALES = (".scale", ".zero_point")
HALF = "Linear in 16 bits", "LSTM in 16 bits"
CASES = [(name, form) for name in NETWORKS for form in FORMS if (name, form) != ("cells", "TorchScript")]


def saved(name: str, form: str = "state dict", seed: int = 0, path: str = "q.pth") -> tuple[nn.Module, nn.Module]:
    network, small = quantised(name, seed)
    save(small, form, Path(path))
    return network, small


def numel(network: nn.Module) -> int:
    return sum(one.numel() for one in network.state_dict().values())


@pytest.mark.costly
@pytest.mark.parametrize(("name", "form"), CASES)
def test_keys_and_parameters_are_those_of_the_network_of_floats(name: str, form: str) -> None:
    network, _ = saved(name, form)
    found = cs.inspect("q.pth")
    assert {key for key in found.tensors if not key.endswith(SCALES)} == network.state_dict().keys()
    activations = 1 if name == "static" else 0  # quant.scale
    assert found.parameters == numel(network) + activations
    assert (found.codes.methods() == {}) is (name in HALF)
    assert sum("packed weights of torch.ao are read, and written, as tensors" in note for note in found.notes) == 1


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_decoded_file_loads_into_the_network_of_floats(name: str, form: str, ckpt: Run) -> None:
    network, small = saved(name, form)
    decode = [] if name in HALF else ["--dequantize"]
    done = ckpt("convert", "q.pth", *decode, "--dtype", "float32", "-o", "x.pth")
    assert done.code == 0, done.err
    if form == "state dict":
        assert ckpt("verify", "x.pth").code == 0
    if name == "static":
        assert "scales of activations are kept" in " ".join(done.err.split())
        assert ckpt("filter", "x.pth", "--exclude", "quant.*", "-o", "y.pth").code == 0
    state = torch.load("y.pth" if name == "static" else "x.pth", weights_only=True)
    network.load_state_dict(state, strict=True)
    wanted = dequantised(small)
    assert state.keys() == wanted.keys()
    for key, one in wanted.items():
        torch.testing.assert_close(state[key], one, rtol=0, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_in_memory_are_those_of_the_file(name: str) -> None:
    _, small = saved(name)
    with cs.open_checkpoint("q.pth") as file:
        for given in (small.state_dict(), small):
            with cs.open_checkpoint(given) as memory:
                assert (list(memory), memory.notes) == (list(file), file.notes)
                for key in file:
                    one, other = memory.tensor(key), file.tensor(key)
                    assert one.dtype == other.dtype
                    assert torch.equal(*(each.dequantize() if each.is_quantized else each for each in (one, other)))


def test_a_copy_loads_into_the_quantised_network(ckpt: Run) -> None:
    torch.manual_seed(0)
    layers = [quantised("LSTM", seed)[1].fc for seed in (1, 2)]
    torch.save(nn.Sequential(layers[0]).state_dict(), "q.pth")
    assert ckpt("convert", "q.pth", "-o", "x.pth").code == 0
    state = torch.load("x.pth", weights_only=True)
    assert state["0.weight"].dtype == torch.qint8
    nn.Sequential(layers[1]).load_state_dict(state, strict=True)
    assert torch.equal(layers[1].weight().int_repr(), layers[0].weight().int_repr())
    assert torch.equal(layers[1].bias(), layers[0].bias())


def test_the_scale_of_an_output_stays_with_its_weight(ckpt: Run) -> None:
    saved("static")
    done = ckpt("filter", "q.pth", "--exclude", "fc.scale", "-o", "x.pth")
    assert (done.code, "fc.scale would be left out" in done.err) == (4, True)
    assert ckpt("rename", "q.pth", "--map", "fc=top", "-o", "x.pth").code == 0
    with cs.open_checkpoint("x.pth") as found:
        assert set(found.codes.by_key["top.weight"].keys) == {"top.weight", "top.scale", "top.zero_point"}


def test_unused_scales_of_layers_in_16_bits_are_named(ckpt: Run) -> None:
    saved("Linear in 16 bits")
    done = ckpt("convert", "q.pth", "-o", "x.pth")
    assert "left out: fc.scale, fc.zero_point, head.scale, head.zero_point" in " ".join(done.err.split())


@pytest.mark.costly
@pytest.mark.parametrize("name", ["Linear", "LSTM of two layers", "static"])
def test_every_verb_computes_with_the_decoded_weights(name: str, ckpt: Run) -> None:
    network, first = saved(name, path="a.pth")
    _, second = saved(name, seed=1, path="b.pth")
    assert ckpt("average", "a.pth", "b.pth", "-o", "x.pth").code == 4
    options = ["--encoding", "dequantize", "--exclude", "quant.*"] if name == "static" else ["--encoding", "dequantize"]
    torch.save(network.state_dict(), "plain.pth")
    assert ckpt("transplant", "a.pth", "plain.pth", "-o", "x.pth").code == 4
    assert ckpt("transplant", "a.pth", "plain.pth", *options, "-o", "x.pth").code == 0
    one, other = dequantised(first), dequantised(second)
    for key, value in torch.load("x.pth", weights_only=True).items():
        torch.testing.assert_close(value, one[key], rtol=0, atol=1e-7, msg=key)
    done = ckpt("average", "a.pth", "b.pth", "--encoding", "dequantize", "-o", "y.pth")
    assert (done.code, "scales of activations are kept" in done.err) == (0, name == "static")
    state = torch.load("y.pth", weights_only=True)
    for key in one:
        mean = ((one[key] + other[key]) / 2).to(state[key].dtype)
        torch.testing.assert_close(state[key], mean, rtol=2**-8, atol=0, msg=key)
    done = ckpt("diff", "a.pth", "plain.pth", "--values", "--json")
    assert done.code == 1
    assert "not compared" not in done.out
    assert ckpt("check", "a.pth").code == 0
    assert "PASS" in ckpt("check", "a.pth").out


# What is packed in a way that is not read.


def functional() -> dict[str, Any]:
    """The state dict of a network in which FX quantises a call of ``linear``: its weight has a number for a name."""
    from torch.ao.quantization import QConfigMapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.w = nn.Linear(4, 3), nn.Parameter(torch.randn(2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.fc(x), self.w)

    example = (torch.randn(2, 4),)
    prepared = prepare_fx(Net().eval(), QConfigMapping().set_global(quick_qconfig()), example)
    prepared(*example)
    state: dict[str, Any] = convert_fx(prepared).state_dict()
    return state


def ambiguous() -> dict[str, Any]:
    """Two layers, or two directions of one: with as many inputs as hidden values, nothing tells which."""
    return NETWORKS["LSTM"][1](Recurrent(nn.LSTM, 4, 4, 2).eval()).state_dict()


UNREAD: dict[str, tuple[Callable[[], dict[str, Any]], str, int]] = {
    "a call of linear": (functional, "_packed_weight_0", 6),
    "an LSTM whose layers could be directions": (ambiguous, "rnn._all_weight_values.0.param", 4 * (64 + 64 + 16 + 16) // 2),
}  # fmt: skip
WRITING: dict[str, list[str]] = {
    "convert": ["convert", "q.pth"],
    "dequantize": ["convert", "q.pth", "--dequantize"],
    "filter": ["filter", "q.pth", "--exclude", "fc.**"],
    "rename": ["rename", "q.pth", "--map", "fc=top"],
    "average": ["average", "q.pth", "q.pth"],
    "average of decoded weights": ["average", "q.pth", "q.pth", "--encoding", "dequantize"],
    "merge": ["merge", "q.pth", "q.pth", "-m", "linear", "--weights", "1,1"],
    "passthrough": ["merge", "q.pth", "-m", "passthrough"],
    "transplant": ["transplant", "q.pth", "q.pth"],
}


@pytest.mark.long
@pytest.mark.parametrize("what", UNREAD)
def test_weights_that_are_not_read_are_named_counted_and_refused(what: str, ckpt: Run) -> None:
    make, key, numbers = UNREAD[what]
    torch.save(make(), "q.pth")
    with cs.open_checkpoint("q.pth") as found:
        hidden = [one for one in found if one.startswith(f"{key[:5]}") and found[one].opaque]
        assert sum(found[one].numel for one in hidden) == numbers
        said = next(note for note in found.notes if "packed weights that ckpt does not read" in note)
    assert key in said
    done = ckpt("check", "q.pth")
    assert "WARN" in done.out
    assert key in done.out
    for verb, command in WRITING.items():
        done = ckpt(*command, "-o", "x.pth")
        assert (done.code, key in done.err) == (4, True), (verb, done.err)
        assert not Path("x.pth").exists()
    assert ckpt("inspect", "q.pth", "--stats").code == 0
    assert "not compared" in ckpt("diff", "q.pth", "q.pth", "--values").out
    assert (
        ckpt("filter", "q.pth", *(option for one in hidden for option in ("--exclude", one)), "-o", "x.pth").code == 0
    )


def test_cells_of_a_script_have_other_biases_beside_the_packed_ones(ckpt: Run) -> None:
    saved("cells", "TorchScript")
    done = ckpt("convert", "q.pth", "-o", "x.pth")
    assert (done.code, "lstm._packed_weight_ih.0" in done.err) == (4, True)


def test_tensors_in_memory_that_are_not_read_are_refused() -> None:
    with pytest.raises(cs.PlanError, match="_packed_weight_0"):
        cs.convert(functional())


@pytest.mark.costly
@pytest.mark.parametrize("name", ["Linear", "LSTM", "cells", "static"])
def test_a_script_in_memory_does_not_give_its_packed_weights(name: str) -> None:
    network, small = quantised(name)
    with pytest.raises(cs.ConfigError, match="packed weights.*Save the module with torch.jit.save"):
        cs.convert(torch.jit.script(small))
    outer = nn.Sequential(nn.Linear(2, 2), torch.jit.script(small))
    with pytest.raises(cs.ConfigError, match="the module 1.* is TorchScript with packed weights"):
        cs.convert(outer)
    if name != "static":
        assert len(cs.convert(torch.jit.script(network)).steps) == len(network.state_dict())


def test_a_module_that_pickles_itself_is_not_said_to_be_quantised() -> None:
    from torch import fx

    torch.save(nn.Sequential(fx.symbolic_trace(nn.Linear(3, 4)), nn.Linear(4, 2)), "net.pth")
    found = cs.inspect("net.pth")
    assert list(found.tensors) == ["0.0", "0.1", "1.weight", "1.bias"]
    assert (
        "net.pth: ckpt cannot read 1 module whose class defines its own pickling: 0 (reduce_graph_module)"
        in found.notes
    )
    with pytest.raises(cs.PlanError, match="its module defines how it is pickled.*Save the network's state_dict"):
        cs.convert("net.pth")
    (report,) = [one for one in cs.check("net.pth").rows if one.status.value == "WARN"]
    assert report.id == "other-notes"


@pytest.mark.parametrize("first", [True, False])
def test_numbers_of_tensors_that_are_not_read_leave_other_keys_as_they_are(first: bool) -> None:
    own = {"x._packed_params._packed_params.0": torch.zeros(3, 3), "y": torch.ones(2)}
    packed = {"x._packed_params._packed_params": (torch.ones(2, 2),) * 3}
    torch.save({**packed, **own} if first else {**own, **packed}, "x.pth")
    found = cs.inspect("x.pth").tensors
    assert found["x._packed_params._packed_params.0"].shape == (3, 3)
    assert found["x._packed_params._packed_params.1"].shape == (2, 2)
    assert len(found) == 3


def pair(value: Any) -> dict[str, Any]:
    return {"norm": torch.ones(2), "fc._packed_params.dtype": torch.qint8, "fc._packed_params._packed_params": value}


ODD: dict[str, Any] = {
    "of three": (torch.ones(2, 2), torch.ones(2), None),
    "of a vector": (torch.ones(2), None),
    "of a bias that is a number": (torch.ones(2, 2), 1.0),
    "of lists": ([torch.ones(2, 2)], None),
}


@pytest.mark.parametrize("what", ODD)
def test_a_packed_tuple_of_another_form_is_refused(what: str, ckpt: Run) -> None:
    torch.save(pair(ODD[what]), "q.pth")
    done = ckpt("convert", "q.pth", "-o", "x.pth")
    assert (done.code, "fc._packed_params._packed_params.0" in done.err) == (4, True)


def test_a_packed_weight_takes_no_key_of_another_tensor(ckpt: Run) -> None:
    torch.save({**pair((torch.ones(2, 2), None)), "fc.weight": torch.zeros(2, 2)}, "q.pth")
    with cs.open_checkpoint("q.pth") as found:
        assert torch.equal(found.tensor("fc.weight"), torch.zeros(2, 2))
        assert found["fc._packed_params._packed_params.0"].opaque
    assert ckpt("convert", "q.pth", "-o", "x.pth").code == 4


def test_a_sparse_layer_stores_the_sizes_of_its_blocks_too() -> None:
    weight = torch.quantize_per_tensor(torch.randn(2, 4), 0.1, 0, torch.qint8)
    torch.save(pair((weight, torch.ones(2), 1, 4)), "q.pth")
    with cs.open_checkpoint("q.pth") as found:
        assert list(found) == ["norm", "fc.weight", "fc.bias"]


def test_a_layer_alone_has_keys_without_a_module() -> None:
    layer = quantised("LSTM")[1].fc
    torch.save(layer.state_dict(), "q.pth")
    with cs.open_checkpoint("q.pth") as found:
        assert set(found) == {"scale", "zero_point", "weight", "bias"}


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        return {"amax": torch.ones(2)}

    def set_extra_state(self, state: object) -> None: ...


@pytest.mark.parametrize(
    "healthy",
    [
        {"a": torch.ones(2), "args": argparse.Namespace(mean=torch.ones(2)), "pair": (torch.ones(2, 2), None)},
        WithState().state_dict(),
        {"norm.scale": torch.ones(2), "norm.zero_point": torch.zeros(2, dtype=torch.int64), "w": torch.eye(2)},
        {"a.b.dtype": torch.float32, "a.b.w": torch.ones(2)},
        Convolutional(),
    ],
    ids=["other objects", "extra state", "other scales", "a dtype", "a module"],
)
def test_nothing_is_said_of_other_entries(healthy: Any, ckpt: Run) -> None:
    torch.save(healthy, "q.pth")
    found = cs.inspect("q.pth")
    assert not any("packed" in note for note in found.notes)
    assert not found.codes
    warned = [one for row in cs.check("q.pth").rows for one in row.found]
    assert all(one.status is Status.WARN and "pickle would" in one.what for one in warned)
    assert len(warned) == ("Namespace" in str(healthy) or isinstance(healthy, Convolutional))
    assert ckpt("convert", "q.pth", "-o", "x.pth").code == 0
