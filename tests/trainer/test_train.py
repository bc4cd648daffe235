"""``ckpt train`` and ``train``: what it starts from, what it leaves, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.config.section import parse_settings
from ckptsurgeon.trainer.run.report import read_report

from ..helpers.forked import Forked, as_ckpt
from . import toy

Run = Callable[..., Any]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.usefixtures("new_process", "curves")
def test_a_whole_run(ckpt: Run, init: str) -> None:
    done = ckpt("train", *toy.START, "--device", "cpu")
    assert done.code == 0, done
    assert "PASS loaded tensors equal their source 9 of 9, bit for bit" in flat(done.out)
    assert "PASS resumed is uninterrupted 4 steps = 2 + 2, bit for bit" in flat(done.out)
    assert "PASS saved, reopened, the same loss" in flat(done.out)
    assert done.out.rstrip().endswith("next: ckpt inspect run/best.safetensors, ckpt train --report run")
    there = set(os.listdir("run"))
    files = {"config.yaml", "lineage.json", "log.jsonl", "checks.json", "result.json", "best.safetensors"}
    assert there == files | {"steps", "last", "events", "curves.png"}
    assert Path("run/curves.png").read_bytes().startswith(b"\x89PNG")

    lineage = json.loads(Path("run/lineage.json").read_text())
    assert lineage["init"]["path"] == "../toy.init.safetensors"
    assert lineage["init"]["counts"] == {"copied": 9, "initialised": 2}
    assert lineage["init"]["recipe"]["seed"] == 5
    assert len(lineage["plan_sha256"]) == 64
    with cs.open_checkpoint("run/best.safetensors") as best:
        assert json.loads(best.metadata["lineage"])["init"] == lineage["init"]
        assert float(best.metadata["error"]) == json.loads(Path("run/result.json").read_text())["best"]
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert {"parts", "lr", "grad_norm", "clips_s", "audio_s_s", "padding", "peak_bytes"} <= steps[0].keys()
    assert 0 < steps[0]["padding"] < 1

    again = ckpt("train", "--report")
    lines = again.out.splitlines()
    assert lines[0] in done.out.splitlines()
    assert lines[0].startswith("  trained run  12/12 steps")
    assert flat(lines[1]).startswith("checks ")
    assert lines[-1] == "  next: ckpt view run"
    places = [
        again.out.index(text) for text in ("  trained", "  checks", "  dev ", "  before the first step", "  next:")
    ]
    assert places == sorted(places)
    tables = done.out[done.out.index("  before the first step") : done.out.index("  trained")]
    assert tables in again.out  # the same tables of checks as at the end of the run
    assert flat(ckpt("train", "--report", "run").out) == flat(again.out)
    report = json.loads(ckpt("train", "--report", "run", "--json").out)
    assert report == json.loads(json.dumps(read_report("run").to_json()))
    assert (report["kind"], report["ok"], report["step"], report["metric"]) == ("ckpt.train", True, 12, "error")
    used = yaml.safe_load(Path("run/config.yaml").read_text())
    assert parse_settings(used["train"], "x") == parse_settings(toy.DEFAULT, "x")


@pytest.mark.usefixtures("cheap")
def test_python_and_the_command_line_are_twins(ckpt: Run, init: str) -> None:
    made = cs.train("toy.yaml", init=init, run="a", steps=4, device="cpu", sets=["lr=0.02", "data.min_s=0.5"])
    assert isinstance(made, cs.Trained)
    done = ckpt(
        "train", "toy.yaml", "--init", init, "--run", "b", "--steps", "4", "--device", "cpu", "--set", "lr=0.02",
        "--set", "data.min_s=0.5", "--json",
    )  # fmt: skip
    told = json.loads(done.out)
    mine = json.loads(json.dumps(made.to_json()))
    apart = ("run", "elapsed_s", "train_s")
    assert {k: v for k, v in told.items() if k not in apart} == {k: v for k, v in mine.items() if k not in apart}
    weights = [Path(run, "last/model.safetensors").read_bytes() for run in ("a", "b")]
    assert weights[0] == weights[1]


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_scratch_is_what_transplant_would_draw(ckpt: Run) -> None:
    import torch

    toy.write()
    torch.save({"head": {"x": torch.ones(1)}, "body.norm.num_batches_tracked": torch.tensor(0)}, "almost.pth")
    plan = cs.transplant("almost.pth", "toy.yaml", seed=3)
    cs.apply(plan, "drawn.safetensors")
    os.remove("almost.pth")
    scratch = cs.train("toy.yaml", run="a", steps=2, seed=3, device="cpu", sets=["warmup=1"])
    same = cs.train("toy.yaml", init="drawn.safetensors", run="b", steps=2, seed=3, device="cpu", sets=["warmup=1"])
    assert "all weights are newly initialised" in scratch.notes[0]
    assert Path("a/last/model.safetensors").read_bytes() == Path("b/last/model.safetensors").read_bytes()
    assert (scratch.init, same.init) == (None, "drawn.safetensors")


@pytest.mark.usefixtures("cheap")
def test_resume_goes_on_and_ends_as_one_run_would(ckpt: Run, init: str) -> None:
    whole = cs.train(**toy.STARTED, run="whole", device="cpu", seed=1)
    stopped = stop_at(5, run="part", device="cpu", seed=1)
    assert (stopped.ended, stopped.step, stopped.exit_code) == ("SIGTERM", 5, 143)
    os.remove(init)  # a run is initialised once
    done = ckpt("train", "--run", "part", "--resume", "--json")
    assert done.code == 0, done
    told = json.loads(done.out)
    assert (told["step"], told["init"], told["ended"]) == (12, "toy.init.safetensors", "done")
    assert told["checks"][0]["says"] == "9 of 9, bit for bit"  # of the day it began
    assert Path("part/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
    assert told["best"] == whole.best


def stop_at(step: int, number: int = signal.SIGTERM, **options: Any) -> cs.Trained:
    """Train, and send this process a signal in the middle of a step."""

    def observe(row: Any) -> None:
        if row.get("step") == step and "loss" in row:
            os.kill(os.getpid(), number)

    started: dict[str, Any] = {} if "config" in options or options.get("resume") else toy.STARTED
    return cs.train(observer=observe, **started, **options)


@pytest.mark.costly
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_gives_the_handlers_back(number: int, code: int, init: str) -> None:
    before = signal.getsignal(number)
    found = stop_at(3, number, device="cpu")
    assert (found.exit_code, found.step) == (code, 3)
    assert os.readlink("run/last") == "steps/3"
    assert signal.getsignal(number) == before


@pytest.mark.long
def test_a_terminated_process_exits_with_143_and_says_how_to_go_on(init: str) -> None:
    process = Forked(partial(as_ckpt, "train", *toy.START, "--device", "cpu", "--steps", "1000000"))
    process.wait_until(lambda: "dev" in process.err)
    process.send_signal(signal.SIGTERM)
    code, out, err = process.ended(), process.out, process.err
    assert code == 143, err
    assert out.rstrip().endswith("next: ckpt train --resume")
    assert "terminated by a signal, after it finished its step and saved" in out
    assert "Traceback" not in err
    step = int(os.path.basename(os.readlink("run/last")))
    assert json.loads(Path("run/result.json").read_text())["step"] == step > 0


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_what_is_known_of_the_data_is_said_before_the_first_step(ckpt: Run) -> None:
    toy.write(task="toy_task.py:Prepared")
    said = ckpt("train", "toy.yaml", "--device", "cpu").err.splitlines()
    assert said[:2] == ["note: no --init: all weights are newly initialised", "note: train: 32 clips"]
    assert [line for line in said[2:] if not line.startswith("  step")] == []


def test_check_only_writes_nothing(ckpt: Run, init: str) -> None:
    before = sorted(os.listdir())
    done = ckpt("train", *toy.START, "--check-only")
    assert done.code == 0
    assert "while it trained" not in done.out
    assert [name for name in sorted(os.listdir()) if name != "__pycache__"] == before


@pytest.mark.usefixtures("cheap")
def test_evaluating_alone_prints_the_figures_that_the_run_had(ckpt: Run, init: str) -> None:
    """As an evaluation command of ckpt search, which reads the last line."""
    trained = json.loads(ckpt("train", *toy.START, "--device", "cpu", "--json").out)
    before = {name: os.stat(name).st_mtime_ns for name in os.listdir() if name != "__pycache__"}
    line = ("train", "toy.yaml", "--init", "run/best.safetensors", "--device", "cpu", "--evaluate", "dev")
    done = ckpt(*line)
    assert done.code == 0, done
    printed = dict(row.split(": ") for row in done.out.splitlines())
    assert list(printed)[-1] == trained["metric"]
    assert float(printed[trained["metric"]]) == pytest.approx(trained["best"], rel=1e-6)
    assert {name: os.stat(name).st_mtime_ns for name in os.listdir() if name != "__pycache__"} == before
    found = json.loads(ckpt(*line, "--json").out)
    assert (found["ended"], found["step"], found["run"]) == ("evaluated", 0, None)
    assert found["figures"][trained["metric"]] == pytest.approx(trained["best"], rel=1e-6)
    from_start = ckpt("train", *toy.START, "--device", "cpu", "--evaluate", "dev").out
    assert dict(row.split(": ") for row in from_start.splitlines())[trained["metric"]] != printed[trained["metric"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--evaluate", "train"], "there is no split train to evaluate. Use dev or test."),
        (["--evaluate", "test"], "toy.yaml has no split test."),
        (["--evaluate", "dev", "--check-only"], "--check-only and --evaluate contradict each other."),
        (["--evaluate", "dev", "--resume"], "--evaluate and --resume contradict each other."),
    ],
)
def test_evaluating_what_is_not_there_is_one_message(ckpt: Run, init: str, options: list[str], said: str) -> None:
    done = ckpt("train", *(toy.START if "--resume" not in options else ["toy.yaml"]), "--device", "cpu", *options)
    assert done.code == 2
    assert said in done.err


def test_preprocessing_says_what_it_computed_and_trains_nothing(ckpt: Run) -> None:
    toy.write(task="toy_task.py:Prepared")
    done = ckpt("train", "toy.yaml", "--preprocess-only")
    assert (done.code, flat(done.out)) == (0, "prepared; nothing was trained")
    assert [line for line in done.err.splitlines() if "clips" in line] == ["note: train: 32 clips; 32 computed"]
    assert not os.path.exists("run")


def test_a_failed_check_is_exit_1(ckpt: Run) -> None:
    toy.write(model={"leaky": True})
    done = ckpt("train", "toy.yaml", "--check-only")
    assert done.code == 1
    assert "FAIL independent of batch and padding" in flat(done.out)
    assert json.loads(ckpt("train", "toy.yaml", "--check-only", "--json").out)["ok"] is False


@pytest.mark.usefixtures("cheap")
def test_a_check_that_fails_before_the_first_step_ends_the_run_there(ckpt: Run) -> None:
    toy.write(model={"leaky": True})
    done = ckpt("train", "toy.yaml")
    assert done.code == 1
    assert "not started: a check failed before the first step; --keep-going trains nevertheless" in flat(done.out)
    assert not Path("run").exists()
    found = json.loads(ckpt("train", "toy.yaml", "--json").out)
    assert (found["ended"], found["ok"], found["step"]) == ("failed", False, 0)
    kept = ckpt("train", "toy.yaml", "--keep-going")
    assert kept.code == 1
    assert "12/12 steps" in flat(kept.out)
    assert "--report and --keep-going contradict" in ckpt("train", "--report", "--keep-going").err


@pytest.mark.usefixtures("cheap")
def test_what_is_not_finite_stops_with_exit_1(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_NAN_FROM", "1")
    monkeypatch.setenv("TOY_NAN_TO", "999")
    toy.write(nonfinite=3)
    done = ckpt("train", "toy.yaml")
    assert done.code == 1
    assert "stopped: too many steps in a row were not finite" in done.out
    assert "FAIL finite steps" in flat(done.out)
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [(row["loss"], row["skipped"]) for row in rows] == [(None, True)] * 4


@pytest.mark.long
def test_one_batch_is_learned_by_heart(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.trainer.checks import suite as checking

    for name in ("resume_is_exact", "reload_in_new_process"):
        monkeypatch.setattr(checking, name, lambda *args, **options: Check("left out", "NOT RUN", ""))
    found = cs.train(**toy.STARTED, overfit_one_batch=True, device="cpu", steps=40)
    by_name = {check.name: check for check in found.checks}
    assert by_name["one batch by heart"].status == "PASS"
    assert by_name["one batch by heart"].says == "error 0 after 40 steps; it must be below 0.05"
    cold = cs.train("toy.yaml", overfit_one_batch=True, device="cpu", steps=1, run="b", sets=["warmup=0"])
    assert {check.name: check.status for check in cold.checks}["one batch by heart"] == "FAIL"


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_controls_print_a_table_and_a_verdict(ckpt: Run, init: str) -> None:
    done = ckpt("train", *toy.START, "--controls", "--seeds", "1", "--steps", "4", "--device", "cpu")
    assert "body frozen all parts trained" in flat(done.out)
    assert "verdict" in done.out
    said = [line for line in done.err.splitlines() if "control" in line]
    assert re.fullmatch(r"  control 1/6  body frozen        warm      seed 0  error \d\.\d{3}", said[0])
    assert re.fullmatch(r"  control 6/6  all parts trained  permuted  seed 0  error \d\.\d{3}", said[5])
    assert len(said) == 6
    report = ckpt("train", "--report").out
    assert report.index("  trained") < report.index("  verdict") < report.index("  checks") < report.index("  PASS ")
    told = json.loads(ckpt("train", "--report", "--json").out)["controls"]
    assert len(told["arms"]) == 6


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_without_a_dev_split_the_last_model_is_kept(init: str) -> None:
    found = cs.train(**toy.STARTED, device="cpu", sets=["task=toy_task.py:NoDev"])
    assert found.best is None
    best, last = (cs.open_checkpoint(f"run/{name}") for name in ("best.safetensors", "last/model.safetensors"))
    assert all((best.tensor(key) == last.tensor(key)).all() for key in best)


# What is refused.


def refused(ckpt: Run, *args: object, code: int = 2) -> str:
    before = {*os.listdir(), "__pycache__"}
    done = ckpt("train", *args)
    assert done.code == code, done
    assert done.out == ""
    assert {*os.listdir(), "__pycache__"} == before
    told: str = flat(done.err)
    return told


def test_nothing_to_start_from(ckpt: Run) -> None:
    told = refused(ckpt)
    assert "no configuration is given, and the working directory has no *.init.safetensors" in told
    assert "Make initial weights with ckpt transplant SRC dst.yaml" in told


def test_a_configuration_that_is_not_there(ckpt: Run, init: str) -> None:
    wanted = "error: the configuration nothing.yaml cannot be read: No such file or directory."
    assert refused(ckpt, "nothing.yaml").endswith(wanted)
    assert refused(ckpt, "nothing.yaml", "--init", init).endswith(wanted)


def test_several_to_start_from_are_listed(ckpt: Run, init: str) -> None:
    shutil.copy(init, "b.init.safetensors")
    assert (
        "the working directory has 2 initial checkpoints (*.init.safetensors): b.init.safetensors, toy.init.safetensors"
        in refused(ckpt)
    )


def test_a_configuration_that_changed_since_the_init(ckpt: Run, init: str) -> None:
    Path("toy.yaml").write_text(Path("toy.yaml").read_text() + "\n")
    told = refused(ckpt)
    assert "toy.yaml has changed since toy.init.safetensors was made" in told
    os.remove("toy.yaml")
    assert "cannot be read" in refused(ckpt)


def test_a_recipe_leads_nowhere_else(ckpt: Run, init: str) -> None:
    """An init is data that somebody may have sent: its recipe names no file outside its folder."""
    os.mkdir("inner")
    plan = cs.transplant("toy.init.safetensors", "toy.yaml")
    cs.apply(plan, "inner/evil.init.safetensors")
    os.chdir("inner")
    told = refused(ckpt)
    assert "is outside its folder" in told
    assert "ckpt train dst.yaml --init evil.init.safetensors" in told


def test_an_init_of_unknown_make_does_not_name_a_configuration(ckpt: Run, source: Path) -> None:
    assert "does not say which configuration" in refused(ckpt, "--init", source)


@pytest.mark.long
def test_an_init_that_does_not_fit(ckpt: Run, init: str) -> None:
    toy.write("wide.yaml", model={"hidden": 20})
    assert "shape mismatch" in refused(ckpt, "wide.yaml", "--init", init, code=4)
    toy.write("more.yaml", model={"groups": True})
    assert "groups" in refused(ckpt, "more.yaml", "--init", init, code=4)
    assert "missing.safetensors" in refused(ckpt, "toy.yaml", "--init", "missing.safetensors", code=3)


@pytest.mark.usefixtures("cheap")
def test_init_is_not_resume(ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    assert "run contains a run, at step 4. Continue that run with --resume" in refused(ckpt, "toy.yaml", "--init", init)
    assert "run contains a run" in refused(ckpt)
    assert "--init and --resume contradict each other" in refused(ckpt, "--init", init, "--resume")


def test_an_empty_folder_cannot_be_resumed(ckpt: Run, init: str) -> None:
    os.mkdir("empty")
    assert "there is nothing to resume: the folder empty contains no run" in refused(ckpt, "--run", "empty", "--resume")
    assert "there is nothing to resume: the folder none does not exist" in refused(ckpt, "--run", "none", "--resume")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_of_other_settings_or_another_model_says_which(ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    told = refused(ckpt, "--resume", "--set", "lr=0.5", "--set", "data.min_s=2")
    assert "run was started with other settings" in told
    assert "train.lr was 0.01, is 0.5" in told
    assert "train.data.min_s was 0.0, is 2.0" in told
    assert "has already done 4 steps, more than train.steps, 3" in refused(ckpt, "--resume", "--steps", "3")
    toy.write("other.yaml", model={"dropout": 0.5})
    assert "other.yaml describes another model" in refused(ckpt, "other.yaml", "--resume")
    assert cs.train(resume=True, device="cpu", sets=["keep=5"]).ended == "done"


@pytest.mark.usefixtures("cheap")
def test_a_run_of_an_older_version_goes_on(ckpt: Run, init: str) -> None:
    """It recorded no setting that is younger, and a beam of 4 where there is none now."""
    cs.train(**toy.STARTED, run="whole", device="cpu")
    stop_at(5, device="cpu")
    path = Path("run/lineage.json")
    known = json.loads(path.read_text())
    for name in ("decay", "batch_seconds", "augment", "lora", "lm", "loggers", "compile", "anneal"):
        del known["settings"][name]
    del known["settings"]["data"]["segmenter"]
    known["settings"]["beam"] = 4
    path.write_text(json.dumps(known))
    assert cs.train(resume=True, device="cpu").ended == "done"
    assert Path("run/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("changes", "sets", "why"),
    [
        ({"beams": 4}, ["beams=4"], "train has no field 'beams'."),
        ({"decoding": "viterbi"}, [], "train.decoding is 'viterbi', which is not allowed."),
        ({"data": {"mirror": "x"}}, [], "train.data has no field 'mirror'."),
        ({"lm": "a.arpa"}, [], "train.lm needs train.decoding: ctc_beam, but train.decoding is ctc."),
    ],
)
def test_settings_that_no_longer_are_have_a_way_out(
    changes: dict[str, Any], sets: list[str], why: str, ckpt: Run, init: str
) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    path = Path("run/lineage.json")
    known = json.loads(path.read_text())
    known["ckptsurgeon"] = "0.0.9"
    known["sets"] += sets
    for name, value in changes.items():
        known["settings"][name] = {**known["settings"][name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(known))
    told = refused(ckpt, "--resume")
    assert (
        f"run was started by another version of ckptsurgeon (0.0.9), with settings that this version cannot read: {why}"
        in told
    )
    assert "Resume the run with that version, or remove these settings from" in told
    command = "ckpt train toy.yaml --init run/best.safetensors --run DIR"
    assert told.endswith(f"start another run: {command}.")
    assert ckpt(*command.replace("DIR", "other").split()[1:], "--steps", "4", "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--set", "setps=3"], "--set setps=3: train has no field 'setps'. Did you mean steps?"),
        (["--set", "steps"], "--set steps is not KEY=VALUE"),
        (["--set", "data.trian=x"], "train.data has no field 'trian'"),
        (["--set", "warmup=12"], "train.warmup 12 is not below train.steps 12"),
        (["--set", "task=cct"], "there is no task 'cct'"),
        (["--set", "task=no.py:X"], "train.task no.py:X"),
        (["--set", "task=toy_task.py:X"], "does not define X"),
        (["--set", "freeze=[bdoy]"], "train.freeze bdoy matches none of the 11 model keys. Did you mean body"),
        (["--device", "tpu"], "--device 'tpu' is unknown"),
        (["--seeds", "2"], "--seeds is only for --controls"),
        (["--controls", "--seeds", "0"], "--seeds is 0"),
        (["--controls"], "none are given. Pass --init"),
        (["--check-only", "--resume"], "--check-only and --resume contradict each other"),
        (["--preprocess-only"], "has nothing to prepare before training"),
        (["--report", "nowhere"], "there is no run in nowhere"),
        (["--report", "run", "--resume"], "--report and --resume contradict each other: --report does not train."),
        (["--report", "run", "--seed", "0"], "--report and --seed contradict each other"),
        (["--report", "run", "--set", "lr=1"], "--report and --set contradict each other"),
        (["--report", "run", "--strategy", "fsdp"], "--report and --strategy contradict each other"),
        (["--report", "run", "--run", "other"], "--report needs one run, but two are given: run and --run other"),
    ],
)
def test_each_mistake_has_its_own_message(ckpt: Run, init: str, flags: list[str], why: str) -> None:
    config = [] if "--report" in flags else ["toy.yaml"]
    assert why in refused(ckpt, *config, *flags)


def test_a_model_that_the_task_cannot_use(ckpt: Run) -> None:
    toy.write()
    train = yaml.safe_load(Path("toy.yaml").read_text())["train"]
    Path("odd.yaml").write_text(
        yaml.safe_dump({"model": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}, "train": train})
    )
    told = refused(ckpt, "odd.yaml")
    assert "the task toy_task.py:Toy cannot use this model: TypeError:" in told


def test_cuda_that_is_not_there(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toy.write()
    assert "--device cuda: torch" in refused(ckpt, "toy.yaml", "--device", "cuda")


def test_tensors_that_nobody_can_build_cannot_be_trained(ckpt: Run) -> None:
    toy.write()
    train = yaml.safe_load(Path("toy.yaml").read_text())["train"]
    document = {"model": {"tensors": {"w": {"shape": [2], "init": "zeros"}}}, "train": train}
    Path("bare.yaml").write_text(yaml.safe_dump(document))
    assert "describes only tensors, and not a model that can be trained" in refused(ckpt, "bare.yaml")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_full_disk_is_exit_5_and_keeps_the_last_checkpoint(
    ckpt: Run, init: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from ckptsurgeon.storage.write import staged_file

    cs.train(**toy.STARTED, device="cpu", seed=1, run="whole")
    real = staged_file.StagedFile.write

    def full(self: Any, offset: int, data: Any) -> None:
        if f"steps{os.sep}8" in self.shown:
            from ckptsurgeon.storage.write.output_paths import output_error

            raise output_error(self.shown, OSError(errno.ENOSPC, "full"))
        real(self, offset, data)

    with monkeypatch.context() as broken:
        broken.setattr(staged_file.StagedFile, "write", full)
        done = ckpt("train", *toy.START, "--device", "cpu", "--seed", "1")
    assert done.code == 5
    assert "there is no space left" in done.err
    assert os.readlink("run/last") == "steps/4"
    assert ckpt("train", "--resume", "--device", "cpu").code == 0
    assert Path("run/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, ckptsurgeon, ckptsurgeon.trainer, ckptsurgeon.render.train; ckptsurgeon.Trained; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.usefixtures("cheap")
def test_the_time_is_that_of_the_whole_command(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.trainer.run import run_job as running

    late = 0.0  # the checks during training seem to take an hour

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal late
        late = 3600.0
        return []

    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + late)
    monkeypatch.setattr(running, "checks_during", slow)
    told: list[Any] = []
    found = cs.train(**toy.STARTED, device="cpu", steps=4, observer=told.append)
    assert found.elapsed_s > 3600 > found.train_s > 0
    seen = [(row["when"], row["done"]) for row in told if row.get("event") == "checking"]
    assert seen[:2] == [("before", 0), ("before", 1)]
    assert seen[-1] == ("after", 1)


def test_a_text_is_no_list_of_settings(init: str) -> None:
    with pytest.raises(cs.ConfigError, match=r"sets is 'lr=1', not a list of strings\. Give a list: \['lr=1'\]"):
        cs.train(sets="lr=1")
