"""The caller's own settings of torch change nothing of what is read, drawn or loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

NET = """
import torch
from torch import nn

class Ambient(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        nn.init.trunc_normal_(self.head.weight)
        nn.init.orthogonal_(self.head.bias.view(2, 3))
        self.register_buffer("positions", torch.arange(10.0).sin())
"""

DECLARED = """
model:
  tensors:
    body.weight: {shape: [5, 4]}
    body.bias: {shape: [5]}
    head.weight: {shape: [6, 5], init: {normal: {std: 0.02}}}
    ids: {shape: [1, 4], dtype: int64, init: arange}
"""


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _seeded() -> Iterator[None]:
    torch.manual_seed(77)
    yield


AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "another default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu"),
    "deterministic algorithms": _deterministic,
    "another random state": _seeded,
}


@pytest.fixture(params=AMBIENT)
def ambient(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[object]]:
    return AMBIENT[request.param]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Path("ambient_net.py").write_text(NET)
    Path("factory.yaml").write_text("model: {_target_: ambient_net.Ambient}")
    Path("declared.yaml").write_text(DECLARED)
    torch.manual_seed(3)
    torch.save(nn.ModuleDict({"body": nn.Linear(4, 5)}).state_dict(), "src.pth")
    yield
    sys.modules.pop("ambient_net", None)


@pytest.mark.costly
@pytest.mark.parametrize("config", ["factory.yaml", "declared.yaml"])
def test_an_output_is_the_same_bytes(config: str, ambient: Callable[[], AbstractContextManager[object]]) -> None:
    cs.apply(cs.transplant("src.pth", config), "plain.safetensors")
    state = torch.get_rng_state()
    with ambient():
        cs.apply(cs.transplant("src.pth", config), "ambient.safetensors")
    assert Path("plain.safetensors").read_bytes() == Path("ambient.safetensors").read_bytes()
    assert config == "declared.yaml" or len(cs.open_checkpoint("plain.safetensors")) == 10
    assert ambient is AMBIENT["another random state"] or torch.equal(torch.get_rng_state(), state)


def test_a_tensor_is_read_to_the_cpu(ambient: Callable[[], AbstractContextManager[object]]) -> None:
    with ambient():
        tensor = cs.open_checkpoint("src.pth").tensor("body.weight")
    assert tensor.device == torch.device("cpu")
    assert torch.equal(tensor, torch.load("src.pth", weights_only=True)["body.weight"])


def test_tensors_in_memory_are_read(ambient: Callable[[], AbstractContextManager[object]]) -> None:
    state = torch.load("src.pth", weights_only=True)
    with ambient():
        cs.apply(cs.convert(state), "memory.pth")
        assert cs.open_checkpoint(state).tensor("body.weight").device == torch.device("cpu")
    assert cs.diff("memory.pth", "src.pth", values=True).identical == len(state)


def test_a_module_is_loaded(ambient: Callable[[], AbstractContextManager[object]]) -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 5)})
    with ambient():
        cs.load_into(model, "src.pth")
    values = torch.load("src.pth", weights_only=True)["body.weight"]
    assert torch.equal(model["body"].weight, values)
    assert model["body"].weight.requires_grad
    assert not model["body"].weight.is_inference()
