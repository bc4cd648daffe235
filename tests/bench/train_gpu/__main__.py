"""Training of wav2vec 2.0 by ``ckpt train``'s loop, by the ones that transformers publishes, and by a strong one, side by side.

    python -m tests.bench.train_gpu [--device cuda] [--minutes 9] [--rounds 3] [--steps 100] [--works pretrain,ctc]
    python -m tests.bench.train_gpu --device cpu --tiny     # to see that it runs

``wav2vec2-base`` with layer norm, as the published script wants it, in three works: pre-training on 16 crops of 10 s; fine-tuning
with CTC on 16 clips of 10 s; fine-tuning on clips of 1 to 15 s (ours: 160 s in a batch; theirs: 16 clips of like length). Each
arm is a process of its own, in turn, the most important first; no checkpoint is saved in the steps that are timed, and no epoch
ends. Prints JSON lines as soon as they are known: one for each process, one for each ratio (seconds of audio in a second), and
at the end of several rounds the ratios of medians. What no time is left for is named, and not begun.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .arms import ARMS, RATIOS, Ratio

Row = dict[str, Any]
Measure = Callable[[str, float], Row]
"""Measures an arm in so many seconds; raises subprocess.TimeoutExpired."""
WORKS = ("pretrain", "ctc", "lengths")
START_S = 20.0
"""Nothing is begun with less time than this: so long it takes to import torch and to make a model and its clips."""


def in_rounds(
    arms: Sequence[str], measure: Measure, *, rounds: int, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Row]:
    """Measure arms in turn and yield each row, and each ratio as soon as both of its arms have run in a round."""
    end = clock() + seconds
    seen: dict[str, list[Row]] = {arm: [] for arm in arms}
    for number in range(1, rounds + 1):
        now: dict[str, Row] = {}
        for place, arm in enumerate(arms):
            left = end - clock()
            try:
                found = measure(arm, left) if left >= START_S else None
            except subprocess.TimeoutExpired:
                found = None
            if found is None:
                yield {"round": number, "not measured": list(arms[place:]), "why": f"{seconds / 60:g} minutes are over"}
                break
            now[arm] = found
            seen[arm].append(found)
            yield {"round": number, **found}
            yield from ({"round": number, **row} for row in ratios(arm, {name: [one] for name, one in now.items()}))
    if rounds > 1:
        yield from medians(seen)


def ratios(arm: str, seen: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """The ratios that an arm completes, of medians over what was seen of both arms."""
    for ratio in RATIOS:
        pair = (ratio.arm.name, ratio.other.name)
        if arm in pair and all(seen.get(name) for name in pair):
            yield _row(ratio, *(seen[name] for name in pair))


def _row(ratio: Ratio, ours: Sequence[Row], theirs: Sequence[Row]) -> Row:
    faster = _median(ours, "audio_s_s") / _median(theirs, "audio_s_s")
    memory = _median(ours, "peak_bytes") / _median(theirs, "peak_bytes")
    return {"ratio": ratio.what, "faster": round(faster, 3), "aim": ratio.aim, "memory": round(memory, 3)}


def _median(rows: Sequence[Row], figure: str) -> float:
    return statistics.median(float(row[figure]) for row in rows)


def medians(seen: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """The ratios of medians over all rounds."""
    for ratio in RATIOS:
        pair = [seen.get(one.name, ()) for one in (ratio.arm, ratio.other)]
        if all(pair):
            yield {"median of": min(len(rows) for rows in pair), **_row(ratio, *pair)}


def in_a_process(options: argparse.Namespace) -> Measure:
    """Measure an arm in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.train_gpu", "--device", options.device]
    command += ["--steps", str(options.steps), "--backend", options.backend, *(["--tiny"] if options.tiny else [])]

    def run(arm: str, seconds: float) -> Row:
        done = subprocess.run([*command, "--arm", arm], stdout=subprocess.PIPE, text=True, check=True, timeout=seconds)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    return run


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="after so long nothing more is begun or waited for")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--steps", type=int, default=100, help="that are timed")
    parser.add_argument("--works", default=",".join(WORKS), help="those that are wanted, with commas")
    parser.add_argument("--tiny", action="store_true", help="a model of 0.4 million parameters: to see that it runs")
    parser.add_argument("--backend", default="inductor", help="what compiles the strong loop")
    parser.add_argument("--arm", choices=tuple(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    options.works = options.works.split(",")
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"there is no work {', '.join(sorted(unknown))}: {', '.join(WORKS)}")
    return options


def commit() -> str:
    """The commit of this tree; '' if it came without its repository."""
    with contextlib.suppress(OSError):
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        return done.stdout.strip()
    return ""


def main() -> None:
    options = parsed()
    if options.arm:
        from .measure import measure

        print(json.dumps(measure(options.arm, options)))
        return
    made = {"date": str(datetime.date.today()), "commit": commit(), "python": platform.python_version()}
    print(json.dumps({**made, "command": sys.argv[1:]}), flush=True)
    arms = [name for name, arm in ARMS.items() if arm.work in options.works]
    for row in in_rounds(arms, in_a_process(options), rounds=options.rounds, seconds=60 * options.minutes):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
