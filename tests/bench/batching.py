"""Batches by seconds against batches by clips, on speech of 1 to 15 s: how much is padding, and clips in a second."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator

from .harness import Row, python

__all__ = ["batching"]

ARMS = {"as listed": ("batch_size=16",), "by clips": ("batch_size=16",), "by seconds": ("batch_seconds=122",)}
"""Batches of 16 clips as a manifest lists them, as a plain DataLoader makes them; of 16 clips of like length; by seconds."""

EPOCH = """
import os, random, sys, tempfile, time
import numpy, soundfile, torch, yaml
os.chdir(tempfile.mkdtemp(dir={folder!r}))
chance = random.Random(0)
rows = ["wav_filename,transcript"]
for number in range({clips}):
    noise = numpy.random.default_rng(number).standard_normal(int(16_000 * chance.uniform(1, 15)), dtype="float32")
    soundfile.write(f"{{number}}.wav", noise / 10, 16_000)
    rows.append(f"{{number}}.wav,speech")
open("train.csv", "w").write("\\n".join(rows) + "\\n")
open("tokens.txt", "w").write("\\n".join(["<pad>", "|", *"abcdefghijklmnopqrstuvwxyz"]) + "\\n")
from transformers import Wav2Vec2Config
Wav2Vec2Config(
    hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, conv_dim=[16] * 7,
    num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8, vocab_size=28, apply_spec_augment=False,
).save_pretrained("model")
yaml.safe_dump({{
    "model": {{"transformers": "model/config.json", "architecture": "Wav2Vec2ForCTC"}},
    "train": {{
        "task": "wav2vec2_ctc", "epochs": 1, "warmup": 0, "features": {{"kind": "waves"}}, "evaluate_every": 999,
        "data": {{"train": "train.csv", "tokens": "tokens.txt"}},
    }},
}}, open("train.yaml", "w"))
from ckptsurgeon.trainer.data.loader import Batches
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.loop import TrainingLoop
if {listed}:
    Batches.order = lambda self, seed, epoch: [list(range({clips}))[at : at + 16] for at in range(0, {clips}, 16)]
job = build_job("train.yaml", sets={sets!r}, device="cpu")
seen = []
loop = TrainingLoop(job, job.model()[0], observer=lambda row: seen.append((time.process_time(), row["clips"])))
loop.run()
(began, _), (ended, _) = seen[0], seen[-1]
room = [len(batch) * max(job.train.split.lengths[at] for at in batch) for batch in job.train.order(0, 0)]
print(job.train.padding(), max(room), sum(clips for _, clips in seen[1:]) / (ended - began), file=sys.stderr)
"""


def _epoch(arm: str, folder: str, clips: int) -> list[float]:
    """Return the share of padding of an epoch, the seconds of its largest batch, and its clips in a second."""
    code = EPOCH.format(folder=folder, clips=clips, sets=ARMS[arm], listed=arm == "as listed")
    done = subprocess.run(python(code), cwd=folder, capture_output=True, text=True, check=True)
    return [float(one) for one in done.stderr.strip().splitlines()[-1].split()]


def batching(folder: str, number: int, clips: int = 256) -> Iterator[Row]:
    """An epoch of a small wav2vec 2.0 with CTC, by each kind of batches, in turn; in seconds of the CPU, one thread."""
    found: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for _ in range(number):
        for arm, seen in found.items():
            seen.append(_epoch(arm, folder, clips))
    medians = {arm: [statistics.median(one) for one in zip(*seen, strict=True)] for arm, seen in found.items()}
    padding, room, rate = medians["by seconds"]
    listed = medians["as listed"]
    yield Row(
        "padding of batches of 122 s / of 16 clips as listed", padding / listed[0], 0.5,
        seen=f"{100 * padding:.1f} % / {100 * listed[0]:.1f} %",
    )  # fmt: skip
    for other, rate_bound in (("as listed", 1 / 1.3), ("by clips", 1.1)):
        theirs = medians[other]
        what = "16 clips as listed" if other == "as listed" else "16 clips of like length"
        yield Row(
            f"largest batch of 122 s / of {what}", room / theirs[1], 0.6,
            seen=f"{room:.0f} s / {theirs[1]:.0f} s, of which padding {100 * padding:.1f} % / {100 * theirs[0]:.1f} % in all",
        )  # fmt: skip
        yield Row(
            f"time of a clip in batches of 122 s / of {what}", theirs[2] / rate, rate_bound,
            seen=f"{rate:.2f} / {theirs[2]:.2f} clips a CPU second",
        )  # fmt: skip
