"""Weights & Biases: offline in the run folder, unless the environment variable WANDB_MODE says otherwise.

https://docs.wandb.ai/ref/python/sdk/functions/init
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.imports import require_package
from ._logger import LoggedRun, Logger, Summary, scalars

__all__ = ["LOGGER"]

OFFLINE = "offline"


class WeightsAndBiases(Logger):
    """Logs a run to Weights & Biases: into the run folder, or to its server if WANDB_MODE is ``online``.

    The client of this service runs in a separate process.
    """

    package, extra = "wandb", "wandb"

    def __init__(self, run: LoggedRun) -> None:
        mode = os.environ.get("WANDB_MODE", OFFLINE)
        if mode == OFFLINE:  # otherwise the client sends its own errors to a server even offline
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = require_package(self.package, extra=self.extra)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ckptsurgeon"),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run.id or os.environ.get("WANDB_RUN_ID"),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=dict(run.config),
            # Otherwise the client would capture the output of ckptsurgeon, and print it again.
            settings=wandb.Settings(mode=mode, silent=True, console="off"),
        )
        self.id = self._run.id
        self.place = self._place(mode)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows under their steps, without the metrics of ``test``, which are logged with the summary.

        The metrics of ``test`` belong to the best model, perhaps of an earlier step, and the client refuses earlier
        steps.
        """
        for row in rows:
            if "test" not in row:
                self._run.log(scalars(row), step=row["step"])

    def finish(self, summary: Summary) -> None:
        """Log the summary and wait for the client; the run counts as failed if its exit status is not 0."""
        self._run.summary.update(dict(summary.values))
        self._run.finish(exit_code=summary.exit_code)

    def _place(self, mode: str) -> str:
        """Return the place of the log: the web address of the run, or a folder and the command that sends it.

        ``mode`` is the mode of the client, such as ``offline``.
        """
        if mode != OFFLINE:
            return self._run.url or f"nowhere, because WANDB_MODE is {mode}"
        folder = os.path.relpath(os.path.dirname(self._run.dir))
        return (
            f"{folder}, and sends nothing: wandb sync {folder} sends it later; with WANDB_MODE=online, the figures are "
            "sent during training"
        )


LOGGER = WeightsAndBiases
