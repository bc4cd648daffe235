"""Greedy soups: the models that do not lower the score, averaged as ``average`` averages them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .conftest import Evaluation

Run = Callable[..., Any]
NEAR = "print('score:', -abs(w[0] - 0.5))"
MODELS = {"low": 0.05, "high": 0.9, "far": 9.0, "mid": 0.3}
PATHS = [f"{name}.safetensors" for name in MODELS]


@pytest.fixture(autouse=True)
def soup_models() -> None:
    for name, value in MODELS.items():
        save_file({"w": torch.full((2,), value), "steps": torch.tensor(round(value * 10))}, f"{name}.safetensors")


def cooked(evaluate: str, **options: Any) -> Any:
    return cs.greedy_soup(PATHS, "soup.safetensors", evaluate=evaluate, maximize=True, force=True, **options)


def by_hand(score: Callable[[float], float]) -> list[str]:
    """The recipe of the paper, in numbers: sort by score, and keep what does not lower it."""
    ordered = sorted(MODELS, key=lambda name: -score(MODELS[name]))
    kept: list[str] = []
    for name in ordered:
        more = [*kept, name]
        mean = [sum(MODELS[one] for one in names) / max(len(names), 1) for names in (kept, more)]
        if not kept or score(mean[1]) >= score(mean[0]):
            kept = more
    return kept


@pytest.mark.long
def test_the_soup_is_that_of_the_paper(evaluation: Evaluation) -> None:
    found = cooked(evaluation(NEAR))
    expected = by_hand(lambda value: -abs(value - 0.5))
    assert sorted(expected) == ["high", "low", "mid"]
    assert sorted(found.best.values["models"]) == sorted(f"{name}.safetensors" for name in expected)
    assert found.verification.ok
    kept = [path for path in PATHS if path.removesuffix(".safetensors") in expected]
    cs.apply(cs.average(kept), "mean.safetensors")
    assert torch.equal(load_file("mean.safetensors")["w"], load_file("soup.safetensors")["w"])
    assert load_file("soup.safetensors")["steps"].item() == load_file("mean.safetensors")["steps"].item()
    assert len(found.trials) == 7
    assert yaml.safe_load(Path(found.recipe).read_text())["verb"] == "average"
    assert (
        found.notes[0] == "low.safetensors, high.safetensors, mid.safetensors: these are in the output, out of 4 models"
    )


@pytest.mark.long
def test_one_model_that_is_best_alone_is_copied(evaluation: Evaluation) -> None:
    found = cooked(evaluation("print('score:', w[0])"))
    assert found.best.values == {"models": ["far.safetensors"]}
    assert torch.equal(load_file("soup.safetensors")["w"], load_file("far.safetensors")["w"])
    assert found.notes[0] == "far.safetensors: this is in the output, out of 4 models"


def test_a_score_that_stays_equal_keeps_the_model(evaluation: Evaluation) -> None:
    found = cooked(evaluation("print('score: 1')"))
    assert len(found.best.values["models"]) == 4


@pytest.mark.long
def test_a_model_whose_evaluation_fails_is_left_out_with_a_note(evaluation: Evaluation) -> None:
    found = cooked(evaluation(f"sys.exit('no') if w[0] > 5 else None\n{NEAR}"))
    assert "far.safetensors" not in found.best.values["models"]
    assert "models that are not in the output, because their evaluation failed: far.safetensors" in found.notes
    with pytest.raises(cs.CheckpointError, match="none of 4 trials has a score"):
        cooked(evaluation("pass", name="none.py"), study="other")


@pytest.mark.long
def test_an_interrupted_soup_goes_on_and_another_one_is_an_error(evaluation: Evaluation) -> None:
    command = evaluation(f"open('count', 'a').write('x')\n{NEAR}")
    whole = cooked(command, parallel=2)
    lines = Path("soup.safetensors.study/trials.jsonl").read_text().splitlines()
    Path("soup.safetensors.study/trials.jsonl").write_text("\n".join(lines[:9]) + "\n")  # the first average has begun
    assert cooked(command).best.values == whole.best.values
    assert len(Path("count").read_text()) == 7 + 3
    with pytest.raises(cs.ConfigError, match="is the study of another recipe"):
        cooked(command, int_buffers="first")


def test_models_that_do_not_fit_are_an_error_before_any_evaluation(evaluation: Evaluation) -> None:
    save_file({"w": torch.ones(3), "steps": torch.tensor(1)}, "mid.safetensors")
    with pytest.raises(cs.PlanError, match="shapes differ"):
        cooked(evaluation("open('ran', 'w')"))
    assert not Path("ran").exists()
    with pytest.raises(cs.ConfigError, match="only one checkpoint"):
        cs.greedy_soup(["low.safetensors"], "x.safetensors", evaluate=evaluation(), maximize=True)


@pytest.mark.long
def test_the_command_averages_greedily(ckpt: Run, evaluation: Evaluation) -> None:
    line = ["average", *PATHS, "--greedy", "--evaluate", evaluation(NEAR), "--maximize", "-o", "soup.safetensors"]
    done = ckpt(*line)
    assert done.code == 0, done
    assert "trial 7 of 7" in done.out
    assert "these are in the output" in done.err
    found = json.loads(ckpt(*line, "--force", "--json").out)
    assert (found["kind"], found["sampler"], len(found["trials"])) == ("ckpt.search", "greedy", 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--greedy"], "--greedy needs a command that scores a model, or a task."),
        (["--greedy", "--evaluate", "true {model}"], "Give --maximize (accuracy) or --minimize"),
        (
            ["--greedy", "--evaluate", "true {model}", "--maximize", "--ema", "0.9"],
            "--ema cannot be used with --greedy.",
        ),
        (["--greedy", "--evaluate", "true {model}", "--maximize", "--to", "pth"], "--to cannot be used with --greedy."),
        (["--greedy", "--evaluate", "true {model}", "--maximize", "-n"], "-n cannot be used with --greedy"),
        (["--evaluate", "true {model}"], "--evaluate is only for --greedy."),
        (["--minimize"], "--maximize is only for --greedy."),
        (["--parallel", "2"], "--parallel is only for --greedy."),
    ],
)
def test_options_that_do_not_fit_are_one_message(ckpt: Run, options: list[str], said: str) -> None:
    done = ckpt("average", *PATHS, "-o", "soup.safetensors", *options)
    assert done.code == 2
    assert said in done.err
