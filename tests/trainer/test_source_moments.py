"""The moments of the Adam that trained a source: what an init copied from it begins with them, the rest without."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.job.init_checkpoint import read_init
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.run import controls

from .sounds import corpus

ENGLISH = Path(__file__).resolve().parents[2] / "fixtures" / "golden" / "tensorflow" / "stt"
NEW = [" ", "b", "a", "'", "c"]
MODEL = {"name": "deepspeech", "alphabet": "new/alphabet.txt", "n_hidden": 8, "n_input": 4, "n_context": 1}
TRAIN = {
    "task": "ctc", "data": {"train": "train.csv", "dev": "dev.csv"}, "features": {"kind": "mfcc", "size": 4},
    "steps": 4, "batch_size": 4, "evaluate_every": 4, "save_every": 2, "keep": 2,
}  # fmt: skip
WITHOUT = {"lstm.bias_hh_l0", "layer_6.weight", "layer_6.bias"}


@pytest.fixture(autouse=True)
def _english() -> None:
    shutil.copytree(ENGLISH, "english")
    Path("new").mkdir()
    Path("new/alphabet.txt").write_text("".join(f"{token}\n" for token in NEW))
    corpus("train.csv", ["a c", "c a", "a'c", "aac"] * 2)
    corpus("dev.csv", ["a c", "ca"])
    write()
    plan = cs.transplant("english", "net.yaml", vocab="english/alphabet.txt:new/alphabet.txt")
    cs.apply(plan, "start.safetensors")


def write(**settings: Any) -> None:
    Path("net.yaml").write_text(yaml.safe_dump({"model": MODEL, "train": {**TRAIN, **settings}}))


def loop(**settings: Any) -> TrainingLoop:
    write(keep_optimizer=True, **settings)
    job = build_job("net.yaml", device="cpu", init=read_init("start.safetensors"))
    return TrainingLoop(job, job.model()[0])


def moments(made: TrainingLoop) -> dict[str, dict[str, torch.Tensor]]:
    own = made.state.optimizer
    return {key: own.inner.state[one] for key, one in zip(own.order, own.parameters, strict=True) if own.has_state(key)}


@pytest.mark.long
def test_what_was_copied_has_the_moments_of_its_source_moved_as_the_weights_were() -> None:
    found = moments(loop())
    assert set(cs.load_target("net.yaml").tensors) - found.keys() == WITHOUT
    for root, name in (("optimizer.adam_m", "exp_avg"), ("optimizer.adam_v", "exp_avg_sq")):
        cs.apply(cs.filter("english", root=root), f"{name}.safetensors")
        cs.apply(cs.rename(f"{name}.safetensors", ruleset="coqui-stt"), f"{name}.torch.safetensors")
        with cs.open_checkpoint(f"{name}.torch.safetensors") as wanted:
            assert any(wanted.tensor(key).any() for key in found)
            for key, state in found.items():
                assert state[name].equal(wanted.tensor(key)), key
    with cs.open_checkpoint("english", root="optimizer") as state_of_training:
        step = int(state_of_training.tensor("global_step"))
    assert {float(state["step"]) for state in found.values()} == {step}


def test_what_is_frozen_gets_none() -> None:
    assert moments(loop(freeze=["layer_1"])).keys().isdisjoint({"layer_1.weight", "layer_1.bias"})


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_says_whose_moments_it_begins_with_and_keeps_its_own_when_it_goes_on(ckpt: Any) -> None:
    done = ckpt(
        "train", "net.yaml", "--init", "start.safetensors", "--keep-optimizer", "--device", "cpu", "--steps", "2"
    )
    said = "the moments of Adam for 11 tensors come from english, after step 1; tensors without moments: lstm.bias_hh_l0, layer_6.weight"
    assert said in " ".join(done.err.split())
    shutil.rmtree("english")
    found = cs.train(run="run", resume=True, steps=4, device="cpu")
    assert found.step == 4
    assert not any("moments of Adam" in note for note in found.notes)


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_the_moments_decide_the_first_step() -> None:
    weights = []
    for keep in (True, False):
        write(keep_optimizer=keep, steps=1)
        cs.train("net.yaml", init="start.safetensors", run=f"run-{keep}", device="cpu")
        with cs.open_checkpoint(f"run-{keep}/last/model.safetensors") as found:
            weights.append({key: found.tensor(key) for key in found})
    with_moments, without = weights
    assert {key for key in without if not with_moments[key].equal(without[key])} >= without.keys() - WITHOUT
    assert all(with_moments[key].equal(without[key]) for key in WITHOUT)


@pytest.mark.costly
@pytest.mark.parametrize("way", ["warm", "scratch", "permuted"])
def test_of_the_controls_only_the_warm_start_has_them(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = TrainingLoop.__init__

    def look(self: TrainingLoop, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        seen.append(bool(moments(self)))

    monkeypatch.setattr(TrainingLoop, "__init__", look)
    write(keep_optimizer=True, steps=1)
    job = build_job("net.yaml", device="cpu", init=read_init("start.safetensors"))
    controls._train_control(job, way, 0, frozen=False)
    assert seen == [way == "warm"]


def _without_source() -> dict[str, Any]:
    shutil.rmtree("english")
    return {"init": "start.safetensors"}


def _in_memory() -> dict[str, Any]:
    with cs.open_checkpoint("start.safetensors") as found:
        state = {key: found.tensor(key) for key in found}
    cs.apply(cs.transplant(state, "net.yaml"), "start.safetensors", force=True)
    return {"init": "start.safetensors"}


def _plain() -> dict[str, Any]:
    cs.apply(cs.convert("start.safetensors"), "plain.safetensors")
    cs.apply(cs.transplant("plain.safetensors", "net.yaml"), "start.safetensors", force=True)
    return {"init": "start.safetensors"}


def _foreign() -> dict[str, Any]:
    with cs.open_checkpoint("start.safetensors") as found:
        save_file({key: found.tensor(key) for key in found}, "foreign.safetensors")
    return {"init": "foreign.safetensors"}


@pytest.mark.costly
@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (dict, "train.keep_optimizer needs initial weights that ckpt wrote"),
        (_foreign, "train.keep_optimizer needs initial weights that ckpt wrote"),
        (
            _without_source,
            "no moments of Adam were found in the sources of start.safetensors: english is no longer at its path",
        ),
        (_in_memory, r"in the sources of start.safetensors: .* was in memory\. Leave"),
        (_plain, "no moments of Adam were found in the sources of start.safetensors: none in plain.safetensors"),
        (lambda: {"init": "start.safetensors", "sets": ["optimizer=sgd"]}, "but train.optimizer is sgd"),
    ],
)
def test_an_error_says_why_there_are_none(prepare: Any, why: str) -> None:
    given = prepare()
    write(keep_optimizer=True)
    with pytest.raises(cs.ConfigError, match=why):
        cs.train("net.yaml", device="cpu", check_only=True, **given)
