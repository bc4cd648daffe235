"""Training of wav2vec 2.0 by ``ckpt train``'s loop, by the ones that transformers publishes, and by a strong one, side by side.

    python -m tests.bench.train_gpu [--device cuda] [--minutes 9] [--rounds 3] [--steps 60] [--works pretrain,ctc]
    python -m tests.bench.train_gpu --device cpu --tiny     # to see that it runs

``wav2vec2-base`` with layer norm, as the published script wants it, in three works: pre-training on 16 crops of 10 s; fine-tuning
with CTC on 16 clips of 10 s; fine-tuning on clips of 1 to 15 s (ours: 160 s in a batch; theirs: 16 clips of like length). Each
arm is a process of its own. Arms prepare together (models, workers, compiling), as many as fit into the GPU; then each is timed
while the others wait, round by round, after the steps that use up what was read ahead. No checkpoint is saved in the steps that
are timed, and no epoch ends. Prints JSON lines as soon as they are known: one for each turn, one for each ratio (seconds of
audio in a second), and at the end of several rounds the ratios of medians. What no time is left for is named.

``--also 'ctc ours bf16 compile=on'`` adds arms that train with other settings than the bench's; they have no ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from .arms import ARMS, arm_of
from .turns import ArmProcess, in_turns, serve

WORKS = ("pretrain", "ctc", "lengths")
ROOM = 10 * 2**30
"""The memory of a GPU that an arm takes at most, in bytes."""


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="after so long nothing more is begun or waited for")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each arm has")
    parser.add_argument("--steps", type=int, default=60, help="that are timed in a turn")
    parser.add_argument("--works", default=",".join(WORKS), help="those that are wanted, with commas")
    parser.add_argument("--precisions", default="bf16,float32,tf32", help="those that are wanted, with commas")
    parser.add_argument("--also", action="append", default=[], metavar="ARM", help="an arm with other settings")
    parser.add_argument("--together", type=int, help="arms that prepare at once; as many as the GPU has room for")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.4 million parameters: to see that it runs")
    parser.add_argument("--backend", default="inductor", help="what compiles the strong loop")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    options.works, options.precisions = options.works.split(","), options.precisions.split(",")
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"there is no work {', '.join(sorted(unknown))}: {', '.join(WORKS)}")
    for name in filter(None, (*options.also, options.arm)):
        try:
            arm_of(name)
        except ValueError as error:
            parser.error(str(error))
    return options


def commit() -> str:
    """The commit of this tree; '' if it came without its repository."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        return done.stdout.strip()
    return ""


def room_for(device: str) -> int:
    """How many arms a device has room for."""
    if device != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.get_device_properties(0).total_memory // ROOM)


def main() -> None:
    options = parsed()
    if options.arm:
        from .measure import measure

        serve(lambda wait, tell: measure(options.arm, options, turns=options.rounds, wait=wait, tell=tell))
        return
    made = {"date": str(datetime.date.today()), "commit": commit(), "python": platform.python_version()}
    print(json.dumps({**made, "command": sys.argv[1:]}), flush=True)
    wanted = [arm for arm in ARMS.values() if arm.work in options.works and arm.precision in options.precisions]
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_gpu", "--device", options.device]
    command += ["--steps", str(options.steps), "--rounds", str(options.rounds), "--backend", options.backend]
    start = partial(ArmProcess, [*command, *(["--tiny"] if options.tiny else [])])
    arms = [*(arm.name for arm in wanted), *(arm_of(name).name for name in options.also)]
    together = options.together or room_for(options.device)
    rows = in_turns(arms, start, rounds=options.rounds, seconds=60 * options.minutes, together=together)
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
