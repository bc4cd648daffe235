"""The learning rate: up, then down, and never anywhere else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.trainer.config.bounds import useless_settings
from ckptsurgeon.trainer.config.section import apply_overrides
from ckptsurgeon.trainer.config.settings import Augment, Data, Features, Pretrain, Settings
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.job import Job
from ckptsurgeon.trainer.run.records import config_text
from ckptsurgeon.trainer.state.model_tensors import state_tensors
from ckptsurgeon.trainer.state.optimizer import lr_factor
from ckptsurgeon.trainer.state.training_state import RunProgress, anneal

from . import toy


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warm_up_is_a_line_that_reaches_the_full_rate(kind: str) -> None:
    settings = Settings(steps=100, warmup=4, schedule=kind)
    assert [lr_factor(settings, step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(settings, 4) == 1.0


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("linear", "linear"), ("cosine", "cosine"), ("cosine_with_restarts", "cosine"), ("polynomial", "linear"),
        ("constant", "constant"), ("constant_with_warmup", "constant"),
    ],
)  # fmt: skip
def test_rates_are_those_of_the_schedulers_that_transformers_pretraining_script_chooses(theirs: str, ours: str) -> None:
    transformers = pytest.importorskip("transformers")
    warmup = 0 if theirs == "constant" else 10
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = transformers.get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    settings = Settings(steps=100, warmup=warmup, schedule=ours, final_lr=0.0)
    found = [lr_factor(settings, step) for step in range(100)]
    assert found[warmup:] == pytest.approx(rates[warmup:], abs=1e-6)  # polynomial ends at 1e-7
    assert found[:warmup] == pytest.approx(rates[1 : warmup + 1])  # theirs begins with a step at rate 0


def test_what_falls_falls_to_the_final_share() -> None:
    for kind in ("cosine", "linear"):
        settings = Settings(steps=10, schedule=kind, final_lr=0.1)
        factors = [lr_factor(settings, step) for step in range(10)]
        assert factors == sorted(factors, reverse=True)
        assert lr_factor(settings, 10) == pytest.approx(0.1)
    assert lr_factor(Settings(steps=10, schedule="linear", final_lr=0.0), 5) == pytest.approx(0.5)
    assert lr_factor(Settings(steps=10, schedule="cosine", final_lr=0.0), 5) == pytest.approx(0.5)


def test_constant_stays() -> None:
    settings = Settings(steps=10, schedule="constant")
    assert {lr_factor(settings, step) for step in range(10)} == {1.0}


def test_what_falls_begins_after_the_warm_up_and_ends_at_the_last_step() -> None:
    """Halfway between, not halfway through the run."""
    for schedule in ("cosine", "linear"):
        settings = Settings(steps=100, warmup=20, schedule=schedule, final_lr=0.0)
        assert lr_factor(settings, 19) == lr_factor(settings, 20) == 1
        assert lr_factor(settings, 60) == pytest.approx(0.5)
        assert lr_factor(settings, 100) == pytest.approx(0)


def test_tri_stage_is_that_of_the_paper() -> None:
    """Up in a line, constant, then exponentially down to a share of the highest rate at the last step."""
    settings = Settings(steps=100, schedule="tri_stage", warmup=10, hold=40, final_lr=0.01)
    factors = [lr_factor(settings, step) for step in range(101)]
    assert factors[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert set(factors[10:51]) == {1.0}
    ratios = [after / before for before, after in pairwise(factors[50:])]
    assert ratios == pytest.approx([0.01 ** (1 / 50)] * 50)
    assert factors[100] == pytest.approx(0.01)


VALUES = [3.0, 2.0, 1.99, 1.995, 1.5, 1.5, 1.5, 1.6, 1.2, 1.1999, math.nan, 1.0]


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("higher", [False, True])
def test_plateau_is_that_of_torch(patience: int, higher: bool) -> None:
    settings = Settings(schedule="plateau", anneal=0.5, anneal_patience=patience, anneal_threshold=0.01)
    values = [4 - one for one in VALUES] if higher else VALUES
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max" if higher else "min", factor=0.5, patience=patience, threshold=0.01, eps=0.0
    )
    progress = RunProgress()
    for value in values:
        theirs.step(value)
        anneal(settings, progress, value, higher_is_better=higher)
        assert progress.lr_scale == optimizer.param_groups[0]["lr"], value


@pytest.mark.parametrize(
    ("patience", "scales"),
    [
        (0, [1, 1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]),
        (1, [1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]),  # worse twice, with a better one between: it is not forgotten
    ],
)
def test_newbob_compares_with_the_evaluation_before(patience: int, scales: list[float]) -> None:
    """What speechbrain.nnet.schedulers.NewBobScheduler gives for these values."""
    settings = Settings(schedule="newbob", anneal=0.5, anneal_patience=patience, anneal_threshold=0.0025)
    progress, found = RunProgress(), []
    for value in [3.0, 2.0, 1.99, 1.995, 1.5, 1.5, 1.5, 1.6, 1.2]:
        anneal(settings, progress, value, higher_is_better=False)
        found.append(progress.lr_scale)
    assert found == scales


def test_a_rate_that_was_lowered_stays_so_when_a_run_is_resumed() -> None:
    settings = {"schedule": "newbob", "anneal_threshold": 0.99, "evaluate_every": 2, "steps": 8, "save_every": 4}
    whole = toy.loop(**settings)
    whole.run()
    first = toy.loop(folder="run", **settings)
    first.run(until=4)
    assert first.state.progress.lr_scale < 1
    second = toy.loop(**settings)
    second.state.restore(*RunFolder("run").load())
    second.run()
    assert second.state.progress.lr_scale == whole.state.progress.lr_scale
    ours, theirs = state_tensors(second.model), state_tensors(whole.model)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_an_evaluation_that_lowers_the_rate_says_so() -> None:
    run = toy.loop(folder="run", schedule="plateau", anneal_threshold=0.99, evaluate_every=2, steps=6)
    run.run()
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [row.get("anneal_scale") for row in rows if "dev" in row] == [None, 0.5, 0.25]


def test_epochs_give_the_steps() -> None:
    def job(*sets: str) -> Job:
        return build_job(toy.write(batch_size=8), sets=sets, device="cpu")

    assert job("epochs=3").settings.steps == 12  # 32 clips
    assert job("epochs=3", "accumulate=5").settings.steps == 3
    assert "train.epochs 3: 12 steps" in job("epochs=3").notes
    Path("used.yaml").write_text(config_text(job("epochs=3"), "."))
    assert build_job("used.yaml", device="cpu").settings.steps == 12
    with pytest.raises(cs.ConfigError, match="train.steps is 5 and train.epochs is 3; leave one of the two out"):
        toy.job(epochs=3, steps=5)
    with pytest.raises(cs.ConfigError, match="train.epochs 1: train.warmup 9 is not below train.steps 4"):
        job("epochs=1", "warmup=9")
    assert apply_overrides({"epochs": 3, "lr": 1.0}, ["steps=7"]) == {"lr": 1.0, "steps": 7}
    assert apply_overrides({"steps": 3}, ["epochs=7"]) == {"epochs": 7}


def test_decay_of_matrices_leaves_vectors_alone() -> None:
    def moved(decay: str) -> dict[str, bool]:
        loop = toy.loop(decay=decay, weight_decay=0.5, lr=1e-3)
        for parameter in loop.state.optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        before = {key: value.detach().clone() for key, value in loop.model.named_parameters()}
        loop.state.optimizer.set_learning_rates(1.0)
        loop.state.optimizer.step(torch.tensor(False), loop.state.optimizer.gradient_norms())
        return {key: not torch.equal(value, before[key]) for key, value in loop.model.named_parameters() if value.any()}

    assert all(moved("all").values())
    matrices = {key: value.dim() > 1 for key, value in toy.loop().model.named_parameters()}
    assert moved("matrices") == {key: matrices[key] for key in moved("matrices")}
    assert False in moved("matrices").values()


def test_a_setting_of_another_schedule_gets_a_note() -> None:
    assert "train.hold has no effect with train.schedule cosine; only tri_stage would use it" in toy.job(hold=2).notes
    said = "train.anneal has no effect with train.schedule constant; only plateau, newbob would use it"
    assert said in toy.job(anneal=0.3, schedule="constant").notes
    assert not [note for note in toy.job(anneal=0.3, schedule="newbob").notes if "no effect" in note]
    with pytest.raises(cs.ConfigError, match="tri_stage, which falls exponentially"):
        toy.job(schedule="tri_stage", final_lr=0)


def test_a_tri_stage_that_never_falls_is_said() -> None:
    for hold in (5, 9):
        said = f"train.warmup 3 + train.hold {hold} is not below train.steps 8: with train.schedule tri_stage, the learning rate never falls"
        assert said in toy.job(schedule="tri_stage", warmup=3, hold=hold, steps=8).notes
    for settings in ({"hold": 4}, {"hold": 5, "schedule": "constant"}):
        notes = toy.job(**{"schedule": "tri_stage", "warmup": 3, "steps": 8, **settings}).notes
        assert not [note for note in notes if "never falls" in note]


def test_a_setting_that_nothing_uses_is_said() -> None:
    for settings, why in (
        (Settings(beam=3), "train.beam has no effect with train.decoding ctc, which is not a beam search"),
        (Settings(label_smoothing=0.1), "train.label_smoothing has no effect on the task ctc"),
        (
            Settings(augment=Augment(freq_masks=1), features=Features(kind="waves")),
            "train.augment.freq_masks has no effect on waves, which have no frequencies to mask",
        ),
    ):
        assert useless_settings(settings) == [why]
    assert not useless_settings(Settings(beam=3, decoding="joint", task="hybrid", label_smoothing=0.1))
    for settings, why in (
        (
            Settings(data=Data(context=64)),
            "train.data.context has no effect on the task ctc; only language_model would use it",
        ),
        (
            Settings(pretrain=Pretrain(mask_length=5)),
            "train.pretrain has no effect on the task ctc; only wav2vec2_pretrain would use it",
        ),
        (
            Settings(optimizer="sgd", eps=1e-6),
            "train.eps has no effect with train.optimizer sgd; only adamw would use it",
        ),
        (
            Settings(schedule="constant", final_lr=0.0),
            "train.final_lr has no effect with train.schedule constant; only cosine, linear, tri_stage would use it",
        ),
    ):
        assert useless_settings(settings) == [why]
        assert not useless_settings(replace(settings, task="my_task.py:MyTask", optimizer="adamw", schedule="cosine"))
    of_sounds = Settings(task="language_model", data=Data(train=("a.txt",), min_s=0.5), augment=Augment(time_masks=2))
    said = [f"train.{name} has no effect on texts, only on sounds" for name in ("data.min_s", "augment")]
    assert useless_settings(of_sounds) == said
    assert not useless_settings(Settings(task="language_model"))
    assert not useless_settings(replace(of_sounds, task="ctc"))
    own = {"task": "my_task.py:MyTask", "augment": Augment(freq_masks=1), "features": Features(kind="waves")}
    assert not useless_settings(Settings(beam=3, label_smoothing=0.1, **own))
    said = "train.patience has no effect: there is no split dev to evaluate on"
    assert said in toy.job(patience=2, task="toy_task.py:NoDev").notes
    assert said not in toy.job(patience=2).notes


def test_a_size_in_clips_beside_one_in_seconds_is_said() -> None:
    said = "train.batch_size has no effect on training with train.batch_seconds"
    assert said in useless_settings(Settings(batch_seconds=9.0, batch_size=7))
    assert not useless_settings(Settings(batch_seconds=9.0)) + useless_settings(Settings(batch_size=7))
