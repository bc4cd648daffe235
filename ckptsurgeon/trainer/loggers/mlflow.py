"""MLflow: logs to files in the run folder, or to the store in the environment variable MLFLOW_TRACKING_URI.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ..config.imports import require_package
from ._logger import LoggedRun, Logger, Summary, scalars

__all__ = ["LOGGER"]

T = TypeVar("T")

STORE = "mlruns"
METRICS, PARAMS = 1000, 100
"""How many metrics, and how many parameters or tags, MLflow accepts in one request."""
LONGEST = 5000
"""Values are cut to this many characters: MLflow refuses parameters of over 6,000 and tags of over 8,000."""


class MLflow(Logger):
    """Logs a run to MLflow: settings as parameters, the log's values as metrics, the summary as metrics and tags."""

    package, extra = "mlflow", "mlflow"

    def __init__(self, run: LoggedRun) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else MLflow sends its developers usage data
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 writes files only if this is set
        self._mlflow = require_package(self.package, extra=self.extra)
        self._entities = require_package("mlflow.entities", extra=self.extra)
        local = Path(run.folder, STORE)
        self._client = self._mlflow.MlflowClient(tracking_uri=uri or local.absolute().as_uri())
        self._logged_step = 0
        self.id = self._found(run.id) if run.id else ""
        if not self.id:
            self.id = self._begun(run)
        shown = f"{os.path.relpath(local)}; set MLFLOW_TRACKING_URI for another store"
        self.place = shown if not uri else f"the store of MLFLOW_TRACKING_URI, as run {self.id}"

    def _found(self, known: str) -> str:
        """Return ``known``, the id under which a resumed run was logged, if the store still has this run; else ''."""
        try:
            self._client.update_run(known, status="RUNNING")
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
        self._logged_step = max((one.step for one in self._client.get_metric_history(known, "loss")), default=0)
        return known

    def _begun(self, run: LoggedRun) -> str:
        """Create a run in the store and return its id.

        The environment variable MLFLOW_EXPERIMENT_NAME names the experiment of the run (default: ``ckptsurgeon``).
        """
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ckptsurgeon")
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there is not None else self._client.create_experiment(name)
        made = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        for some in _pieces(_flat(run.config), PARAMS):
            params = [self._entities.Param(_name(name), str(value)[:LONGEST]) for name, value in some]
            self._client.log_batch(made, params=params)
        return made

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows, many in one request; steps that a resumed run repeats are not logged again."""
        now = int(time.time() * 1000)
        new = (row for row in rows if row["step"] > self._logged_step or "test" in row)
        figures = ((_name(name), float(value), now, row["step"]) for row in new for name, value in scalars(row).items())
        for some in _pieces(figures, METRICS):
            self._client.log_batch(self.id, metrics=[self._entities.Metric(*one) for one in some])

    def finish(self, summary: Summary) -> None:
        """Log the numbers of the summary as metrics and its strings as tags, and end the run."""
        now, tags = int(time.time() * 1000), []
        for name, value in summary.values.items():
            if isinstance(value, str):
                tags.append(self._entities.RunTag(_name(name), value[:LONGEST]))
            else:
                self._client.log_metric(self.id, _name(name), float(value), now)
        for some in _pieces(tags, PARAMS):
            self._client.log_batch(self.id, tags=some)
        failed = "KILLED" if summary.is_stopped else "FAILED"
        self._client.set_terminated(self.id, failed if summary.exit_code else "FINISHED")


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _name(name: str) -> str:
    """Return ``name`` cut to 250 characters, with ``_`` in place of the characters that MLflow does not accept."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def _pieces(values: Iterator[T] | Sequence[T], size: int) -> Iterator[list[T]]:
    left = iter(values)
    while some := list(islice(left, size)):
        yield some


LOGGER = MLflow
