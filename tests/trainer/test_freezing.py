"""What is frozen is still, from the patterns to the statistics of norms; what thaws moves from its step on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.state.model_tensors import digests, state_tensors
from ckptsurgeon.trainer.state.optimizer import FreezeSchedule

from . import toy


def state(loop: toy.TrainingLoop) -> dict[str, str]:
    return digests(state_tensors(loop.model))


def test_frozen_tensors_and_statistics_stay_and_the_rest_moves() -> None:
    loop = toy.loop(freeze=["body"])
    before = state(loop)
    loop.run()
    changed = {key for key, value in state(loop).items() if value != before[key]}
    assert changed == {"head.weight", "head.bias"}
    assert "body.norm.running_mean" in before  # a buffer, and it did not move
    assert set(loop.state.optimizer.order) == changed


def test_a_module_thaws_at_its_step() -> None:
    loop = toy.loop(freeze={"body.first": 3, "body.norm": 3, "body.second": None})
    before = state(loop)
    loop.run(until=3)
    body = {key for key in before if key.startswith("body.")}
    assert all(state(loop)[key] == before[key] for key in body)
    assert not any(loop.state.optimizer.has_state(key) for key in body)
    loop.run(until=4)
    after = state(loop)
    assert {key for key in body if after[key] == before[key]} == {"body.second.weight", "body.second.bias"}
    assert loop.state.freezing.moved_while_frozen == []


def test_a_tied_tensor_is_frozen_under_any_of_its_keys() -> None:
    loop = toy.loop()
    loop.model.other = loop.model.head  # type: ignore[assignment]
    made = FreezeSchedule(loop.model, replace(loop.settings, freeze={"other": None}))
    assert {"head.weight", "other.weight"} <= set(made.frozen(0))


def test_a_share_of_the_learning_rate_is_by_glob_and_the_last_pattern_counts() -> None:
    loop = toy.loop(lr_scale={"body": 0.1, "body.second": 0.5}, schedule="constant", warmup=0)
    rates = loop.state.optimizer.set_learning_rates(1.0)
    assert rates == pytest.approx({"0.1": 0.001, "0.5": 0.005, "1": 0.01})
    assert loop.state.freezing.rules["body.second.weight"].lr_scale == 0.5


def test_no_share_moves_nothing() -> None:
    loop = toy.loop(lr_scale={"body": 0}, weight_decay=0.0)
    before = state(loop)
    loop.run()
    assert state(loop)["body.first.weight"] == before["body.first.weight"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"freeze": ["bdoy"]}, r"train.freeze bdoy matches none of the 11 model keys. Did you mean body"),
        ({"lr_scale": {"weight": 2}}, r"train.lr_scale weight .* Did you mean \*\*.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(settings: dict[str, object], why: str) -> None:
    with pytest.raises(cs.PatternError, match=why):
        toy.loop(**settings)


@pytest.mark.parametrize("freeze", [["**"], {"**": 5}])
def test_nothing_to_train_in_the_first_step_is_an_error(freeze: object) -> None:
    with pytest.raises(cs.ConfigError, match="everything is frozen") as found:
        toy.loop(freeze=freeze)
    assert found.value.hint == "Remove patterns from train.freeze."


def test_a_model_whose_code_freezes_everything_names_its_code() -> None:
    job = toy.job()
    with pytest.raises(cs.ConfigError, match="everything is frozen") as found:
        toy.TrainingLoop(job, job.model()[0].requires_grad_(False))
    assert found.value.hint == "Set requires_grad of the parameters to train, in the code of the model."


def test_evaluating_leaves_frozen_statistics_alone_afterwards() -> None:
    loop = toy.loop(freeze=["body.norm"], evaluate_every=1)
    norm = loop.model.get_submodule("body.norm")
    mean = norm.running_mean.clone()  # type: ignore[union-attr, operator]
    loop.run(until=3)
    assert loop.model.training
    assert not norm.training
    assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]
