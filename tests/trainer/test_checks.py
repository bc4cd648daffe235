"""Every check passes on a sound run, and fails on the fault that it is for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.activations import (
    LayerActivations,
    activation_scale,
    dead_units,
    layer_activations,
)
from ckptsurgeon.trainer.checks.check import FAIL, NOT_RUN, PASS, WARN, Check
from ckptsurgeon.trainer.checks.loss import batch_independence, first_loss
from ckptsurgeon.trainer.checks.saved import SavedWeights, reload_in_new_process, resume_is_exact
from ckptsurgeon.trainer.checks.suite import checks_before, checks_during
from ckptsurgeon.trainer.checks.training import (
    blank_share,
    clips_long_enough,
    finite_figures,
    gradient_norm,
    overfits_one_batch,
    trained_tensors_moved,
    update_sizes,
)
from ckptsurgeon.trainer.checks.weights import (
    MAX_Z,
    finite_tensors,
    initialised_tensors,
    ties_kept,
    z_score,
)
from ckptsurgeon.trainer.data.source import first_batch
from ckptsurgeon.trainer.evaluation import loss_per_item
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.trainer.job.job import Job
from ckptsurgeon.trainer.run import controls
from ckptsurgeon.trainer.run.controls import knowledge_moved, permute, run_controls, verdict_of
from ckptsurgeon.trainer.run.result import Arm, Controls
from ckptsurgeon.trainer.state.model_tensors import initialise, state_tensors
from ckptsurgeon.trainer.state.training_state import RunProgress
from ckptsurgeon.trainer.tasks._task import Loss

from . import toy

HEAD, FIRST = "head.weight", "body.first.weight"
NAMES = {
    "loaded": "loaded tensors equal their source", "ties": "ties are still ties", "drawn": "initialised tensors fit",
    "finite": "no NaN, no Inf", "varied": "no constant tensors", "first": "first loss",
    "scale": "scale of activations", "dead": "dead units", "independent": "independent of batch and padding",
}  # fmt: skip


def before(job: Job, spoil: Callable[[dict[str, Tensor]], object] = lambda tensors: None) -> dict[str, Check]:
    """The checks before the first step, of a model that something was done to; by their short names."""
    model, plan = job.model()
    with torch.no_grad():
        spoil(state_tensors(model))
    return named(checks_before(job, model, plan))


def named(checks: Any) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    return {short: found[name] for short, name in NAMES.items()}


@pytest.mark.long
def test_a_sound_start_passes(init: str) -> None:
    found = before(toy.job(init))
    assert {short: check.status for short, check in found.items()} == {
        **dict.fromkeys(NAMES, PASS), "ties": NOT_RUN,
    }, found  # fmt: skip
    assert found["loaded"].says == "9 of 9, bit for bit"
    assert found["drawn"].says.startswith("2 of 2, largest z-score")


def test_scratch_has_nothing_loaded_and_everything_drawn() -> None:
    found = before(toy.job())
    assert found["loaded"].status == NOT_RUN
    assert found["drawn"].says.startswith("11 of 11")


@pytest.mark.long
def test_a_permuted_tensor_is_not_its_source(init: str) -> None:
    found = before(toy.job(init), lambda tensors: tensors[FIRST].copy_(tensors[FIRST].flip(0)))
    assert found["loaded"].status == FAIL
    assert "body.first.weight" in found["loaded"].says


def test_an_init_that_was_changed_is_not_what_its_recipe_says(init: str) -> None:
    data = bytearray(Path(init).read_bytes())
    data[-20] ^= 1
    Path(init).write_bytes(data)
    found = before(toy.job(init))
    assert found["loaded"].status == FAIL
    assert "differs from its recipe" in found["loaded"].says


def test_a_tie_that_is_cut_is_found() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    assert ties_kept(model, {"b.weight": "a.weight"}).status == FAIL
    model["b"].weight = model["a"].weight
    assert ties_kept(model, {"b.weight": "a.weight"}).status == PASS


@pytest.mark.parametrize(
    ("key", "spoil", "why"),
    [
        (HEAD, lambda t: t.mul_(2), "z"),
        (HEAD, lambda t: t.add_(0.2), "z"),
        (HEAD, lambda t: t.zero_(), "z"),
        (HEAD, lambda t: t.view(-1)[0].fill_(9), "z"),
        (HEAD, lambda t: t.view(-1)[0].fill_(math.nan), "NaN or Inf values"),
        ("body.norm.weight", lambda t: t.mul_(1.5), "another constant"),
        ("head.bias", lambda t: t.fill_(30.0), "z"),
    ],
)
def test_a_tensor_drawn_otherwise_does_not_fit(key: str, spoil: Callable[[Tensor], object], why: str) -> None:
    job = toy.job()
    model, _ = job.model()
    with torch.no_grad():
        spoil(state_tensors(model)[key])
    found = initialised_tensors(model, job.target, set(job.target.tensors), 0)
    assert found.status == FAIL
    assert f"of 11 tensors, 1 differs from what the initialiser draws: {key} ({why}" in found.says


@pytest.mark.long
def test_fifty_seeds_fit() -> None:
    job = toy.job()
    model, _ = job.model()
    for seed in range(50):
        initialise(model, job.target, job.target.tensors, seed)
        assert initialised_tensors(model, job.target, set(job.target.tensors), seed).status == PASS, seed


def test_the_same_values_for_every_seed_are_found() -> None:
    job = toy.job()
    model, _ = job.model()
    initialise(model, job.target, [HEAD], 1)  # what seed 1 draws, said to be seed 0's
    found = initialised_tensors(model, job.target, {HEAD}, 0)
    assert (found.status, found.says) == (FAIL, f"another seed gives the same values: {HEAD}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_no_number_is_found(value: float) -> None:
    model, _ = toy.job().model()
    state_tensors(model)[FIRST].data[3, 3] = value
    found = finite_tensors(model)
    assert (found.status, found.says) == (FAIL, f"NaN or Inf in 1 tensor: {FIRST}")


def test_a_constant_matrix_fails_and_a_constant_vector_warns() -> None:
    job = toy.job()
    assert before(job, lambda tensors: tensors[FIRST].fill_(0.5))["varied"].status == FAIL
    assert before(job, lambda tensors: tensors["head.bias"].zero_())["varied"].status == WARN


def test_a_first_loss_far_from_uniform_warns_and_one_that_is_not_finite_fails() -> None:
    job = toy.job()
    assert before(job, lambda tensors: tensors[HEAD].mul_(50))["first"].status == WARN
    assert before(job, lambda tensors: tensors[HEAD].fill_(float("nan")))["first"].status == FAIL


@pytest.mark.parametrize(
    ("share", "status", "says"),
    [
        (0.7, WARN, "30 % less"), (0.8, PASS, "20 % less"), (1.2, PASS, "20 % more"), (1.3, WARN, "30 % more"),
        (1.001, PASS, "<1 % more"), (0.001, WARN, ">99 % less"), (1.0, PASS, "the same"),
    ],
)  # fmt: skip
def test_a_first_loss_may_be_a_quarter_off_either_way(share: float, status: str, says: str) -> None:
    job = toy.job()
    model, _ = job.model()
    batch = first_batch(job.train, 0)
    loss = loss_per_item(model, job.task, [batch], settings=job.settings)
    job.task.uniform_loss = lambda model, batch: loss / share  # type: ignore[method-assign]
    found = first_loss(model, job.task, batch, settings=job.settings, drawn=True)
    assert found.status == status, found
    assert f", {says} " in found.says


def layer(name: str, ratio: float, dead: int = 0) -> LayerActivations:
    return LayerActivations(name, ratio, 1.0, 4, dead, norm=False)


def test_the_bounds_of_activations_and_of_updates() -> None:
    assert [activation_scale([layer("x", ratio)]).status for ratio in (0.45, 0.55, 1.9, 2.1)] == [
        WARN,
        PASS,
        PASS,
        WARN,
    ]
    assert [dead_units([layer("x", 1, dead)]).status for dead in (0, 1, 4)] == [PASS, WARN, FAIL]
    assert [blank_share({"blanks": share}, steps=100).status for share in (0.994, 0.996)] == [PASS, FAIL]
    assert blank_share({"blanks": 0.9996}, steps=100).says.startswith(
        ">99.9 % of frames: the model is stuck at blank outputs (the all-blank plateau)"
    )
    loop = toy.loop(clip=1.0)
    found = []
    for ratio in (0.9e-6, 1.1e-6, 0.09, 0.11):
        loop.state.progress.ratios = {HEAD: ratio}
        found.append(update_sizes(loop.state).status)
    assert found == [WARN, PASS, PASS, WARN]
    found = []
    for clipped in (5, 6):
        loop.state.progress.norms = {"steps": 10, "clipped": clipped, "largest": 1.0, "sum": 10.0}
        found.append(gradient_norm(loop.state).status)
    assert found == [PASS, WARN]


def test_a_low_first_loss_is_fine_where_nothing_is_new(source: Path) -> None:
    toy.write()
    found = before(toy.job(toy.make_init(source=str(source))))
    assert found["first"].status == PASS
    assert "no weight of the model is new" in found["first"].says
    assert found["drawn"].status == NOT_RUN


def test_a_layer_that_shrinks_what_it_is_given_warns() -> None:
    def shrunk(norm: bool) -> Check:
        return before(toy.job(model={"norm": norm}), lambda tensors: tensors["body.second.weight"].mul_(0.05))["scale"]

    assert shrunk(norm=False).status == WARN
    assert "body.second x" in shrunk(norm=False).says
    assert shrunk(norm=True).status == PASS
    assert shrunk(norm=True).says.endswith("1 normalisation layer undoes small factors")


@pytest.mark.long
def test_a_dead_unit_warns_and_a_dead_layer_fails() -> None:
    def kill(units: slice) -> Callable[[dict[str, Tensor]], object]:
        return lambda tensors: tensors["body.first.bias"][units].fill_(-1e4)

    found = before(toy.job(), kill(slice(0, 1)))["dead"]
    assert found.status == WARN
    assert "body.act 1 of 16" in found.says
    found = before(toy.job(), kill(slice(None)))["dead"]
    assert found.status == FAIL
    assert "body.act" in found.says


class Sparse(nn.Module):
    """An embedding of which one row is read, a bias that depends on nothing, and a factor that begins as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.segment, self.word = nn.Embedding(2, 3), nn.Embedding(9, 3)
        self.down, self.up, self.bias = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False), Bias()
        nn.init.zeros_(self.up.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.word(ids) + self.segment(torch.zeros_like(ids))
        return x + self.up(self.down(x)) + self.bias()


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 3))

    def forward(self) -> torch.Tensor:
        return self.table


class Sums:
    def loss(self, model: nn.Module, batch: Any) -> Loss:
        return Loss(model(batch).sum(), 1, {})


def test_what_is_constant_by_design_is_not_dead() -> None:
    ids = torch.arange(8).reshape(2, 4)
    settings = toy.job().settings
    layers = layer_activations(Sparse(), Sums(), ids, settings=settings)  # type: ignore[arg-type]
    assert {one.name: one.judged for one in layers} == {
        "word": True, "segment": False, "down": True, "up": False, "bias": False,
    }  # fmt: skip
    assert dead_units(layers).status == PASS
    broken = Sparse()
    with torch.no_grad():
        broken.word.weight.fill_(1.0)
    assert dead_units(layer_activations(broken, Sums(), ids, settings=settings)).status == FAIL  # type: ignore[arg-type]


def test_a_model_that_looks_at_the_batch_fails_and_a_group_norm_warns() -> None:
    assert before(toy.job(model={"leaky": True}))["independent"].status == FAIL
    found = before(toy.job(model={"groups": True}))["independent"]
    assert found.status == WARN
    assert "padding changes the output of the group norm groups, by design" in found.says


def test_a_group_norm_excuses_padding_and_no_company() -> None:
    found = before(toy.job(model={"groups": True, "leaky": True}))["independent"]
    assert found.status == FAIL
    assert "with more padding" not in found.says


def test_a_model_that_looks_at_padding_alone_fails() -> None:
    job = toy.job()
    model, _ = job.model()
    forward = model.forward
    model.forward = lambda x, lengths: forward(x, lengths) * (1 + 0.1 * x.shape[1])  # type: ignore[method-assign]
    found = batch_independence(model, job.task, first_batch(job.train, 0), settings=job.settings)
    assert found.status == FAIL
    assert "with more padding" in found.says


def test_a_model_of_one_input_size_is_held_against_its_batch_alone() -> None:
    job = toy.job()
    batch = first_batch(job.train, 0)
    for leaky, status in ((False, PASS), (True, FAIL)):
        model, _ = toy.job(model={"leaky": leaky}).model()
        forward = model.forward

        def fixed(x: Tensor, lengths: Tensor, forward: Any = forward) -> Any:
            if x.shape[1] != batch.inputs.shape[1]:
                raise IndexError("no place 12")
            return forward(x, lengths)

        model.forward = fixed  # type: ignore[method-assign]
        found = batch_independence(model, job.task, batch, settings=job.settings)
        assert found.status == status, found
        why = "with more padding, the loss cannot be computed: IndexError: no place 12"
        assert (why in found.says) == (status == PASS)


# While it trains.


def during(loop: toy.TrainingLoop) -> dict[str, Check]:
    return {check.name: check for check in checks_during(loop)}


def test_a_sound_run_passes() -> None:
    loop = toy.loop(freeze={"body.first": None, "body.second": 3})
    loop.run()
    found = during(loop)
    assert {check.status for check in found.values()} <= {PASS, NOT_RUN}, found
    assert found["frozen tensors did not move"].says == "4 of 4, bit for bit, 2 unfrozen since"


class Decoder(nn.Module):
    """Begins with the same state for every clip, as decoders begin with the same token."""

    def __init__(self, dead: bool) -> None:
        super().__init__()
        self.cell, self.dead = nn.Linear(3, 3), dead

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        first = self.cell(torch.ones_like(clips))
        return self.cell(torch.ones_like(clips) if self.dead else clips) + first


@pytest.mark.parametrize("dead", [True, False])
def test_a_layer_that_runs_several_times_is_judged_by_all_its_outputs(dead: bool) -> None:
    (found,) = layer_activations(Decoder(dead), Sums(), torch.rand(4, 3), settings=toy.job().settings)  # type: ignore[arg-type]
    assert (found.units, found.dead) == (3, 3 if dead else 0)


def test_a_frozen_layer_that_moves_fails() -> None:
    loop = toy.loop(freeze=["body"])
    loop.run(until=3)
    state_tensors(loop.model)[FIRST].data[0, 0] += 1e-6
    found = during(loop)["frozen tensors did not move"]
    assert (found.status, found.says) == (FAIL, f"1 tensor of 9 changed: {FIRST}")


def test_frozen_statistics_that_move_fail() -> None:
    loop = toy.loop(freeze=["body"])
    loop.state.freezing.training = lambda step: loop.model.train()  # type: ignore[method-assign,assignment,return-value]
    loop.run(until=3)
    found = during(loop)["frozen tensors did not move"]
    assert found.status == FAIL
    assert "body.norm.running_mean" in found.says


def test_what_moved_before_it_thawed_fails() -> None:
    loop = toy.loop(freeze={"body.first": 3})
    loop.run(until=2)
    state_tensors(loop.model)[FIRST].data[0, 0] += 1e-6
    loop.run()
    assert during(loop)["frozen tensors did not move"].says.endswith(FIRST)


def test_a_tensor_without_a_gradient_fails() -> None:
    loop = toy.loop()
    loop.model.body["second"].forward = lambda x: x  # type: ignore[index,union-attr]
    loop.run(until=3)
    found = trained_tensors_moved(loop.state)
    assert found.status == FAIL
    assert found.says == "2 tensors never had a gradient: body.second.weight, body.second.bias"


def test_a_plain_gradient_descent_has_gradients_too() -> None:
    """SGD without momentum keeps no state; what a gradient reached was read from it."""
    loop = toy.loop(optimizer="sgd", betas=[0.0, 0.9], folder="run", save_every=3)
    loop.run(until=3)
    other = toy.loop(optimizer="sgd", betas=[0.0, 0.9])
    other.state.restore(*RunFolder("run").load())
    for one in (loop, other):
        assert trained_tensors_moved(one.state).status == PASS
    other.state.optimizer.had_gradient[0] = False
    assert trained_tensors_moved(other.state).says == f"1 tensor never had a gradient: {other.state.optimizer.order[0]}"


def test_a_tensor_that_does_not_move_fails() -> None:
    loop = toy.loop(lr_scale={"head": 0}, weight_decay=0)
    loop.run(until=3)
    found = trained_tensors_moved(loop.state)
    assert (found.status, found.says) == (FAIL, "2 tensors did not move: head.bias, head.weight")


def test_steps_far_too_large_warn() -> None:
    loop = toy.loop(lr=10, evaluate_every=3)
    loop.run(until=3)
    assert during(loop)["update to weight"].status == WARN


def test_gradients_that_are_always_clipped_warn() -> None:
    loop = toy.loop(clip=1e-3)
    loop.run()
    found = during(loop)["gradient norm"]
    assert found.status == WARN
    assert "100 % of steps clipped" in found.says


@pytest.mark.parametrize(("largest", "status"), [(90.0, PASS), (110.0, WARN)])
def test_one_gradient_far_above_the_others_warns_in_a_short_run(largest: float, status: str) -> None:
    """Their mean with it can be no hundredth of it in fewer than a hundred steps."""
    loop = toy.loop(clip=None)
    loop.state.progress.norms = {"steps": 10, "clipped": 0, "largest": largest, "sum": 9.0 + largest}
    assert during(loop)["gradient norm"].status == status


def test_a_band_that_a_task_names_warns() -> None:
    loop = toy.loop(clip=None)
    loop.run(until=2)
    mean = loop.state.progress.norms["sum"] / 2
    loop.job.task.gradient_band = (mean * 1.1, 99.0)  # type: ignore[attr-defined]
    assert "healthy runs of this task have" in during(loop)["gradient norm"].says
    loop.job.task.gradient_band = (mean * 0.9, 99.0)  # type: ignore[attr-defined]
    assert during(loop)["gradient norm"].status == PASS


def test_a_nan_at_step_5_is_counted_and_many_of_them_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "5")
    monkeypatch.setenv("TOY_NAN_TO", "6")
    loop = toy.loop()
    loop.run()
    assert during(loop)["finite steps"] == Check("finite steps", WARN, "1 step of 12 skipped")
    monkeypatch.setenv("TOY_NAN_TO", "99")
    loop = toy.loop(nonfinite=1)
    loop.run()
    found = during(loop)["finite steps"]
    assert (found.status, found.says) == (
        FAIL,
        "stopped at step 6: 2 steps in a row were not finite; try a smaller train.lr or a longer train.warmup",
    )


def test_what_is_no_number_after_training_fails() -> None:
    loop = toy.loop(ema=0.9)
    loop.run()
    assert during(loop)["no NaN, no Inf"].says == "20 of 20 tensors"
    assert during(loop)["figures are numbers"].says == "2 of 2"
    assert loop.state.ema is not None
    loop.state.ema.tensors[HEAD][0, 0] = float("inf")
    loop.state.progress.figures["error"] = float("nan")
    found = during(loop)
    assert found["no NaN, no Inf"] == Check("no NaN, no Inf", FAIL, f"NaN or Inf in 1 tensor: average of {HEAD}")
    assert found["figures are numbers"] == Check("figures are numbers", FAIL, "error nan")
    assert finite_figures({"loss": 1.0, "other": float("nan")}, ("loss",)).status == WARN
    assert finite_figures({}, ("loss",)).status == NOT_RUN


def test_the_all_blank_plateau_fails_and_short_clips_warn() -> None:
    silent = {"blanks": 1.0, "cer": 1.0}
    assert [blank_share(silent, steps=steps).status for steps in (99, 100)] == [WARN, FAIL]
    assert "all-blank plateau); train longer, or with a different lr" in blank_share(silent, steps=100).says
    diverged = blank_share(silent, steps=9, diverged=True)
    assert (diverged.status, diverged.says[-37:]) == (FAIL, "the all-blank plateau); train with a different lr"[-37:])
    assert blank_share({"blanks": 0.8, "cer": 1.0}, steps=100).status == PASS
    sparse = {"blanks": 0.998, "cer": 0.2}  # a word in a minute
    assert blank_share(sparse, steps=100) == Check("share of blanks", PASS, "99.8 % of frames")
    assert blank_share({"loss": 1.0}, steps=100).says == "no CTC in this task"
    assert blank_share({}, steps=0).says == "nothing was evaluated"
    found = [
        clips_long_enough(RunProgress(step=1, figures=figures, too_short=short, fresh=9))
        for short, figures in ((2, {"too_short": 3.0}), (2, {}), (0, {"too_short": 1.0}), (0, {}), (None, {}))
    ]
    assert [one.status for one in found] == [WARN, WARN, WARN, PASS, NOT_RUN]
    assert found[0].says == "2 of 9 clips of train, 3 clips of dev with fewer frames than CTC needs for the labels"
    assert found[3].says == "too short: 0 of 9 clips of train"
    assert (found[4].says, clips_long_enough(RunProgress()).says) == ("no CTC in this task", "no step was taken")


# After the last step.


def test_what_cannot_be_learned_by_heart_fails() -> None:
    assert overfits_one_batch({"error": 0.3}, "error", 9).status == FAIL
    assert overfits_one_batch({"error": 0.0}, "error", 9).status == PASS
    assert [overfits_one_batch({"error": value}, "error", 9).status for value in (0.049, 0.051)] == [PASS, FAIL]
    assert overfits_one_batch({"accuracy": 0.3}, "accuracy", 9, higher=True).status == FAIL
    assert overfits_one_batch({"accuracy": 0.96}, "accuracy", 9, higher=True).status == PASS


@pytest.mark.long
def test_a_resume_that_drifts_fails() -> None:
    job = toy.job()
    assert resume_is_exact(job, step_s=0.01).status == PASS
    drifting = replace(job, train=Forgetful(job.train))
    found = resume_is_exact(drifting, step_s=0.01)
    assert found.status == FAIL
    assert "after 2 + 2 steps" in found.says
    assert resume_is_exact(job, step_s=60).status == NOT_RUN


class Forgetful:
    """A source that begins anew wherever it is entered."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def size(self, epoch: int) -> int:
        return int(self.source.size(epoch))

    def read(self, seed: int, epoch: int, start: int = 0) -> Any:
        return self.source.read(seed, epoch, 0)


@pytest.mark.long
@pytest.mark.usefixtures("another_process")
def test_a_saved_file_that_another_process_reads_otherwise_fails() -> None:
    loop = toy.loop(folder="run", save_every=4)
    loop.run(until=4)
    loss = loss_per_item(loop.model, loop.job.task, [first_batch(loop.job.train, 0)], settings=loop.settings)
    last = SavedWeights("last", "run/last/model.safetensors", loss * 1.001)
    best = SavedWeights("best", "run/best.safetensors", loop.state.progress.best_loss or 0, dev=True)
    Path("no.safetensors").write_bytes(b"")
    found = list(reload_in_new_process(loop.job, [last, best, replace(last, weights="no.safetensors")], sets=()))
    assert [check.status for check in found] == [FAIL, PASS, FAIL]
    assert found[0].says == f"loss {loss:.6g} now, {loss * 1.001:.6g} when it was saved"
    assert found[2].says.startswith("the new process computed no loss of the weights: ")


def test_permuting_keeps_the_values_and_nothing_else() -> None:
    model, _ = toy.job().model()
    old = state_tensors(model)[FIRST].detach().clone()
    permute(model, [FIRST], 0)
    new = state_tensors(model)[FIRST].detach()
    assert not torch.equal(old, new)
    assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)


def arm(name: str, *values: float) -> Arm:
    return Arm(name, True, values)


@pytest.mark.parametrize(
    ("warm", "scratch", "permuted", "verdict", "status"),
    [
        ((0.1, 0.2, 0.1), (0.9, 0.8, 0.9), (0.5, 0.5, 0.6), "KNOWLEDGE", PASS),
        ((0.1, 0.2, 0.1), (0.9, 0.8, 0.9), (0.1, 0.1, 0.2), "SCALE ONLY", WARN),
        ((0.1, 0.2, 0.1), (0.9, 0.8, 0.9), (0.2, 0.1, 0.9), "SCALE ONLY", WARN),  # not with every seed
        ((0.9, 0.8, 0.9), (0.9, 0.8, 0.8), (1.0, 1.0, 1.0), "NONE", FAIL),
        ((0.80, 0.80, 0.80), (0.81, 0.81, 0.81), (0.9, 0.9, 0.9), "NONE", FAIL),  # better, and not clearly
        ((0.76, 0.76, 0.76), (0.81, 0.81, 0.81), (0.9, 0.9, 0.9), "KNOWLEDGE", PASS),  # by 6 %
        ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4), (0.9, 0.9, 0.9), "NONE", FAIL),  # beats permuted, and not scratch
    ],
)
def test_the_verdict(warm: Any, scratch: Any, permuted: Any, verdict: str, status: str) -> None:
    arms = (arm("warm", *warm), arm("scratch", *scratch), arm("permuted", *permuted))
    assert verdict_of(*arms) == verdict
    mirrored = [arm(one.name, *(-value for value in one.values)) for one in arms]
    assert verdict_of(*mirrored, higher=True) == verdict
    found = knowledge_moved(Controls("error", 3, 100, arms, verdict, "frozen"))
    assert found.status == status
    assert verdict in found.says


@pytest.mark.long
def test_knowledge_of_a_trained_body_is_seen_and_that_of_an_untrained_one_is_not(init: str) -> None:
    """The frozen probe: only the new head is trained."""
    found = run_controls(toy.job(init, steps=16, evaluate_every=16), seeds=3)
    assert found.verdict == "KNOWLEDGE", found
    assert [(one.name, one.frozen) for one in found.arms] == [
        (way, frozen) for frozen in (True, False) for way in ("warm", "scratch", "permuted")
    ]
    model, _ = toy.job().model()
    torch.save(model.state_dict(), "untrained.pth")
    other = toy.make_init("head", source="untrained.pth", output="other.init.safetensors", seed=5)
    found = run_controls(toy.job(other, steps=16, evaluate_every=16), seeds=3)
    assert found.verdict != "KNOWLEDGE", found


def in_part(source: Path, how: str) -> Job:
    """A job whose head has five classes, four of the source's, of whose own there are others."""
    toy.write(model={"classes": 5})
    Path("old.txt").write_text("a\nb\nc\nd\n")
    Path("new.txt").write_text("a\nx\nc\nd\ny\n")
    options: dict[str, Any] = {"on_mismatch": {"head": "pad"}}
    if how.startswith("map"):
        options = {"vocab": "old.txt:new.txt", "vocab_keys": ["head.*=0"], "new_tokens": how.partition(" ")[2]}
    cs.apply(cs.transplant(str(source), "toy.yaml", seed=5, **options), "part.init.safetensors")
    return toy.job("part.init.safetensors", model={"classes": 5})


@pytest.mark.costly
@pytest.mark.parametrize(
    ("how", "new"), [("pad", [4]), ("map init", [1, 4]), ("map mean", [])], ids=["pad", "map", "mean"]
)
def test_what_is_partly_new_is_trained_in_the_probe(source: Path, how: str, new: list[int]) -> None:
    """A head that was laid over drawn values, or mapped to new tokens, was frozen as if all of it had been brought."""
    job = in_part(source, how)
    assert job.init is not None
    assert (job.init.drawn, job.init.partly) == (frozenset(), {"head.weight", "head.bias"})
    assert not {"head.weight", "head.bias"} & set(controls._loaded_keys(job))
    assert [run.frozen for run in controls._runs(job, 1, "error")] == [True] * 3 + [False] * 3
    old = [place for place in range(5) if place not in new]
    starts = {
        (way, seed): state_tensors(
            controls._initial_model(replace(job, settings=replace(job.settings, seed=seed)), way)
        )
        for way in ("warm", "scratch", "permuted")
        for seed in (0, 1)
    }
    warm, other = starts["warm", 0]["head.weight"], starts["warm", 1]["head.weight"]
    assert torch.equal(warm[old], other[old])
    assert not any(torch.equal(warm[row], other[row]) for row in new)
    assert torch.equal(warm[new], starts["scratch", 0]["head.weight"][new])
    permuted = starts["permuted", 0]["head.weight"]
    assert torch.equal(permuted[new], warm[new])
    assert not torch.equal(permuted[old], warm[old])
    assert torch.equal(permuted[old].flatten().sort().values, warm[old].flatten().sort().values)
    other_order = starts["permuted", 1]["body.first.weight"]
    assert not torch.equal(starts["permuted", 0]["body.first.weight"], other_order)


@pytest.mark.costly
@pytest.mark.parametrize(("how", "row"), [("pad", 4), ("map init", 1)])
def test_the_new_part_of_a_tensor_is_looked_at_too(source: Path, how: str, row: int) -> None:
    job = in_part(source, how)
    assert before(job)["drawn"].says.startswith("2 of 2, 2 of them only in part, largest z-score")
    found = before(job, lambda tensors: tensors[HEAD][row].mul_(9))["drawn"]
    assert found.status == FAIL
    assert found.says.startswith(f"of 2 tensors, 1 differs from what the initialiser draws: {HEAD} (z")


@pytest.mark.long
def test_a_new_part_that_was_saved_rounded_is_found(source: Path) -> None:
    toy.write(model={"classes": 5})
    plan = cs.transplant(str(source), "toy.yaml", on_mismatch={"head": "pad"}, dtype="bf16")
    cs.apply(plan, "part.init.safetensors")
    assert before(toy.job("part.init.safetensors", model={"classes": 5}))["drawn"].says.startswith(
        "2 of 2, 2 of them only in part"
    )


@pytest.mark.long
@pytest.mark.each_value
@pytest.mark.parametrize("number", [1, 2, 5, 16, 29])
@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_few_values_are_held_against_exact_bounds(number: int, draw: Any) -> None:
    """Of 16 values four times as wide and shifted, nothing was seen."""
    torch.manual_seed(number)
    others = [draw(number) for _ in range(32)]
    assert max(z_score(draw(number), others) for _ in range(100)) < MAX_Z
    spread = torch.stack(others).std()
    assert z_score(draw(number) + 12 * spread, others) > MAX_Z
    if number >= 5:
        assert z_score((draw(number) - 0.5) * 30, others) > MAX_Z
    if number >= 16:
        assert z_score(draw(number) * 4 + 0.8, others) > MAX_Z
    if number >= 2:
        assert z_score(torch.full((number,), float(others[0][0])), others) > MAX_Z


def test_values_that_vary_together_are_no_fault() -> None:
    """One draw for a whole tensor: the deviation inside it is none, and says nothing."""
    torch.manual_seed(0)
    others = [torch.randn(()).expand(8) for _ in range(32)]
    assert all(z_score(torch.randn(()).expand(8), others) < MAX_Z for _ in range(50))


@pytest.mark.long
def test_each_seed_of_the_controls_is_trained_with_it_to_the_end(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int | None, int]] = []

    class Seen(toy.TrainingLoop):
        def run(self, **options: Any) -> str:
            ended = super().run(**options)
            seen.append((self.settings.seed, self.settings.patience, self.state.progress.step))
            return ended

    monkeypatch.setattr(controls, "TrainingLoop", Seen)
    job = toy.job(init, steps=4, evaluate_every=1, patience=1, lr=1e-9, seed=7)
    run_controls(job, seeds=2)
    assert seen == [(7, None, 4), (8, None, 4)] * 6
    for way in ("warm", "scratch", "permuted"):
        starts = [
            state_tensors(controls._initial_model(replace(job, settings=replace(job.settings, seed=seed)), way))
            for seed in (7, 8)
        ]
        assert not torch.equal(starts[0][HEAD], starts[1][HEAD]), way
        assert torch.equal(starts[0][FIRST], starts[1][FIRST]) == (way == "warm"), way


@pytest.mark.long
def test_controls_are_paired_and_repeatable(init: str) -> None:
    one = run_controls(toy.job(init, steps=4), seeds=1)
    assert run_controls(toy.job(init, steps=4), seeds=1) == one
    assert one.seeds == 1
    assert knowledge_moved(one).status == WARN


def test_controls_need_an_init_and_something_to_evaluate_on(init: str) -> None:
    with pytest.raises(cs.ConfigError, match="none are given"):
        run_controls(toy.job(), seeds=1)
    with pytest.raises(cs.ConfigError, match="dev split"):
        run_controls(toy.job(init, task="toy_task.py:NoDev"), seeds=1)


def test_an_init_that_nobody_recorded_is_held_against_itself_alone(source: Path) -> None:
    toy.write()
    assert read_init(str(source)).drawn == frozenset()
    found = before(toy.job(str(source)))["loaded"]
    assert found.status == PASS
    assert "the sources of the init are not known" in found.says
