"""A process of its own that loads saved weights and says their loss: ``python -m ckptsurgeon.trainer.again``.

It reads on stdin which configuration, settings and weights, as JSON, and writes a line for each of the weights: the
loss of the first batch, or over ``dev``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from .. import api
from .assembly import job_of, with_one_batch
from .device import computing
from .evaluating import evaluate, loss_per_item
from .job import Job
from .source import first_batch

__all__ = ["MARK", "main"]

MARK = "loss of what was saved: "
"""Begins its lines: a task may print others."""


def main() -> None:
    """Answer what stdin asks."""
    order = json.load(sys.stdin)
    job = job_of(order["config"], sets=order["sets"], device=order["device"])
    with computing(job.settings), closing(job.work):
        if order["overfitting"]:
            job = with_one_batch(job)
        for saved in order["saved"]:
            sys.stdout.write(f"\n{MARK}{_loss(job, saved)!r}\n")
            sys.stdout.flush()


def _loss(job: Job, saved: Mapping[str, Any]) -> float:
    work, settings = job.work, job.settings
    model = job.empty_model()
    api.load_into(model, saved["weights"], strict=True, on_missing="error")
    model.to(job.device)
    if saved["dev"]:
        assert work.dev is not None
        return evaluate(model, work.task, work.dev.read(0, 0), settings=settings)["loss"]
    return loss_per_item(model, work.task, [first_batch(work.train, settings.seed)], settings=settings)


if __name__ == "__main__":
    main()
