"""``ckpt train``'s loop, files and all: clips are read by workers, cut, masked, pinned; the log is written."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import soundfile
import yaml

from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
from ckptsurgeon.trainer.system.device import torch_settings

from .arms import Arm
from .window import Window
from .work import ADAM, RATE, TOKENS, Work

__all__ = ["train_ours"]


def train_ours(arm: Arm, work: Work, window: Window, options: argparse.Namespace) -> Any:
    """Train, in the working directory, and return the model.

    What a run does after its last step comes after the timed steps: it saves a checkpoint, and its best model.
    """
    write_files(work, window.all_steps)
    settings = _settings(arm, work, options)
    Path("run.yaml").write_text(yaml.safe_dump({"model": {"transformers": "net.json"}, "train": settings}))
    job = build_job("run.yaml", device=options.device, sets=arm.settings)
    folder = RunFolder("run")
    folder.create()
    with torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary):
        # Noise has nothing to learn: in pre-training all of it soon has the same code, which would end a real run.
        job.task.collapsed = lambda parts: ""
        loop = TrainingLoop(job, job.model()[0], folder=folder)
        window.meet(loop.model)
        _time(loop, window)
        loop.run(until=window.all_steps)
    return loop.model


def write_files(work: Work, steps: int) -> None:
    """Write a model's configuration, clips and their manifest: one epoch is longer than the run.

    A clip that is in it again is another name of the same file.
    """
    Path("net.json").write_text(json.dumps(dict(work.fields)))
    Path("tokens.txt").write_text("\n".join(TOKENS) + "\n")
    rows = ["wav_filename,transcript"]
    for number, clip in enumerate(work.clips()):
        first = f"{number}-0.wav"
        soundfile.write(first, 0.1 * clip.wave, RATE, subtype="PCM_16")
        for again in range(work.repeats(steps)):
            if again:
                os.link(first, f"{number}-{again}.wav")
            rows.append(f"{number}-{again}.wav,{clip.text}")
    Path("train.csv").write_text("\n".join(rows) + "\n")


def _settings(arm: Arm, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    data = {"train": "train.csv", "workers": work.workers}
    never = 10**6
    settings: dict[str, Any] = {
        "data": data, "features": {"kind": "waves"}, "steps": never, "evaluate_every": never, "save_every": never,
        "precision": arm.precision, "schedule": "linear", "compile": "auto", **ADAM, "betas": list(ADAM["betas"]),
    }  # fmt: skip
    size = {"batch_size": work.size} if work.batch_s is None else {"batch_seconds": work.batch_s}
    if not work.is_ctc:
        crop = {"task": "wav2vec2_pretrain", "pretrain": {"crop_s": work.longest_s}, "clip": None}
        return {**settings, **size, **crop}
    data["tokens"] = "tokens.txt"
    freeze = ["wav2vec2.feature_extractor"]
    return {**settings, **size, "task": "wav2vec2_ctc", "freeze": freeze, "clip": 1.0, "lr": 1e-4}


def _time(loop: TrainingLoop, window: Window) -> None:
    """Let a window see each step of a loop."""
    step = loop._step

    def timed(stop: Any) -> Any:
        window.begin()
        pending = step(stop)
        counts = pending[2].counts
        window.end(counts.clips, counts.seconds, counts.room)
        window.flops_per_place = loop.state.flops_per_place or 0.0
        return pending

    loop._step = timed  # type: ignore[method-assign]
