"""Shows the checks of a training run on stdout, and its progress on stderr.

On a terminal, a line with the current state is updated in place. Lines with results, such as those of evaluations,
stay.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from .printing import Printer, console_of, print_to

__all__ = ["ProgressDisplay"]

DRAWN_A_SECOND = 8
SMOOTH = 0.9
"""The weight of the previous value when the time of a step is smoothed exponentially."""


class ProgressDisplay:
    """Shows the checks and the progress of a training run; ``shown`` has the phases whose checks have been shown."""

    def __init__(self, printer: Printer) -> None:
        self.shown: set[str] = set()
        self._sink = printer
        self._steps = 0
        self._last: tuple[int, float] | None = None
        self._step_s: float | None = None
        self._live: Any = None
        self._drawn = 0.0
        self._began: tuple[str, float] | None = None

    def observe(self, row: Mapping[str, Any]) -> None:
        """Show one event of a training run; ``row`` is the event as plain data."""
        from ..render.train import checks_view, dev_line, filled_line

        event = row.get("event")
        if event == "checks":
            self.close()
            self._sink.show(checks_view(row["checks"], every=self._sink.verbose))
            self.shown.add("before")
        elif event == "begin":
            self._steps = row["steps"]
        elif event == "control":
            self._control(row)
        elif event == "progress":
            self._filling(row)
        elif event == "filled":
            self._say(filled_line(row))
        elif event == "checking":
            self._checking(row)
        elif event == "test":
            self._testing(row)
        elif "test" in row:
            pass  # nothing is shown for this event
        elif "dev" in row:
            self._say(dev_line(row, self._steps))
        else:
            self._step(row)

    def _say(self, line: Any) -> None:
        if self._live is not None:
            self._live.console.print(line)
        else:
            print_to(sys.stderr, line)

    def _step(self, row: Mapping[str, Any]) -> None:
        from ..render.train import step_line

        now = time.monotonic()
        if self._last is not None and row["step"] > self._last[0]:
            took = (now - self._last[1]) / (row["step"] - self._last[0])
            self._step_s = took if self._step_s is None else SMOOTH * self._step_s + (1 - SMOOTH) * took
        self._last = (row["step"], now)
        if not sys.stderr.isatty() or now - self._drawn < 1 / DRAWN_A_SECOND:
            return
        left = self._step_s * (self._steps - row["step"]) if self._step_s is not None else None
        self._draw(step_line(row, self._steps, left))

    def _control(self, row: Mapping[str, Any]) -> None:
        """Show the result of a control run; on a terminal, show a line of progress while the run trains."""
        from ..render.train import control_line

        if row["value"] is not None:
            if self._live is not None:
                self._draw("")
            self._say(control_line(row))
        elif sys.stderr.isatty():
            self._draw(control_line(row))

    def _filling(self, row: Mapping[str, Any]) -> None:
        """On a terminal, show how much of the feature cache is filled, if filling the cache takes time."""
        from ..render.train import filling_line

        now, split = time.monotonic(), row["split"]
        if self._began is None or self._began[0] != split:
            self._began, self._drawn = (split, now), now
        if row["clips"] == row["of"]:
            self.close()
        elif sys.stderr.isatty() and now - self._drawn >= 1 / DRAWN_A_SECOND:
            left = (now - self._began[1]) / row["clips"] * (row["of"] - row["clips"]) if row["clips"] else None
            self._draw(filling_line(row, left))

    def _checking(self, row: Mapping[str, Any]) -> None:
        from ..render.train import checking_line

        if sys.stderr.isatty():
            self._draw(checking_line(row))

    def _testing(self, row: Mapping[str, Any]) -> None:
        from ..render.train import testing_line

        if sys.stderr.isatty():
            self._draw(testing_line(row))

    def _draw(self, line: Any) -> None:
        """Replace the line that shows the current state on a terminal."""
        self._drawn = time.monotonic()
        if self._live is None:
            from rich.live import Live

            self._live = Live(console=console_of(sys.stderr), transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(line, refresh=True)

    def close(self) -> None:
        """Remove the line that shows the current state on a terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
