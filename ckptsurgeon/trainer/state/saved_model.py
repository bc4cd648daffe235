"""Builds the model of a job with the weights that a run saved."""

from __future__ import annotations

import os

from torch import nn

from ...api.transplant.load_into import load_every_tensor
from ...destinations.hf.files import ADAPTER_WEIGHTS
from ..job.job import Job
from .lora import add_adapters, load_adapter

__all__ = ["saved_model"]


def saved_model(job: Job, weights: str) -> nn.Module:
    """Return the model of a job on its device, with the weights in the file ``weights``.

    The file has the tensors of the whole model, or only the tensors of its adapters. Adapters are added to the job's
    initial weights. Raises the errors of ``load_every_tensor`` and of ``load_adapter``.
    """
    lora, seed = job.settings.lora, job.settings.seed
    if lora.targets and os.path.basename(weights) in ADAPTER_WEIGHTS:
        model, _ = job.model()
        add_adapters(model, lora, seed=seed)
        load_adapter(model, weights)
        return model
    model = job.empty_model()
    if lora.targets:
        add_adapters(model, lora, seed=seed)
    load_every_tensor(model, weights)
    return model.to(job.device)
