"""What users give that cannot be trained: done through the command line, one clear line each, and nothing written."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from rich.console import Console

from ckptsurgeon.errors import ConfigError, FormatError
from ckptsurgeon.render.train import trained_view
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.models.deepspeech import DeepSpeech
from ckptsurgeon.trainer.run.records import read_lineage
from ckptsurgeon.trainer.run.report import read_report, read_start_checks
from ckptsurgeon.trainer.run.result import Arm, Controls, Trained

from .sounds import RATE, corpus

Run = Callable[..., Any]

MODEL = {"name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0}
TRAIN = {
    "task": "ctc", "steps": 2, "batch_size": 4, "features": {"size": 10, "stack": 2},
    "data": {"train": "train.csv", "tokens": "alphabet.txt"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def files() -> None:
    """A model of Coqui STT's shape and six tones to train it on."""
    Path("alphabet.txt").write_text("a\nb\nc\n")
    corpus("train.csv", ["a", "b", "c", "ab", "bc", "ca"])
    Path("x.yaml").write_text(yaml.safe_dump({"model": MODEL, "train": TRAIN}))


def refused(ckpt: Run, *flags: str, code: int = 2) -> str:
    """What is said of a run that never began."""
    done = ckpt("train", "x.yaml", "--device", "cpu", *flags)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert not os.path.exists("run")
    notes, _, said = " ".join(done.err.split()).rpartition("error: ")
    assert "error" not in notes
    return said


def first_row(row: str) -> None:
    """Let a row be the first of the manifest, in line 2."""
    head, *rows = Path("train.csv").read_text().splitlines()
    Path("train.csv").write_text("\n".join([head, row, *rows]) + "\n")


def test_a_sound_that_is_missing(ckpt: Run) -> None:
    first_row("no.wav,a")
    said = refused(ckpt, code=3)
    assert said.startswith("train.csv, line 2: the sound no.wav does not exist.")


@pytest.mark.parametrize(("samples", "why"), [(0, "has no samples"), (3200, "is silent: all of its samples are 0")])
def test_a_sound_of_nothing(ckpt: Run, samples: int, why: str) -> None:
    soundfile.write("nothing.wav", np.zeros(samples, "int16"), RATE)
    first_row("nothing.wav,a")
    said = refused(ckpt, "--set", "data.cache=features", code=3)
    assert said == f"train.csv, line 2: nothing.wav {why}. Remove the clip from the manifest."


@pytest.mark.costly
@pytest.mark.parametrize(("kept", "why"), [
    (0, "sound.wav is an empty file. Copy the file again, or remove the clip from the manifest."),
    (20, "sound.wav cannot be read: Error in WAV/W64/RF64 file."),
    (44, "sound.wav is truncated: 6400 bytes of the sound that its header promises are missing."),
])  # fmt: skip
def test_a_sound_of_a_header_alone(ckpt: Run, kept: int, why: str) -> None:
    soundfile.write("sound.wav", np.ones(3200, "int16"), RATE)
    Path("sound.wav").write_bytes(Path("sound.wav").read_bytes()[:kept])
    first_row("sound.wav,a")
    assert why in refused(ckpt, code=3)


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_silent_sound_that_is_met_late_leaves_a_run_that_goes_on(ckpt: Run) -> None:
    """Its length is in its header, its samples are read in the last step: it is not in the longest batch, tried first."""
    corpus("train.csv", ["a", "b", "c", "ab", "bc", "ca"] * 2)
    late = (*LATE, "--set", "steps=6")
    source = build_job("x.yaml", sets=late[1::2], device="cpu").train
    *_, number = (number for number, batch in enumerate(source.order(0, 0)) if 11 not in batch)
    name = f"train-{source.order(0, 0)[number][0]}.wav"
    sound, _ = soundfile.read(name)
    soundfile.write(name, np.zeros(len(sound), "int16"), RATE)
    done = ckpt("train", "x.yaml", "--device", "cpu", *late)
    assert done.code == 3
    said = " ".join(done.err.split())
    assert f"{name} is silent: all of its samples are 0." in said
    assert (
        f"Replace it by a valid sound of the same length: step {number} is saved, and ckpt train --run run --resume goes on"
        in said
    )
    assert "Traceback" not in said
    soundfile.write(name, sound, RATE)
    assert ckpt("train", "--resume").code in (0, 1)  # 1: three steps are too few for some checks
    assert json.loads(Path("run/result.json").read_text())["ended"] == "done"


LATE = ("--set", "batch_size=2", "--set", "steps=3", "--set", "save_every=1")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_learning_rate_of_a_billion(ckpt: Run) -> None:
    done = ckpt("train", "x.yaml", "--device", "cpu", "--set", "lr=1e9", "--set", "steps=30", "--set", "save_every=1",
                "--set", "nonfinite=3", "--set", "batch_size=6")  # fmt: skip
    said = " ".join(done.out.split())
    assert done.code == 1
    assert "4 steps in a row were not finite; try a smaller train.lr or a longer train.warmup" in said
    assert "the loss diverged; try a smaller train.lr or a longer train.warmup" in said
    assert "stopped: too many steps in a row were not finite" in said
    tensors, _ = RunFolder("run").load()  # what is whole is the last step that was finite
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert RunFolder("run").saved_steps[-1] < json.loads(Path("run/result.json").read_text())["step"]


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_disk_that_is_full_says_what_is_saved(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the thread that writes the third checkpoint."""
    real = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if f"{os.sep}.3." in os.readlink(f"/proc/self/fd/{fd}"):
            assert threading.current_thread() is not threading.main_thread()
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        done = ckpt("train", "x.yaml", "--device", "cpu", *LATE)
    assert done.code == 5
    said = " ".join(done.err.split())
    assert "error: cannot write run/steps/3" in said
    assert said.endswith("Step 2 is saved, and ckpt train --run run --resume goes on.")
    assert ckpt("train", "--resume").code in (0, 1)
    assert json.loads(Path("run/result.json").read_text())["step"] == 3


def test_texts_that_are_longer_than_all_their_clips(ckpt: Run) -> None:
    head, *rows = Path("train.csv").read_text().splitlines()
    Path("train.csv").write_text("\n".join([head, *(f"{row.partition(',')[0]},{'abc' * 40}" for row in rows)]) + "\n")
    said = refused(ckpt)
    assert said.startswith("no clip is left in train: 0 clips, 0.0 min; left out: 6 with fewer frames than tokens.")
    assert said.endswith(
        "do texts and sounds match? Unless features are waves, a smaller features.stack makes more frames."
    )


def test_a_lora_target_that_matches_nothing(ckpt: Run) -> None:
    pytest.importorskip("peft")
    said = refused(ckpt, "--set", "lora.targets=[q_proj]")
    assert said.startswith(
        "train.lora.targets has q_proj, but no module of the model has that name. The model's modules are layer_1, "
    )


def test_a_letter_outside_the_alphabet(ckpt: Run) -> None:
    Path("train.csv").write_text(Path("train.csv").read_text().replace("ca\n", "c\u00e9\n"))
    assert refused(ckpt).startswith("train.csv, line 7: the letter '\u00e9' (U+00E9) is not in the token list.")


def test_clips_too_long_or_too_short_are_counted(ckpt: Run) -> None:
    first_row("long.wav,a")
    soundfile.write("long.wav", np.random.default_rng(0).standard_normal(2 * RATE) / 9, RATE)
    Path("train.csv").write_text(Path("train.csv").read_text().replace(",ca\n", f",{'ca' * 30}\n"))
    done = ckpt("train", "x.yaml", "--check-only", "--device", "cpu", "--set", "data.max_s=1")
    assert done.code == 0
    assert "5 clips" in done.err
    assert "left out: 1 longer than 1 s, 1 with fewer frames than tokens" in " ".join(done.err.split())
    nothing = refused(ckpt, "--set", "data.max_s=0.1")
    assert "no clip is left in train" in nothing
    assert "7 longer than 0.1 s" in nothing


@pytest.mark.costly
@pytest.mark.parametrize(
    ("features", "why"),
    [
        ("{size: 10, stack: 3}", "the model needs frames of 20 features (n_input), but train.features makes 30"),
        ("{kind: waves}", "the model needs features (n_input 20), but its inputs are waveforms"),
    ],
)
def test_features_that_do_not_fit_the_model(ckpt: Run, features: str, why: str) -> None:
    said = refused(ckpt, "--set", f"features={features}")
    assert said.startswith(why)
    assert "size x stack" in said


def test_an_init_that_does_not_fit_is_for_transplant_to_fit(ckpt: Run) -> None:
    wide = DeepSpeech(4, n_input=20, n_context=1, n_hidden=12, dropout=0)
    torch.save(wide.state_dict(), "wide.pth")
    said = refused(ckpt, "--init", "wide.pth", code=4)
    assert said.startswith("wide.pth does not fit x.yaml: shape mismatch: layer_1.weight is (12, 60)")
    assert said.endswith("ckpt transplant wide.pth x.yaml --ignore-mismatch makes an init that fits.")
    made = ckpt("transplant", "wide.pth", "x.yaml", "--ignore-mismatch")
    assert made.code == 0
    assert ckpt("train", "x.yaml", "--check-only", "--device", "cpu", "--init", "x.init.safetensors").code == 0


def test_a_run_that_went_on_and_was_killed_has_no_report() -> None:
    for step in (4, 6):
        os.makedirs(f"run/steps/{step}")
        for name in ("model.safetensors", "state.pth"):
            Path(f"run/steps/{step}", name).touch()
    Path("run/result.json").write_text(json.dumps({"step": 4}))
    os.symlink("steps/6", "run/last")
    with pytest.raises(
        ConfigError, match=r"run contains no report of a finished run\. The run is not done: ckpt train --run run"
    ):
        read_report("run")


@pytest.mark.parametrize("content", ['{"checks": [3]}', '{"checks": [{"nam": "x"}]}', "{}", "[" * 100_000])
def test_checks_that_cannot_be_read_are_an_error(content: str) -> None:
    Path("run").mkdir()
    Path("run/checks.json").write_text(content)
    with pytest.raises(FormatError, match="run/checks.json is not "):
        read_start_checks(RunFolder("run"))


def test_a_lineage_that_lacks_fields_is_an_error() -> None:
    Path("run").mkdir()
    Path("run/lineage.json").write_text('{"kind": "ckpt.lineage", "version": 1, "config": "x.yaml"}')
    with pytest.raises(FormatError, match=r"run/lineage.json is damaged: it has no config_sha256, model_sha256, sets"):
        read_lineage(RunFolder("run"))


def test_a_gpu_that_is_not_there(ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = ckpt("train", "x.yaml", "--device", "cuda")
    assert (done.code, os.path.exists("run")) == (2, False)


def test_a_report_of_figures_that_are_no_numbers_is_read_back() -> None:
    """JSON has no NaN: None stands for it."""
    arms = tuple(Arm(way, True, (0.1, math.nan)) for way in ("warm", "scratch", "permuted"))
    made = Trained(
        config="c", run="run", init="i", task="t", device="cpu", step=1, steps=1, ended="done", checks=(),
        metric="loss", controls=Controls("loss", 2, 1, arms, "NONE", "frozen"), figures={"loss": math.inf},
        test={"loss": math.nan}, test_clips=3,
    )  # fmt: skip
    Path("run").mkdir()
    RunFolder("run").write_json("result.json", made.to_json())
    found = read_report("run")
    assert found.controls is not None
    assert math.isnan(found.controls.arms[0].mean)
    assert math.isnan(found.figures["loss"])
    assert math.isnan(found.test["loss"])
    assert found.to_json() == made.to_json()
    Console(file=io.StringIO()).print(trained_view(found))
    for odd in ("3", [1], {"arms": 3}):
        data = {**made.to_json(), "controls": odd}
        RunFolder("run").write_json("result.json", data)
        with pytest.raises(FormatError, match="is not a valid result of a run"):
            read_report("run")
