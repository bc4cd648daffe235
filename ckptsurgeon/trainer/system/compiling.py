"""torch.compile: which runs are compiled, and what is said where that cannot be done.

What is compiled is the task's loss, a function of a model and a batch. The model stays what it is: whatever saves,
evaluates and checks it sees its own modules, and its tensors under their own names.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn

from ...errors import CheckpointError, ConfigError
from ...util.text import escape
from ..config.settings import Settings
from ..data.loader import Batches
from ..job.job import Job
from ..tasks._task import Batch, Loss

__all__ = ["LossFunction", "compile_notes", "compiled_loss", "explain_compile_errors", "has_one_shape"]

BACKEND = "inductor"
"""torch's own compiler: C++ on a CPU, Triton on a GPU."""

LossFunction = Callable[[nn.Module, Batch], Loss]
"""The loss of a batch: a task's method, or what was compiled of it."""


def compiled_loss(job: Job) -> LossFunction | None:
    """Return the task's loss compiled, None where the run is not: ``auto`` is a GPU and batches of one shape.

    Several processes train uncompiled: gradients are added up while the backward pass is under way, and compiled it is
    one piece.

    Batches of one shape are compiled for it and nothing else; others once more, for all sizes, at the second one.
    """
    one_shape = has_one_shape(job)
    if not _is_asked(job) or job.ranks.size > 1:
        return None
    # What was compiled for another run fits no other model, where modules have classes of their own (weight norm), but
    # it is counted: after eight, torch runs a function as it is.
    torch.compiler.reset()
    return cast(LossFunction, torch.compile(job.task.loss, dynamic=False if one_shape else None, backend=BACKEND))


def _is_asked(job: Job) -> bool:
    if job.settings.compile == "auto":
        return job.device.type == "cuda" and has_one_shape(job)
    return job.settings.compile == "on"


def has_one_shape(job: Job) -> bool:
    """Whether all batches are of one shape, but for the last of an epoch, which may have fewer clips."""
    return len(_lengths(job)) == 1


def compile_notes(job: Job) -> list[str]:
    """Return a note on what is not compiled and might be: where clips are shorter than crops, in several processes."""
    lengths = _lengths(job)
    if job.ranks.size > 1 and _is_asked(job):
        return ["not compiled: several processes train together"]
    if job.settings.compile != "auto" or job.device.type != "cuda" or len(lengths) < 2:
        return []
    return [
        f"not compiled: what is heard of the clips lasts {min(lengths):g} to {max(lengths):g} s; with a "
        "train.pretrain.crop_s, and train.data.min_s no shorter, batches have one shape, and are compiled"
    ]


def _lengths(job: Job) -> set[float]:
    """Return how long clips are, in seconds, where the shapes of a task's batches follow from that alone."""
    train = job.train
    if not getattr(job.task, "static", False) or not isinstance(train, Batches):
        return set()
    return set(train.split.lengths)


@contextmanager
def explain_compile_errors(settings: Settings) -> Iterator[None]:
    """Raise ConfigError where something in the block cannot be compiled, a missing compiler too."""
    try:
        with warnings.catch_warnings():
            # Of functions in transformers that say what is installed, which is known before; and of torch's own.
            warnings.filterwarnings("ignore", "Dynamo detected a call to a .functools.lru_cache")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
            yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if settings.compile == "off" or not _is_of_compiler(error):
            raise
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"the task {escape(settings.task)} cannot be compiled with this model here: {escape(why.strip(), 300)}.",
            hint="--set compile=off trains as it is. CKPT_DEBUG=1 shows where it happened.",
        ) from error


def _is_of_compiler(error: Exception) -> bool:
    """Whether an error is torch.compile's own: what goes wrong in a backward pass keeps its class."""
    if any(one.__module__.startswith(("torch._dynamo", "torch._inductor")) for one in type(error).__mro__):
        return True
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__", "")).startswith("torch._inductor") for frame, _ in frames)
