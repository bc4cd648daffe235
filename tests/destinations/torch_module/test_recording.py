"""Initial values: drawn as the real constructor draws them, the same whatever else is drawn."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.destinations.torch_module.module import module_target
from ckptsurgeon.trainer.models.hybrid_asr import MODEL

Build = Callable[[], nn.Module]


def target(build: Build) -> cs.TargetSpec:
    return module_target(build, kind="test", name="test")


def drawn(spec: cs.TargetSpec, keys: list[str] | None = None, seed: int = 0) -> dict[str, Tensor]:
    found = {}
    for key, data in spec.initial(list(spec.tensors) if keys is None else keys, seed):
        dtype = getattr(torch, spec.tensors[key].dtype)
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)
        found[key] = flat.reshape(spec.tensors[key].shape)
    return found


class Holder(nn.Module):
    """A module of one parameter, set by a function."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        made = make()
        self.w = nn.Parameter(made) if made.is_floating_point() or made.is_complex() else nn.Buffer(made)


def init(name: str, *shape: int, **arguments: Any) -> Build:
    def make() -> Tensor:
        return getattr(nn.init, name)(torch.empty(*shape), **arguments)

    return lambda: Holder(make)


INITS = {
    "uniform_": init("uniform_", 300, 200, a=-2.0, b=3.0),
    "normal_": init("normal_", 300, 200, mean=1.0, std=0.5),
    "trunc_normal_": init("trunc_normal_", 300, 200, std=0.5, a=-0.6, b=0.7),
    "trunc_normal_ in the tail": init("trunc_normal_", 300, 200, std=1.0, a=1.0, b=2.0),
    "constant_": init("constant_", 30, 20, val=0.3),
    "ones_": init("ones_", 30, 20),
    "zeros_": init("zeros_", 30, 20),
    "eye_": init("eye_", 30, 20),
    "dirac_": init("dirac_", 12, 4, 3, groups=3),
    "dirac_ 2d": init("dirac_", 8, 8, 3, 3),
    "xavier_uniform_": init("xavier_uniform_", 300, 200, gain=1.5),
    "xavier_normal_": init("xavier_normal_", 300, 200),
    "kaiming_uniform_": init("kaiming_uniform_", 300, 200, a=math.sqrt(5)),
    "kaiming_normal_": init("kaiming_normal_", 64, 32, 3, 3, mode="fan_out", nonlinearity="relu"),
    "orthogonal_": init("orthogonal_", 60, 200, gain=2.0),
    "orthogonal_ tall": init("orthogonal_", 200, 60),
    "sparse_": init("sparse_", 100, 40, sparsity=0.3, std=0.5),
}

LAYERS: dict[str, Build] = {
    "Linear": lambda: nn.Linear(300, 200),
    "Bilinear": lambda: nn.Bilinear(20, 30, 40),
    "Conv1d": lambda: nn.Conv1d(64, 128, 5),
    "Conv2d": lambda: nn.Conv2d(32, 64, 3, groups=2),
    "Conv3d": lambda: nn.Conv3d(8, 16, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(32, 64, 3),
    "Embedding": lambda: nn.Embedding(500, 64),
    "Embedding with padding": lambda: nn.Embedding(500, 64, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(500, 64, padding_idx=0),
    "RNN": lambda: nn.RNN(40, 64, 2),
    "LSTM": lambda: nn.LSTM(40, 64, 2, bidirectional=True, proj_size=16),
    "GRU": lambda: nn.GRU(40, 64),
    "MultiheadAttention": lambda: nn.MultiheadAttention(64, 4),
    "MultiheadAttention of three widths": lambda: nn.MultiheadAttention(64, 4, kdim=32, vdim=48, add_bias_kv=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(64, 4, 128),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(64, 4, 128),
    "BatchNorm1d": lambda: nn.BatchNorm1d(64),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(64, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(4, 64),
    "LayerNorm": lambda: nn.LayerNorm(64),
    "RMSNorm": lambda: nn.RMSNorm(64),
    "PReLU": lambda: nn.PReLU(8),
    "AdaptiveLogSoftmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(64, 200, [50, 100]),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(64, 128, 5)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(100, 80)),
    "half": lambda: nn.Linear(300, 200).half(),
    "bfloat16": lambda: nn.Linear(300, 200, dtype=torch.bfloat16),
    "double": lambda: nn.Linear(300, 200).double(),
}


def hybrid(kind: str) -> nn.Module:
    return MODEL.build({**MODEL.fields, "tokens": "<blank>\na\nb", "d_model": 64, "encoder_layers": 2, "encoder": kind})


MODELS: dict[str, Build] = {
    "hybrid_asr conformer": lambda: hybrid("conformer"),
    "hybrid_asr transformer": lambda: hybrid("transformer"),
}


def alike(ours: Tensor, real: Tensor, what: str) -> None:
    """Two draws of one distribution: mean, deviation, bounds, zeros, orthogonality."""
    a, b = ours.double(), real.double()
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    if torch.equal(a, b):
        return
    n = a.numel()
    spread = b.std().item() if n >= 64 else 2 * max(b.abs().max().item(), a.abs().max().item())
    assert abs(a.mean() - b.mean()) < 6 * spread * math.sqrt(2 / n), what
    if n >= 64:
        assert abs(a.std() / b.std() - 1) < 6 / math.sqrt(n) + 0.02, what
    bound = b.abs().max()
    assert a.abs().max() <= bound * (2.5 if n < 64 else 1.6), what
    flat = n >= 500 and (b.abs() > 0.98 * bound).double().mean() > 0.005
    if flat:  # a bounded distribution: ours has the same bounds
        assert abs(a.abs().max() / bound - 1) < 0.02, what
    assert abs((a == 0).double().mean() - (b == 0).double().mean()) < 0.02, what
    if a.ndim == 2:
        assert (a == 0).all(1).tolist() == (b == 0).all(1).tolist(), f"{what}: zeroed rows"


@pytest.mark.parametrize("name", [*INITS, *LAYERS, *MODELS])
def test_initial_values_are_those_of_a_real_construction(name: str) -> None:
    build = {**INITS, **LAYERS, **MODELS}[name]
    spec = target(build)
    assert not any("built with its weights in memory" in note for note in spec.notes), spec.notes
    torch.manual_seed(123)
    real = build().state_dict()
    ours = drawn(spec)
    assert list(ours) == list(real)
    for key, tensor in real.items():
        alike(ours[key], tensor, f"{name} {key}")


@pytest.mark.parametrize("name", ["orthogonal_", "orthogonal_ tall"])
def test_orthogonal_matrices_are_orthogonal(name: str) -> None:
    w = drawn(target(INITS[name]))["w"].double()
    gain = 2.0 if name == "orthogonal_" else 1.0
    w = w if w.shape[0] <= w.shape[1] else w.t()
    assert torch.allclose(w @ w.t(), gain**2 * torch.eye(w.shape[0], dtype=torch.float64), atol=1e-4)


def test_weight_norm_s_magnitude_is_that_of_its_direction() -> None:
    found = drawn(target(LAYERS["weight norm"]))
    g, v = found["parametrizations.weight.original0"], found["parametrizations.weight.original1"]
    assert torch.allclose(g.flatten(), v.flatten(1).norm(dim=1), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = target(lambda: nn.utils.weight_norm(nn.Conv1d(6, 8, 3)))
    found = drawn(old, ["weight_g"]) | drawn(old, ["weight_v"])
    assert torch.allclose(found["weight_g"].flatten(), found["weight_v"].flatten(1).norm(dim=1), atol=1e-6)


class Everything(nn.Module):
    """Ties, templates, views, constants, and values asked for on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=2)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight
        self.rates = [rate.item() for rate in torch.linspace(0, 0.3, 4)]
        self.rates2 = torch.linspace(0, 0.3, 4).tolist()
        self.register_buffer("positions", torch.arange(5).float()[:, None] * torch.exp(torch.arange(3) * 0.1))
        self.register_buffer("table", torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        self.old_style = nn.Parameter(torch.Tensor(6, 4))
        self.old_style.data.uniform_(-0.1, 0.1)
        self.product = nn.Parameter(torch.randn(1000) * torch.randn(1000))
        self.halves = nn.Parameter(torch.empty(100, 4))
        with torch.no_grad():
            self.halves[:50].normal_()
            self.halves[50:] = self.halves[:50] * 2
        self.moved = nn.Parameter(torch.ones(3, device="cuda" if self.rates else "cpu").to("cuda"))


def test_a_constructor_may_do_as_it_likes() -> None:
    spec = target(Everything)
    assert not any("built with its weights in memory" in note for note in spec.notes)
    assert spec.ties == {"out.weight": "embed.weight"}
    assert any("start as copies" in note for note in spec.notes)
    found = drawn(spec)
    assert torch.equal(found["embed.weight"], found["out.weight"])
    assert found["embed.weight"][2].abs().sum() == 0
    layers = [found[f"encoder.layers.{i}.linear1.weight"] for i in range(3)]
    assert torch.equal(layers[0], layers[1])
    assert torch.equal(layers[0], layers[2])
    assert found["table"].tolist() == [[1, 2], [3, 4]]
    assert torch.allclose(found["positions"][1], torch.exp(torch.arange(3) * 0.1))
    assert found["old_style"].abs().max() <= 0.1
    assert found["old_style"].std() > 0.03
    corr = torch.corrcoef(torch.stack([found["product"], found["product"].abs()]))[0, 1]
    assert abs(corr) < 0.2  # two draws, not the square of one
    assert found["product"].mean().abs() < 0.2
    assert torch.equal(found["halves"][50:], found["halves"][:50] * 2)
    assert found["moved"].tolist() == [1, 1, 1]


@pytest.mark.long
@pytest.mark.parametrize("name", ["Everything", "hybrid_asr conformer", "LSTM", "weight norm", "spectral norm"])
def test_a_tensor_is_the_same_whatever_else_is_drawn_and_in_whatever_order(name: str) -> None:
    build: Build = Everything if name == "Everything" else {**LAYERS, **MODELS}[name]
    whole = drawn(target(build), seed=5)
    keys = list(whole)
    random.Random(0).shuffle(keys)
    for key, tensor in drawn(target(build), keys, seed=5).items():
        assert torch.equal(tensor, whole[key]), key
    for key in keys[:4]:
        assert torch.equal(drawn(target(build), [key], seed=5)[key], whole[key]), key
    other = drawn(target(build), seed=6)
    differing = [k for k in keys if whole[k].is_floating_point() and whole[k].numel() > 8 and whole[k].std() > 0]
    constant = {"positions", "table", "frontend.melmat"}
    assert all(not torch.equal(other[k], whole[k]) for k in differing if k not in constant)


def test_the_world_s_random_state_and_threads_are_left_as_they_were() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    drawn(target(Everything))
    drawn(target(AsksForADraw))
    after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.get_num_threads() == threads


def test_init_functions_are_as_they_were() -> None:
    original = nn.init._no_grad_trunc_normal_
    target(INITS["trunc_normal_"])
    assert nn.init._no_grad_trunc_normal_ is original


class AsksForADraw(nn.Module):
    """What the layers are hangs on a drawn value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4))
        self.scale = float(self.w.abs().max())
        self.layer = nn.Linear(4, 3)


class UsesNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(np.random.randn(30)).float())


def test_a_constructor_that_needs_drawn_values_is_built_for_real_and_says_so() -> None:
    spec = target(AsksForADraw)
    assert any("built with its weights in memory" in note and "just drawn" in note for note in spec.notes)
    assert list(spec.tensors) == ["w", "layer.weight", "layer.bias"]
    one = drawn(spec, ["layer.weight"])["layer.weight"]
    assert torch.equal(one, drawn(target(AsksForADraw))["layer.weight"])
    assert not torch.equal(one, drawn(target(AsksForADraw), seed=1)["layer.weight"])


def test_numpy_s_and_python_s_generators_follow_the_seed() -> None:
    a, b = drawn(target(UsesNumpy), seed=1)["w"], drawn(target(UsesNumpy), seed=1)["w"]
    assert torch.equal(a, b)
    assert not torch.equal(a, drawn(target(UsesNumpy), seed=2)["w"])


class Forgets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(5))


def test_a_tensor_that_is_never_set_starts_as_zeros_and_is_said() -> None:
    spec = target(Forgets)
    assert any("never set" in note and "w" in note for note in spec.notes)
    assert drawn(spec)["w"].tolist() == [0] * 5


class SkipsOnMeta(nn.Module):
    """Libraries skip their work on meta tensors; a recorded tensor must not look like one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(50, 50))
        if not self.w.is_meta and self.w.device.type == "cpu":
            nn.init.orthogonal_(self.w)


def test_a_recorded_tensor_looks_like_any_other() -> None:
    spec = target(SkipsOnMeta)
    assert not spec.notes
    w = drawn(spec)["w"].double()
    assert torch.allclose(w @ w.t(), torch.eye(50, dtype=torch.float64), atol=1e-4)


def test_recording_holds_no_storage() -> None:
    spec = target(lambda: nn.Sequential(*(nn.Linear(100_000, 100_000) for _ in range(50))))  # two terabytes
    assert spec.tensors["49.weight"].shape == (100_000, 100_000)


def test_the_caller_may_write_into_what_it_gets() -> None:
    spec = target(Everything)
    for _ in range(2):
        for key, data in spec.initial(["table", "embed.weight"], 0):
            array = np.frombuffer(data, np.float32)
            assert array[0] != 99, key
            array[:] = 99


@pytest.mark.parametrize("restores", [False, True])
def test_a_constructor_that_changes_the_default_dtype_is_drawn_with_it_and_leaves_it(restores: bool) -> None:
    def build() -> nn.Module:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        made = Holder(lambda: torch.randn(300) * 2)
        torch.set_default_dtype(before if restores else torch.float64)
        return made

    spec = target(build)
    assert torch.get_default_dtype() is torch.float32
    values = drawn(spec)["w"]
    assert (values.dtype, torch.get_default_dtype()) == (torch.float64, torch.float32)
    assert 1.5 < float(values.std()) < 2.5
