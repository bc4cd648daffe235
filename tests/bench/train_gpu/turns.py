"""Processes that prepare together and are timed one at a time."""

from __future__ import annotations

import contextlib
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .arms import RATIOS, Ratio

__all__ = ["ArmProcess", "Prepared", "in_turns", "serve"]

Row = dict[str, Any]
READY = "ready"
PREPARING = 0.65
"""The share of the time that is left in which arms must be ready; those that are not give way to the others."""


class Prepared(Protocol):
    """An arm that prepares itself, and is then timed turn by turn."""

    def is_ready(self, seconds: float) -> bool:
        """Whether it is ready for a turn within so many seconds; raises ChildProcessError if it has failed."""

    def turn(self, seconds: float) -> Row:
        """Take a turn and return its row; raises TimeoutError, or ChildProcessError if it has failed."""

    def close(self) -> None:
        """End it."""


def in_turns(
    arms: Sequence[str], start: Callable[[str], Prepared], *, rounds: int, seconds: float, together: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:  # fmt: skip
    """Prepare ``together`` arms at once, then time them in turn, and yield each row as soon as it is known.

    Nothing else runs while an arm is timed: the others wait for their turn. A ratio is told as soon as both of its arms
    have had a turn in a round; at the end come the ratios of medians, if there are several rounds.
    """
    end = clock() + seconds
    seen: dict[str, list[Row]] = {arm: [] for arm in arms}
    for first in range(0, len(arms), together):
        group = arms[first : first + together]
        share = len(group) / (len(arms) - first)
        yield from _group(group, start, seen, rounds=rounds, end=clock() + share * (end - clock()), clock=clock)
    if rounds > 1:
        for ratio in RATIOS:
            pair = [seen.get(one.name, ()) for one in (ratio.arm, ratio.other)]
            if all(pair):
                yield {"median of": min(len(rows) for rows in pair), **_row(ratio, *pair)}


def _group(
    arms: Sequence[str], start: Callable[[str], Prepared], seen: Mapping[str, list[Row]], *, rounds: int, end: float,
    clock: Callable[[], float],
) -> Iterator[Row]:  # fmt: skip
    until = clock() + PREPARING * (end - clock())
    with contextlib.ExitStack() as processes:
        running = {arm: start(arm) for arm in arms}
        for one in running.values():
            processes.callback(one.close)
        for arm, one in list(running.items()):
            try:
                if one.is_ready(max(0.0, until - clock())):
                    continue
                yield {"arm": arm, "not measured": "was not ready in time"}
            except ChildProcessError as error:
                yield {"arm": arm, "failed": str(error)}
            running.pop(arm).close()
        for number in range(1, rounds + 1):
            for arm in [one for one in arms if one in running]:
                try:
                    found = running[arm].turn(max(0.0, end - clock()))
                except TimeoutError:
                    yield {"round": number, "arm": arm, "not measured": "the time was over"}
                    running.pop(arm).close()
                    continue
                except ChildProcessError as error:
                    yield {"round": number, "arm": arm, "failed": str(error)}
                    running.pop(arm).close()
                    continue
                seen[arm].append(found)
                yield {"round": number, **found}
                yield from ({"round": number, **row} for row in _ratios(arm, number, seen))


def _ratios(arm: str, number: int, seen: Mapping[str, list[Row]]) -> Iterator[Row]:
    """The ratios that an arm's turn completes in a round."""
    for ratio in RATIOS:
        pair = (ratio.arm.name, ratio.other.name)
        if arm in pair and all(len(seen.get(name, ())) >= number for name in pair):
            yield _row(ratio, *([seen[name][number - 1]] for name in pair))


def _row(ratio: Ratio, ours: Sequence[Row], theirs: Sequence[Row]) -> Row:
    faster, memory = (_median(ours, name) / _median(theirs, name) for name in ("audio_s_s", "peak_bytes"))
    return {"ratio": ratio.what, "faster": round(faster, 3), "aim": ratio.aim, "memory": round(memory, 3)}


def _median(rows: Sequence[Row], figure: str) -> float:
    return statistics.median(float(row[figure]) for row in rows)


class ArmProcess:
    """An arm in a process of its own, which says that it is ready, and takes a turn for each line that it is given."""

    def __init__(self, command: Sequence[str], arm: str) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name, "errors")
        command = [*command, "--folder", self._folder.name, "--arm", arm]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.strip())
        self._lines.put(None)

    def _line(self, seconds: float) -> str:
        """The next line that it printed; raises queue.Empty, or ChildProcessError if it has ended."""
        line = self._lines.get(timeout=seconds)
        if line is not None:
            return line
        code = self._process.wait()
        said = [one.strip() for one in self._errors.read_text(errors="replace").splitlines() if one.strip()]
        raise ChildProcessError(f"exit {code}: {said[-1] if said else 'nothing was said'}")

    def is_ready(self, seconds: float) -> bool:
        """See ``Prepared``."""
        try:
            while self._line(seconds) != READY:
                pass
        except queue.Empty:
            return False
        return True

    def turn(self, seconds: float) -> Row:
        """See ``Prepared``."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._line(max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if line.startswith("{"):
                return dict(json.loads(line))

    def close(self) -> None:
        """See ``Prepared``."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)  # a worker of its data, which holds the same pipe, sees within 5 s that it is alone
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._folder.cleanup()


def serve(run: Callable[[Callable[[], None], Callable[[Row], None]], Any]) -> None:
    """Be the process that ``ArmProcess`` starts: ``run`` gets what waits for a turn, and what tells of one."""

    def wait() -> None:
        print(READY, flush=True)
        if not sys.stdin.readline():
            sys.exit()

    run(wait, lambda row: print(json.dumps(row), flush=True))
