"""Operations of a step: those of the formulas, counted without changing the step, and logged."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ckptsurgeon.trainer.config.settings import Settings
from ckptsurgeon.trainer.log import StepCounts, StepResult, log_rows, read_log
from ckptsurgeon.trainer.system.flops import FlopCounter, peak_flops, peak_of
from ckptsurgeon.trainer.tasks._contrastive import most_masked
from ckptsurgeon.trainer.tasks._task import Batch

from . import toy
from .waves import task_for


def test_dense_and_recurrent_layers_are_counted_forwards_and_backwards() -> None:
    x = torch.randn(4, 10, 8, requires_grad=True)
    for model, forwards in (
        (nn.Linear(8, 16), 2 * 40 * 8 * 16),
        (nn.LSTM(8, 16, batch_first=True, bidirectional=True), 2 * 40 * (8 * 64 + 16 * 64) * 2),
    ):
        with FlopCounter() as counted:
            found = model(x)
            found = found[0] if isinstance(found, tuple) else found
            assert counted.flops == forwards
            found.sum().backward()
        assert counted.flops == 3 * forwards


@pytest.mark.parametrize(
    ("layer", "size", "forwards"),
    [
        (nn.Conv1d(8, 12, 3, groups=4, stride=2, padding=1), (2, 8, 20), 2 * 2 * 10 * 12 * 2 * 3),
        (nn.ConvTranspose1d(8, 12, 3, groups=4), (2, 8, 20), 2 * 2 * 20 * 8 * 3 * 3),
        (nn.Conv2d(8, 4, 3, groups=2), (2, 8, 9, 9), 2 * 2 * 49 * 4 * 4 * 9),
    ],
    ids=["grouped", "transposed", "two dimensions"],
)
def test_convolutions_are_counted_by_their_groups(layer: nn.Module, size: tuple[int, ...], forwards: int) -> None:
    x = torch.randn(size, requires_grad=True)
    with FlopCounter() as counted:
        found = layer(x)
        assert counted.flops == forwards
        found.sum().backward()
    assert counted.flops == 3 * forwards
    with FlopCounter() as counted:
        layer(x.detach()).sum().backward()
    assert counted.flops == 2 * forwards


def test_attention_on_a_cpu_is_counted() -> None:
    given = [torch.randn(2, 4, 50, 16, requires_grad=True) for _ in range(3)]
    forwards = 2 * 2 * (2 * 4) * 50 * 50 * 16
    with FlopCounter() as counted:
        found = nn.functional.scaled_dot_product_attention(*given)
        assert counted.flops == forwards
        found.sum().backward()
    assert counted.flops == forwards * 3.5  # the scores are worked out again


@pytest.mark.long
def test_a_step_of_wav2vec2_base_is_seven_teraflop(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 10 s, as arithmetic has it; nothing is computed, and no memory is taken."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(Batch, "is_padded", False)  # fake tensors have no values that could tell
    batch, samples = 16, 160_000
    with FakeTensorMode():
        model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(layerdrop=0.0)).train()
        task = task_for(model, mask_prob=0.65)
        masked = most_masked(499, 0.65, 10, fewest=2)
        one = torch.zeros(batch, dtype=torch.int64)
        places = torch.zeros(batch, masked, dtype=torch.int64)
        extras = {"negatives": torch.zeros(batch, masked, 100, dtype=torch.int64)}
        given = Batch(torch.zeros(batch, samples), one, places, one, 160.0, ("",) * batch, extras)
        task.begin_step(model, 0)
        with FlopCounter() as counted:
            loss = task.loss(model, given)
            forwards = counted.flops
            loss.total.backward()
    assert forwards == arithmetic(batch, samples, masked)
    first = 2 * batch * 31_999 * 512 * 10  # nobody wants a gradient of the waves
    assert counted.flops == pytest.approx(3 * forwards - first, rel=0.01)  # attention on a GPU has its scores again
    assert counted.flops == pytest.approx(7.13e12, rel=0.01)


def arithmetic(batch: int, samples: int, masked: int) -> int:
    """Operations of the forward pass of wav2vec2-base: https://arxiv.org/abs/2006.11477, section 4.2."""
    frames, channels, total = samples, 1, 0
    for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        frames = (frames - kernel) // stride + 1
        total += batch * frames * 512 * channels * kernel
        channels = 512
    total += batch * frames * 512 * 768  # into the transformer
    total += batch * (frames + 1) * 768 * (768 // 16) * 128  # where things stand
    total += 12 * batch * frames * (4 * 768**2 + 2 * 768 * 3072 + 2 * frames * 768)
    total += batch * masked * (512 * 640 + 2 * 320 * 128 + 256 * 256 + 768 * 256 + masked * 256)
    return 2 * total


def test_counting_changes_nothing_and_is_logged() -> None:
    counted, plain = toy.loop(folder="run", steps=6), toy.loop(steps=6)
    plain.state.flops_per_place = 0.0
    for loop in (counted, plain):
        loop.run()
    assert toy.equal(counted, plain)
    rows = [row for row in read_log("run/log.jsonl") if "flops" in row]
    assert len(rows) == 6
    dense = 8 * 16 + 16 * 16
    places = 8 * 12  # clips and frames, of which the first layer's input needs no gradient
    assert rows[0]["flops"] == pytest.approx(2 * places * (3 * dense - 8 * 16), rel=0.05)
    assert "utilisation" not in rows[0]


def test_utilisation_is_a_share_of_a_known_peak() -> None:
    one = torch.zeros(())
    stepped = StepResult(one, {}, one, one, StepCounts(2, 0, 5, 10, 0.0))
    (row,) = log_rows([(1, {}, stepped)], 0.0, flops=100.0, peak=1e3)
    assert row["flops"] == 1000
    assert row["utilisation"] == pytest.approx(row["clips_s"] / 2)
    assert peak_flops(Settings(), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "float32"),
    [
        ("NVIDIA H200", 989e12, 494e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 417e12, 60e12),
        ("NVIDIA H100 NVL", 835e12, 417e12, 60e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA L4", 121e12, 60e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 183e12, 91.6e12),
        ("NVIDIA L40", None, None, None),
    ],
)
def test_peaks_are_known_by_name(name: str, bf16: float | None, tf32: float | None, float32: float | None) -> None:
    assert tuple(peak_of(name, precision) for precision in ("bf16", "tf32", "float32")) == (bf16, tf32, float32)


@pytest.mark.parametrize("name", ["_ctc_loss", "_ctc_loss_backward"])
def test_ctc_lengths_are_where_the_losses_are(name: str) -> None:
    """While a mode is active torch hands lengths on as they are, and a GPU refuses those of the CPU."""
    seen: list[str] = []

    def operation(*args: object) -> torch.Tensor:
        seen.extend(one.device.type if isinstance(one, torch.Tensor) else type(one).__name__ for one in args)
        return torch.empty(2, device="meta")

    operation._overloadpacket = getattr(torch.ops.aten, name)  # type: ignore[attr-defined]
    given = (torch.empty(9, 2, 3, device="meta"), torch.empty(2, 4, device="meta"), torch.ones(2), torch.ones(2), 0)
    FlopCounter().__torch_dispatch__(operation, (), given)
    assert seen == ["meta"] * 4 + ["int"]


def test_ctc_is_the_same_where_operations_are_counted() -> None:
    scores = torch.randn(9, 2, 3).log_softmax(-1).requires_grad_()
    given = (torch.tensor([[1, 2], [2, 1]]), torch.tensor([9, 7]), torch.tensor([2, 1]))
    plain = nn.functional.ctc_loss(scores, *given)
    with FlopCounter():
        counted = nn.functional.ctc_loss(scores, *given)
        found = torch.autograd.grad(counted, scores)
    assert torch.equal(counted, plain)
    assert torch.equal(found[0], torch.autograd.grad(plain, scores)[0])
