"""A step of pre-training never waits for the device: on one whose tensors hold nothing, nothing is there to be read."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.loop import gradient_step
from ckptsurgeon.trainer.parallel.parallel_model import ParallelModel
from ckptsurgeon.trainer.state.ema import EMA
from ckptsurgeon.trainer.state.freezing import parameter_rules
from ckptsurgeon.trainer.state.optimizer import Optimizer
from ckptsurgeon.trainer.step import StepResult
from ckptsurgeon.trainer.tasks._task import Batch, Loss

from .waves import SMALL, batch_of, model_of, task_for

pytest.importorskip("transformers")


class NoWaitedCopies(TorchDispatchMode):  # type: ignore[misc]
    """Fails for copies between devices that are waited for; reading a tensor of the meta device is torch's own error."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is torch.ops.aten._to_copy.default and not given.get("non_blocking"):
            assert given.get("device", args[0].device) == args[0].device, "a copy is waited for"
        if func is torch.ops.aten.copy_.default and not (len(args) > 2 and args[2]):
            assert args[0].device == args[1].device, "a copy is waited for"
        return func(*args, **given)


class OnMeta:
    """Pre-training on the meta device, which stands for a GPU: batches come from the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
        monkeypatch.setattr(
            sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]
        )
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
        model = model_of(SMALL)
        model.config._attn_implementation = attention
        self.task = task_for(model)
        self.batches = [batch_of(self.task, 6400, 6400), batch_of(self.task, 6400, 6000)]
        self.model = model.to("meta").train()
        self.settings = parse_settings({"clip": 1.0, "ema": 0.9}, "x")
        free = parameter_rules(self.settings, [name for name, _ in self.model.named_parameters()])
        self.optimizer = Optimizer(self.settings, dict(self.model.named_parameters()), free)
        self.average = EMA(self.model, 0.9)

    def step(self) -> StepResult:
        with NoWaitedCopies():
            self.task.begin_step(self.model, 3)
            stepped = gradient_step(
                ParallelModel(self.model), self.task, self.batches, self.optimizer, settings=self.settings
            )
            self.average.update()
        return stepped


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_step_reads_nothing_of_the_device(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = OnMeta(monkeypatch, attention)
    for _ in range(2):
        stepped = made.step()
        assert {
            one.device.type for one in (stepped.loss, stepped.grad_norm, stepped.is_skipped, *stepped.parts.values())
        } == {"meta"}
        assert (stepped.counts.clips, stepped.counts.used, stepped.counts.room) == (4, 3 * 6400 + 6000, 4 * 6400)


@pytest.mark.parametrize(
    "waits",
    [
        lambda loss: float(loss.total),
        lambda loss: bool(loss.total > 0),
        lambda loss: loss.total[loss.total > 0],
        lambda loss: loss.total.cpu(),
        lambda loss: loss.total + torch.ones(3).to("meta"),
    ],
    ids=["number", "truth", "choice", "copied from", "copied to"],
)
def test_what_is_waited_for_would_be_found(waits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = OnMeta(monkeypatch, "sdpa")
    sound = made.task.loss

    def waiting(model: nn.Module, batch: Batch) -> Loss:
        loss = sound(model, batch)
        waits(loss)
        return replace(loss)

    made.task.loss = waiting  # type: ignore[method-assign]
    with pytest.raises((AssertionError, RuntimeError), match=r"waited for|meta|no data"):
        made.step()
