"""Compiles the task's loss with torch.compile, and decides which of the runs that may be compiled are.

The task's loss (a function of a model and a batch) is compiled, and not the model. So code that saves, evaluates or
checks the model sees its original modules and keys. With several processes, and for tasks with ``by_blocks``, each
block of the model is compiled separately; the compiled blocks are in the model only while a loss is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ...errors import ConfigError
from ..data.loader import Batches
from ..job.job import Job
from ..tasks._task import Batch, Loss
from .gradient_checkpointing import blocks_of

__all__ = ["LossFunction", "compile_notes", "compiled_loss", "has_one_shape"]

BACKEND = "inductor"
"""torch's own compiler: C++ on a CPU, Triton on a GPU."""

LossFunction = Callable[[nn.Module, Batch], Loss]
"""A function that returns the loss of a batch: a task's method ``loss``, compiled or not."""


def compiled_loss(job: Job, model: nn.Module) -> LossFunction | None:
    """Return the loss function of a job that ``may_compile``, compiled; None if the run is not compiled.

    With ``compile: auto``, a run is compiled if all batches have the same shape. For tasks with
    ``by_blocks``, it is enough that all clips have the same length. torch first compiles for one shape; when a second
    shape occurs, it compiles once more, for all sizes. Raises ConfigError if ``compile: on`` is set and the run cannot
    be compiled.
    """
    if not _is_wanted(job):
        return None
    # Graphs of earlier runs do not fit a new model (weight norm makes new classes of modules), but torch counts them:
    # after eight graphs of a function, torch runs it uncompiled.
    torch.compiler.reset()
    compiled = partial(torch.compile, dynamic=False if has_one_shape(job) else None, backend=BACKEND)
    if job.ranks.size == 1 and not getattr(job.task, "by_blocks", False):
        return cast(LossFunction, compiled(job.task.loss))
    found = _loss_of_compiled_blocks(job.task.loss, model, compiled)
    if found is None and job.settings.compile == "on":
        raise ConfigError(
            "train.compile: the model must be compiled block by block, but no blocks were found in it.",
            hint="Put the layers of the model into an nn.ModuleList or an nn.Sequential, list the modules or methods "
            "to compile in an attribute `stages` of the model, or pass --set compile=off.",
        )
    return found


def _loss_of_compiled_blocks(loss: LossFunction, model: nn.Module, compiled: Any) -> LossFunction | None:
    """Return a loss function in which each block of the model is compiled separately; None if there are no blocks.

    ``compiled`` returns the compiled form of a function, as torch.compile does. DDP sums the gradients of a block while
    the backward pass continues, and FSDP gathers the parameters of a block right before the block runs. A single graph
    of the whole step would prevent both (https://github.com/pytorch/torchtitan compiles blocks, too).
    """
    blocks = [
        (owner, method, compiled(getattr(owner, method)))
        for owner, method in blocks_of(model).values()
        if not isinstance(owner, nn.RNNBase)  # these run torch's own kernels
    ]

    def computed(model: nn.Module, batch: Batch) -> Loss:
        plain = [(owner, method, vars(owner).get(method)) for owner, method, _ in blocks]
        try:
            for owner, method, function in blocks:
                setattr(owner, method, function)
            # torch's optimisation for DDP, which cuts graphs at DDP's buckets, fails with checkpointed blocks.
            with torch._dynamo.config.patch(optimize_ddp=False):
                return loss(model, batch)
        finally:
            for owner, method, before in plain:
                if before is None:
                    delattr(owner, method)
                else:
                    setattr(owner, method, before)

    return computed if blocks else None


def _is_wanted(job: Job) -> bool:
    if job.settings.compile == "on" or not job.may_compile:
        return job.settings.compile == "on"
    of_equal_clips = getattr(job.task, "by_blocks", False) and not job.lengths_vary  # label lengths do not matter
    return (has_one_shape(job) or of_equal_clips) and _can_compile()


def _can_compile() -> bool:
    """Return whether this torch can compile models of transformers: they call a function that is new in torch 2.7."""
    return hasattr(torch.compiler, "is_exporting")


def has_one_shape(job: Job) -> bool:
    """Return whether all batches certainly have the same shape; only the last of an epoch may have fewer clips."""
    return len(_lengths(job)) == 1


def compile_notes(job: Job) -> list[str]:
    """Return a list with a note if a job that ``may_compile`` is not compiled; the note has the reason."""
    lengths = _lengths(job)
    if job.settings.compile != "auto" or not lengths:
        return []
    if len(lengths) == 1:
        old = f"not compiled: this needs torch 2.7 or newer, and this is torch {torch.__version__}"
        return [] if _can_compile() else [old]
    return [
        f"not compiled: crops last {min(lengths):g} to {max(lengths):g} s. Batches have one shape, and are compiled, "
        "if train.pretrain.crop_s is set and train.data.min_s is not below it"
    ]


def _lengths(job: Job) -> set[float]:
    """Return the set of clip lengths in seconds; empty if the shapes of batches do not depend only on these lengths."""
    train = job.train
    if not getattr(job.task, "static", False) or not isinstance(train, Batches):
        return set()
    return set(train.split.lengths)
