"""Weights that a constructor loads from files: found, named, copied, or left out."""

from __future__ import annotations

import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import ckptsurgeon as cs

BODY = {"0.weight": torch.arange(16.0).reshape(4, 4), "0.bias": torch.zeros(4), "1.weight": torch.full((4,), 2.0)}
LOADS = {
    "torch": "self.body.load_state_dict(torch.load('body.bin')['model'], strict=False)",
    "safetensors": "self.body.load_state_dict(safetensors.torch.load_file('body.bin'), strict=False)",
    "safe_open": """
        with safetensors.safe_open('body.bin', 'pt') as file, torch.no_grad():
            for key in file.keys():
                self.body.get_parameter(key).copy_(file.get_tensor(key))""",
    "numpy": """
        for key, array in np.load('body.bin').items():
            self.body.get_parameter(key).data = torch.from_numpy(array)""",
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    sys.modules.pop("loading", None)


def network(how: str) -> None:
    """Write a network whose constructor loads its body from ``body.bin``, and its source for the head."""
    Path("loading.py").write_text(
        textwrap.dedent("""
        import numpy as np, safetensors, safetensors.torch, torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
                self.head = nn.Linear(4, 2)
        """)
        + textwrap.indent(textwrap.dedent(how).strip(), " " * 8)
        + "\n"
    )
    Path("net.yaml").write_text("model: {_target_: loading.Net}\n")
    torch.save({"head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)}, "src.pth")


def body(how: str) -> None:
    network(LOADS[how])
    if how == "torch":
        torch.save({"model": BODY, "epoch": 3}, "body.bin")
    elif how == "numpy":
        with open("body.bin", "wb") as file:
            np.savez(file, **{key: value.numpy() for key, value in BODY.items()})
    else:
        safetensors.torch.save_file(BODY, "body.bin")


@pytest.mark.parametrize("how", LOADS)
def test_what_a_constructor_loads_is_copied_from_its_file(how: str, ckpt: Any) -> None:
    body(how)
    before = safetensors.safe_open
    plan = cs.transplant("src.pth", "net.yaml")
    assert safetensors.safe_open is before
    assert plan.counts == {"copied": 5, "initialised": 1}  # body.1.bias is in no file
    assert [(one.name, one.role) for one in plan.sources] == [("src.pth", "source"), ("body.bin", "initial")]
    assert {step.key: (step.source_key, step.rule) for step in plan.steps if step.source == 1} == {
        f"body.{key}": (key, "loaded by its constructor") for key in BODY
    }
    assert "its constructor loads 3 tensors from body.bin" in plan.notes
    cs.apply(plan, "out.pth")
    made = torch.load("out.pth")
    assert all(made[f"body.{key}"].equal(value) for key, value in BODY.items())
    assert "equal to their source        5, bit for bit" in ckpt("verify", "out.pth").out
    shown = " ".join(ckpt("transplant", "src.pth", "net.yaml", "-n", "--explain", "body.0.weight").out.split())
    assert "from body.bin: 0.weight (4, 4) float32 rule loaded by its constructor because no source has it" in shown


def test_a_source_goes_before_what_a_constructor_loads() -> None:
    body("torch")
    torch.save({"body.0.weight": torch.ones(4, 4)}, "src.pth")
    plan = cs.transplant("src.pth", "net.yaml", exclude=[])
    assert next(step for step in plan.steps if step.key == "body.0.weight").source == 0
    torch.save({f"body.{key}": value for key, value in BODY.items()}, "src.pth")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [one.name for one in plan.sources] == ["src.pth"]  # the constructor's file is no input then


def test_loaded_weights_alone_are_nothing_from_a_source() -> None:
    body("torch")
    torch.save({"other": torch.ones(2)}, "src.pth")
    with pytest.raises(cs.PlanError, match="nothing would be loaded"):
        cs.transplant("src.pth", "net.yaml")
    torch.save({"head.bias": torch.ones(2)}, "src.pth")
    with pytest.raises(cs.PlanError, match="--require body is not met"):
        cs.transplant("src.pth", "net.yaml", require=["body"])
    with pytest.raises(cs.PlanError, match="5 destination tensors in no source"):
        cs.transplant("src.pth", "net.yaml", on_missing="error")


def test_a_plan_in_a_file_refuses_weights_that_have_changed() -> None:
    body("torch")
    plan = cs.Plan.from_json(cs.transplant("src.pth", "net.yaml").to_json())
    cs.apply(plan, "out.pth")
    torch.save({"model": {**BODY, "0.weight": torch.ones(4, 4)}, "epoch": 3}, "body.bin")
    with pytest.raises(cs.PlanError, match=r"body.bin has changed"):
        cs.apply(plan, "again.pth")


def test_weights_of_another_dtype_are_casts_of_their_file() -> None:
    network("self.body.load_state_dict({k: v.float() for k, v in torch.load('half.bin').items()}, strict=False)")
    torch.save({key: value.bfloat16() for key, value in BODY.items()}, "half.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "cast": 3, "initialised": 1}
    cs.apply(plan, "out.pth")
    assert torch.load("out.pth")["body.0.weight"].equal(BODY["0.weight"])


def test_tensors_of_one_value_are_only_taken_for_loaded_where_the_names_agree() -> None:
    network("self.stats = torch.load('ones.bin')")
    torch.save({"other.weight": torch.ones(4), "body.1.weight": torch.ones(4)}, "ones.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert [step.key for step in plan.steps if step.source == 1] == ["body.1.weight"]
    torch.save({"other.weight": torch.ones(4)}, "ones.bin")
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "initialised": 4}
    assert "its constructor reads ones.bin, and no tensor is copied from it unchanged" in plan.notes


def test_shards_are_given_as_their_folder() -> None:
    network("""
        for name in ('a', 'b'):
            self.body.load_state_dict(safetensors.torch.load_file(f'folder/{name}.safetensors'), strict=False)
    """)
    Path("folder").mkdir()
    safetensors.torch.save_file({"0.weight": BODY["0.weight"]}, "folder/a.safetensors")
    safetensors.torch.save_file({"1.weight": BODY["1.weight"]}, "folder/b.safetensors")
    Path("folder/model.safetensors.index.json").write_text(
        '{"weight_map": {"0.weight": "a.safetensors", "1.weight": "b.safetensors"}}'
    )
    plan = cs.transplant("src.pth", "net.yaml")
    assert [(one.name, one.path) for one in plan.sources] == [("src.pth", "src.pth"), ("folder", "folder")]
    assert plan.counts == {"copied": 4, "initialised": 2}


# Without them.


@pytest.mark.parametrize("how", ["torch", "safetensors"])
def test_without_constructor_weights_the_model_keeps_its_own_initial_values(how: str, ckpt: Any) -> None:
    body(how)
    plan = cs.transplant("src.pth", "net.yaml", constructor_weights=False)
    assert plan.counts == {"copied": 2, "initialised": 4}
    assert "its constructor reads body.bin, and its weights are left out" in plan.notes
    cs.apply(cs.Plan.from_json(plan.to_json()), "out.pth")
    assert torch.load("out.pth")["body.1.weight"].eq(1).all()  # torch's own
    done = ckpt("transplant", "src.pth", "net.yaml", "--no-constructor-weights", "-o", "same.pth")
    assert done.code == 0
    assert torch.load("same.pth")["body.0.weight"].equal(torch.load("out.pth")["body.0.weight"])


def test_weights_that_cannot_be_left_out_have_to_come_from_a_source() -> None:
    body("numpy")
    with pytest.raises(
        cs.PlanError,
        match=r"has a constructor that reads body.0.weight, .* from body.bin.*leave --no-constructor-weights",
    ):
        cs.transplant("src.pth", "net.yaml", constructor_weights=False)
    torch.save({f"body.{key}": value for key, value in BODY.items()}, "src.pth")
    assert cs.transplant("src.pth", "net.yaml", constructor_weights=False).counts == {"copied": 3, "initialised": 3}


def test_only_built_destinations_have_a_constructor() -> None:
    network("pass")
    for destination in ("src.pth", {"a": torch.ones(1)}):
        with pytest.raises(cs.ConfigError, match="--no-constructor-weights is for destinations that code builds"):
            cs.transplant("src.pth", destination, constructor_weights=False)


# Hosts.


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", gone)


@pytest.mark.usefixtures("_no_network")
def test_a_host_that_cannot_be_reached_is_an_error_at_once() -> None:
    network("""
        with open('tried', 'a') as file:
            file.write('x')
        import urllib.request
        urllib.request.urlopen('http://weights.example/body.bin')
    """)
    before = socket.create_connection
    with pytest.raises(
        cs.SourceError, match=r"its constructor asks weights.example, which cannot be reached. URLError"
    ):
        cs.transplant("src.pth", "net.yaml")
    assert Path("tried").read_text() == "x"  # not a second time with storage
    assert socket.create_connection is before


@pytest.mark.usefixtures("_no_network")
def test_a_constructor_that_does_without_its_host_is_built_and_the_host_named(monkeypatch: pytest.MonkeyPatch) -> None:
    network("""
        import socket
        try:
            socket.create_connection(('weights.example', 80))
        except OSError:
            pass
    """)
    plan = cs.transplant("src.pth", "net.yaml")
    assert plan.counts == {"copied": 2, "initialised": 4}


def test_a_host_that_was_asked_is_named() -> None:
    network("import socket; socket.getaddrinfo('localhost', 80)")
    assert "its constructor asked localhost" in cs.transplant("src.pth", "net.yaml").notes
