"""A process of its own that loads saved weights and says their loss: ``python -m ckptsurgeon.trainer.again``.

It reads on stdin which configuration, settings and weights, as JSON, and writes the loss of the first batch.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing

from .. import api
from .assembly import job_of
from .device import computing
from .evaluating import loss_per_item
from .source import first_batch


def main() -> None:
    """Answer what stdin asks."""
    order = json.load(sys.stdin)
    job = job_of(order["config"], sets=order["sets"], device=order["device"])
    model = job.empty_model()
    api.load_into(model, order["weights"], strict=True, on_missing="error")
    with computing(job.settings), closing(job.work):
        found = loss_per_item(
            model.to(job.device), job.work.task, [first_batch(job.work.train, job.settings.seed)], settings=job.settings
        )
    sys.stdout.write(f"{found!r}\n")


if __name__ == "__main__":
    main()
