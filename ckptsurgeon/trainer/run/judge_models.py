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

import torch

from ...api.transplant.load_into import load_every_tensor
from ...errors import CheckpointError, PlanError
from ...util.text import escape
from ..data.source import OneBatch, first_batch
from ..evaluation import evaluate_shared
from ..job.assembly import build_job
from ..job.init_checkpoint import read_init
from ..job.job import Job
from ..parallel.ranks import ParallelModel
from ..parallel.sharded_task import single_process_job
from ..system.device import explain_out_of_memory, torch_settings
from ..tasks._task import is_higher_better

__all__ = ["main"]

SPLITS = ("dev", "test")


def main(config: str, answers: int) -> None:
    """Answer each request, a line of stdin; write the answers to the file descriptor ``answers``."""
    with os.fdopen(answers, "w", encoding="utf-8") as out:
        try:
            with _opened(config) as job:
                _answer(out, _facts(job))
                for line in sys.stdin:
                    _answer(out, _answered(job, json.loads(line)))
        except CheckpointError as error:
            said = {"message": error.message, "hint": error.hint, "details": list(error.details)}
            _answer(out, {"error": type(error).__name__, **said})


@contextmanager
def _opened(config: str) -> Iterator[Job]:
    """Yield the job of a configuration, which reads its data; raises the errors of ``build_job``."""
    job = single_process_job(build_job(config, cached=False))
    with ExitStack() as stack:
        stack.enter_context(torch_settings(job.settings, job.device, lengths_vary=job.lengths_vary))
        stack.enter_context(closing(job))
        yield job


def _facts(job: Job) -> dict[str, Any]:
    """Return the facts about the task that the search needs, such as its metric and its splits, as a dict for JSON."""
    return {
        "metric": job.metric,
        "higher": sorted(getattr(job.task, "higher", None) or ()),
        "known": sorted({job.task.metric, *(getattr(job.task, "higher", None) or ())}),
        "maximize": is_higher_better(job.task, job.metric),
        "splits": [name for name in SPLITS if getattr(job, name) is not None],
        "notes": list(job.notes),
    }


def _answered(job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
    if "tensors" in request:
        return _fit(job, request)
    return _names(job, request) if "metric" in request else _evaluated(job, request)


def _fit(job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"unfit": the reason, "details": …} if given tensors do not fit the network; else {}.

    The entry ``tensors`` of the request lists ``[key, dtype, shape]`` of each tensor.
    """
    try:
        tensors = {
            key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for key, dtype, shape in request["tensors"]
        }
        load_every_tensor(job.empty_model(), tensors)
    except PlanError as error:
        why, *details = (one.replace("<dict>", "these models") for one in (error.message, *error.details))
        return {"unfit": f"the merged models do not fit {escape(job.document.name)}: {why}", "details": details}
    except Exception:  # such as a dtype that torch lacks; the first trial reports it
        return {}
    return {}


def _names(job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"names": names of the figures that the task computes on a split}, found out with an untrained model.

    If the first batch already has the figure ``metric`` of the request, the other batches are not evaluated. Returns
    {"why": the error} if the task cannot evaluate an untrained model.
    """
    try:
        with explain_out_of_memory(job.settings, evaluates=True):
            model, source = ParallelModel(job.empty_model().to(job.device)), getattr(job, request["split"])
            for batches in (OneBatch(first_batch(source, 0)), source):
                found = evaluate_shared(model, job.task, batches, settings=job.settings).figures
                if request["metric"] in found:
                    break
        return {"names": list(found)}
    except Exception as error:  # the task may need a trained model
        return {"why": f"{type(error).__name__}: {error}"}


def _evaluated(job: Job, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"figures": the metrics of a model on a split}, or {"why": the error} if it cannot be evaluated."""
    try:
        with explain_out_of_memory(job.settings, evaluates=True):
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
