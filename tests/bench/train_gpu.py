"""Pre-training of wav2vec 2.0 by ``ckpt train``'s loop and by the one that transformers publishes, side by side.

    python -m tests.bench.train_gpu [--device cuda] [--steps 50] [--rounds 3] [--miniature] [--norm group]

The same device, model (``wav2vec2-base``), batch (16 x 10 s) and steps; float32 and bf16 of both. Each is a process of its
own, in turn, some rounds. Prints JSON lines: one for each process, then the ratios of medians. ``--miniature`` is a model
of 388 thousand parameters and 8 x 1 s, to see on a CPU that it runs: its figures say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ARMS = {"ours bf16": "bf16", "ours float32": "float32", "published bf16": "bf16", "published float32": "float32"}
RATIOS = (
    ("ours bf16", "published bf16"),
    ("ours bf16", "published float32"),
    ("ours float32", "published float32"),
)
WARM_UP = 5
"""Steps that are not measured: operations are counted in the first, and the second is compiled."""
RATE = 16_000
ADAM: Mapping[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
BASE = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForPreTraining"], "layerdrop": 0.0, "mask_time_prob": 0.65}
"""transformers' own defaults are those of wav2vec2-base, but for what is said here."""


def size_of(options: argparse.Namespace) -> tuple[dict[str, Any], int, float]:
    """The model's fields, the clips in a batch, and their seconds."""
    from tests.trainer.waves import LAYER_NORM, MINIATURE

    norm = LAYER_NORM if options.norm == "layer" else {}
    return ({**MINIATURE, **norm}, 8, 1.0) if options.miniature else ({**BASE, **norm}, 16, 10.0)


def ours(options: argparse.Namespace, precision: str) -> tuple[Callable[[int], None], Any]:
    """Ours, files and all: clips are read by workers, cut, masked, pinned; the log is written."""
    import numpy
    import soundfile
    import yaml

    from ckptsurgeon.trainer.folder.run_folder import RunFolder
    from ckptsurgeon.trainer.job.assembly import build_job
    from ckptsurgeon.trainer.loop import TrainingLoop

    fields, size, seconds = size_of(options)
    Path("net.json").write_text(json.dumps(fields))
    rows = ["wav_filename,transcript"]
    for number, wave in enumerate(waves(size, seconds)):
        soundfile.write(f"{number}.wav", 0.1 * numpy.asarray(wave), RATE, subtype="PCM_16")
        rows.append(f"{number}.wav,a")
    Path("train.csv").write_text("\n".join(rows) + "\n")
    workers = 0 if options.miniature else min(8, os.cpu_count() or 1)
    train = {
        "task": "wav2vec2_pretrain", "data": {"train": "train.csv", "workers": workers}, "features": {"kind": "waves"},
        "pretrain": {"crop_s": seconds}, "batch_size": size, "steps": 10**6, "evaluate_every": 10**6,
        "save_every": 10**6, "precision": precision, "schedule": "linear", "clip": None, **ADAM,
        "betas": list(ADAM["betas"]),
    }  # fmt: skip
    Path("pre.yaml").write_text(yaml.safe_dump({"model": {"transformers": "net.json"}, "train": train}))
    job = build_job("pre.yaml", device=options.device)
    folder = RunFolder("run")
    folder.create()
    loop = TrainingLoop(job, job.model()[0], folder=folder)
    loop.save = lambda: None  # type: ignore[method-assign]
    return lambda steps: void(loop.run(until=loop.state.progress.step + steps)), loop.model


def published(options: argparse.Namespace, precision: str) -> tuple[Callable[[int], None], Any]:
    """Theirs, from clips in memory."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    from tests.bench.published import batches, train

    fields, size, seconds = size_of(options)
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**fields)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **ADAM)
    given = batches(model, list(waves(size, seconds)), size)
    return lambda steps: void(train(model, given, steps=steps, optimizer=optimizer, bf16=precision == "bf16")), model


def waves(size: int, seconds: float) -> Iterator[Any]:
    """Noise, of mean 0 and variance 1, as clips are brought to: four batches of it."""
    import numpy

    chance = numpy.random.default_rng(0)
    for _ in range(4 * size):
        yield chance.standard_normal(round(seconds * RATE), dtype=numpy.float32)


def void(found: object) -> None:
    """What a run returns is not what is measured."""


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    import torch

    from ckptsurgeon.trainer.config.settings import Settings
    from ckptsurgeon.trainer.system.device import peak_bytes
    from ckptsurgeon.trainer.system.flops import FlopCounter, peak_flops

    torch.set_num_threads(1)
    device, precision = torch.device(options.device), ARMS[options.arm]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        steps, model = (ours if options.arm.startswith("ours") else published)(options, precision)
        with FlopCounter() as counted:
            steps(1)
        steps(WARM_UP - 1)
        synchronise(device)
        began = time.perf_counter()
        steps(options.steps)
        synchronise(device)
        step_s = (time.perf_counter() - began) / options.steps
        os.chdir("/")
    _, size, seconds = size_of(options)
    peak = peak_flops(Settings(precision=precision), device)
    return {
        "arm": options.arm, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "parameters": sum(one.numel() for one in model.parameters()), "norm": options.norm, "batch": size,
        "clip_s": seconds, "steps": options.steps, "step_ms": round(1000 * step_s, 3),
        "clips_s": round(size / step_s, 2), "audio_s_s": round(size * seconds / step_s, 1), "flops": counted.flops,
        "utilisation": None if peak is None else round(counted.flops / step_s / peak, 4), "peak_bytes": peak_bytes(device),
    }  # fmt: skip


def synchronise(device: Any) -> None:
    """Wait for what a GPU was given to do."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    """One way, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_gpu", "--arm", arm, "--device", options.device]
    command += ["--steps", str(options.steps), "--norm", options.norm, *(["--miniature"] if options.miniature else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--norm", default="group", choices=("group", "layer"), help="wav2vec2-base has group")
    parser.add_argument("--miniature", action="store_true", help="to see that it runs")
    parser.add_argument("--arm", choices=tuple(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measured(options)))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(json.dumps({"date": str(datetime.date.today()), "commit": commit, "command": sys.argv[1:]}), flush=True)
    seen: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm in ARMS:
            found = run(options, arm)
            print(json.dumps(found), flush=True)
            seen[arm].append(found["step_ms"])
    for one, other in RATIOS:
        faster = statistics.median(seen[other]) / statistics.median(seen[one])
        print(json.dumps({"what": f"{one} / {other}, steps a second", "ratio": round(faster, 2)}), flush=True)


if __name__ == "__main__":
    main()
