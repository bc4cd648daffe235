"""Recorded constructors against real ones, bit for bit: every random operation of both starts from one seed."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ckptsurgeon.destinations.torch_module.recording.graph as replay_module
import ckptsurgeon.destinations.torch_module.recording.record as release_module
from ckptsurgeon.destinations.torch_module.module import module_target
from ckptsurgeon.errors import ConfigError

SEED = 42
P = nn.Parameter


class Seeded(TorchDispatchMode):
    """Seeds the generator before each random operation, as a replay does."""

    on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on and torch.Tag.nondeterministic_seeded in func.tags:
            torch.default_generator.manual_seed(SEED)
        return func(*args, **(kwargs or {}))


def real(build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    mode, original = Seeded(), nn.init._no_grad_trunc_normal_

    def one_draw(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        torch.default_generator.manual_seed(SEED)
        mode.on = False
        try:
            return original(tensor, *args, **kwargs)
        finally:
            mode.on = True

    random.seed(0)
    np.random.seed(0)
    with monkeypatch.context() as patch, mode:
        patch.setattr(nn.init, "_no_grad_trunc_normal_", one_draw)
        module = build()
    return {k: v.detach() for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}


def ours(build: Callable[[], nn.Module]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    spec = module_target(build, kind="test", name="test")
    found = {}
    for key, data in spec.initial(list(spec.tensors), 0):
        info = spec.tensors[key]
        flat = torch.frombuffer(bytearray(data), dtype=getattr(torch, info.dtype)) if len(data) else torch.empty(0)
        found[key] = flat.reshape(info.shape)
    return found, spec.notes


class Made(nn.Module):
    def __init__(self, make: Callable[[Any], None]) -> None:
        super().__init__()
        make(self)


CASES: dict[str, Callable[[Any], None]] = {}
FOR_REAL: dict[str, Callable[[Any], None]] = {}


def case(make: Callable[[Any], None]) -> Callable[[Any], None]:
    CASES[make.__name__] = make
    return make


def for_real(make: Callable[[Any], None]) -> Callable[[Any], None]:
    """A constructor that cannot be followed: it is built with storage, and its values are right."""
    FOR_REAL[make.__name__] = make
    return make


# What overwrites a tensor from its own old value.


@case
def scaled_in_place_by_a_copy(s: Any) -> None:
    s.l = nn.Linear(3, 3)
    with torch.no_grad():
        s.l.weight.copy_(s.l.weight * 0.1)


@case
def normalised_embedding(s: Any) -> None:
    s.e = nn.Embedding(5, 3)
    s.e.weight.data.copy_(nn.functional.normalize(s.e.weight.data))


@case
def halved_by_assignment(s: Any) -> None:
    s.e = nn.Embedding(5, 3)
    with torch.no_grad():
        s.e.weight[:] = s.e.weight / 2


@case
def symmetrised(s: Any) -> None:
    w = torch.randn(4, 4)
    w.copy_((w + w.t()) / 2)
    w.copy_(w.flip(0))
    s.w = P(w)


@case
def its_own_state_dict_doubled(s: Any) -> None:
    s.l = nn.Linear(3, 3)
    s.l.load_state_dict({k: v * 2 for k, v in s.l.state_dict().items()})


@case
def moving_average_of_another(s: Any) -> None:
    s.student, s.teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    with torch.no_grad():
        for a, b in zip(s.student.parameters(), s.teacher.parameters(), strict=True):
            b.copy_(b * 0.9 + a * 0.1)


@case
def drawn_again_after_it_was_read(s: Any) -> None:
    w = torch.empty(4)
    w.normal_()
    v = w * 2
    w.uniform_()
    s.w, s.v = P(w), P(v)


@case
def copied_then_the_first_drawn_again(s: Any) -> None:
    s.a, s.b = nn.Linear(4, 4), nn.Linear(4, 4)
    s.b.weight.data.copy_(s.a.weight.data)
    nn.init.normal_(s.a.weight)


@case
def many_rows_one_by_one(s: Any) -> None:
    s.w = P(torch.empty(600, 4))
    with torch.no_grad():
        for i in range(600):
            s.w[i].uniform_(-1 / (i + 1), 1 / (i + 1))


# Indices.


@case
def list_index(s: Any) -> None:
    w = torch.randn(6, 4)
    w[[1, 2]] = 0
    w[:, [0, 3]] = 7
    s.w, s.read = P(w), P(torch.randn(6, 4)[[5, 0]])


@case
def truth_list_index(s: Any) -> None:
    w = torch.randn(3, 4)
    w[[True, False, True]] = 0
    s.w = P(w)


@case
def array_index(s: Any) -> None:
    w = torch.randn(6, 4)
    w[np.array([0, 2])] = 0
    w[list(range(2, 4)), list(range(2))] = 5
    s.w = P(w)


@case
def tensor_index(s: Any) -> None:
    w = torch.randn(6, 4)
    w[torch.tensor([0, 2, 5])] = torch.randn(3, 4)
    w.index_copy_(0, torch.tensor([1]), torch.randn(1, 4))
    w.index_fill_(1, torch.tensor([3]), 3.0)
    s.w = P(w)


@case
def scattered(s: Any) -> None:
    w = torch.randn(6, 4)
    w.scatter_(1, torch.tensor([[0], [1], [2], [3], [0], [1]]), torch.randn(6, 1))
    s.w = P(w)


@case
def permuted_rows(s: Any) -> None:
    s.w = P(torch.randn(6, 4)[torch.randperm(6)])


@case
def masked(s: Any) -> None:
    w = torch.randn(4, 4).masked_fill_(torch.eye(4).bool(), 0)
    s.w = P(torch.where(w > 0, w, torch.zeros_like(w)))


# Constants beside what is drawn.


@case
def made_like_another(s: Any) -> None:
    w = torch.randn(6, 4)
    s.w = P(w)
    s.a, s.b = nn.Buffer(w.new_tensor([1.0, 2.0])), nn.Buffer(w.new([3.0, 4.0]))
    s.c, s.d = nn.Buffer(torch.full_like(w, 3)), nn.Buffer(w.new_ones(2))
    s.e = nn.Buffer(torch.tensor([1.0, 2.0], device=w.device).type_as(w))


@case
def a_constant_changed_after_use(s: Any) -> None:
    a = torch.ones(4)
    s.w = P(torch.empty(4).normal_())
    with torch.no_grad():
        s.w.mul_(a)
    a.add_(1)
    s.b = P(a)


@case
def sinusoids(s: Any) -> None:
    table = torch.zeros(20, 8)
    steps = torch.arange(20).unsqueeze(1) * torch.exp(torch.arange(0, 8, 2) * (-math.log(1e4) / 8))
    table[:, 0::2], table[:, 1::2] = torch.sin(steps), torch.cos(steps)
    s.register_buffer("table", table.unsqueeze(0))


@case
def relative_positions(s: Any) -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")).flatten(1)
    far = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0).contiguous()
    far[:, :, 0] += 2
    far[:, :, 0] *= 5
    s.register_buffer("index", far.sum(-1))
    s.table = P(torch.zeros(25, 2))
    nn.init.trunc_normal_(s.table, std=0.02)


@case
def from_a_changed_array(s: Any) -> None:
    values = torch.zeros(4)
    values.numpy()[1] = 5.0
    s.w = P(values)
    s.v = P(torch.from_numpy(np.linalg.inv(torch.eye(3).numpy() * 2)).float())


@case
def numpy_s_own_draws(s: Any) -> None:
    s.w = P(torch.from_numpy(np.random.default_rng(3).standard_normal((3, 4))).float())
    s.v = P(torch.tensor([random.random() for _ in range(5)]))


# Views, ties, copies, types.


@case
def gates_of_a_recurrent_layer(s: Any) -> None:
    s.r = nn.LSTM(4, 6)
    for w in s.r.weight_hh_l0.chunk(4, 0):
        nn.init.orthogonal_(w)
    s.r.bias_hh_l0.data.fill_(0)
    s.r.bias_hh_l0.data[6:12].fill_(1)


@case
def parts_of_a_projection(s: Any) -> None:
    s.m = nn.MultiheadAttention(8, 2)
    for w in s.m.in_proj_weight.data.chunk(3):
        nn.init.xavier_uniform_(w)


@case
def views_of_one_storage(s: Any) -> None:
    flat = torch.randn(24)
    s.a, s.b, s.c = P(flat[:12].view(3, 4)), P(flat[12:].view(4, 3)), P(flat[8:20])


@case
def drawn_through_a_transposed_view(s: Any) -> None:
    w, v = torch.empty(8, 20), torch.zeros(8, 4)
    w.t().normal_()
    nn.init.trunc_normal_(v.t(), std=0.02)
    s.w, s.v = P(w), P(v)


@case
def padded_data(s: Any) -> None:
    """As transformers pads the bias of an output layer when it ties it."""
    s.l = nn.Linear(3, 5)
    s.b = s.l.bias
    s.own = P(torch.zeros(4))
    nn.init.zeros_(s.own)
    s.own.data = nn.functional.pad(s.own.data, (0, 1), "constant", 2.0)
    s.twice = P(torch.zeros(2))
    nn.init.ones_(s.twice)
    s.twice.data = s.l.bias.data * 2
    s.twice.data.add_(1)


@case
def exchanged_data(s: Any) -> None:
    s.a, s.b = P(torch.empty(4)), P(torch.empty(4))
    nn.init.normal_(s.a)
    nn.init.uniform_(s.b)
    s.a.data, s.b.data = s.b.data, s.a.data


@case
def assigned_state(s: Any) -> None:
    s.a, s.b = nn.Linear(4, 4), nn.Linear(4, 4)
    s.b.load_state_dict(s.a.state_dict(), assign=True)


@case
def deep_copies(s: Any) -> None:
    s.a = nn.Linear(3, 3)
    s.b = copy.deepcopy(s.a)
    nn.init.normal_(s.a.weight)


@case
def other_types(s: Any) -> None:
    s.a, s.b = nn.Linear(3, 4).half(), nn.Linear(3, 4).to(torch.bfloat16)
    s.c = P(torch.randn(4, dtype=torch.cfloat))
    s.d = P(torch.randn(4).to(torch.float8_e4m3fn), requires_grad=False)


@case
def written_to_out(s: Any) -> None:
    w, v = torch.empty(4), torch.empty(4)
    torch.randn(4, out=w)
    torch.add(w, 1, out=v)
    s.w, s.v = P(w), P(v)


@case
def drawn_by_a_distribution(s: Any) -> None:
    s.w = P(torch.distributions.Normal(0.0, 1.0).sample((5,)))
    s.v = P(torch.normal(torch.zeros(3), torch.ones(3)))
    s.u = P(nn.functional.dropout(torch.ones(30), 0.5))


@case
def decomposed(s: Any) -> None:
    q, r = torch.linalg.qr(torch.randn(5, 5))
    s.q, s.r, s.u = P(q), P(r), P(torch.linalg.svd(torch.randn(5, 5))[0])


# Forward passes inside a constructor.


@case
def a_dummy_forward_through_a_batch_norm(s: Any) -> None:
    s.c = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    with torch.no_grad():
        size = s.c(torch.zeros(1, 1, 8, 8)).numel()
    s.f = nn.Linear(size, 2)


@case
def a_forward_through_a_spectral_norm(s: Any) -> None:
    s.l = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    s.l(torch.randn(1, 3))


@case
def one_step_of_training(s: Any) -> None:
    s.l = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(s.l.parameters(), 0.1)
    s.l(torch.ones(1, 3)).sum().backward()
    optimizer.step()


# What cannot be followed.


@for_real
def reads_a_file(s: Any) -> None:
    torch.save({"mean": torch.arange(4.0)}, "stats.pth")
    s.register_buffer("mean", torch.load("stats.pth", weights_only=True)["mean"])


@for_real
def through_a_pickle(s: Any) -> None:
    import pickle

    s.l = pickle.loads(pickle.dumps(nn.Linear(4, 4)))


@for_real
def an_array_read_after_its_tensor_is_drawn(s: Any) -> None:
    array = np.zeros(4, dtype=np.float32)
    nn.init.normal_(torch.from_numpy(array))
    s.w = P(torch.from_numpy(array * 2))


@for_real
def part_of_a_large_array(s: Any) -> None:
    w = torch.from_numpy(np.full((400_000, 50), 5.0, dtype=np.float32))
    w[:10].normal_()
    s.w = P(w[-20:].clone())


@for_real
def a_failure_that_is_caught(s: Any) -> None:
    s.w = P(torch.randn(4))
    try:
        s.scale = float(s.w.abs().max())
    except Exception:
        s.w = P(torch.zeros(4))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape), key
        ours, theirs = (torch.view_as_real(t) if t.is_complex() else t.double() for t in (found[key], value))
        assert torch.equal(ours, theirs), key


@pytest.fixture(autouse=True)
def _one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "derived_seed", lambda *_: SEED)


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_constructor_gives_what_a_real_one_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = functools.partial(Made, CASES[name])
    found, notes = ours(build)
    assert not [note for note in notes if "built with its weights in memory" in note]
    same(found, real(build, monkeypatch))


@pytest.mark.parametrize("name", FOR_REAL)
def test_what_cannot_be_followed_is_built_for_real(name: str) -> None:
    build = functools.partial(Made, FOR_REAL[name])
    found, notes = ours(build)
    assert [note for note in notes if "built with its weights in memory" in note]
    torch.manual_seed(0)
    same(found, {key: value.detach() for key, value in build().state_dict().items()})


@functools.lru_cache
def cached_table() -> Tensor:
    return torch.empty(4).fill_(3.0)


@pytest.mark.long
def test_a_tensor_that_outlives_its_constructor_has_values() -> None:
    def make(s: Any) -> None:
        s.register_buffer("table", cached_table())
        s.l = nn.Linear(2, 2)

    cached_table.cache_clear()
    build = functools.partial(Made, make)
    for _ in range(2):
        found, _notes = ours(build)
        assert found["table"].tolist() == [3.0] * 4
    assert cached_table().tolist() == [3.0] * 4


@pytest.mark.long
def test_what_is_too_large_to_be_given_values_is_never_taken_for_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "MAX_BYTES", 0)

    def make(s: Any) -> None:
        s.register_buffer("table", cached_table())

    cached_table.cache_clear()
    build = functools.partial(Made, make)
    ours(build)
    with pytest.raises(ConfigError, match="have no values .they are on the meta device.: table"):
        ours(build)
    cached_table.cache_clear()


def test_equal_layers_start_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found, _ = ours(lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert not torch.equal(found["0.weight"], found["1.weight"])


def test_only_true_copies_are_called_copies() -> None:
    def make(s: Any) -> None:
        s.a = nn.Linear(3, 3)
        s.b, s.c = copy.deepcopy(s.a), copy.deepcopy(s.a)
        s.c.weight.data.mul_(2)
        s.c.bias.data.mul_(2)

    _, notes = ours(functools.partial(Made, make))
    assert [note for note in notes if "copies" in note] == [
        "2 tensors start as copies of tensors of another layer: b.weight, b.bias"
    ]
