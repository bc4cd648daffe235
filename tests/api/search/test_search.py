"""``search``: trials are scored, logged, resumed, and the best is an ordinary merge; what does not belong together is said."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.search import trials as running
from ckptsurgeon.api.search.reuse import MadeModel, with_copies

from ...helpers.forked import ckpt_forked
from .conftest import Evaluation, recipe

Run = Callable[..., Any]
STUDY = Path("out.safetensors.study")


def lines(study: Path = STUDY) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "trials.jsonl").read_text().splitlines()]


def searched(evaluate: str, **options: Any) -> Any:
    given = {"maximize": True, "trials": 6, "force": True, "sampler": "sobol", **options}
    return cs.search("recipe.yaml", "out.safetensors", evaluate=evaluate, **given)


@pytest.mark.long
def test_the_best_trial_is_written_as_an_ordinary_merge(evaluation: Evaluation) -> None:
    found = searched(evaluation(), trials=8)
    assert [one.number for one in found.trials] == list(range(1, 9))
    assert found.best.score == max(one.score for one in found.trials)
    assert found.verification.ok
    assert found.verification.compared == 2
    first, second = found.best.values.values()
    assert load_file("out.safetensors")["w"].tolist() == pytest.approx([first, second, 0, 0])
    assert found.best.score == pytest.approx(-((first - 0.75) ** 2) - (second - 0.25) ** 2, abs=1e-6)
    cs.apply(cs.merge(found.recipe), "again.safetensors")
    assert torch.equal(load_file("again.safetensors")["w"], load_file("out.safetensors")["w"])
    assert sorted(os.listdir(STUDY)) == ["best.yaml", "scores.svg", "study.json", "trials.jsonl"]  # no models
    assert "/" not in json.dumps(cs.open_checkpoint("out.safetensors").recipe).replace("\\/", "").replace("arxiv", "")


@pytest.mark.long
def test_equal_scores_are_noted(evaluation: Evaluation) -> None:
    said = "all 3 scores are 120, so no values are better than others"
    assert any(said in note for note in searched(evaluation("print(f'mean {w[0]} of', 120)"), trials=3).notes)
    assert not any("so no values are better" in note for note in searched(evaluation(), trials=3, study="b").notes)
    assert not any("so no values are better" in note for note in searched(evaluation(), trials=1, study="c").notes)


@pytest.mark.long
def test_the_score_that_is_chosen_of_several_is_noted(evaluation: Evaluation) -> None:
    said = "(accuracy, loss), of which the last one is the score: loss"
    body = "print('accuracy:', w[0])\nprint('loss:', 1 - w[0])"
    assert any(said in note for note in searched(evaluation(body), trials=2).notes)
    assert not any(said in note for note in searched(evaluation(body), trials=2, metric="loss", study="b").notes)
    tested = searched(evaluation(), trials=2, study="c", test=evaluation(body, name="test.py")).notes
    assert any(note.startswith("the test: ") and said in note for note in tested)


@pytest.mark.long
def test_smaller_is_better_if_it_is_said(evaluation: Evaluation) -> None:
    found = searched(evaluation("print((w[0] - 0.5) ** 2)"), maximize=False)
    assert found.best.score == min(one.score for one in found.trials)


def test_each_trial_has_a_line_when_it_begins_and_one_when_it_ends(evaluation: Evaluation) -> None:
    searched(evaluation(), trials=2)
    rows = lines()
    assert [(row["trial"], row["state"]) for row in rows] == [(1, "begun"), (1, "done"), (2, "begun"), (2, "done")]
    assert rows[0]["values"] == rows[1]["values"]
    assert rows[1]["score"] is not None
    assert rows[1]["evaluate_s"] > 0


@pytest.mark.long
def test_a_failing_evaluation_is_a_failed_trial_and_the_search_goes_on(evaluation: Evaluation) -> None:
    body = "print('score:', w[0]) if w[0] > 0.4 else sys.exit('too small')"
    found = searched(evaluation(body), trials=8)
    failed = [one for one in found.trials if one.score is None]
    assert 0 < len(failed) < 8
    assert {one.why for one in failed} == {"the command failed with exit status 1: too small"}
    assert found.best.score > 0.4
    assert (STUDY / "scores.svg").read_text().count("×") == len(failed)


@pytest.mark.long
def test_a_hanging_evaluation_is_a_failed_trial(evaluation: Evaluation) -> None:
    found = searched(
        evaluation("import signal\nif w[0] > 0.9: signal.pause()\nprint(w[0])"), trials=3, trial_timeout=5.0
    )
    (slow,) = [one for one in found.trials if one.values["models[0].parameters.weight"] > 0.9]
    assert slow.why == "the command ran for more than 5 s, and was killed"
    assert [one for one in found.trials if one.score is None] == [slow]


def test_no_score_at_all_is_an_error_that_says_why(evaluation: Evaluation) -> None:
    with pytest.raises(cs.CheckpointError) as error:
        searched(evaluation("print('fine')"), trials=2)
    assert type(error.value) is cs.CheckpointError  # exit 1: the answer is no
    assert (
        error.value.message == "none of 2 trials has a score; reason of the last trial: the command printed no number."
    )
    assert error.value.details == ("trial 1: the command printed no number", "trial 2: the command printed no number")
    assert not Path("out.safetensors").exists()


@pytest.mark.long
def test_the_same_command_runs_only_the_trials_that_are_missing(evaluation: Evaluation) -> None:
    command = evaluation("open('count', 'a').write('x')\nprint(w[0])")
    first = searched(command, trials=3)
    again = searched(command, trials=3)
    assert Path("count").read_text() == "xxx"
    assert [one.values for one in again.trials] == [one.values for one in first.trials]
    more = searched(command, trials=5)
    assert Path("count").read_text() == "xxxxx"
    whole = searched(command, trials=5, study="other")
    assert [one.values for one in more.trials] == [one.values for one in whole.trials]


@pytest.mark.long
def test_a_killed_search_goes_on_with_the_trial_that_it_was_in(evaluation: Evaluation) -> None:
    slow = "import os, signal\nopen('pid', 'w').write(str(os.getpid()))\nopen('count', 'a').write('x')\n"
    slow += "if len(open('count').read()) == 3: signal.pause()\nprint(w[0])"
    command = evaluation(slow)
    arguments = ("search", "recipe.yaml", "--evaluate", command, "--maximize", "--trials", "4", "-o", "out.safetensors")
    process = ckpt_forked(*arguments, "--sampler", "sobol")
    process.wait_until(lambda: Path("count").exists() and Path("count").read_text() == "xxx")
    process.kill()
    os.kill(int(Path("pid").read_text()), signal.SIGKILL)  # which ckpt cannot do any more
    assert [row["trial"] for row in lines() if row["state"] == "begun"] == [1, 2, 3]
    with (STUDY / "trials.jsonl").open("a") as file:
        file.write('{"trial": 3, "sta')  # as a run leaves it that is killed while it writes
    found = searched(command, trials=4)
    assert Path("count").read_text() == "xxxxx"  # the third again, and the fourth
    assert [row["trial"] for row in lines() if row["state"] == "begun"] == [1, 2, 3, 4]
    assert [one.score for one in found.trials] == [
        pytest.approx(one.values["models[0].parameters.weight"], abs=1e-6) for one in found.trials
    ]
    assert not (STUDY / "trials").exists()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_search_and_its_commands_and_leaves_no_model(evaluation: Evaluation, number: int) -> None:
    command = evaluation("import os, signal\nopen('pid', 'w').write(str(os.getpid()) + '\\n')\nsignal.pause()")
    process = ckpt_forked("search", "recipe.yaml", "--evaluate", command, "--maximize", "-o", "out.safetensors")
    process.wait_until(lambda: Path("pid").exists() and Path("pid").read_text().endswith("\n"))
    process.send_signal(number)
    assert process.ended() == 128 + number
    assert "the trials in out.safetensors.study are kept: the same command goes on from there" in process.err
    assert not Path(f"/proc/{Path('pid').read_text().strip()}").exists()
    assert not (STUDY / "trials").exists()
    assert [row["state"] for row in lines()] == ["begun"]
    assert not Path("out.safetensors").exists()


@pytest.mark.long
def test_two_searches_cannot_use_one_study(evaluation: Evaluation) -> None:
    body = "import os, threading\nopen('begun', 'w')\nwhile not os.path.exists('go'): threading.Event().wait(0.01)\nprint(1)"
    command = evaluation(body)
    line = ("search", "recipe.yaml", "--evaluate", command, "--maximize", "--trials", "1", "--sampler", "sobol")
    process = ckpt_forked(*line, "-o", "out.safetensors")
    process.wait_until(lambda: Path("begun").exists())
    with pytest.raises(cs.OutputError, match=r"out\.safetensors\.study is being written by process"):
        searched(command, trials=1)
    Path("go").write_text("")
    assert process.ended() == 0


def test_the_study_of_another_recipe_is_an_error_that_names_both(evaluation: Evaluation) -> None:
    command = evaluation()
    searched(command, trials=1)
    before = json.loads((STUDY / "study.json").read_text())["sha256"]
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 2]}, 0.5)))
    with pytest.raises(cs.ConfigError) as error:
        searched(command, trials=1)
    said = error.value.message
    assert said.startswith("out.safetensors.study is the study of another recipe: of recipe.yaml (SHA-256 ")
    assert before[:12] in said
    assert said.count("recipe.yaml (SHA-256 ") == 2


def test_comments_do_not_make_another_recipe(evaluation: Evaluation) -> None:
    command = evaluation()
    searched(command, trials=1)
    Path("recipe.yaml").write_text("# the same\n" + Path("recipe.yaml").read_text())
    assert len(searched(command, trials=2).trials) == 2


@pytest.mark.costly
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"maximize": False}, "whether larger is better was True, and is False now"),
        ({"sampler": "random"}, "the sampler was 'sobol', and is 'random' now"),
        ({"seed": 1}, "the seed was 0, and is 1 now"),
        ({"metric": "score"}, "the metric was '', and is 'score' now"),
    ],
)
def test_scores_that_cannot_be_compared_do_not_share_a_study(
    evaluation: Evaluation, options: dict[str, Any], said: str
) -> None:
    command = evaluation()
    searched(command, trials=1)
    with pytest.raises(cs.ConfigError, match=f"is a study with other settings: {said}"):
        searched(command, trials=1, **options)
    with pytest.raises(cs.ConfigError, match="the evaluation was"):
        searched(evaluation(name="other.py"), trials=1)


def test_the_study_of_models_that_have_changed_is_an_error(evaluation: Evaluation) -> None:
    command = evaluation()
    searched(command, trials=1)
    save_file({"w": torch.ones(4), "v.weight": torch.ones(3, 3)}, "a.safetensors")
    with pytest.raises(cs.ConfigError, match=r"is a study of other models: a\.safetensors has changed"):
        searched(command, trials=2)


@pytest.mark.long
def test_a_folder_with_other_files_and_a_damaged_study_are_errors(evaluation: Evaluation) -> None:
    command = evaluation()
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("")
    with pytest.raises(cs.ConfigError, match="mine is not the folder of a study, but it has files"):
        searched(command, study="mine")
    searched(command, trials=1)
    for line in ("{}", '{"trial": 0}', "[]", "x"):
        (STUDY / "trials.jsonl").write_text(f"{line}\n")
        with pytest.raises(cs.CheckpointError, match=r"trials\.jsonl: line 1 is not a trial"):
            searched(command, trials=1)
    (STUDY / "study.json").write_text("[")
    with pytest.raises(cs.CheckpointError, match=r"study\.json is not valid JSON"):
        searched(command, trials=1)


@pytest.mark.long
def test_evaluations_run_in_parallel(evaluation: Evaluation) -> None:
    """Each waits until the other has begun: one at a time, the first would never end."""
    body = "import os, threading\nopen(f'begun-{os.getpid()}', 'w')\n"
    body += (
        "while sum(name.startswith('begun') for name in os.listdir()) < 2: threading.Event().wait(0.01)\nprint(w[0])"
    )
    found = searched(evaluation(body), trials=2, parallel=2)
    assert [one.score is None for one in found.trials] == [False, False]


@pytest.mark.long
def test_a_merge_that_is_impossible_with_some_values_is_a_failed_trial(evaluation: Evaluation) -> None:
    models = [{"model": name, "parameters": {"weight": mark}} for name, mark in (
        ("a.safetensors", {"choice": [1, -1]}), ("b.safetensors", 1),
    )]  # fmt: skip
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "linear", "models": models}))
    found = searched(evaluation("print(w[0])"), trials=6)
    failed = [one for one in found.trials if one.score is None]
    assert 0 < len(failed) < 6
    assert all(
        one.why.startswith("the models cannot be merged with these values: v.weight: the weights sum to zero")
        for one in failed
    ), failed[0].why


def test_a_recipe_that_is_wrong_is_an_error_and_no_study(evaluation: Evaluation) -> None:
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, 1, parametres={})))
    with pytest.raises(cs.ConfigError, match="unknown field 'parametres'"):
        searched(evaluation())
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, 1, base_model="gone.safetensors")))
    with pytest.raises(cs.CheckpointError, match=r"gone\.safetensors was not found"):
        searched(evaluation())
    assert not STUDY.exists()


def test_an_error_of_the_recipe_names_the_users_file(evaluation: Evaluation) -> None:
    """Not a file that ckpt writes, with values in place of the marks."""
    Path("soup.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, 1, parameters={"nothing": 1})))
    with pytest.raises(cs.ConfigError, match=r"^soup\.yaml: the merge method task_arithmetic has no parameter nothing"):
        cs.search("soup.yaml", "out.safetensors", evaluate=evaluation(), maximize=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: []\n", "neither merge_method nor verb"),
        ("- 1\n", "neither"),
        ("verb: merge\nmodels: [a]\n", "has no parameter to search"),
    ],
)
def test_a_file_that_is_no_marked_recipe_is_an_error(evaluation: Evaluation, text: str, message: str) -> None:
    Path("recipe.yaml").write_text(text)
    with pytest.raises(cs.ConfigError, match=message):
        searched(evaluation())


@pytest.mark.long
def test_a_recipe_of_ckpt_is_searched_from_any_folder(evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    command = evaluation("print(w[0])")
    text = "verb: merge\nmodels: [a.safetensors, b.safetensors]\nmethod: linear\noutput: no.safetensors\n"
    Path("recipe.yaml").write_text(text + "parameters: {weight: [{search: [0, 1]}, 1]}\n")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = cs.search("../recipe.yaml", "out.safetensors", evaluate=command, maximize=True, trials=3, sampler="grid")
    assert [one.values["parameters.weight[0]"] for one in found.trials] == [0.0, 0.5, 1.0]
    assert found.best.score == 0.5
    assert found.verification.compared == 2
    assert sorted(os.listdir()) == ["out.safetensors", "out.safetensors.study"]
    cs.apply(found.recipe, "again.safetensors")
    assert torch.equal(load_file("again.safetensors")["w"], load_file("out.safetensors")["w"])


def test_the_models_of_a_mergekit_recipe_are_found_beside_it(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = evaluation("print(w[0])")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = cs.search("../recipe.yaml", "model/", evaluate=command.replace("{model}", "{model}/model.safetensors"),
                      maximize=True, trials=1, sampler="sobol")  # fmt: skip
    assert found.verification.ok
    assert sorted(os.listdir("model")) == ["ckptsurgeon.json", "model.safetensors"]


@pytest.mark.long
def test_the_model_of_a_trial_has_the_files_that_from_pretrained_opens(evaluation: Evaluation) -> None:
    for name in ("base", "a", "b"):
        os.mkdir(name)
        os.rename(f"{name}.safetensors", f"{name}/model.safetensors")
        Path(name, "config.json").write_text('{"model_type": "llama"}')
        Path(name, "tokenizer_config.json").write_text("{}")
    Path("recipe.yaml").write_text(json.dumps(recipe({"search": [0, 1]}, 0.5)).replace(".safetensors", ""))
    command = evaluation("import os\nopen('seen', 'w').write(' '.join(sorted(os.listdir(sys.argv[1]))))\nprint(1)")
    Path("evaluate.py").write_text(Path("evaluate.py").read_text().replace("weights(sys.argv[1])", "0"))
    cs.search("recipe.yaml", "out", evaluate=command, maximize=True, trials=1, sampler="sobol")
    assert Path("seen").read_text() == "ckptsurgeon.json config.json model.safetensors tokenizer_config.json"


@pytest.mark.long
def test_tensors_that_did_not_change_are_copied_and_are_the_same(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one key the weight is searched; the others are merged once."""
    weight = [{"keys": "w", "value": {"search": [0, 1]}}, {"value": 0.5}]
    Path("recipe.yaml").write_text(json.dumps(recipe(weight, 0.25)))
    applied, apply = list[dict[str, str]](), running.apply

    def noted(plan: cs.Plan, path: str) -> cs.Receipt:
        applied.append({step.key: step.op for step in plan.steps})
        return apply(plan, path)

    monkeypatch.setattr(running, "apply", noted)
    searched(evaluation(), trials=3, keep_models=True)
    assert applied == [{"v.weight": "merge", "w": "merge"}, *[{"v.weight": "copy", "w": "merge"}] * 2]
    for number in (1, 2, 3):
        room = STUDY / "trials" / f"{number:04}"
        cs.apply(cs.merge(room / "recipe.yaml"), "again.safetensors", force=True)
        assert (room / "out.safetensors").exists()
        made, again = load_file(room / "out.safetensors"), load_file("again.safetensors")
        assert all(torch.equal(made[key], again[key]) for key in again)


def test_a_model_that_the_evaluation_changed_is_not_copied_from(evaluation: Evaluation) -> None:
    plan = cs.merge(["a.safetensors", "b.safetensors"], method="linear", weights=[0.5, 0.5])
    cs.apply(plan, "made.safetensors")
    made = MadeModel.of(1, plan, "made.safetensors")
    again = cs.merge(["a.safetensors", "b.safetensors"], method="linear", weights=[0.5, 0.5])
    copied = with_copies(again, made)
    assert {step.op for step in copied.steps} == {"copy"}
    os.utime("made.safetensors", (1, 1))
    assert {step.op for step in with_copies(again, made).steps} == {"merge"}
    other = cs.merge(["a.safetensors", "b.safetensors"], method="linear", weights=[0.5, 0.25])
    assert {step.op for step in with_copies(other, MadeModel.of(1, plan, "made.safetensors")).steps} == {"merge"}


def test_without_trials_nothing_is_run_or_written(evaluation: Evaluation) -> None:
    before = sorted(os.listdir())
    found = searched(evaluation("open('ran', 'w')"), trials=0)
    assert [one.name for one in found.parameters] == ["models[0].parameters.weight", "models[1].parameters.weight"]
    assert sorted(os.listdir()) == sorted([*before, "evaluate.py"])


def test_an_output_that_exists_is_an_error_before_the_first_trial(evaluation: Evaluation) -> None:
    save_file({"w": torch.ones(1)}, "out.safetensors")
    with pytest.raises(cs.OutputError, match=r"out\.safetensors exists"):
        searched(evaluation(), force=False)
    with pytest.raises(cs.OutputError, match="cannot be written to an address"):
        cs.search("recipe.yaml", "s3://bucket/model", evaluate=evaluation(), maximize=True)
    with pytest.raises(cs.OutputError, match="does not exist"):
        cs.search("recipe.yaml", "no/out.safetensors", evaluate=evaluation(), maximize=True)
    os.mkdir("model")
    save_file({"w": torch.ones(1)}, "model/model.safetensors")
    with pytest.raises(cs.OutputError, match=r"model holds a checkpoint: model\.safetensors"):
        cs.search("recipe.yaml", "model", evaluate=evaluation(), maximize=True)
    assert not STUDY.exists()
    assert not Path("model.study").exists()


def test_the_plugin_of_a_recipe_is_used_and_verified(evaluation: Evaluation) -> None:
    Path("mine.py").write_text(
        "from ckptsurgeon import merge_method\n\n@merge_method('scaled', paper='ours', models=(2, None))\n"
        "def scaled(tensors, *, by: float = 1.0):\n    return lambda at: sum(at.models) * by\n"
    )
    text = "verb: merge\nmodels: [a.safetensors, b.safetensors]\nmethod: scaled\nplugin: mine.py\n"
    Path("recipe.yaml").write_text(text + "parameters: {by: {search: [0, 1]}}\n")
    found = searched(evaluation("print(w[0])"), trials=2)
    assert found.best.score == pytest.approx(found.best.values["parameters.by"], abs=1e-6)
    assert found.verification.compared == 2


def test_a_model_that_changes_during_the_search_ends_it(evaluation: Evaluation) -> None:
    """The scores before and after could not be compared."""
    command = evaluation("import os\nos.utime('a.safetensors', (1, 1))\nprint(w[0])")
    with pytest.raises(cs.SourceError, match=r"a\.safetensors has changed since the search began"):
        searched(command, trials=3)
    assert [row["state"] for row in lines()] == ["begun", "done", "begun"]


def test_without_trials_the_code_that_a_recipe_names_is_not_run(evaluation: Evaluation) -> None:
    Path("mine.py").write_text("open('ran', 'w')\n")
    text = "verb: merge\nmodels: [a.safetensors, b.safetensors]\nmethod: linear\nplugin: mine.py\n"
    Path("recipe.yaml").write_text(text + "weights: [{search: [0, 1]}, 1]\n")
    with pytest.raises(cs.ConfigError, match=r"would run the plugin .*mine\.py; nothing was run"):
        searched(evaluation(), trials=0)
    assert not Path("ran").exists()


# Search and test data.


@pytest.mark.long
def test_the_report_says_that_the_score_is_too_good_or_has_a_test_score(evaluation: Evaluation) -> None:
    command = evaluation()
    assert any(
        "so it is too optimistic; use --test to evaluate the output on other data" in note
        for note in searched(command).notes
    )
    other = evaluation("print('score:', w[0])", name="test.py")
    found = searched(command, test=other)
    assert found.test == pytest.approx(found.best.values["models[0].parameters.weight"], abs=1e-6)
    assert not found.notes
    failing = searched(command, test=evaluation("sys.exit(3)", name="test.py"))
    assert failing.test is None
    assert failing.notes == ("the test gave no score: the command failed with exit status 3",)
    same = searched(command, test=command)
    assert same.notes == (
        "--test and --evaluate are the same command: the test score is measured on the data of the search, so it is too "
        "optimistic",
    )


@pytest.mark.long
def test_data_of_the_search_that_are_in_the_test_are_noted(evaluation: Evaluation) -> None:
    command = evaluation()
    rows = [f"clip-{number:04},text {number}" for number in range(20)]
    Path("dev.csv").write_text("\n".join(["path,text", *rows[:12]]) + "\n")
    Path("copy.csv").write_text(Path("dev.csv").read_text())
    Path("test.csv").write_text("\n".join(["path,text", *rows[9:]]) + "\n")
    Path("apart.csv").write_text("\n".join(["path,text", *rows[12:]]) + "\n")

    def notes(test: str) -> tuple[str, ...]:
        return tuple(searched(f"{command} dev.csv", test=f"{command} {test}", trials=1).notes)

    assert notes("apart.csv") == ()
    assert notes("test.csv") == (
        "3 lines of 11 in test.csv of --test are also in dev.csv of --evaluate: the test score is too optimistic",
    )
    assert notes("copy.csv") == ("copy.csv of --test has the same bytes as dev.csv of --evaluate",)
    assert notes("dev.csv --rows 12:") == (
        "--evaluate and --test both read dev.csv: if they use the same rows, the test score is too optimistic",
    )


# The command line.


@pytest.mark.long
def test_the_command_shows_trials_and_the_best(ckpt: Run, evaluation: Evaluation) -> None:
    line = ["search", "recipe.yaml", "--evaluate", evaluation(), "--maximize", "--trials", "2", "-o", "out.safetensors"]
    shown = ckpt(*line, "-n")
    assert shown.code == 0
    assert "models[0].parameters.weight  0 to 1" in shown.out
    assert not STUDY.exists()
    done = ckpt(*line, "--sampler", "sobol")
    assert done.code == 0, done
    assert "trial 1 of 2" in done.out
    assert "2 trials, 0 failed; the largest score is best" in done.out
    assert "wrote out.safetensors" in done.out
    assert ckpt("verify", "out.safetensors").code == 0
    again = ckpt(*line, "--sampler", "sobol", "--force", "--json")
    found = json.loads(again.out)
    assert (found["kind"], len(found["trials"]), found["output"]) == ("ckpt.search", 2, "out.safetensors")


@pytest.mark.long
def test_merge_search_is_search_and_a_model_may_be_called_search(ckpt: Run, evaluation: Evaluation) -> None:
    options = [
        "--evaluate",
        evaluation(),
        "--maximize",
        "--sampler",
        "random",
        "--trials",
        "1",
        "-o",
        "out.safetensors",
    ]
    assert ckpt("merge", "search", "recipe.yaml", *options).code == 0
    assert (
        json.loads(ckpt("--json", "merge", "search", "recipe.yaml", *options, "--force").out)["kind"] == "ckpt.search"
    )
    os.rename("a.safetensors", "search")
    assert ckpt("merge", "search", "b.safetensors", "-m", "linear", "--weights", "1,1", "-o", "b.pth").code == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "Give --maximize (accuracy) or --minimize (loss, error rate)."),
        (["--maximize", "--trials", "0"], 2, "--trials 0 is not a valid number of trials."),
        (["--maximize", "--parallel", "0"], 2, "--parallel 0 is not a valid number of evaluations."),
        (["--maximize", "--trial-timeout", "0"], 2, "--trial-timeout 0.0 is not a valid time."),
        (["--maximize", "--sampler", "best"], 2, "--sampler best is unknown."),
        (["--maximize", "--sampler", "grid", "--trials", "3"], 2, "--sampler grid needs at least 4 trials"),
        (["--maximize", "--test", "nothing"], 2, "--test 'nothing' has no {model}"),
    ],
)
def test_wrong_options_are_one_message(
    ckpt: Run, evaluation: Evaluation, options: list[str], code: int, said: str
) -> None:
    done = ckpt("search", "recipe.yaml", "--evaluate", evaluation(), "-o", "out.safetensors", *options)
    assert done.code == code
    assert said in done.err
    assert done.err.startswith("error: ")
    assert not STUDY.exists()


@pytest.mark.long
def test_a_failed_search_exits_with_one_and_the_reason(ckpt: Run, evaluation: Evaluation) -> None:
    line = ["search", "recipe.yaml", "--evaluate", evaluation("pass"), "--maximize", "--trials", "1"]
    done = ckpt(*line, "-o", "out.safetensors")
    assert done.code == 1
    assert "failed: the command printed no number" in done.out
    assert "none of 1 trial has a score" in done.err
    assert sys.executable  # its program is there: the command ran
