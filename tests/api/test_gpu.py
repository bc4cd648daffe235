"""Checkpoints that were saved from a GPU, and modules that live on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ckptsurgeon as cs

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key].cpu(), b[key].cpu()) for key in a)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_a_file_saved_from_a_gpu_is_read_without_one(modern: bool) -> None:
    net = Net().cuda()
    fp8 = torch.randn(4, 4, device="cuda").to(torch.float8_e4m3fn)
    extra = {"half": torch.randn(3, 3, device="cuda").bfloat16().t()} | ({"fp8": fp8} if modern else {})
    torch.save({**net.state_dict(), **extra}, "gpu.pth", _use_new_zipfile_serialization=modern)
    expected = torch.load("gpu.pth", map_location="cpu", weights_only=True)
    ckpt = cs.open_checkpoint("gpu.pth")
    assert list(ckpt) == list(expected)
    assert ckpt.ties == {"out.weight": "embed.weight"}
    for key, value in expected.items():
        read = ckpt.tensor(key)
        assert read.device.type == "cpu"
        assert read.dtype == value.dtype
        assert torch.equal(read.float(), value.float())


def test_tensors_on_a_gpu_are_a_checkpoint() -> None:
    net = Net().cuda()
    state = {**net.state_dict(), "half": torch.randn(3, 5, device="cuda").bfloat16().t()[1:]}
    here = {key: value.cpu() for key, value in state.items()}
    with cs.open_checkpoint(state) as checkpoint:
        assert checkpoint.ties == {"out.weight": "embed.weight"}
        assert same({key: checkpoint.tensor(key) for key in checkpoint}, here)
    cs.apply(cs.convert(state), "out.pth")
    assert same(torch.load("out.pth"), here)
    assert cs.verify("out.pth", sources={"<dict>": here}).compared == len(here)
    other = Net().cuda()
    cs.load_into(other, net)
    assert same(other.state_dict(), net.state_dict())


def test_a_large_tensor_on_a_gpu_is_fetched_in_blocks() -> None:
    whole = torch.zeros(1 << 27, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cs.apply(cs.filter({"w": whole}), "out.safetensors")
    assert torch.cuda.max_memory_allocated() - before < 1 << 26


def test_a_transplant_of_a_gpu_file_is_verified() -> None:
    net = Net().cuda()
    torch.save({"model": net.state_dict(), "optimizer": torch.optim.Adam(net.parameters()).state_dict()}, "gpu.pth")
    Path("dst.yaml").write_text(
        "model: {_target_: torch.nn.ModuleDict, modules: {body: {_target_: torch.nn.Linear, in_features: 4, out_features: 5}}}"
    )
    cs.apply(cs.transplant("gpu.pth", "dst.yaml"), "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert torch.equal(load_file("out.safetensors")["body.weight"], net.body.weight.cpu())


def test_a_module_on_a_gpu_is_loaded_in_place() -> None:
    theirs, ours = Net(), Net().cuda().bfloat16()
    save_file({key: value for key, value in theirs.state_dict().items() if key != "out.weight"}, "src.safetensors")
    places = {key: value.data_ptr() for key, value in ours.state_dict().items()}
    plan = cs.load_into(ours, "src.safetensors")
    assert plan.counts == {"cast": 8, "copied": 1}
    assert {key: value.data_ptr() for key, value in ours.state_dict().items()} == places
    assert ours.out.weight is ours.embed.weight
    assert same(ours.state_dict(), theirs.bfloat16().state_dict())


def test_a_failed_load_changes_nothing_on_the_gpu() -> None:
    ours = Net().cuda()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    save_file({"body.weight": torch.zeros(5, 4), "body.bias": torch.zeros(6)}, "bad.safetensors")
    with pytest.raises(cs.PlanError, match="body.bias"):
        cs.load_into(ours, "bad.safetensors")
    assert same(ours.state_dict(), before)


def test_values_are_drawn_on_the_cpu_whatever_the_default_device_is() -> None:
    Path("dst.yaml").write_text(
        "model: {tensors: {a: {shape: [64, 64], init: kaiming_uniform}, b: {shape: [2], init: ones}}}"
    )
    save_file({"b": torch.zeros(2)}, "src.safetensors")
    cs.apply(cs.transplant("src.safetensors", "dst.yaml"), "cpu.safetensors")
    states = torch.cuda.get_rng_state(), torch.get_rng_state()
    with torch.device("cuda"):
        cs.apply(cs.transplant("src.safetensors", "dst.yaml"), "gpu.safetensors")
    assert Path("cpu.safetensors").read_bytes() == Path("gpu.safetensors").read_bytes()
    assert torch.equal(states[0], torch.cuda.get_rng_state())
    assert torch.equal(states[1], torch.get_rng_state())


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {"weights": [0.3, 0.7]}),
        ("slerp", {"t": 0.3}),
        ("ties", {"weights": [1, 1], "density": 0.5, "base": "base.safetensors"}),
        ("dare_ties", {"weights": [1, 1], "density": 0.5, "base": "base.safetensors"}),
        ("model_stock", {"base": "base.safetensors"}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merge_on_a_gpu_is_near_the_one_of_numpy(method: str, more: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = {"w": torch.randn(3000, 2000), "v": torch.randn(9)}
    for name in ("a", "b", "base"):
        state = {key: (value + 0.1 * torch.randn(value.shape)).to(dtype) for key, value in base.items()}
        save_file(state, f"{name}.safetensors")
    for device in ("cpu", "cuda"):
        plan = cs.merge(["a.safetensors", "b.safetensors"], method=method, device=device, **more)
        cs.apply(plan, f"{device}.safetensors")
    found = cs.verify("cuda.safetensors")
    assert found.ok, found.failed
    assert found.near == 2
    ours, theirs = load_file("cpu.safetensors"), load_file("cuda.safetensors")
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert all(torch.allclose(ours[key], theirs[key], rtol=tolerance, atol=1e-5) for key in ours)
