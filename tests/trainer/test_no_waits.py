"""A step of no task waits for the device: on one whose tensors hold nothing, nothing is there to be read."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.log import StepResult
from ckptsurgeon.trainer.loop import gradient_step
from ckptsurgeon.trainer.models.deepspeech import DeepSpeech
from ckptsurgeon.trainer.models.hybrid_asr import HybridASR
from ckptsurgeon.trainer.parallel.ranks import ParallelModel
from ckptsurgeon.trainer.state.ema import EMA
from ckptsurgeon.trainer.state.optimizer import Optimizer, parameter_rules
from ckptsurgeon.trainer.tasks._task import Batch, Loss, begin_step
from ckptsurgeon.trainer.tasks.classify import Classify
from ckptsurgeon.trainer.tasks.ctc import CTC
from ckptsurgeon.trainer.tasks.hybrid import Hybrid
from ckptsurgeon.trainer.tasks.language_model import LanguageModel, PackedRows

from ..helpers.torch_versions import needs_torch_2_7
from .waves import LAYER_NORM, SMALL, batch_of, ctc_model_of, ctc_stand_in, ctc_task_for, model_of, task_for

pytest.importorskip("transformers")
pytestmark = needs_torch_2_7  # whose fake tensors know the backward pass of a weight norm


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
    """Training on the meta device, which stands for a GPU: batches come from the CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, task: Any, model: nn.Module, batches: list[Batch]) -> None:
        monkeypatch.setattr(
            sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"]
        )
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
        monkeypatch.setattr(nn.functional, "ctc_loss", ctc_stand_in)
        self.task, self.batches, self.model = task, batches, model.to("meta").train()
        self.settings = parse_settings({"clip": 1.0, "ema": 0.9}, "x")
        free = parameter_rules(self.settings, [name for name, _ in self.model.named_parameters()])
        self.optimizer = Optimizer(self.settings, dict(self.model.named_parameters()), free)
        self.average = EMA(self.model, 0.9)

    def step(self) -> StepResult:
        with NoWaitedCopies():
            begin_step(self.task, self.model, 3)
            stepped = gradient_step(
                ParallelModel(self.model), self.task, self.batches, self.optimizer, settings=self.settings
            )
            self.average.update()
        return stepped


def pretraining(monkeypatch: pytest.MonkeyPatch, attention: str, **fields: Any) -> OnMeta:
    model: Any = model_of(SMALL, **fields)
    model.config._attn_implementation = attention
    task = task_for(model)
    return OnMeta(monkeypatch, task, model, [batch_of(task, 6400, 6400), batch_of(task, 6400, 6000)])


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("fields", [{}, LAYER_NORM], ids=["group norm", "layer norm"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_pre_training_reads_nothing_of_the_device(attention: str, fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pretraining(monkeypatch, attention, **fields)
    for _ in range(2):
        stepped = made.step()
        assert {
            one.device.type for one in (stepped.loss, stepped.grad_norm, stepped.is_skipped, *stepped.parts.values())
        } == {"meta"}
        assert (stepped.counts.clips, stepped.counts.used, stepped.counts.room) == (4, 3 * 6400 + 6000, 4 * 6400)


@pytest.mark.costly
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
    made = pretraining(monkeypatch, "sdpa")
    sound = made.task.loss

    def waiting(model: nn.Module, batch: Batch) -> Loss:
        loss = sound(model, batch)
        waits(loss)
        return replace(loss)

    made.task.loss = waiting  # type: ignore[method-assign]
    with pytest.raises((AssertionError, RuntimeError), match=r"waited for|meta|no data"):
        made.step()


MASKED = {"mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.3, "mask_feature_length": 2}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    "fields", [{}, LAYER_NORM, {**LAYER_NORM, "add_adapter": True}], ids=["group", "layer", "adapter"]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fine_tuning_with_ctc_reads_nothing_of_the_device(
    attention: str, fields: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of time and bands, clips of one length and of several."""
    model = ctc_model_of(attn_implementation=attention, **MASKED, **fields)
    task = ctc_task_for(model)
    OnMeta(monkeypatch, task, model, [task.batch(6400, 6400), task.batch(6400, 5000)]).step()


@pytest.mark.costly
@pytest.mark.parametrize(
    "fields", [{}, LAYER_NORM, {**LAYER_NORM, "add_adapter": True}], ids=["group", "layer", "adapter"]
)
@pytest.mark.parametrize("samples", [(6400, 6400), (6400, 5000, 3200)], ids=["equal", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fine_tuning_computes_what_transformers_does(attention: str, samples: Any, fields: Any) -> None:
    """The same masks are drawn, and outputs and gradients are theirs."""
    model: Any = ctc_model_of(attn_implementation=attention, **MASKED, **fields).train()
    task = ctc_task_for(model)
    batch = task.batch(*samples)
    found = []
    for ours in (True, False):
        numpy.random.seed(7)
        model.zero_grad()
        if ours:
            scores = task.said(model, batch).log_probs
        else:
            inside = torch.arange(batch.inputs.shape[1])[None] < batch.lengths[:, None]
            told = {"attention_mask": inside.long()} if model.config.feat_extract_norm == "layer" else {}
            scores = model(batch.inputs, **told).logits.log_softmax(-1)
        scores.square().sum().backward()
        drawn = numpy.random.random()
        found.append((scores.detach(), {name: one.grad for name, one in model.named_parameters()}, drawn))
    (scores, gradients, drawn), (wanted, theirs, next_drawn) = found
    torch.testing.assert_close(scores, wanted, rtol=1e-6, atol=1e-6)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert drawn == next_drawn
    assert "_mask_hidden_states" not in vars(model.base_model)


def bundled(name: str, monkeypatch: pytest.MonkeyPatch) -> OnMeta:
    """A bundled model and its task, or a network and a task of others."""
    lengths, labels = torch.tensor([40, 33]), torch.tensor([[1, 2, 2], [2, 1, 0]])
    features, sizes = torch.randn(2, 40, 7), torch.tensor([3, 2])
    section: dict[str, Any] = {"task": name}
    tokens = ("<blank>", "a", "b", "<sos/eos>")
    model: nn.Module
    if name == "ctc":
        model = DeepSpeech(4, n_input=7, n_context=1, n_hidden=8, dropout=0.1)
        task: Any = CTC(parse_settings(section, "x"), tokens)
    elif name == "hybrid":
        model = HybridASR(
            4, d_model=8, heads=2, encoder_layers=1, decoder_layers=1, n_mels=7, ctc_weight=0.3, encoder="conformer",
            dropout=0.1,
        )  # fmt: skip
        task = Hybrid(parse_settings({**section, "features": {"kind": "waves"}}, "x"), tokens)
        features, lengths = torch.randn(2, 6400), torch.tensor([6400, 5000])
    else:
        model = nn.Sequential(nn.Flatten(), nn.Linear(280, 4))
        task, labels = Classify(parse_settings(section, "x"), tokens), torch.tensor([1, 2])
    return OnMeta(monkeypatch, task, model, [Batch(features, lengths, labels, sizes, 1.0, ("x", "y"))])


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["ctc", "hybrid", "classify"])
def test_the_other_tasks_read_nothing_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled(name, monkeypatch).step()


@pytest.mark.costly
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_language_model_reads_nothing_of_the_device(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        attn_implementation=attention,
    )  # fmt: skip
    section = {"task": "language_model", "data": {"segmenter": "x"}}
    monkeypatch.setattr("ckptsurgeon.trainer.tasks.language_model.Segmenter", lambda path: None)
    task = LanguageModel(parse_settings(section, "x"), ())
    rows = PackedRows("train", numpy.arange(11, dtype=numpy.int32), 4, 3, texts=1, shuffled=False)
    OnMeta(monkeypatch, task, LlamaForCausalLM(config), list(rows.read(0, 0))).step()
