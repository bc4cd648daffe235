"""One step: accumulated as if it were one batch, clipped, and left out where it is not finite."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.suite import checks_before
from ckptsurgeon.trainer.evaluation import evaluate
from ckptsurgeon.trainer.loop import gradient_step
from ckptsurgeon.trainer.state.model_tensors import state_tensors
from ckptsurgeon.trainer.tasks._task import Batch, Loss

from . import toy

KEY = "head.weight"


def part(batch: Batch, first: int, last: int) -> Batch:
    return Batch(
        batch.inputs[first:last], batch.lengths[first:last], batch.labels[first:last],
        batch.label_lengths[first:last], 1.0, batch.names[first:last],
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_batches_of_other_sizes_add_up_to_one(optimizer: str) -> None:
    """Divided by the items of all: eight clips as six and two are eight clips."""
    made = []
    for cuts in ([0, 8], [0, 6, 8]):
        loop = toy.loop(optimizer=optimizer, clip=None)
        loop.model.eval()
        batch = next(loop.state.stream)
        parts = [part(batch, a, b) for a, b in pairwise(cuts)]
        stepped = gradient_step(loop.state.parallel, loop.job.task, parts, loop.state.optimizer, settings=loop.settings)
        made.append(
            (float(stepped.loss), float(stepped.grad_norm), state_tensors(loop.model)["head.weight"].detach().clone())
        )
    (loss, norm, weight), (other_loss, other_norm, other_weight) = made
    assert loss == pytest.approx(other_loss)
    assert norm == pytest.approx(other_norm)
    torch.testing.assert_close(weight, other_weight)


def test_the_step_is_that_of_torch() -> None:
    """The same gradients, clipped by torch and stepped by torch's own plain optimiser."""
    loop = toy.loop(clip=0.1)
    twin = toy.loop(clip=0.1)
    batch = next(loop.state.stream)
    loop.model.eval()
    twin.model.eval()
    gradient_step(loop.state.parallel, loop.job.task, [batch], loop.state.optimizer, settings=loop.settings)
    plain = torch.optim.AdamW(twin.state.optimizer.parameters, 0.01, (0.9, 0.999), 1e-8, 0.01)
    loss = twin.job.task.loss(twin.model, batch)
    (loss.total / loss.items).backward()
    torch.nn.utils.clip_grad_norm_(twin.state.optimizer.parameters, 0.1)
    plain.step()
    for key, value in state_tensors(loop.model).items():
        torch.testing.assert_close(value, state_tensors(twin.model)[key], msg=key)


@pytest.mark.costly
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "3")
    monkeypatch.setenv("TOY_NAN_TO", "4")
    loop = toy.loop(optimizer=optimizer)
    loop.run(until=2)
    before = state_tensors(loop.model)["head.weight"].detach().clone()
    loop.run(until=3)
    assert torch.equal(state_tensors(loop.model)["head.weight"], before)
    assert (loop.state.progress.skipped, loop.state.progress.in_a_row) == (1, 1)
    assert loop.run() == "done"
    assert loop.state.progress.in_a_row == 0
    assert not torch.equal(state_tensors(loop.model)["head.weight"], before)
    assert math.isfinite(loop.state.progress.last_loss or math.nan)


@pytest.mark.costly
@pytest.mark.parametrize("replaced", [False, True])
def test_a_clip_with_inf_changes_no_buffer(replaced: bool) -> None:
    """Batch norm's statistics were inf for ever, and every evaluation after it NaN."""
    loop = toy.loop(ema=0.5)
    loop.run(until=2)
    norm = loop.model.body["norm"]  # type: ignore[index]
    old = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    task = loop.job.task
    sound, forward = task.loss, norm.forward

    def replacing(x: Tensor) -> Tensor:
        norm.running_mean = norm.running_mean.clone()
        return forward(x)  # type: ignore[no-any-return]

    def spoiled(model: nn.Module, batch: Batch) -> Loss:
        inputs = batch.inputs.clone()
        inputs[0, 0, 0] = math.inf
        return sound(model, replace(batch, inputs=inputs))

    task.loss = spoiled  # type: ignore[method-assign]
    if replaced:
        norm.forward = replacing
    loop.run(until=3)
    assert loop.state.progress.skipped == 1
    assert all(torch.equal(buffer, old[name]) for name, buffer in norm.named_buffers())
    task.loss = sound  # type: ignore[method-assign]
    loop.run()
    assert math.isfinite(loop.state.progress.figures["loss"])
    assert loop.state.ema is not None
    assert all(bool(torch.isfinite(one).all()) for one in loop.state.ema.tensors.values())
    assert not torch.equal(norm.running_mean, old["running_mean"])


def test_too_many_in_a_row_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "5")
    monkeypatch.setenv("TOY_NAN_TO", "100")
    loop = toy.loop(nonfinite=2)
    assert loop.run() == "nonfinite"
    assert (loop.state.progress.step, loop.state.progress.skipped) == (7, 3)


def test_bf16_trains_and_keeps_the_weights_in_float32() -> None:
    loop = toy.loop(precision="bf16", steps=40)
    loop.run()
    assert {value.dtype for value in loop.model.parameters()} == {torch.float32}
    assert loop.state.progress.last_loss is not None
    assert loop.state.progress.first_loss is not None
    assert loop.state.progress.last_loss < loop.state.progress.first_loss / 2


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_the_model_computes_in_the_precision_that_is_asked_for(precision: str, dtype: torch.dtype) -> None:
    loop = toy.loop(precision=precision, steps=4)
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    loop.model.head.register_forward_hook(  # type: ignore[union-attr]
        lambda module, given, found: seen[torch.is_grad_enabled()].add(found.dtype)
    )
    loop.run()
    assert seen == {True: {dtype}, False: {dtype}}  # training, evaluating


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_either_of_loss_and_gradient_that_is_not_finite_skips_the_step(what: str) -> None:
    loop = toy.loop()
    before = {key: value.detach().clone() for key, value in state_tensors(loop.model).items()}
    sound = loop.job.task.loss

    def spoiled(model: nn.Module, batch: Batch) -> Loss:
        found = sound(model, batch)
        if what == "loss":  # a constant has no gradient
            return replace(found, total=found.total + math.inf)
        total = found.total.clone()
        total.register_hook(lambda gradient: gradient * math.nan)
        return replace(found, total=total)

    loop.job.task.loss = spoiled  # type: ignore[method-assign]
    stepped = gradient_step(
        loop.state.parallel, loop.job.task, [next(loop.state.stream)], loop.state.optimizer, settings=loop.settings
    )  # fmt: skip
    assert (math.isfinite(float(stepped.loss)), math.isfinite(float(stepped.grad_norm))) == (
        what != "loss",
        what == "loss",
    )
    assert bool(stepped.is_skipped)
    assert all(torch.equal(value, before[key]) for key, value in state_tensors(loop.model).items())
    assert not any(loop.state.optimizer.gradients_seen().values())


def test_sgd_has_the_first_of_betas_as_momentum() -> None:
    loop, twin = toy.loop(optimizer="sgd", betas=[0.7, 0.9], clip=None), toy.loop()
    plain = torch.optim.SGD(twin.state.optimizer.parameters, 0.01, 0.7, weight_decay=0.01)
    loop.model.eval()
    twin.model.eval()
    for _ in range(3):
        batch = next(loop.state.stream)
        gradient_step(loop.state.parallel, loop.job.task, [batch], loop.state.optimizer, settings=loop.settings)
        loss = twin.job.task.loss(twin.model, batch)
        plain.zero_grad()
        (loss.total / loss.items).backward()
        plain.step()
    for key, value in state_tensors(loop.model).items():
        torch.testing.assert_close(value, state_tensors(twin.model)[key], msg=key)


def test_a_first_step_that_is_skipped_leaves_sgd_no_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "1")
    monkeypatch.setenv("TOY_NAN_TO", "2")
    loop = toy.loop(optimizer="sgd", freeze=["body.first"])
    loop.run(until=1)
    assert loop.state.progress.skipped == 1
    momenta = {
        key: loop.state.optimizer.inner.state[one]["momentum_buffer"]
        for key, one in zip(loop.state.optimizer.order, loop.state.optimizer.parameters, strict=True)
    }
    assert not any(bool(one.any()) for one in momenta.values())
    assert not loop.state.optimizer.has_state("body.first.weight")


def test_the_average_follows_each_step_by_its_decay_and_is_what_is_evaluated() -> None:
    loop = toy.loop(ema=0.9, evaluate_every=3, lr=0.1)
    assert loop.state.ema is not None
    wanted = loop.state.ema.tensors[KEY].clone()
    for until in (1, 2, 3):
        loop.run(until=until)
        wanted = 0.9 * wanted + 0.1 * state_tensors(loop.model)[KEY].detach()
        torch.testing.assert_close(loop.state.ema.tensors[KEY], wanted)
    dev = loop.job.dev
    assert dev is not None
    found = [
        evaluate(loop.model, loop.job.task, dev.read(0, 0), settings=loop.settings, average=average)
        for average in (loop.state.ema, None)
    ]
    assert loop.state.progress.figures == found[0]
    assert found[0] != found[1]


@pytest.mark.long
def test_threads_and_determinism_are_set_for_a_run_and_put_back() -> None:
    seen: list[tuple[int, bool]] = []

    def look(row: object) -> None:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    before = torch.get_num_threads()
    for threads, exact in ((before + 1, True), (before, False)):
        seen.clear()
        toy.write(threads=threads, deterministic=exact, steps=3)
        cs.train("toy.yaml", run=f"run{threads}", device="cpu", observer=look)
        assert (threads, exact) in seen[1:]
        assert set(seen[2:]) == {(threads, exact)}
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (before, False)


def test_it_stops_where_nothing_becomes_better() -> None:
    loop = toy.loop(steps=400, evaluate_every=2, patience=3, lr=1e-9)
    assert loop.run() == "patience"
    assert loop.state.progress.step == 8


def test_a_metric_that_the_task_does_not_give_is_an_error_before_the_first_step() -> None:
    why = r"train.metric cer: the task does not return this metric. The task returns loss, error"
    with pytest.raises(cs.ConfigError, match=why):
        toy.loop(metric="cer").run()
    job = toy.job(metric="cer")
    with pytest.raises(cs.ConfigError, match=why):
        next(checks_before(job, job.model()[0], None))


@pytest.mark.parametrize(("higher", "best"), [((), 1), (("accuracy",), 2)])
def test_a_figure_that_is_better_when_higher_keeps_the_highest(higher: tuple[str, ...], best: int) -> None:
    loop = toy.loop(metric="accuracy", steps=3, evaluate_every=1, warmup=0)
    task, figures = loop.job.task, iter([0.2, 0.9, 0.5])
    task.higher = higher
    task.evaluate = lambda model, batches: {"accuracy": next(figures)}  # type: ignore[method-assign]
    loop.run()
    assert (loop.state.progress.best_step, loop.state.progress.waited) == (best, 3 - best)


NAN = math.nan


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3, 2, 4], 2), ([2, 3, 2], 1), ([NAN, 3, NAN], 2), ([3, NAN, 2], 3), ([None, None, 2], 1)],
)
def test_of_equal_figures_the_one_with_the_lower_loss_is_best(losses: list[float | None], best: int) -> None:
    loop = toy.loop(metric="cer", steps=3, evaluate_every=1, warmup=0)
    found = iter([{"cer": 1.0} if loss is None else {"cer": 1.0, "loss": loss} for loss in losses])
    loop.job.task.evaluate = lambda model, batches: next(found)  # type: ignore[method-assign]
    loop.run()
    assert (loop.state.progress.best_step, loop.state.progress.best) == (best, 1.0)
    assert loop.state.progress.waited == 2  # a loss that falls does not count


def test_the_average_is_what_is_evaluated_and_kept() -> None:
    loop = toy.loop(ema=0.9, folder="run")
    loop.run()
    assert loop.state.ema is not None
    best = cs.open_checkpoint("run/best.safetensors")
    last = cs.open_checkpoint("run/last/model.safetensors")
    key = "head.weight"
    assert torch.equal(last.tensor(key), state_tensors(loop.model)[key])
    assert not torch.equal(best.tensor(key), last.tensor(key))
    if loop.state.progress.best_step == loop.state.progress.step:
        assert torch.equal(best.tensor(key), loop.state.ema.tensors[key])
