"""Loads saved weights in a process of its own and says their loss.

It is run as ``python -m ckptsurgeon.trainer.checks._reload_check``, reads on stdin which configuration, settings and
weights, as JSON, and writes a line for each of the weights: the loss of the first batch, or over ``dev``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from ...api.transplant.load_into import load_into
from ..job.assembly import build_job, with_one_batch
from ..job.job import Job
from ..job.source import first_batch
from ..loop.evaluating import evaluate, loss_per_item
from ..system.device import torch_settings

__all__ = ["LOSS_PREFIX", "main"]

LOSS_PREFIX = "loss of what was saved: "
"""Begins its lines: a task may print others."""


def main() -> None:
    """Answer what stdin asks."""
    order = json.load(sys.stdin)
    job = build_job(order["config"], sets=order["sets"], device=order["device"])
    with torch_settings(job.settings), closing(job.work):
        if order["overfitting"]:
            job = with_one_batch(job)
        for saved in order["saved"]:
            sys.stdout.write(f"\n{LOSS_PREFIX}{_loss(job, saved)!r}\n")
            sys.stdout.flush()


def _loss(job: Job, saved: Mapping[str, Any]) -> float:
    work, settings = job.work, job.settings
    model = job.empty_model()
    load_into(model, saved["weights"], strict=True, on_missing="error")
    model.to(job.device)
    if saved["dev"]:
        assert work.dev is not None
        return evaluate(model, work.task, work.dev.read(0, 0), settings=settings)["loss"]
    return loss_per_item(model, work.task, [first_batch(work.train, settings.seed)], settings=settings)


if __name__ == "__main__":
    main()
