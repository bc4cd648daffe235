"""Evaluates one model after another with a task of ``ckpt train``: the child process of ``ckpt search --task``.

The configuration and its data are read once. Requests come as lines of JSON from stdin. Answers go as lines of JSON to
a separate pipe, because the code of a task may print to stdout. The process ends at the end of stdin.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, TextIO

from ...errors import CheckpointError
from ..evaluation import evaluate_shared
from ..job.assembly import build_job
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..parallel.parallel_model import ParallelModel
from ..parallel.sharded_task import single_process_job
from ..system.compiling import lengths_vary
from ..system.device import explain_out_of_memory, torch_settings
from ..tasks._task import is_higher_better

__all__ = ["main"]

SPLITS = ("dev", "test")


def main(config: str, answers: int) -> None:
    """Evaluate each model that a line of stdin names; write the answers to the file descriptor ``answers``."""
    with os.fdopen(answers, "w", encoding="utf-8") as out:
        try:
            with _opened(config) as job:
                _answer(out, _facts(job))
                for line in sys.stdin:
                    _answer(out, _evaluated(job, json.loads(line)))
        except CheckpointError as error:
            said = {"message": error.message, "hint": error.hint, "details": list(error.details)}
            _answer(out, {"error": type(error).__name__, **said})


@contextmanager
def _opened(config: str) -> Iterator[Job]:
    """Yield the job of a configuration, which reads its data; raises the errors of ``build_job``."""
    job = single_process_job(build_job(config, cached=False))
    with ExitStack() as stack:
        stack.enter_context(torch_settings(job.settings, job.device, lengths_vary=lengths_vary(job)))
        stack.enter_context(closing(job))
        yield job


def _facts(job: Job) -> dict[str, Any]:
    """Return the facts about the task that the search needs, such as its metric and its splits, as a dict for JSON."""
    return {
        "metric": job.metric,
        "higher": sorted(getattr(job.task, "higher", None) or ()),
        "maximize": is_higher_better(job.task, job.metric),
        "splits": [name for name in SPLITS if getattr(job, name) is not None],
        "notes": list(job.notes),
    }


def _evaluated(job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"figures": the metrics of a model on a split}, or {"why": the error} if it cannot be evaluated."""
    try:
        with explain_out_of_memory(job.settings):
            model, _ = replace(job, init=read_init(request["model"])).model()
            found = evaluate_shared(
                ParallelModel(model), job.task, getattr(job, request["split"]), settings=job.settings
            )
        return {"figures": found.figures}
    except CheckpointError as error:
        return {"why": error.message}
    except Exception as error:  # the code of a task or of a network may raise anything; only this trial fails
        return {"why": f"{type(error).__name__}: {error}"}


def _answer(out: TextIO, answer: Mapping[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()
