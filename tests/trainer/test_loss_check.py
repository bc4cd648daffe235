"""A loss that fell by no more than its own noise is a warning, not a success."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import FAIL, NOT_RUN, PASS, WARN, Check
from ckptsurgeon.trainer.checks.loss import loss_drop, loss_fell
from ckptsurgeon.trainer.checks.saved import SavedWeights, _same
from ckptsurgeon.trainer.checks.training import gradient_norm, overfits_one_batch
from ckptsurgeon.trainer.state.training_state import RunProgress
from ckptsurgeon.trainer.tasks._task import Task

from . import toy


def noisy(losses: Sequence[float], deviation: float, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [loss + draw.gauss(0, deviation) for loss in losses]


def falling(steps: int, begin: float, end: float) -> list[float]:
    """A curve as losses have them: steep at first, flat at last."""
    return [end + (begin - end) * math.exp(-8 * step / steps) for step in range(steps)]


def cleared(losses: Sequence[float]) -> bool:
    fall = loss_drop(losses)
    assert fall is not None
    return fall.is_clear


@pytest.mark.parametrize("steps", [6, 7, 20, 100, 1000])
def test_a_loss_that_falls_by_much_more_than_it_varies_is_clear(steps: int) -> None:
    assert all(cleared(noisy(falling(steps, 5.2, 0.3), 0.1, seed)) for seed in range(20))
    assert cleared(falling(steps, 5.2, 5.1))
    assert cleared([5 - step / steps for step in range(steps)])


@pytest.mark.parametrize("steps", [6, 12, 100, 1000])
def test_a_loss_that_falls_at_once_and_stays_is_clear(steps: int) -> None:
    assert cleared([5.2, *[1.0] * (steps - 1)])


@pytest.mark.costly
@pytest.mark.parametrize("steps", [6, 20, 100, 1000])
def test_a_loss_that_only_varies_seldom_seems_to_fall(steps: int) -> None:
    found = [cleared(noisy([1.09] * steps, 0.1, seed)) for seed in range(400)]
    assert sum(found) <= 0.08 * len(found)


def test_a_loss_that_falls_by_less_than_its_noise_is_not_clear() -> None:
    found = [cleared(noisy([1.1 - 0.01 * step / 50 for step in range(50)], 0.2, seed)) for seed in range(100)]
    assert sum(found) <= 8


@pytest.mark.parametrize("losses", [[1.0] * 6, [1.0, 2.0] * 10, [1 + step / 20 for step in range(20)]])
def test_a_loss_that_stays_or_rises_is_not_clear(losses: list[float]) -> None:
    assert not cleared(losses)


def test_a_fall_that_rounding_may_have_made_is_not_clear() -> None:
    assert not cleared([1.09 - 1e-6 * step for step in range(50)])
    assert cleared([1.09 - 1e-4 * step for step in range(50)])


def test_the_figures_are_means_of_a_tenth_at_each_end_and_two_standard_errors() -> None:
    fall = loss_drop([4.0, 2.0] * 20)
    assert fall is not None
    assert (fall.first, fall.last, fall.steps) == (3.0, 3.0, 4)
    deviation = 2 / (0.6745 * math.sqrt(2))
    assert fall.noise == pytest.approx(2 * deviation * math.sqrt(2 / 4))


def test_five_steps_are_too_few_to_tell() -> None:
    assert loss_drop([5, 4, 3, 2, 1]) is None


def checked(**settings: object) -> Check:
    """What the check says of a run of the toy."""
    loop = toy.loop(folder="run", **settings)  # type: ignore[arg-type]
    loop.run()
    return loss_fell(loop.state, loop.folder)


@pytest.mark.long
def test_a_run_that_learns_passes() -> None:
    found = checked(steps=60)
    assert found.status == PASS, found
    assert found.says.endswith("with uniform outputs")


@pytest.mark.long
def test_a_run_that_does_not_learn_warns_with_the_figures() -> None:
    found = checked(steps=60, lr=1e-12)
    assert found.status == WARN, found
    assert "over the first and last 6 steps, noise 0." in found.says
    assert found.says.endswith(": the loss did not fall by more than the noise")


@pytest.mark.long
def test_what_is_frozen_but_for_a_useless_bias_does_not_pass() -> None:
    """The first layer's bias, before a norm that takes its mean away, is all that is trained."""
    found = checked(steps=40, freeze=["head", "body.norm", "body.first.weight", "body.second"], lr=1e-6)
    assert found.status == WARN, found


def test_a_run_of_a_few_steps_is_not_judged() -> None:
    found = checked(steps=5, evaluate_every=5, save_every=5)
    assert found.status == NOT_RUN
    assert found.says.endswith("; 5 steps; noise hides a fall in fewer than 6 steps")


def test_a_run_that_diverged_in_a_few_steps_fails_all_the_same() -> None:
    found = checked(
        steps=5, lr=30.0, warmup=0, clip=None, optimizer="sgd", schedule="constant", model={"dropout": 0},
        evaluate_every=5, save_every=5,
    )  # fmt: skip
    assert found.status == FAIL, found


@pytest.mark.long
def test_a_run_that_was_resumed_is_judged_from_its_first_step() -> None:
    first = toy.loop(folder="run", steps=60)
    first.run(until=40)
    second = toy.loop(folder="run", steps=60)
    assert second.folder is not None
    second.state.restore(*second.folder.load())
    second.run()
    assert loss_fell(second.state, second.folder).status == PASS
    whole = toy_of(60)
    assert loss_fell(second.state, second.folder) == loss_fell(whole.state, whole.folder)


def toy_of(steps: int) -> toy.TrainingLoop:
    loop = toy.loop(folder="whole", steps=steps)
    loop.run()
    return loop


@pytest.mark.long
def test_a_command_whose_loss_does_not_fall_ends_well_and_warns() -> None:
    toy.write(steps=20, lr=1e-12)
    found = cs.train("toy.yaml", device="cpu")
    (fell,) = (check for check in found.checks if check.name == "loss fell")
    assert fell.status == WARN
    assert fell.when == "during"
    assert not any(check.status == FAIL for check in found.checks if check.name == "loss fell")


@pytest.mark.parametrize(
    ("check", "one", "other"),
    [
        (_same(SavedWeights("", "", 0.12345678), 0.12345699, 1e-6), "0.123457", "0.1234568"),
        (overfits_one_batch({"error": 0.0500001}, "error", 9), "0.0500001", "below 0.05"),
        (overfits_one_batch({"accuracy": 0.9499}, "accuracy", 9, higher=True), "0.9499", "above 0.95"),
    ],
)
def test_figures_that_differ_are_printed_apart(check: Check, one: str, other: str) -> None:
    assert check.status == FAIL
    assert f"{one} " in check.says
    assert other in check.says


def test_a_norm_beside_its_band_is_printed_beside_it() -> None:
    class Banded(Task):
        gradient_band = (1.0, 10.0)

    loop = toy.loop()
    loop.job.task.gradient_band = Banded.gradient_band  # type: ignore[attr-defined]
    loop.state.progress = RunProgress(norms={"steps": 4, "clipped": 0, "largest": 10.04, "sum": 40.04})
    found = gradient_norm(loop.state)
    assert (found.status, found.says.partition(",")[0]) == (WARN, "mean 10.01")
