"""``ckpt transcribe`` reads what the best weights of a run read when they were evaluated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError
from ckptsurgeon.trainer.tasks.ctc import CTC

from . import toy
from .sounds import tone
from .test_hypotheses import TEXTS, configuration, lines


def trained(**settings: Any) -> dict[str, str]:
    """Train hardly at all, so that something is read; returns the text of each sound of dev, by its path."""
    cs.train(configuration(steps=4, lr=1e-6, evaluate_every=4, **settings), run="run", keep_going=True)
    paths = [line.split(",")[0] for line in Path("dev.csv").read_text().splitlines()[1:]]
    read = {row["reference"]: row["hypothesis"] for row in lines("run/dev.hypotheses.jsonl")}
    return {path: read[text] for path, text in zip(paths, TEXTS, strict=True)}


@pytest.mark.usefixtures("cheap")
def test_sounds_get_the_texts_of_the_evaluation(ckpt: Any) -> None:
    read = trained()
    assert any(read.values())
    found = cs.transcribe("run", list(read), batch_size=3)
    assert {one.path: one.text for one in found.sounds} == read
    assert [one.path for one in found.sounds] == list(read)  # in the order in which they were given
    by_file = cs.transcribe("run/best.safetensors", list(read), batch_size=3)
    assert by_file == found
    done = ckpt("transcribe", "run", *read, "--batch-size", "3", "--device", "cpu")
    assert done.out.splitlines() == [f"{path}\t{text}" for path, text in read.items()]
    data = json.loads(ckpt("transcribe", "run", next(iter(read)), "--json").out)
    assert data["kind"] == "ckpt.transcribe"
    assert data["sounds"][0]["text"] == found.sounds[0].text
    assert data["weights"] == "run/best.safetensors"


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_wav_flac_and_ogg_of_a_folder_are_sounds(ckpt: Any) -> None:
    path = next(iter(trained()))
    wave, rate = soundfile.read(path, dtype="float32")
    stereo = np.repeat(wave[:, None], 2, 1)
    kinds = {
        "a.wav": {"subtype": "PCM_16"}, "b.wav": {"subtype": "FLOAT"}, "c.flac": {}, "d.ogg": {"subtype": "VORBIS"},
        "e.ogg": {"subtype": "OPUS"}, "f.flac": {"subtype": "PCM_24"},
    }  # fmt: skip
    os.makedirs("speech/a folder.wav")
    for name, kind in kinds.items():
        soundfile.write(f"speech/{name}", stereo if name == "f.flac" else wave, rate, **kind)
    found = {
        one.path.removeprefix("speech/"): one for one in cs.transcribe("run", [path, "speech"], batch_size=1).sounds
    }
    assert [*found] == [path, *kinds]
    done = ckpt("transcribe", "run", path, "speech", "--batch-size", "1", "--device", "cpu")
    assert done.out.splitlines() == [f"{one.path}\t{one.text}" for one in found.values()]
    for name in ("a.wav", "b.wav", "c.flac", "f.flac"):  # without loss, but for 16 bits
        assert found[name].text == found[path].text, name
    assert all(one.seconds == pytest.approx(len(wave) / rate, abs=0.01) for one in found.values())


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_adapters_read_with_the_weights_that_they_are_for() -> None:
    pytest.importorskip("peft")
    cs.train(configuration(), run="first", keep_going=True)
    Path("first/best.safetensors").rename("begun.safetensors")
    lora = {"targets": ["layer_1", "layer_2"], "save": ["layer_6"], "rank": 2}
    cs.train(configuration(lora=lora, steps=4, lr=1e-3, evaluate_every=4), init="begun.safetensors", run="run",
             keep_going=True)  # fmt: skip
    read = {row["reference"]: row["hypothesis"] for row in lines("run/dev.hypotheses.jsonl")}
    paths = [line.split(",")[0] for line in Path("dev.csv").read_text().splitlines()[1:]]
    found = cs.transcribe("run", paths, batch_size=3)
    assert [one.text for one in found.sounds] == [read[text] for text in TEXTS]
    assert found.weights.endswith("adapter/adapter_model.safetensors")
    Path("run/lineage.json").unlink()
    with pytest.raises(CheckpointError, match=r"but no lineage.json in its folder says which weights they belong to"):
        cs.transcribe("run", paths)


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_folder_stands_for_the_sounds_in_it() -> None:
    read = trained()
    os.makedirs("speech/below")
    Path("speech/notes.txt").write_text("no sound")
    for name, path in zip(("10.WAV", "2.wav", "below/3.wav"), read, strict=False):
        shutil.copy(path, f"speech/{name}")
    found = cs.transcribe("run", ["speech", *list(read)[:1]]).sounds
    first, second = list(read)[:2]
    assert [one.path for one in found] == ["speech/2.wav", "speech/10.WAV", first]
    assert [one.text for one in found] == [read[second], read[first], read[first]]


@pytest.mark.usefixtures("cheap")
def test_what_cannot_be_read_is_an_error() -> None:
    path = next(iter(trained()))
    tone("short.wav", 0.01)
    os.mkdir("empty")
    Path("text.wav").write_text("no sound")
    Path("cut.wav").write_bytes(Path(path).read_bytes()[:-100])
    soundfile.write("silent.wav", np.zeros(8000, "int16"), 16_000)
    soundfile.write("too.wav", np.zeros(9000, "int16"), 16_000)
    Path("nothing.wav").touch()
    os.mkfifo("pipe.wav")
    for given, why in (
        (("none", [path]), "none does not exist"),
        (("run", ["none.wav"]), "none.wav cannot be read: No such file or directory."),
        (("run", ["text.wav"]), "text.wav cannot be read: Format not recognised. Use a sound file (WAV, FLAC or Ogg)."),
        (("run", ["nothing.wav"]), "nothing.wav is an empty file. Copy the file again, or leave this file out."),
        (("run", ["nothing.wav", path, "short.wav"]), "1 more of the 3 sounds has an error, too."),
        (("run", ["silent.wav", path, "too.wav"]), "silent.wav is silent: all of its samples are 0. 1 more of the 3"),
        (("run", ["cut.wav"]), "header promises are missing. Copy the file again, or leave this file out."),
        (("run", ["silent.wav"]), "silent.wav is silent: all of its samples are 0. Leave this file out."),
        (("run", ["pipe.wav"]), "pipe.wav cannot be read: it is a FIFO, not a regular file."),
        (("run", ["empty"]), "the folder empty has no sounds"),
        (("run", ["short.wav"]), "short.wav is too short: it has 0.01 s, a frame needs 0.025 s"),
        (("run", []), "no audio file is given"),
        ((".", [path]), "contains no best weights of a run"),
    ):
        with pytest.raises(CheckpointError) as found:
            cs.transcribe(*given)
        assert why in str(found.value)
    Path("run/best.safetensors").rename("alone.safetensors")
    with pytest.raises(CheckpointError, match="there is no configuration for alone"):
        cs.transcribe("alone.safetensors", path)
    assert cs.transcribe("alone.safetensors", path, config="x.yaml").sounds[0].path == path


@pytest.mark.costly
@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    ("number", "size", "hint"),
    [(8, 8, "Pass --batch-size 4 or less."), (3, 1, "Cut the longest sounds"), (1, 8, "Cut the longest sounds")],
)
def test_too_many_sounds_at_a_time(number: int, size: int, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(iter(trained()))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CTC, "measure", full)
    with pytest.raises(
        cs.ConfigError, match=f"not have enough memory for {min(size, number)} sounds? at a time"
    ) as found:
        cs.transcribe("run", [path] * number, batch_size=size)
    assert found.value.hint.startswith(hint)


@pytest.mark.usefixtures("cheap")
def test_weights_that_do_not_fit_the_gpu_get_no_advice_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(iter(trained()))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("ckptsurgeon.trainer.run.transcribe.saved_model", full)
    with pytest.raises(cs.ConfigError, match=r"not have enough memory for the weights run/best\.safetensors") as found:
        cs.transcribe("run", path)
    assert found.value.hint == "Use --device cpu."


@pytest.mark.usefixtures("cheap")
def test_a_task_that_reads_no_texts_is_an_error() -> None:
    toy.write()
    cs.train("toy.yaml", run="run", keep_going=True)
    tone("a.wav")
    with pytest.raises(CheckpointError, match="cannot transcribe audio"):
        cs.transcribe("run", "a.wav")
